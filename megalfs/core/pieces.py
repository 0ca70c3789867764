"""The pieces of one blob on this node: which are here, which are asked for, which may be asked.

Bookkeeping only; `picker` decides. A piece is *wanted* when it is not here, not asked of anybody, and not
reserved for a local source. Every change is a slice of numpy arrays, whatever the length of the run.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megalfs.core.bitfield import Bitfield, Bits, Run

__all__ = ["Lengths", "Pieces"]

Lengths = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

ONE = np.array(1, dtype=np.uint8)  # numpy converts a Python int at every call, which costs more than the sum
# Runs of so many pieces are of whole chunks, which need no proofs.
LONG = 8


class Pieces:
    """State of every piece, by index."""

    __slots__ = (
        "_asked",
        "_asked_bytes",
        "_chunk_starts",
        "_offset_at",
        "_offsets",
        "_reserved",
        "_wanted",
        "bytes_total",
        "count",
        "have",
        "missing_bytes",
        "wanted",
    )

    def __init__(
        self, lengths: Lengths, have: Bitfield, chunk_starts: npt.NDArray[np.int64] | None = None
    ) -> None:
        assert have.size == len(lengths)
        self.count = have.size
        """How many pieces the blob has."""
        self._offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=self._offsets[1:])
        self._offset_at = (
            self._offsets.data
        )  # an index of it is a Python int, for a fifth of what numpy takes
        self._chunk_starts = chunk_starts
        self.bytes_total = self._offset_at[-1]
        self.have = have
        self._asked_bytes = bytearray(len(lengths))
        self._asked = np.frombuffer(self._asked_bytes, dtype=np.uint8)
        self._reserved = Bitfield(have.size)
        self._wanted = Bitfield(have.size)
        self._wanted.bits[:] = ~have.bits
        self._wanted.count = have.size - have.count
        self.wanted: Bits = self._wanted.bits
        self.missing_bytes = self.bytes_total - sum(self.bytes_of(run) for run in have.runs())

    @property
    def unasked(self) -> int:
        """How many pieces are wanted and asked of nobody."""
        return self._wanted.count

    @property
    def unasked_bytes(self) -> int:
        """About how much is wanted and asked of nobody."""
        return self.unasked * self.bytes_total // max(1, self.count)

    @property
    def is_complete(self) -> bool:
        """Whether every piece is here."""
        return self.have.is_full

    def bytes_of(self, run: Run) -> int:
        """Size of a run."""
        first, count = run
        return self._offset_at[first + count] - self._offset_at[first]

    def fit(self, first: int, size: int) -> int:
        """How many pieces from `first` on fit into `size` bytes, at least one; long runs end with a chunk."""
        limit = self._offset_at[first] + size
        count = max(1, int(self._offsets.searchsorted(limit, side="right")) - 1 - first)
        if self._is_of_chunks(count):
            chunk = self._chunk_at(first + count - 1)
            if chunk.end != first + count and chunk.first > first:
                return chunk.first - first
        return count

    def fit_before(self, end: int, size: int) -> int:
        """How many pieces just before `end` fit into `size` bytes, at least one; long runs begin with a chunk."""
        limit = self._offset_at[end] - size
        count = max(1, end - int(self._offsets.searchsorted(limit, side="left")))
        if self._is_of_chunks(count):
            chunk = self._chunk_at(end - count)
            if chunk.first != end - count and chunk.end < end:
                return end - chunk.end
        return count

    def grid(self, piece: int, size: int) -> int:
        """Where a run of `size` bytes that holds a piece begins, when runs lie side by side."""
        count = self.fit(piece, size)
        start = piece - piece % count
        return self._chunk_at(start).first if self._is_of_chunks(count) else start

    def _is_of_chunks(self, count: int) -> bool:
        return count >= LONG and self._chunk_starts is not None

    def provable(self, bits: Bits) -> Bits:
        """Which of these wanted pieces a source without proofs may be asked for: those of chunks of which all is
        wanted, or a part is here, and so the proof."""
        starts = self._chunk_starts
        if starts is None:
            return bits
        known = np.logical_and.reduceat(bits, starts) | np.logical_or.reduceat(self.have.bits, starts)
        sizes = np.diff(starts, append=self.count)
        provable: Bits = bits & np.repeat(known, sizes)
        return provable

    def provable_run(self, run: Run) -> Run:
        """A run of `provable` pieces, moved to the limits of chunks of which nothing is here."""
        starts = self._chunk_starts
        if starts is None:
            return run
        first, end = run.first, run.end
        chunk = self._chunk_at(first)
        if not self.have.has_any(*chunk):
            first = chunk.first
        chunk = self._chunk_at(end - 1)
        if chunk.end != end and not self.have.has_any(*chunk):
            end = chunk.first if chunk.first > first else chunk.end
        return Run(first, end - first)

    def _chunk_at(self, piece: int) -> Run:
        """The pieces of the chunk that this piece belongs to."""
        starts = self._chunk_starts
        assert starts is not None
        number = int(starts.searchsorted(piece, side="right"))
        first = int(starts[number - 1])
        return Run(first, (int(starts[number]) if number < len(starts) else self.count) - first)

    def wants(self, run: Run) -> bool:
        """Whether a piece of the run is wanted."""
        return self._wanted.has_any(*run)

    def ask(self, run: Run) -> None:
        """The run is asked of one more peer."""
        first, count = run
        self._asked[first : first + count] += ONE
        self._wanted.remove(first, count)

    def unask(self, run: Run) -> None:
        """One peer fewer is asked for the run; what nobody else is asked for is wanted again."""
        first, count = run
        self._asked[first : first + count] -= ONE
        if not self.have.has_all(first, count):
            self._reconsider(run)

    def settle(self, run: Run) -> bool:
        """The run has come, and nobody is asked for it any more; False, and no change, if not one peer was.

        What `unask` does, for the common case: no array of numpy is made, and nothing needs to be reconsidered.
        """
        first, count = run
        if not self._asked_bytes.startswith(b"\1" * count, first):
            return False
        self._asked_bytes[first : first + count] = bytes(count)
        return True

    def asked(self, run: Run) -> int:
        """Of how many peers at most a piece of the run is asked."""
        first, count = run
        if self._asked_bytes.startswith(bytes(count), first):  # as nearly always when it has come
            return 0
        return int(self._asked[first : first + count].max())

    def add(self, run: Run) -> int:
        """The run is verified and here; returns how many bytes of it are new."""
        first, count = run
        if not self.have.has_any(first, count):
            size = self.bytes_of(run)
            self.have.fill(first, count)
        else:
            lengths = np.diff(self._offsets[first : first + count + 1])
            size = int(lengths[~self.have.bits[first : first + count]].sum())
            self.have.add(first, count)
        self.missing_bytes -= size
        if self._reserved.count:
            self._reserved.remove(first, count)
        self._wanted.remove(first, count)
        return size

    def lose(self, run: Run) -> None:
        """The run is no longer here."""
        lengths = np.diff(self._offsets[run.first : run.end + 1])
        self.missing_bytes += int(lengths[self.have.bits[run.first : run.end]].sum())
        self.have.remove(run.first, run.count)
        self._reconsider(run)

    def reserve(self, run: Run) -> None:
        """A local source works on the run: it is not to be asked of peers."""
        self._reserved.add(*run)
        self._wanted.remove(*run)

    def release(self, run: Run) -> None:
        """The local source gave up on the run."""
        self._reserved.remove(*run)
        self._reconsider(run)

    def _reconsider(self, run: Run) -> None:
        span = slice(run.first, run.end)
        before = int(np.count_nonzero(self.wanted[span]))
        now = ~(self.have.bits[span] | self._reserved.bits[span] | (self._asked[span] > 0))
        self.wanted[span] = now
        self._wanted.count += int(np.count_nonzero(now)) - before
