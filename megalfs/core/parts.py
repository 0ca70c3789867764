"""How a blob is cut for its swarm: into its chunks, and long ones of a small blob into several parts.

A chunk is relayed only when all of it is verified, and one of the default profile has up to 1 MiB: in a blob of 256
MiB the few largest set the pace (16 receivers reach 0.936 of the bound, with parts 0.95 to 0.96; shorter parts spread
sooner and take more CPU: bench/README.md). Parts end at multiples of 64 KiB of their chunk, so each is made of whole
subtrees of the chunk's BLAKE3 and can be verified alone, given the chaining values of all groups of 64 KiB: the *proof*
of its chunk.

Large blobs stay as they are cut: their chunks are small against them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from megalfs.core.bitfield import Bitfield, Run
from megalfs_ext import GROUP_BYTES

__all__ = ["DIGEST_BYTES", "Parts", "Stretch"]

PART_BYTES_MAX = 192 << 10
BLOB_BYTES_MAX = 1 << 30
DIGEST_BYTES = 32


class Stretch(Struct, frozen=True):
    """Consecutive parts that are verified in one way: of whole chunks, or some of one chunk, by its proof.

    Attributes:
        first: the first part.
        count: how many parts.
        chunk: the first chunk.
        chunks: how many chunks, when they are whole; 0 for parts of `chunk`, by its proof.
    """

    first: int
    count: int
    chunk: int
    chunks: int


class Parts:
    """The parts of one blob, numbered from 0 in its order. Immutable; safe from any thread.

    Attributes:
        offsets: where each part starts, in bytes; one more entry, the size, at the end.
        lengths: of each part, in bytes.
        are_chunks: no chunk was cut, so that parts are numbered as chunks are.
    """

    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint32]

    def __init__(self, lengths: npt.NDArray[np.uint32], offsets: npt.NDArray[np.uint64]) -> None:
        """
        Args:
            lengths: of the chunks, in bytes.
            offsets: of the chunks, and the size at the end.
        """
        self._chunk_lengths = lengths.data
        is_large = int(offsets[-1]) > BLOB_BYTES_MAX
        self.are_chunks = is_large or not len(lengths) or int(lengths.max()) <= PART_BYTES_MAX
        if self.are_chunks:
            self.lengths, self.offsets = lengths, offsets
        else:
            self._cut(lengths.astype(np.int64), offsets.astype(np.int64))
        # Indexes of views are Python ints, for a fifth of what numpy takes.
        self._offset_at = self.offsets.data

    def _cut(self, lengths: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> None:
        """Chunks into as few parts as have at most PART_BYTES_MAX, of nearly as many groups each."""
        per_chunk = np.maximum(1, -(-lengths // PART_BYTES_MAX))
        firsts = np.concatenate(([0], np.cumsum(per_chunk)))
        chunk_of = np.repeat(np.arange(len(lengths)), per_chunk)
        self._starts = firsts[:-1]
        self._first_at, self._chunk_at = firsts.data, chunk_of.data
        number = np.arange(len(chunk_of)) - firsts[chunk_of]
        groups = -(-lengths // GROUP_BYTES)
        ends = groups[chunk_of] * (number + 1) // per_chunk[chunk_of] * GROUP_BYTES
        ends = offsets[chunk_of] + np.minimum(ends, lengths[chunk_of])
        self.offsets = np.concatenate(([0], ends)).astype(np.uint64)
        self.lengths = np.diff(self.offsets).astype(np.uint32)

    @property
    def count(self) -> int:
        """How many parts there are."""
        return len(self.lengths)

    @property
    def chunk_starts(self) -> npt.NDArray[np.int64] | None:
        """The first part of each chunk; None when each part is a chunk."""
        return None if self.are_chunks else self._starts

    def extent(self, first: int, count: int) -> tuple[int, int]:
        """Offset and length in bytes of `count` parts from `first`."""
        start = self._offset_at[first]
        return start, self._offset_at[first + count] - start

    def of_chunks(self, first: int, count: int) -> Run:
        """The parts of `count` chunks from `first`."""
        if self.are_chunks:
            return Run(first, count)
        start = self._first_at[first]
        return Run(start, self._first_at[first + count] - start)

    def from_chunks(self, chunks: Bitfield) -> Bitfield:
        """The parts of these chunks."""
        if self.are_chunks:
            return chunks
        parts = Bitfield(self.count)
        for run in chunks.runs():
            parts.add(*self.of_chunks(*run))
        return parts

    def whole_chunks(self, parts: Bitfield) -> Bitfield:
        """The chunks of which every part is among these."""
        if self.are_chunks:
            return parts
        chunks = Bitfield(len(self._chunk_lengths))
        chunks.bits[:] = np.logical_and.reduceat(parts.bits, self._starts)
        chunks.count = int(np.count_nonzero(chunks.bits))
        return chunks

    def stretches(self, first: int, count: int) -> Iterator[Stretch]:
        """A run of parts as it is verified: at most some parts of a chunk, whole chunks, and some parts of another."""
        if self.are_chunks:
            yield Stretch(first, count, first, count)
            return
        end = first + count
        while first < end:
            chunk = self._chunk_at[first]
            starts, stops = self._first_at[chunk], self._first_at[chunk + 1]
            if first > starts or end < stops:
                stop = min(end, stops)
                yield Stretch(first, stop - first, chunk, 0)
            else:
                last = bisect_right(self._first_at, end) - 1
                stop = self._first_at[last]
                yield Stretch(first, stop - first, chunk, last - chunk)
            first = stop

    def within_chunks(self, first: int, count: int) -> Iterator[Stretch]:
        """A run of parts, one chunk at a time, to be verified by proofs."""
        end = first + count
        while first < end:
            chunk = self._chunk_at[first]
            stop = min(end, self._first_at[chunk + 1])
            yield Stretch(first, stop - first, chunk, 0)
            first = stop

    def group_count(self, chunk: int) -> int:
        """Groups of 64 KiB of a chunk; the last one may be shorter."""
        return -(-self._chunk_lengths[chunk] // GROUP_BYTES)

    def groups_of(self, stretch: Stretch) -> slice:
        """Which groups of its chunk these parts are made of."""
        chunk_start = self._offset_at[self._first_at[stretch.chunk]]
        start, length = self.extent(stretch.first, stretch.count)
        return slice((start - chunk_start) // GROUP_BYTES, -(-(start + length - chunk_start) // GROUP_BYTES))

    def proof_bytes(self, first: int, count: int) -> int:
        """Size of the proofs that a run of parts comes with."""
        if self.are_chunks:
            return 0
        return sum(
            DIGEST_BYTES * self.group_count(each.chunk)
            for each in self.stretches(first, count)
            if not each.chunks
        )
