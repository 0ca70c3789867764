"""How many connected peers hold each piece, by tier.

Peers that hold everything are a number, not a row: a `HaveAll` costs nothing. Rows are made when a tier
gets its first partial holder, so a swarm without labels has one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megalfs.core.bitfield import Bits
from megalfs.core.topology import Tier

__all__ = ["Availability", "Counts"]

Counts = npt.NDArray[np.uint16]

ONE = np.array(1, dtype=np.uint16)
_NEARER = {tier: tuple(other for other in Tier if other < tier) for tier in Tier}


class Availability:
    """Copies of each piece among the peers that can be asked."""

    __slots__ = ("_full", "_granters", "_holders", "_rows", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: dict[Tier, Counts] = {}
        self._holders = dict.fromkeys(Tier, 0)
        self._full = dict.fromkeys(Tier, 0)
        self._granters = dict.fromkeys(Tier, 0)

    def add_full(self, tier: Tier) -> None:
        """One more peer that holds everything."""
        self._full[tier] += 1

    def remove_full(self, tier: Tier) -> None:
        """One such peer fewer."""
        self._full[tier] -= 1

    def add_granter(self, tier: Tier) -> None:
        """One more seeder that sends what it chooses."""
        self._granters[tier] += 1

    def remove_granter(self, tier: Tier) -> None:
        """One such seeder fewer."""
        self._granters[tier] -= 1

    def add_holder(self, tier: Tier, bits: Bits) -> None:
        """One more peer, which holds `bits`."""
        self._row(tier)[:] += bits
        self._holders[tier] += 1

    def remove_holder(self, tier: Tier, bits: Bits) -> None:
        """The peer that holds `bits` is gone."""
        self._row(tier)[:] -= bits
        self._holders[tier] -= 1

    def gain(self, tier: Tier, first: int, new: Bits) -> None:
        """A peer already added holds the pieces from `first` on where `new` is set."""
        self._row(tier)[first : first + len(new)] += new

    def gain_all(self, tier: Tier, first: int, count: int) -> None:
        """A peer already added holds `count` pieces from `first` on, all of them new of it."""
        self._row(tier)[first : first + count] += ONE

    def gain_one(self, tier: Tier, index: int) -> None:
        """A peer already added holds one piece more."""
        self._row(tier)[index] += 1

    def lose(self, tier: Tier, first: int, gone: Bits) -> None:
        """A peer already added no longer holds the pieces from `first` on where `gone` is set."""
        self._row(tier)[first : first + len(gone)] -= gone

    @property
    def full(self) -> int:
        """How many peers hold everything."""
        return sum(self._full.values())

    def counts(self, low: int, high: int, *, tier: Tier = Tier.ORIGIN) -> Counts:
        """Copies of the pieces low..high at partial holders no dearer than `tier`; to be read only."""
        rows = [row for other, row in self._rows.items() if self._holders[other] and other <= tier]
        if len(rows) == 1:
            return rows[0][low:high]
        total = np.zeros(high - low, dtype=np.uint16)
        for row in rows:
            total += row[low:high]
        return total

    @property
    def granters(self) -> int:
        """How many seeders send what they choose."""
        return sum(self._granters.values())

    def is_full_nearer(self, tier: Tier) -> bool:
        """Whether a peer cheaper than `tier` holds everything, and gives it now or later."""
        return any(self._full[nearer] or self._granters[nearer] for nearer in _NEARER[tier])

    def nearer(self, tier: Tier, low: int, high: int) -> Bits | None:
        """Which of the pieces low..high a peer cheaper than `tier` holds; None when there is no such peer."""
        rows = [row for other, row in self._rows.items() if other < tier and self._holders[other]]
        if not rows:
            return None
        held: Bits = rows[0][low:high] > 0
        for row in rows[1:]:
            held |= row[low:high] > 0
        return held

    def _row(self, tier: Tier) -> Counts:
        row = self._rows.get(tier)
        if row is None:
            row = self._rows[tier] = np.zeros(self._size, dtype=np.uint16)
        return row
