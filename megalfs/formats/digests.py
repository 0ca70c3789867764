"""Columns of 32-byte digests, and finding one of them without a Python object per digest."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

__all__ = ["DIGEST_BYTES", "Digests", "SortedDigests", "digests_from_bytes"]

DIGEST_BYTES = 32
_KEY = f"S{DIGEST_BYTES}"  # compares all 32 bytes as memcmp does, and sorts faster than a void type

Digests: TypeAlias = NDArray[np.uint8]  # (n, 32)


def digests_from_bytes(raw: bytes) -> Digests:
    """A read-only (n, 32) view of digests that stand one after the other."""
    return np.frombuffer(raw, np.uint8).reshape(-1, DIGEST_BYTES)


class SortedDigests(Struct, frozen=True):
    """Digests in byte order, and where each stood; of equal ones the first stands first."""

    keys: NDArray[np.bytes_]
    order: NDArray[np.int64]

    @classmethod
    def of(cls, digests: Digests) -> SortedDigests:
        """Sorts a column; some 0.2 s for half a million."""
        keys = _keys(digests)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], order)

    def find(self, digest: bytes) -> int | None:
        """The first index of this digest."""
        index = int(self._find(np.frombuffer(digest, _KEY))[0])
        return None if index < 0 else index

    def find_many(self, wanted: Digests) -> NDArray[np.int64]:
        """For each of (k, 32) digests its first index, or -1."""
        return self._find(_keys(wanted))

    def _find(self, wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
        if not len(self.keys):
            return np.full(len(wanted), -1, np.int64)
        slots = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[slots] == wanted, self.order[slots], -1)


def _keys(digests: Digests) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(digests).reshape(-1).view(_KEY)
