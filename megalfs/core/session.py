"""What this node knows about one connected peer of one swarm."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.effects import PeerId
from megalfs.core.meter import Meter
from megalfs.core.topology import Tier

__all__ = ["ALL", "GRANTS", "NODE", "NOTHING", "SOME", "Flight", "PeerKind", "Promise", "Session", "Shows"]

CANCELLED_MAX = 32  # runs a peer may still be sending after we changed our mind


class PeerKind(Enum):
    """Who the other side is."""

    NODE = "node"
    ORIGIN = "origin"  # a plain HTTP server: holds everything, hears no messages, costs most


class Shows(Enum):
    """What a peer has let us know of its pieces."""

    NOTHING = "nothing yet"
    SOME = "some pieces"
    ALL = "every piece"
    GRANTS = "every piece, but it chooses what to send"


# The scheduler compares with these hundreds of thousands of times a second at 3 GB/s: Python 3.11 finds a global
# in 0.01 us, where a member of an Enum goes through a property and takes 0.17.
NODE: Final = PeerKind.NODE
NOTHING: Final = Shows.NOTHING
SOME: Final = Shows.SOME
ALL: Final = Shows.ALL
GRANTS: Final = Shows.GRANTS


class Flight:
    """A run on its way from one peer."""

    def __init__(
        self, run: Run, asked_at: float, *, is_granted: bool, remaining: list[Run], has_begun: bool = False
    ) -> None:
        self.run = run
        self.asked_at = asked_at
        self.is_granted = is_granted
        self.remaining = remaining
        """What of it is neither verified nor given up."""
        self.has_begun = has_begun
        self.recalled_for: PeerId | None = None
        """The idle peer that gets it if the one that was asked says that it has not begun."""


class Promise:
    """A run that a peer will soon hold, it says; not believed for ever."""

    def __init__(self, session: Session, until: float, left: list[Run]) -> None:
        self.session = session
        self.until = until
        self.left = left
        """What it does not hold yet."""


class Session:
    """One peer: what it holds, what we expect from it, what it may expect from us."""

    def __init__(
        self,
        peer: PeerId,
        kind: PeerKind,
        tier: Tier,
        instance: bytes,
        *,
        down: Meter,
        up: Meter,
        touched_at: float,
    ) -> None:
        self.peer = peer
        self.kind = kind
        self.tier = tier
        self.instance = instance
        self.down = down
        self.up = up
        self.touched_at = touched_at
        self.shows = NOTHING
        self.holds: Bitfield | None = None
        """Set while `shows` is SOME."""

        self.promises: list[Promise] = []
        """What it expects from a dear source, and will then hold."""
        self.broken_promises = 0

        # -- what we fetch from it
        self.flights: list[Flight] = []
        self.room = 1
        """How many flights it should have, when it was last fed."""
        self.cancelled: deque[Run] = deque(maxlen=CANCELLED_MAX)
        self.credit_given = 0
        self.late_grants = 0
        """Runs it may still send on credit that has ended since."""
        self.paused_until: float | None = None
        self.snubs = 0
        self.recalls = 0
        """Runs that were taken back from it since it last sent anything: they do not make it less silent."""
        self.failures = 0
        self.delay_s: float | None = None
        """From asking to the first byte, at best."""
        self.delay_mean_s = 0.0
        self.last_end = 0
        """Where the last run asked of it ended: an origin is read on from there."""

        # -- what it fetches from us
        self.credit = 0
        self.granted = 0
        """Bytes that were granted to it, or to those whose turn it was before it came: who has least is next."""
        self.unspread: dict[int, float] = {}
        """The runs granted to it that nobody else has, by number, and when each was sent; the oldest first."""

        # -- accounts
        self.strikes = 0
        self.ban_reason: str | None = None
        self.wasted_bytes = 0
        self.rejected = 0
        self.unsigned_bytes = 0
        """Bytes reported by `progressed` since the last sign of life."""

    @property
    def is_leecher(self) -> bool:
        """Whether it is known to lack something."""
        return self.shows is SOME

    @property
    def is_paused(self) -> bool:
        """Whether it is not to be asked for now: snubbed, or its last fetch failed."""
        return self.paused_until is not None

    @property
    def can_be_asked(self) -> bool:
        """Whether a run may be requested of it at all."""
        return self.paused_until is None and (self.shows is SOME or self.shows is ALL)

    def holds_all(self, run: Run) -> bool:
        """Whether it can be asked for the whole run."""
        if self.holds is not None:
            return self.holds.has_all(run.first, run.count)
        return self.shows is ALL

    def flight_around(self, run: Run) -> Flight | None:
        """The flight that this run is all or part of."""
        for flight in self.flights:
            if flight.run.covers(run):
                return flight
        return None

    def has_cancelled(self, run: Run) -> bool:
        """Whether the run was lately asked of it, and cancelled."""
        return any(cancelled.covers(run) for cancelled in self.cancelled)

    def end_credit(self) -> None:
        """The rules change: what it sends on the credit it had is late, not wrong."""
        self.late_grants, self.credit_given = self.credit_given, 0
