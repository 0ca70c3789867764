"""What lane threads have to tell the event loop, in order, in one wake-up for all lanes.

A loop that each of 64 lanes wakes for every granule spends its time on waking up: at 3 GB/s that is 2,900 times a
second, and each time the scheduler asks anew what to do. So the loop hears of pieces at once when none have come for
`REPORT_INTERVAL_S`, and else once per interval. What can wait until the loop is awake for another reason does not
wake it at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct

from megalfs.core.ids import ManifestId
from megalfs.net.session import Session
from megalfs.net.sinks import REPORT_INTERVAL_S

__all__ = ["Part", "Reports"]

Part = tuple[Session, int, int]
"""Verified pieces: from whom, the first of them, how many."""


class _Verified(Struct, frozen=True):
    manifest_id: ManifestId
    part: Part


class Reports:
    """The queue between lanes and the loop. Made on the loop; `put` and `verified` are for any thread."""

    def __init__(self, tell_verified: Callable[[ManifestId, list[Part]], None]) -> None:
        """
        Args:
            tell_verified: called on the loop with all pieces of one blob that came since it was called last.
        """
        self._tell_verified = tell_verified
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[_Verified | Callable[[], None]] = []
        self._is_awaited = False  # the loop knows that something waits
        self._told_at = self._loop.time() - REPORT_INTERVAL_S

    def verified(self, manifest_id: ManifestId, session: Session, first: int, count: int) -> None:
        """Reports pieces that are verified and written."""
        self.put(_Verified(manifest_id, (session, first, count)))

    def put(self, report: _Verified | Callable[[], None], *, may_wait: bool = False) -> None:
        """Has the loop call this, after everything that was put before.

        Args:
            may_wait: until `catch_up`, or until something is put that may not.
        """
        with self._lock:
            self._waiting.append(report)
            if self._is_awaited or may_wait:
                return
            self._is_awaited = True
        with suppress(RuntimeError):  # after the loop has ended nobody is left to tell
            self._loop.call_soon_threadsafe(self._arrange)

    def catch_up(self) -> None:
        """On the loop, which is awake anyway: tells what could wait for that."""
        if self._waiting and not self._is_awaited:
            self._flush()

    def _arrange(self) -> None:
        due = self._told_at + REPORT_INTERVAL_S
        if self._loop.time() >= due:
            self._flush()
        else:
            self._loop.call_at(due, self._flush)

    def _flush(self) -> None:
        with self._lock:
            reports, self._waiting = self._waiting, []
            self._is_awaited = False
        parts: dict[ManifestId, list[Part]] = {}
        for report in reports:
            if isinstance(report, _Verified):
                parts.setdefault(report.manifest_id, []).append(report.part)
            else:
                self._tell(parts)
                report()
        self._tell(parts)

    def _tell(self, parts: dict[ManifestId, list[Part]]) -> None:
        while parts:
            self._told_at = self._loop.time()
            self._tell_verified(*parts.popitem())
