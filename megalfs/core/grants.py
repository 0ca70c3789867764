"""What a seeder sends by its own choice: each piece out once before any piece goes out twice.

The seeder's uplink is what a broadcast is short of. If leechers chose, several would ask it for the same
piece at once (off-the-shelf swarms send 1.5-1.9 copies from the seeder, research/swarm.md 4). So it shows
nothing and chooses late, when a slot is free: the next run that nobody holds, to the leecher with credit
that has waited longest and has few runs that it alone holds.

The pool is what no leecher is known to hold and is not on its way. A run returns to it when its leecher
leaves, or when it has not arrived in time. One that arrived and does not spread is asked for once all is out:
a leecher that passes nothing on holds back a few runs, and leechers that never meet are not granted for ever.
"""

from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt

from megalfs.core.availability import Availability
from megalfs.core.bitfield import Bits, Run
from megalfs.core.effects import PeerId
from megalfs.core.pieces import Pieces
from megalfs.core.session import Session

__all__ = ["Grants"]

MEAN_WEIGHT = 0.1  # of the newest run in the running mean
MEAN_S_INITIAL = 0.5  # a piece to one of 8 at 100 Mbit/s takes 0.2 s, to one of 16 at 50 Mbit/s 0.8 s
SPREAD_COPIES = 2  # leechers that hold a run: its receiver and one more


class Grant:
    """A run given to one leecher, until it has spread."""

    def __init__(self, session: Session, run: Run, sent_at: float) -> None:
        self.session = session
        self.run = run
        self.sent_at = sent_at


class Grants:
    """The pool and the runs that have not spread yet."""

    def __init__(self, pieces: Pieces, availability: Availability, rng: Random) -> None:
        self._pieces = pieces
        self._availability = availability
        self._rng = rng
        self._pool: Bits = np.zeros(pieces.count, dtype=np.bool_)
        self._left = 0
        self._open: dict[int, Grant] = {}
        self._travelling: dict[int, Grant] = {}  # of them, in the order of sending
        self.mean_s = MEAN_S_INITIAL
        """How long a run took lately from being sent to being announced."""
        self._number = 0
        self._grant_of: npt.NDArray[np.int32] = np.zeros(pieces.count, dtype=np.int32)
        # Several seeders of one swarm do not hear of each other: each begins elsewhere.
        self._front = rng.randrange(pieces.count)

    @property
    def has_pool(self) -> bool:
        """Whether there is a piece that nobody holds and nobody is being sent."""
        return self._left > 0

    def refill(self) -> None:
        """Sets the pool to what no leecher is known to hold and none is being sent."""
        if self._availability.full:
            self._pool[:] = False
        else:
            self._pool[:] = (self._availability.counts(0, self._pieces.count) == 0) & (self._grant_of == 0)
        self._left = int(np.count_nonzero(self._pool))

    def has_for(self, session: Session) -> bool:
        """Whether the pool holds a piece that this leecher lacks: what did not spread may be its own."""
        return bool(self._open_to(session).any())

    def take(self, session: Session, size: int, now: float) -> Run:
        """Gives the next run, of about `size` bytes, to this leecher; `has_for` said that there is one."""
        pool = self._open_to(session)
        at = self._front
        if at >= self._pieces.count:
            at = 0
        if not pool[at]:
            # Not simply the next one: that is where another seeder works just now.
            open_ = np.flatnonzero(pool)
            at = int(open_[self._rng.randrange(len(open_))])
        fits = pool[at : at + self._pieces.fit(at, size)]
        stop = int(fits.argmin())
        run = Run(at, stop if not fits[stop] else len(fits))
        self._front = run.end
        self._drain(run)
        self._number += 1
        self._open[self._number] = self._travelling[self._number] = Grant(session, run, now)
        self._grant_of[run.first : run.end] = self._number
        session.unspread[self._number] = now
        return run

    def announced(self, session: Session, run: Run, now: float) -> None:
        """A leecher holds the run now."""
        self._drain(run)
        for number in np.unique(self._grant_of[run.first : run.end]).tolist():
            grant = self._open.get(number)
            if grant is None:
                continue
            if number in self._travelling and grant.session is session and session.holds_all(grant.run):
                del self._travelling[number]
                self.mean_s += MEAN_WEIGHT * (now - grant.sent_at - self.mean_s)
            if self._copies(grant.run) >= SPREAD_COPIES:
                self._close(number)

    def travelling(self, since: float) -> list[PeerId]:
        """The leechers of runs sent since then that they have not announced."""
        # What sendfile has handed to a socket may still be seconds from its leecher; only the leecher's
        # word counts. Without that, late binding ends at the socket buffer (3 % of the time at N = 16).
        return [grant.session.peer for grant in self._travelling.values() if grant.sent_at > since]

    def left(self, session: Session) -> None:
        """The leecher is gone: what only it was given may go out again."""
        for number in list(session.unspread):
            self._return(self._close(number))

    def failed(self, session: Session, run: Run) -> bool:
        """The run did not reach its leecher; False when it was not given to it."""
        is_ours = False
        for number in np.unique(self._grant_of[run.first : run.end]).tolist():
            grant = self._open.get(number)
            if grant is not None and grant.session is session:
                is_ours = True
                self._return(self._close(number))
        return is_ours

    def expire(self, now: float, patience_s: float) -> None:
        """Runs that have not arrived in time go out again."""
        for number, grant in list(self._travelling.items()):
            if grant.sent_at + patience_s > now:
                break
            self._return(self._close(number))

    def oldest_at(self) -> float | None:
        """When the oldest run that has not arrived was sent."""
        return next(iter(self._travelling.values())).sent_at if self._travelling else None

    def _open_to(self, session: Session) -> Bits:
        return self._pool if session.holds is None else self._pool & ~session.holds.bits

    def _copies(self, run: Run) -> int:
        return int(self._availability.counts(run.first, run.end).min()) + self._availability.full

    def _close(self, number: int) -> Run:
        grant = self._open.pop(number)
        self._travelling.pop(number, None)
        del grant.session.unspread[number]
        mine = self._grant_of[grant.run.first : grant.run.end]
        mine[mine == number] = 0
        return grant.run

    def _return(self, run: Run) -> None:
        if self._availability.full:
            return
        part = self._pool[run.first : run.end]
        back = self._availability.counts(run.first, run.end) < SPREAD_COPIES
        self._left += int(np.count_nonzero(back & ~part))
        part |= back

    def _drain(self, run: Run) -> None:
        part = self._pool[run.first : run.end]
        self._left -= int(np.count_nonzero(part))
        part[:] = False
