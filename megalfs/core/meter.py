"""Rates: bytes per second with exponential forgetting, right from the first byte on."""

from __future__ import annotations

import math

__all__ = ["Meter"]

TAU_S = 1.0
"""Time constant; long against a run (50 ms), short against a user's patience."""


class Meter:
    """Counts bytes and tells their recent rate."""

    __slots__ = ("_at", "_bytes", "_span", "total")

    def __init__(self, now: float) -> None:
        self.total = 0
        self._bytes = 0.0
        self._span = 0.0
        self._at = now

    def add(self, size: int, now: float) -> None:
        """`size` bytes came or went."""
        if now > self._at:
            self._advance(now)
        self._bytes += size
        self.total += size

    def rate(self, now: float) -> float:
        """Bytes per second; 0.0 while nothing is known."""
        if now > self._at:
            self._advance(now)
        return self._bytes / self._span if self._span > 0 else 0.0

    def _advance(self, now: float) -> None:
        elapsed = now - self._at
        # The span forgets like the bytes do; so bytes / span is unbiased from the start, where a plain
        # moving average would take a second to believe in a fast peer.
        keep = math.exp(-elapsed / TAU_S)
        self._bytes *= keep
        self._span = self._span * keep + TAU_S * (1 - keep)
        self._at = now
