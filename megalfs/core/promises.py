"""What peers said that they will soon hold, because they have asked a dear source for it (`Expecting`).

Whoever is nearer to such a peer than to the source waits for it instead of asking too. A word is believed
for `promise_s`, and no longer at all from a peer that broke too many.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from megalfs.core.availability import Counts
from megalfs.core.bitfield import Bits, Run
from megalfs.core.session import Promise, Session
from megalfs.core.topology import Tier

__all__ = ["Promises"]

PROMISES_MAX = 64  # of one peer; ours makes one a flight
BROKEN_PROMISES_MAX = 16  # then its word is no reason to wait any more


class Promises:
    """The open promises of all peers, oldest first, and how many cover each piece, by the peer's tier."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._open: OrderedDict[Promise, None] = OrderedDict()
        self._counts: dict[Tier, Counts] = {}

    @property
    def next_at(self) -> float | None:
        """When the oldest one is believed no longer."""
        return next(iter(self._open)).until if self._open else None

    def add(self, session: Session, run: Run, *, until: float) -> None:
        """The peer says that it will hold this run. `until` never goes back from call to call."""
        if session.broken_promises >= BROKEN_PROMISES_MAX or len(session.promises) >= PROMISES_MAX:
            return
        promise = Promise(session, until, [run])
        session.promises.append(promise)
        self._open[promise] = None
        if session.tier not in self._counts:
            self._counts[session.tier] = np.zeros(self._size, dtype=np.uint16)
        self._counts[session.tier][run.first : run.end] += 1

    def keep(self, session: Session, run: Run) -> None:
        """The peer holds the run now."""
        for promise in list(session.promises):
            kept = [part for left in promise.left if (part := left.overlap(run)) is not None]
            for part in kept:
                self._counts[session.tier][part.first : part.end] -= 1
            promise.left = [rest for left in promise.left for rest in left.minus(run)]
            if not promise.left:
                self._close(promise)
                session.broken_promises = max(0, session.broken_promises - 1)

    def expire(self, now: float) -> None:
        """What has not been kept in time counts against its peer."""
        while self._open and (promise := next(iter(self._open))).until <= now:
            self._close(promise)
            promise.session.broken_promises += 1

    def forget(self, session: Session) -> None:
        """The peer is gone, and its word with it."""
        for promise in list(session.promises):
            self._close(promise)

    def nearer(self, tier: Tier, low: int, high: int) -> Bits | None:
        """Which of the pieces low..high a peer cheaper than `tier` will soon hold; None when none is promised."""
        if not self._open:
            return None
        rows = [counts[low:high] for other, counts in self._counts.items() if other < tier]
        if not rows:
            return None
        promised: Bits = rows[0] > 0
        for row in rows[1:]:
            promised |= row > 0
        return promised

    def _close(self, promise: Promise) -> None:
        del self._open[promise]
        promise.session.promises.remove(promise)
        for part in promise.left:
            self._counts[promise.session.tier][part.first : part.end] -= 1
