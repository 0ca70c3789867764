"""Which pieces somebody holds, and the run: the unit in which the swarm speaks of pieces.

One byte a piece in numpy, not one bit: a run is then a slice, and a slice of 64 pieces costs a microsecond
where shifting bits would cost a Python step a piece. 140 GB are 560,000 pieces, so a field is 560 KB in
memory and 70 KB packed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from megalfs.errors import RemoteProtocolError

__all__ = ["Bitfield", "Bits", "Run", "runs_of"]

Bits = npt.NDArray[np.bool_]


class Run(NamedTuple):
    """Consecutive pieces: `count` of them, from index `first`."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs of a pair

    @property
    def end(self) -> int:
        """Index after the last piece."""
        return self.first + self.count

    def covers(self, other: Run) -> bool:
        """Whether `other` lies within this run."""
        return self.first <= other.first and other.end <= self.end

    def minus(self, other: Run) -> list[Run]:
        """What is left of this run without `other`: nothing, one run, or two."""
        if other.first >= self.end or other.end <= self.first:
            return [self]
        left = []
        if other.first > self.first:
            left.append(Run(self.first, other.first - self.first))
        if other.end < self.end:
            left.append(Run(other.end, self.end - other.end))
        return left

    def overlap(self, other: Run) -> Run | None:
        """The pieces in both runs."""
        first, end = max(self.first, other.first), min(self.end, other.end)
        return Run(first, end - first) if first < end else None


def runs_of(bits: Bits, *, offset: int = 0) -> list[Run]:
    """The maximal runs of true values, ascending; `offset` is added to each index."""
    edges = np.flatnonzero(np.diff(bits.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    starts, ends = edges[0::2], edges[1::2]
    return [
        Run(first + offset, end - first) for first, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


class Bitfield:
    """A set of piece indexes below `size`, changed and asked by runs."""

    __slots__ = ("bits", "count")

    def __init__(self, size: int) -> None:
        self.bits: Bits = np.zeros(size, dtype=np.bool_)
        self.count = 0

    @classmethod
    def full(cls, size: int) -> Self:
        """All `size` pieces."""
        field = cls(size)
        field.bits[:] = True
        field.count = size
        return field

    @classmethod
    def from_runs(cls, size: int, runs: Iterable[tuple[int, int]]) -> Self:
        """The pieces of `runs`, each (first, count)."""
        field = cls(size)
        for first, count in runs:
            field.add(first, count)
        return field

    @classmethod
    def from_bytes(cls, packed: bytes, size: int) -> Self:
        """Reads what `to_bytes` wrote.

        Raises:
            RemoteProtocolError: the length is wrong, or a bit past the last piece is set.
        """
        if len(packed) != (size + 7) // 8:
            raise RemoteProtocolError(f"bitfield of {len(packed)} bytes for {size} pieces")
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
        if bits[size:].any():
            raise RemoteProtocolError(f"bitfield sets bits past its {size} pieces")
        field = cls(size)
        field.bits[:] = bits[:size]
        field.count = int(np.count_nonzero(field.bits))
        return field

    def to_bytes(self) -> bytes:
        """One bit a piece, the first piece in the highest bit, as BitTorrent's bitfield (BEP 3)."""
        return np.packbits(self.bits).tobytes()

    @property
    def size(self) -> int:
        """How many pieces there are, held or not."""
        return len(self.bits)

    @property
    def is_full(self) -> bool:
        """Whether every piece is in."""
        return self.count == len(self.bits)

    def has(self, index: int) -> bool:
        """Whether one piece is in."""
        return bool(self.bits[index])

    def has_all(self, first: int, count: int) -> bool:
        """Whether the whole run is in."""
        if count == 1:  # an index costs a tenth of a slice, and count_nonzero a third of all()
            return bool(self.bits[first])
        return int(np.count_nonzero(self.bits[first : first + count])) == count

    def add(self, first: int, count: int) -> int:
        """Adds a run; returns how many of its pieces are new."""
        part = self.bits[first : first + count]
        new = count - int(np.count_nonzero(part))
        if new:
            part[:] = True
            self.count += new
        return new

    def add_one(self, index: int) -> bool:
        """Adds one piece; returns whether it is new. A third of what `add` costs."""
        if self.bits[index]:
            return False
        self.bits[index] = True
        self.count += 1
        return True

    def remove(self, first: int, count: int) -> int:
        """Removes a run; returns how many of its pieces were in."""
        part = self.bits[first : first + count]
        gone = int(np.count_nonzero(part))
        if gone:
            part[:] = False
            self.count -= gone
        return gone

    def runs(self) -> list[Run]:
        """The maximal runs held, ascending."""
        return runs_of(self.bits)

    def copy(self) -> Bitfield:
        """The same set, to be changed on its own."""
        twin = Bitfield(0)
        twin.bits, twin.count = self.bits.copy(), self.count
        return twin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bitfield) and np.array_equal(self.bits, other.bits)

    __hash__ = None  # type: ignore[assignment]  # mutable: a set of them would lie

    def __repr__(self) -> str:
        return f"Bitfield({self.count} of {self.size})"
