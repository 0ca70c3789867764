"""Rates of this node: all together, and beneath that per tier, so a thin link between racks can be spared."""

from __future__ import annotations

from megalfs.config import Settings
from megalfs.core.topology import Tier
from megalfs.net.limiter import Limiter, RateLimiter

__all__ = ["TierLimits"]


class TierLimits:
    """One limiter for everything and one per tier, in each direction; shared by all lanes."""

    def __init__(self, settings: Settings) -> None:
        self.all_up = RateLimiter(settings.limit_up)
        self.all_down = RateLimiter(settings.limit_down)
        self._up = {
            Tier.RACK: RateLimiter(settings.limit_up_rack),
            Tier.ZONE: RateLimiter(settings.limit_up_zone),
            Tier.FAR: RateLimiter(settings.limit_up_far),
        }
        self._down = {
            Tier.RACK: RateLimiter(settings.limit_down_rack),
            Tier.ZONE: RateLimiter(settings.limit_down_zone),
            Tier.FAR: RateLimiter(settings.limit_down_far),
            Tier.ORIGIN: RateLimiter(settings.limit_down_origin),
        }

    def up(self, tier: Tier) -> Limiter:
        """What sending to a node of this tier is held to."""
        return self.all_up.within(self._up.get(tier))

    def down(self, tier: Tier) -> Limiter:
        """What receiving from this tier is held to."""
        return self.all_down.within(self._down.get(tier))
