"""Two manifests of one oid that differ: at least one is false, or they were cut by other profiles.

The way to find out is to fetch the last segment where they differ by byte range and to see which of the two
it fits. Both may be right where only the cuts differ; the chunks that both name are kept, whichever goes.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from megalfs.core.manifest import SEGMENT_BYTES, Manifest, segment_count
from megalfs.core.proof import Segment, segment_of

__all__ = ["Conflict", "first_conflict", "shared_chunks"]


class Conflict(Struct, frozen=True):
    """The last segment where manifests a and b differ, and the bytes that decide.

    The range holds that segment and every chunk, of either manifest, that overlaps it, so that both the link
    and the chunk ids can be checked. Where sizes differ, so does the last segment: then `of_a` and `of_b`
    differ, and the range reaches beyond the end of the smaller one.
    """

    of_a: Segment
    of_b: Segment
    fetch_offset: int
    fetch_length: int


def first_conflict(a: Manifest, b: Manifest) -> Conflict | None:
    """Where to decide between two manifests of one oid; None when they say the same of every byte."""
    assert a.oid == b.oid
    if a.size != b.size:
        return _conflict(a, b, segment_count(a.size) - 1, segment_count(b.size) - 1)
    k = max(_last_other_state(a, b), _last_other_chunk(a, b))
    return None if k < 0 else _conflict(a, b, k, k)


def shared_chunks(a: Manifest, b: Manifest) -> NDArray[np.int64]:
    """For each piece of `b` a piece of `a` with the same bytes (length and both digests agree), or -1."""
    if not a.piece_count:
        return np.full(b.piece_count, -1, np.int64)
    found = a.indices_of_blake3(b.blake3)
    agrees = (found >= 0) & (a.lengths[found] == b.lengths) & (a.sha256[found] == b.sha256).all(axis=1)
    return np.where(agrees, found, -1)


def _conflict(a: Manifest, b: Manifest, k_a: int, k_b: int) -> Conflict:
    of_a, of_b = segment_of(a.size, k_a), segment_of(b.size, k_b)
    extents = [_chunks_around(manifest, segment) for manifest, segment in ((a, of_a), (b, of_b))]
    start = min(offset for offset, _ in extents)
    return Conflict(of_a, of_b, start, max(end for _, end in extents) - start)


def _chunks_around(manifest: Manifest, segment: Segment) -> tuple[int, int]:
    """Start and end of the chunks that overlap a segment."""
    offset, length = manifest.run_extent(*manifest.pieces_covering(segment.offset, segment.length))
    return offset, offset + length


def _last_other_state(a: Manifest, b: Manifest) -> int:
    """The segment that starts with the last state they disagree on: its end they agree on. -1 for none.

    A manifest that declares no states disagrees with nobody.
    """
    if len(a.states) != len(b.states):
        return -1
    others = np.flatnonzero((a.states != b.states).any(axis=1))
    return int(others[-1]) + 1 if len(others) else -1  # states[i] is state i + 1


def _last_other_chunk(a: Manifest, b: Manifest) -> int:
    """The segment of the last byte whose chunk has no equal in the other manifest. -1 for none."""
    last_byte = max(_last_byte_without_twin(a, b), _last_byte_without_twin(b, a))
    return last_byte // SEGMENT_BYTES if last_byte >= 0 else -1


def _last_byte_without_twin(a: Manifest, b: Manifest) -> int:
    if not a.piece_count:
        return -1
    slots = np.minimum(np.searchsorted(b.offsets[:-1], a.offsets[:-1]), b.piece_count - 1)
    has_twin = (b.offsets[slots] == a.offsets[:-1]) & (b.lengths[slots] == a.lengths)
    has_twin &= (a.blake3 == b.blake3[slots]).all(axis=1) & (a.sha256 == b.sha256[slots]).all(axis=1)
    lonely = np.flatnonzero(~has_twin)
    return int(a.offsets[lonely[-1] + 1]) - 1 if len(lonely) else -1
