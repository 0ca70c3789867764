"""How much anybody may say: a bucket of tokens that fills with time."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Bucket"]


class Bucket(Struct):
    """Lets `rate` a second through, and `burst` at once."""

    rate: float
    burst: float
    tokens: float
    at: float

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Bucket:
        """One that was not used for long."""
        return cls(rate, burst, burst, now)

    def take(self, now: float, count: float) -> bool:
        """Whether there were so many tokens; they are gone then. A clock that went back fills nothing."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True
