"""A token bucket that many threads share: bytes per second, up or down.

The bucket may go into debt: a caller takes what it is about to move and sleeps off the debt, so large
granules need no large burst. Fair enough between lanes because each takes about one granule at a time.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

__all__ = ["Limiter", "RateLimiter"]

# Tokens saved up while idle, in seconds of rate: enough to hide scheduling jitter, too short for a visible burst.
BURST_S = 0.05


class Limiter(Protocol):
    """What a lane needs of a limit."""

    @property
    def rate(self) -> float | None:
        """Bytes per second, or None."""

    def wait(self, count: int, stop: threading.Event) -> None:
        """Blocks until `count` bytes may move, or until `stop` is set."""


class RateLimiter:
    """Limits the sum of all callers to `rate` bytes per second; None is no limit."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._at = time.monotonic()

    def debt_s(self, count: int) -> float:
        """Takes `count` bytes and returns how long the caller must wait before moving them."""
        if self.rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._tokens + (now - self._at) * self.rate, self.rate * BURST_S) - count
            self._at = now
            return max(0.0, -self._tokens / self.rate)

    def wait(self, count: int, stop: threading.Event) -> None:
        """Blocks until `count` bytes may move, or until `stop` is set."""
        delay_s = self.debt_s(count)
        if delay_s > 0:
            stop.wait(delay_s)

    def within(self, narrower: RateLimiter | None) -> Limiter:
        """This limit and a narrower one of the same kind, such as that of one tier."""
        return self if narrower is None or narrower.rate is None else _Both(self, narrower)


class _Both:
    """Two limits at once: the longer wait holds."""

    def __init__(self, wider: RateLimiter, narrower: RateLimiter) -> None:
        self._limits = (wider, narrower)

    @property
    def rate(self) -> float | None:
        return min(limit.rate for limit in self._limits if limit.rate is not None)

    def wait(self, count: int, stop: threading.Event) -> None:
        delay_s = max(limit.debt_s(count) for limit in self._limits)
        if delay_s > 0:
            stop.wait(delay_s)
