"""Which member of a rack asks a far source for which pieces, so that each crosses a thin link about once.

A far holder's haves reach all members of a rack at once, and all would ask before the word of the first
one (`Expecting`) reaches the others: 32 members fetched each far piece eight times. So members are ranked for
every block of pieces by rendezvous hashing (Thaler and Ravishankar 1998): each computes the same order from
the instance ids of those it is connected to. The first, the block's gateway, asks at once; the one of rank r
waits `gateway_s` x log2(1 + r) first. A gateway that is dead, busy or knows no holder thus costs a delay and
no piece, and the more members have failed to ask, the more are let in at a time.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from megalfs.core.bitfield import Bits
from megalfs.core.ids import ManifestId
from megalfs.core.pieces import Pieces
from megalfs.core.topology import Tier

__all__ = ["Gateways"]

BLOCKS_MIN = 1024  # of a blob with so many pieces: enough to share them out evenly among dozens of members

Weights = npt.NDArray[np.uint64]
Seconds = npt.NDArray[np.float64]


class Gateways:
    """This node's rank among its connected peers for every block, and since when far pieces are in sight."""

    def __init__(
        self, manifest: ManifestId, instance: bytes, pieces: Pieces, *, block_bytes_max: int, delay_s: float
    ) -> None:
        self._manifest = manifest
        self._instance = instance
        self._size = pieces.count
        # A function of the manifest alone: all members must cut the same blocks.
        mean = max(1, pieces.bytes_total // max(1, pieces.count))
        self._block = max(1, min(block_bytes_max // mean, pieces.count // BLOCKS_MIN))
        self._delay_s = delay_s
        self._members: dict[Tier, list[bytes]] = {tier: [] for tier in Tier}
        self._above: dict[bytes, Bits] = {}  # computed when first needed: most swarms have no racks
        self._waits: dict[Tier, Seconds | None] = {}
        self._seen: dict[Tier, Seconds] = {}
        self.opens_at: float | None = None
        """When the next piece held back may be asked for, as far as `open_to` was asked since this was None."""

    def joined(self, tier: Tier, instance: bytes) -> None:
        """A peer of this tier takes part: for dearer sources it is a member of our rack."""
        self._members[tier].append(instance)
        self._waits.clear()

    def left(self, tier: Tier, instance: bytes) -> None:
        """It takes part no longer."""
        self._members[tier].remove(instance)
        self._above.pop(instance, None)
        self._waits.clear()

    def open_to(self, tier: Tier, low: int, bits: Bits, hidden: Bits | None, now: float) -> Bits:
        """Which of the pieces `bits`, from `low` on, may be asked of a source of this tier by now.

        Args:
            hidden: pieces that a nearer peer holds or has promised: their time begins anew after that.
        """
        wait = self._wait(tier)
        if wait is None:
            return bits
        span = slice(low, low + len(bits))
        seen = self._seen_from(tier)[span]
        if hidden is not None:
            seen[hidden] = np.inf
        np.minimum(seen, now, out=seen, where=bits)
        at = seen + wait[span]
        is_open: Bits = bits & (at <= now)
        closed = bits & ~is_open
        if closed.any():
            opens_at = float(at[closed].min())
            self.opens_at = opens_at if self.opens_at is None else min(self.opens_at, opens_at)
        return is_open

    def _wait(self, tier: Tier) -> Seconds | None:
        """How long each piece is left to the members ranked above us; None when there are none."""
        if tier not in self._waits:
            members = [one for other in Tier if other < tier for one in self._members[other]]
            self._waits[tier] = self._waits_behind(members) if members else None
        return self._waits[tier]

    def _waits_behind(self, members: list[bytes]) -> Seconds:
        rank = np.add.reduce([self._is_above(member) for member in members], dtype=np.int32)
        waits: Seconds = np.repeat(self._delay_s * np.log2(1 + rank), self._block)[: self._size]
        return waits

    def _is_above(self, member: bytes) -> Bits:
        if member not in self._above:
            self._above[member] = self._weights(member) > self._weights(self._instance)
        return self._above[member]

    def _seen_from(self, tier: Tier) -> Seconds:
        if tier not in self._seen:
            self._seen[tier] = np.full(self._size, np.inf)
        return self._seen[tier]

    def _weights(self, instance: bytes) -> Weights:
        """One pseudo-random number a block: splitmix64 of a hash of manifest and member."""
        digest = hashlib.blake2b(self._manifest.raw + instance, digest_size=8).digest()
        blocks = np.arange(1, -(-self._size // self._block) + 1, dtype=np.uint64)
        x: Weights = blocks * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(digest, "big"))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
