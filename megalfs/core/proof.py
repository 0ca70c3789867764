"""The proof that a file has its oid, kept as books: which segments can be checked, which links hold.

Segment k takes SHA-256 state k to state k + 1; the last takes its state to the oid. When all links hold, the
file is proven with nothing trusted but the oid. Links that hold without a gap *from the end* prove their
bytes at once, since anything else would be a second preimage of the compression function; links from the
front prove nothing until all hold. So the last segment is always asked for first. A link that fails over
bytes that fit their chunk ids condemns the manifest, never the peer that sent the bytes.

Nothing here hashes. The driver asks `take`, checks the segments against `states_of`
(`megalfs_ext.verify_file_links`), and tells `settle`. A manifest without states is proven in
order by `SerialProof`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from megalfs.core.manifest import SEGMENT_BYTES, Manifest, segment_count
from megalfs_ext import INITIAL_STATE

__all__ = ["Proof", "Segment", "SerialProof", "open_proof", "segment_of"]


class Segment(Struct, frozen=True):
    """Bytes `offset` to `offset + length` of the blob; all but the last are 2**20 long."""

    k: int
    offset: int
    length: int


def segment_of(size: int, k: int) -> Segment:
    """Segment k of a blob of `size` bytes."""
    assert 0 <= k < segment_count(size)
    offset = k * SEGMENT_BYTES
    return Segment(k, offset, min(SEGMENT_BYTES, size - offset))


class _Coverage:
    """Which segments have all their bytes on disk, kept from runs of pieces."""

    __slots__ = ("_first", "_has", "_last", "_missing", "pieces_left")

    def __init__(self, manifest: Manifest) -> None:
        offsets = manifest.offsets
        self._first = (offsets[:-1] // SEGMENT_BYTES).astype(np.int64)  # first and last segment of each piece
        self._last = ((offsets[1:] - np.uint64(1)) // SEGMENT_BYTES).astype(np.int64)
        self._has = np.zeros(manifest.piece_count, np.bool_)
        self.pieces_left = manifest.piece_count
        touched = self._segments(np.arange(manifest.piece_count))
        self._missing = np.bincount(touched, minlength=segment_count(manifest.size))

    def add(self, runs: Sequence[tuple[int, int]]) -> list[int]:
        """Notes runs of pieces, known ones included; returns the segments that became whole, ascending."""
        assert all(0 <= first <= first + count <= len(self._has) for first, count in runs)
        pieces = np.concatenate([np.arange(first, first + count) for first, count in runs])
        new = np.unique(pieces[~self._has[pieces]])
        self._has[new] = True
        self.pieces_left -= len(new)
        touched, times = np.unique(self._segments(new), return_counts=True)
        self._missing[touched] -= times
        whole: list[int] = touched[self._missing[touched] == 0].tolist()
        return whole

    def _segments(self, pieces: NDArray[np.int64]) -> NDArray[np.int64]:
        """The segments that each of these pieces touches, one after the other."""
        first = self._first[pieces]
        counts = self._last[pieces] - first + 1
        begins = np.cumsum(counts) - counts
        touched: NDArray[np.int64] = np.repeat(first - begins, counts) + np.arange(counts.sum())
        return touched


class Proof:
    """The books of a manifest with states. Tell it `on_disk` and `settle`; ask it `take`."""

    __slots__ = ("_coverage", "_holds", "_manifest", "_proven_from", "_ready", "condemned_by")

    def __init__(self, manifest: Manifest) -> None:
        assert manifest.has_states
        self._manifest = manifest
        self._coverage = _Coverage(manifest)
        self._holds = np.zeros(segment_count(manifest.size), np.bool_)
        self._proven_from = len(self._holds)  # the lowest segment of the suffix that holds without a gap
        self._ready: list[int] = [] if manifest.size else [0]  # max-heap: negated numbers
        self.condemned_by: Segment | None = None

    @property
    def is_proven(self) -> bool:
        """Every link holds: the file has its oid."""
        return self._proven_from == 0

    @property
    def is_condemned(self) -> bool:
        """A link failed: the manifest is false, whatever else it says."""
        return self.condemned_by is not None

    @property
    def proven_from(self) -> int:
        """Bytes from this offset to the end are proven, even when the manifest was condemned since."""
        return min(self._proven_from * SEGMENT_BYTES, self._manifest.size)

    def on_disk(self, runs: Sequence[tuple[int, int]]) -> None:
        """Runs of pieces whose bytes fit their chunk ids and can be read back; saying it twice does no harm."""
        for k in self._coverage.add(runs):
            heapq.heappush(self._ready, -k)

    @property
    def ready_count(self) -> int:
        """Segments that can be checked now."""
        return len(self._ready)

    @property
    def is_all_on_disk(self) -> bool:
        """No segment will become ready any more."""
        return self._coverage.pieces_left == 0

    def take(self, limit: int = 1) -> tuple[Segment, ...]:
        """Up to `limit` segments to check now: the highest that is ready, then those just below it.

        They lie side by side, so `states_of` needs each state once. A taken segment must be settled or put back.
        """
        taken: list[Segment] = []
        while self._ready and len(taken) < limit and not self.is_condemned:
            k = -self._ready[0]
            if taken and k != taken[-1].k - 1:
                break
            heapq.heappop(self._ready)
            taken.append(segment_of(self._manifest.size, k))
        return tuple(taken)

    def put_back(self, segments: tuple[Segment, ...]) -> None:
        """Segments that were taken but not checked, as after a read error."""
        for segment in segments:
            heapq.heappush(self._ready, -segment.k)

    def states_of(self, segments: tuple[Segment, ...]) -> bytes:
        """The states around these segments, ascending: one before each, and the one behind if there is one.

        Behind the last segment stands the oid, not a state.
        """
        low, high = segments[-1].k, segments[0].k
        inner = self._manifest.states[max(low - 1, 0) : high + 1].tobytes()  # states[i] is state i + 1
        return INITIAL_STATE + inner if low == 0 else inner

    def settle(self, segment: Segment, *, holds: bool) -> None:
        """The link of this segment was checked over bytes that fit their chunk ids."""
        if not holds:
            self.condemned_by = self.condemned_by or segment
            return
        self._holds[segment.k] = True
        while self._proven_from and self._holds[self._proven_from - 1]:
            self._proven_from -= 1


class SerialProof:
    """The books of a manifest without states: one SHA-256 from the front, nothing proven before its end."""

    __slots__ = ("_coverage", "_manifest", "_ready", "_taken", "condemned_by", "is_proven")

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._coverage = _Coverage(manifest)
        self._ready: set[int] = set() if manifest.size else {0}
        self._taken = 0  # segments given out
        self.is_proven = False
        self.condemned_by: Segment | None = None

    @property
    def is_condemned(self) -> bool:
        """The digest was another: which byte is wrong nobody knows."""
        return self.condemned_by is not None

    @property
    def proven_from(self) -> int:
        """0 once proven, the size before."""
        return 0 if self.is_proven else self._manifest.size

    def on_disk(self, runs: Sequence[tuple[int, int]]) -> None:
        """As `Proof.on_disk`."""
        self._ready.update(self._coverage.add(runs))

    @property
    def ready_count(self) -> int:
        """Segments that can be hashed now, in order."""
        k = self._taken
        while k in self._ready:
            k += 1
        return k - self._taken

    @property
    def is_all_on_disk(self) -> bool:
        """No segment will become ready any more."""
        return self._coverage.pieces_left == 0

    def take(self, limit: int = 1) -> tuple[Segment, ...]:
        """Up to `limit` segments to hash next, ascending; they follow those taken before."""
        taken: list[Segment] = []
        while self._taken in self._ready and len(taken) < limit and not self.is_condemned:
            self._ready.remove(self._taken)
            taken.append(segment_of(self._manifest.size, self._taken))
            self._taken += 1
        return tuple(taken)

    def put_back(self, segments: tuple[Segment, ...]) -> None:
        """The segments taken last, which were not hashed."""
        if segments:
            assert segments[-1].k == self._taken - 1
            self._ready.update(segment.k for segment in segments)
            self._taken = segments[0].k

    @property
    def is_all_taken(self) -> bool:
        """Every segment was given out: hash them, then `finish`."""
        return self._taken == segment_count(self._manifest.size)

    def finish(self, digest: bytes) -> None:
        """The SHA-256 of all bytes, in order."""
        assert self.is_all_taken
        self.is_proven = digest == self._manifest.oid.raw
        if not self.is_proven:
            self.condemned_by = segment_of(self._manifest.size, 0)


def open_proof(manifest: Manifest) -> Proof | SerialProof:
    """The proof that this manifest allows."""
    return Proof(manifest) if manifest.has_states else SerialProof(manifest)
