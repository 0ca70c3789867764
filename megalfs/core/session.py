"""What this node knows about one connected peer of one swarm."""

from __future__ import annotations

from collections import deque
from enum import Enum

from msgspec import Struct, field

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.effects import PeerId
from megalfs.core.meter import Meter
from megalfs.core.topology import Tier

__all__ = ["Flight", "PeerKind", "Promise", "Session", "Shows"]

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


class Flight(Struct, eq=False):
    """A run on its way from one peer: `remaining` is what of it is neither verified nor given up."""

    run: Run
    asked_at: float
    is_granted: bool
    remaining: list[Run]
    has_begun: bool = False
    recalled_for: PeerId | None = None
    """The idle peer that gets it if the one that was asked says that it has not begun."""


class Promise(Struct, eq=False):
    """A run that a peer will soon hold, it says; not believed for ever. `left` is what it does not hold yet."""

    session: Session
    until: float
    left: list[Run]


class Session(Struct, eq=False):
    """One peer: what it holds, what we expect from it, what it may expect from us."""

    peer: PeerId
    kind: PeerKind
    tier: Tier
    instance: bytes
    down: Meter
    up: Meter
    touched_at: float
    shows: Shows = Shows.NOTHING
    holds: Bitfield | None = None
    """Set while `shows` is SOME."""

    promises: list[Promise] = field(default_factory=list)
    """What it expects from a dear source, and will then hold."""
    broken_promises: int = 0

    # -- what we fetch from it
    flights: list[Flight] = field(default_factory=list)
    room: int = 1
    """How many flights it should have, when it was last fed."""
    cancelled: deque[Run] = field(default_factory=lambda: deque(maxlen=CANCELLED_MAX))
    credit_given: int = 0
    late_grants: int = 0
    """Runs it may still send on credit that has ended since."""
    paused_until: float | None = None
    snubs: int = 0
    recalls: int = 0
    """Runs that were taken back from it since it last sent anything: they do not make it less silent."""
    failures: int = 0
    delay_s: float | None = None
    last_end: int = 0
    """Where the last run asked of it ended: an origin is read on from there."""

    # -- what it fetches from us
    credit: int = 0
    granted_at: float = -1.0
    unspread: int = 0

    # -- accounts
    strikes: int = 0
    ban_reason: str | None = None
    wasted_bytes: int = 0
    rejected: int = 0
    unsigned_bytes: int = 0
    """Bytes reported by `progressed` since the last sign of life."""

    @property
    def is_leecher(self) -> bool:
        """Whether it is known to lack something."""
        return self.shows is Shows.SOME

    @property
    def is_paused(self) -> bool:
        """Whether it is not to be asked for now: snubbed, or its last fetch failed."""
        return self.paused_until is not None

    @property
    def can_be_asked(self) -> bool:
        """Whether a run may be requested of it at all."""
        return self.shows in (Shows.SOME, Shows.ALL) and self.paused_until is None

    def holds_all(self, run: Run) -> bool:
        """Whether it can be asked for the whole run."""
        if self.holds is not None:
            return self.holds.has_all(run.first, run.count)
        return self.shows is Shows.ALL

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
