"""Which pieces somebody holds, and the run: the unit in which the swarm speaks of pieces.

One byte a piece in numpy, not one bit: a run is then a slice, and a slice of 64 pieces costs a microsecond
where shifting bits would cost a Python step a piece. 140 GB are 560,000 pieces, so a field is 560 KB in
memory and 70 KB packed. The array lies over a bytearray: whether a run holds a one or a zero is a memchr,
0.1 us, where the smallest call of numpy on a slice costs 0.5.
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

    # The scheduler asks these of every run on its way for every part that arrives: hence no calls within.

    def covers(self, other: Run) -> bool:
        """Whether `other` lies within this run."""
        (first, count), (theirs, their_count) = self, other
        return first <= theirs and theirs + their_count <= first + count

    def minus(self, other: Run) -> list[Run]:
        """What is left of this run without `other`: nothing, one run, or two."""
        (first, count), (theirs, their_count) = self, other
        end, their_end = first + count, theirs + their_count
        if theirs >= end or their_end <= first:
            return [self]
        left = []
        if theirs > first:
            left.append(Run(first, theirs - first))
        if their_end < end:
            left.append(Run(their_end, end - their_end))
        return left

    def overlap(self, other: Run) -> Run | None:
        """The pieces in both runs."""
        (first, count), (theirs, their_count) = self, other
        end, their_end = first + count, theirs + their_count
        if theirs >= end or their_end <= first:
            return None
        if first <= theirs and their_end <= end:
            return other
        first = max(first, theirs)
        return Run(first, min(end, their_end) - first)


def runs_of(bits: Bits, *, offset: int = 0) -> list[Run]:
    """The maximal runs of true values, ascending; `offset` is added to each index."""
    edges = np.flatnonzero(np.diff(bits.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    starts, ends = edges[0::2], edges[1::2]
    return [
        Run(first + offset, end - first) for first, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


class Bitfield:
    """A set of piece indexes below `size`, changed and asked by runs."""

    __slots__ = ("_bytes", "bits", "count")

    def __init__(self, size: int) -> None:
        self._bytes = bytearray(size)
        self.bits: Bits = np.frombuffer(self._bytes, dtype=np.bool_)
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
        return self._bytes[index] == 1

    def has_all(self, first: int, count: int) -> bool:
        """Whether the whole run is in."""
        return self._bytes.find(0, first, first + count) < 0

    def has_any(self, first: int, count: int) -> bool:
        """Whether a piece of the run is in."""
        return self._bytes.find(1, first, first + count) >= 0

    def add(self, first: int, count: int) -> int:
        """Adds a run; returns how many of its pieces are new."""
        new = count - self._count(first, count)
        if new:
            self.bits[first : first + count] = True
            self.count += new
        return new

    def fill(self, first: int, count: int) -> None:
        """Adds a run of which no piece is in: what `has_any` said need not be counted again."""
        self._bytes[first : first + count] = b"\1" * count
        self.count += count

    def add_one(self, index: int) -> bool:
        """Adds one piece; returns whether it is new. A third of what `add` costs."""
        if self._bytes[index]:
            return False
        self._bytes[index] = 1
        self.count += 1
        return True

    def remove(self, first: int, count: int) -> int:
        """Removes a run; returns how many of its pieces were in."""
        gone = self._count(first, count)
        if gone:
            self.bits[first : first + count] = False
            self.count -= gone
        return gone

    def runs(self) -> list[Run]:
        """The maximal runs held, ascending."""
        return runs_of(self.bits) if self.count else []

    def copy(self) -> Bitfield:
        """The same set, to be changed on its own."""
        twin = Bitfield(self.size)
        twin.bits[:] = self.bits
        twin.count = self.count
        return twin

    def _count(self, first: int, count: int) -> int:
        end = first + count
        if self._bytes.find(1, first, end) < 0:
            return 0
        if self._bytes.find(0, first, end) < 0:
            return count
        return int(np.count_nonzero(self.bits[first:end]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bitfield) and np.array_equal(self.bits, other.bits)

    __hash__ = None  # type: ignore[assignment]  # mutable: a set of them would lie

    def __repr__(self) -> str:
        return f"Bitfield({self.count} of {self.size})"
