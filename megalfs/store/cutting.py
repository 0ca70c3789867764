"""Reading a file window by window, with the chunks that each window decides and their BLAKE3.

A window is read into a slot behind head-room that holds what the window before left undecided, so bytes are
moved only there (at most one chunk per window) and every call sees one contiguous buffer.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import megalfs_ext
from megalfs.core.chunker import (
    DEFAULT_PROFILE,
    Layout,
    NeedMore,
    Plain,
    Profile,
    RegionChunker,
    plan_layout,
    regions,
)
from megalfs.store.files import pread_into
from megalfs.store.identity import ChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SLOT_BYTES", "Window", "cut_windows", "read_file_layout", "slot_bytes"]

SLOT_BYTES = (
    2 << 20
)  # with its head-room and the slots of the ring it stays in a 32 MiB L3; 4 MiB was 15 % slower
PREFIX_BYTES = 256 << 10  # the header of a 1 GB safetensors file has some 50 KB


@dataclass(frozen=True, slots=True)
class Window:
    """Whole chunks of a file. `view` is valid until its slot is used again."""

    view: memoryview
    ends: array[int]  # bytes from the start of the view
    blake3: bytes
    base: int  # where the view starts in the file
    slot: bytearray

    def lengths(self) -> list[int]:
        """The chunks' lengths in bytes."""
        return [end - start for start, end in pairwise((0, *self.ends))]


def slot_bytes(profile: Profile = DEFAULT_PROFILE, window: int = SLOT_BYTES) -> int:
    """The size of a slot that windows of so many bytes are read into."""
    return max(window, profile.max) + profile.max


def read_file_layout(fd: int, size: int, profile: Profile) -> Layout | Plain:
    """The layout that the header of a file tells; the header is at most 16 MiB.

    Raises:
        ChangedError: the file shrank meanwhile.
    """
    prefix = os.pread(fd, min(PREFIX_BYTES, size), 0)
    while True:
        reading = plan_layout(prefix, size, profile)
        if not isinstance(reading, NeedMore):
            return reading
        buffer = bytearray(reading.prefix_bytes)
        if pread_into(fd, buffer, 0) < len(buffer):
            raise ChangedError("the file shrank while it was read")
        prefix = bytes(buffer)


def cut_windows(
    fd: int, size: int, layout: Layout | Plain, profile: Profile, take_slot: Callable[[], bytearray]
) -> Iterator[Window]:
    """Reads `size` bytes once, in order; windows grow to the slots' size, so that whoever gets them starts soon.

    Args:
        take_slot: a buffer of `slot_bytes` that nobody reads any more; may wait.

    Raises:
        ChangedError: the file is shorter than `size`.
    """
    chunker = RegionChunker(regions(layout, size, profile.avg), profile)
    head, offset, step = profile.max, 0, slot_bytes(profile) - profile.max
    rest = memoryview(b"")
    while offset < size:
        slot = take_slot()
        view = memoryview(slot)
        start = head - len(rest)
        view[start:head] = rest
        filled = pread_into(fd, view[head : head + min(len(slot) - head, size - offset, step)], offset)
        step *= 2
        base, offset = offset - len(rest), offset + filled
        if not filled:
            raise ChangedError(f"the file shrank to {offset} bytes while it was read")
        window = view[start : head + filled]
        ends = array("Q", [end - base for end in chunker.push(window, base, is_final=offset == size)])
        decided = chunker.position - base
        rest = window[decided:]
        chunks = window[:decided]
        yield Window(chunks, ends, megalfs_ext.blake3_many(chunks, ends), base, slot)
