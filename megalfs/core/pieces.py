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


class Pieces:
    """State of every piece, by index."""

    __slots__ = (
        "_asked",
        "_offsets",
        "_reserved",
        "bytes_total",
        "have",
        "missing_bytes",
        "unasked",
        "wanted",
    )

    def __init__(self, lengths: Lengths, have: Bitfield) -> None:
        assert have.size == len(lengths)
        self._offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=self._offsets[1:])
        self.bytes_total = int(self._offsets[-1])
        self.have = have
        self._asked = np.zeros(len(lengths), dtype=np.uint8)
        self._reserved: Bits = np.zeros(len(lengths), dtype=np.bool_)
        self.wanted: Bits = ~have.bits
        self.unasked = have.size - have.count
        self.missing_bytes = self.bytes_total - sum(self.bytes_of(run) for run in have.runs())

    @property
    def count(self) -> int:
        """How many pieces the blob has."""
        return self.have.size

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
        return int(self._offsets[run.first + run.count] - self._offsets[run.first])

    def fit(self, first: int, size: int) -> int:
        """How many pieces from `first` on fit into `size` bytes; at least one."""
        limit = int(self._offsets[first]) + size
        return max(1, int(self._offsets.searchsorted(limit, side="right")) - 1 - first)

    def fit_before(self, end: int, size: int) -> int:
        """How many pieces just before `end` fit into `size` bytes; at least one."""
        limit = int(self._offsets[end]) - size
        return max(1, end - int(self._offsets.searchsorted(limit, side="left")))

    def wants(self, run: Run) -> bool:
        """Whether a piece of the run is wanted."""
        if run.count == 1:
            return bool(self.wanted[run.first])
        return int(np.count_nonzero(self.wanted[run.first : run.end])) > 0

    def ask(self, run: Run) -> None:
        """The run is asked of one more peer."""
        self._asked[run.first : run.end] += 1
        self._unwant(run)

    def unask(self, run: Run) -> None:
        """One peer fewer is asked for the run; what nobody else is asked for is wanted again."""
        self._asked[run.first : run.end] -= 1
        if not self.have.has_all(run.first, run.count):
            self._reconsider(run)

    def asked(self, run: Run) -> int:
        """Of how many peers at most a piece of the run is asked."""
        if run.count == 1:
            return int(self._asked[run.first])
        return int(self._asked[run.first : run.end].max())

    def add(self, run: Run) -> int:
        """The run is verified and here; returns how many bytes of it are new."""
        before = self.have.bits[run.first : run.end]
        if not np.count_nonzero(before):
            size = self.bytes_of(run)
        else:
            lengths = np.diff(self._offsets[run.first : run.end + 1])
            size = int(lengths[~before].sum())
        self.have.add(run.first, run.count)
        self.missing_bytes -= size
        self._reserved[run.first : run.end] = False
        self._unwant(run)
        return size

    def lose(self, run: Run) -> None:
        """The run is no longer here."""
        lengths = np.diff(self._offsets[run.first : run.end + 1])
        self.missing_bytes += int(lengths[self.have.bits[run.first : run.end]].sum())
        self.have.remove(run.first, run.count)
        self._reconsider(run)

    def reserve(self, run: Run) -> None:
        """A local source works on the run: it is not to be asked of peers."""
        self._reserved[run.first : run.end] = True
        self._unwant(run)

    def release(self, run: Run) -> None:
        """The local source gave up on the run."""
        self._reserved[run.first : run.end] = False
        self._reconsider(run)

    def _unwant(self, run: Run) -> None:
        part = self.wanted[run.first : run.end]
        gone = int(np.count_nonzero(part))
        if gone:
            part[:] = False
            self.unasked -= gone

    def _reconsider(self, run: Run) -> None:
        span = slice(run.first, run.end)
        before = int(np.count_nonzero(self.wanted[span]))
        now = ~(self.have.bits[span] | self._reserved[span] | (self._asked[span] > 0))
        self.wanted[span] = now
        self.unasked += int(np.count_nonzero(now)) - before
