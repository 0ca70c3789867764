"""Cutting a blob into chunks: tensor regions first, FastCDC v2020 inside each.

A region is a blob of its own to FastCDC: its last chunk ends with it, and what follows starts afresh. So a
window of a file is cut region by region, and a chunk is decided as soon as no later byte can move its end:
when its region ends inside the window, or when the largest chunk fits behind its start. The caller keeps the
bytes that are not decided and shows them again.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import megalfs_ext
from megalfs.formats.header import read_layout
from megalfs.formats.layout import Layout, NeedMore, Plain, Reading, regions
from megalfs.formats.profile import CHUNK_BYTES_MAX, DEFAULT_PROFILE, Profile

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

__all__ = [
    "CHUNK_BYTES_MAX",
    "DEFAULT_PROFILE",
    "Layout",
    "NeedMore",
    "Plain",
    "Profile",
    "RegionChunker",
    "chunk_buffer",
    "plan_layout",
    "regions",
]


def plan_layout(prefix: bytes | memoryview, size: int, profile: Profile) -> Reading:
    """How a blob of `size` bytes that starts with `prefix` is to be cut: by tensors, plain, or ask again.

    A blob of at most `profile.min` bytes is one chunk whatever it holds (`Plain("small")`).
    """
    return Plain("small") if size <= profile.min else read_layout(prefix, size)


class RegionChunker:
    """Takes a blob window by window and says where its chunks end.

    `position` is the first byte not yet decided; the next window starts there. A window of at least
    `profile.max` bytes always decides something, and so does one that reaches the end of the blob.

    Without numpy, because hashing a file starts before that is imported; a window has tens of chunks.
    """

    __slots__ = ("_profile", "_region", "_region_ends", "position")

    def __init__(self, region_ends: Sequence[int], profile: Profile) -> None:
        """
        Args:
            region_ends: from `regions`; the last one is the size of the blob.
        """
        self._region_ends = region_ends
        self._profile = profile
        self._region = 0  # the first region that does not end before `position`
        self.position = 0

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self._region_ends[-1] if len(self._region_ends) else 0

    def push(self, window: ReadableBuffer, base_offset: int, *, is_final: bool) -> array[int]:
        """Ends of the chunks that `window` decides, in bytes from the start of the blob, ascending.

        Args:
            base_offset: where in the blob the window starts: always `position`.
            is_final: the window reaches the end of the blob, so every chunk in it is decided.
        """
        view = memoryview(window).cast("B")
        limit, start = base_offset + view.nbytes, base_offset
        assert base_offset == self.position
        assert is_final == (limit == self.size)
        ends = array("Q")
        while self._region < len(self._region_ends) and (end := self._region_ends[self._region]) <= limit:
            if end - start <= self._profile.min:
                ends.append(end)  # one chunk for sure: a file may have 200,000 tiny tensors
            else:
                self._scan(view[start - base_offset : end - base_offset], start, ends, is_final=True)
            self._region, start = self._region + 1, end
        if start < limit:
            self._scan(view[start - base_offset :], start, ends, is_final=False)
        self.position = ends[-1] if ends else base_offset
        return ends

    def _scan(self, piece: memoryview, offset: int, ends: array[int], *, is_final: bool) -> None:
        profile = self._profile
        raw = megalfs_ext.scan(
            piece,
            profile.min,
            profile.avg,
            profile.max,
            normalization=profile.normalization,
            is_final=is_final,
        )
        for start in range(0, len(raw), 8):
            ends.append(offset + int.from_bytes(raw[start : start + 8], "little"))


def chunk_buffer(
    buffer: ReadableBuffer, profile: Profile = DEFAULT_PROFILE
) -> tuple[NDArray[np.uint64], Layout | Plain]:
    """Chunk ends of a blob that is in memory, and the layout they follow."""
    import numpy as np

    view = memoryview(buffer).cast("B")
    layout = plan_layout(view, view.nbytes, profile)
    assert not isinstance(layout, NeedMore)
    chunker = RegionChunker(regions(layout, view.nbytes, profile.avg), profile)
    return np.array(chunker.push(view, 0, is_final=True), np.uint64), layout
