"""Where received pieces go: the part of a pull that lanes see, and the verified way into it.

A lane knows nothing of disks or of the scheduler. It is handed a `Sink` (what the pieces must be, and where
their bytes go) and a `Receiver` that reads a run in granules of whole chunks: fill the buffer, one C call
hashes all chunks of it with the GIL released, one write. What fails its chunk id is never written.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
from msgspec import Struct

import megalfs_ext
from megalfs.core.ids import ManifestId
from megalfs.core.manifest import Manifest

__all__ = ["GRANULE_BYTES", "Fill", "GranuleBuffer", "Progress", "Receiver", "Sink"]

# One receive, one hash call, one write. 512 KiB to 1 MiB measured best (256 KiB costs 15 %, 4 MiB 12 %:
# pull prototype). A chunk of the default profile has at most 1 MiB; where one is larger, it is a granule alone.
GRANULE_BYTES = 1 << 20
# Verified pieces are reported at once on slow links and in batches on fast ones: haves are worth 5 ms.
REPORT_INTERVAL_S = 0.005
REPORT_BYTES = 4 << 20


Fill = Callable[[memoryview, Callable[[int], None]], None]


class Sink(Protocol):
    """One pull, as a lane sees it. Methods are called from lane threads."""

    manifest: Manifest

    def write(self, offset: int, buffer: memoryview) -> None:
        """Writes verified bytes at `offset` of the blob. Raises StoreError, SpaceError."""

    def is_closed(self) -> bool:
        """True when the pull has ended and what still arrives is to be thrown away."""


class Progress(Struct, frozen=True):
    """Where a lane reports, from its thread.

    Attributes:
        verified: consecutive pieces are verified and written.
        corrupt: these pieces came with wrong bytes.
        progressed: so many bytes came that cannot be verified yet; a sign of life on a slow link.
    """

    verified: Callable[[ManifestId, int, int], None]
    corrupt: Callable[[ManifestId, Sequence[int]], None]
    progressed: Callable[[ManifestId, int], None]


class GranuleBuffer:
    """A thread's reused buffer: anonymous memory, touched once, on huge pages where there are any."""

    def __init__(self, size: int = GRANULE_BYTES) -> None:
        self._open(size)

    def _open(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._memory)

    def part(self, size: int) -> memoryview:
        """The first `size` bytes; it grows for a chunk that is larger, which `CHUNK_BYTES_MAX` bounds."""
        if size > len(self.view):
            self.close()
            self._open(size)
        return self.view[:size]

    def close(self) -> None:
        """Gives the memory back; while the traceback of an error holds a part of it, it stays until that goes."""
        self.view.release()
        with suppress(BufferError):
            self._memory.close()


class Receiver:
    """Reads one run of pieces from any byte source into a sink, verifying every chunk before it is written."""

    def __init__(self, buffer: GranuleBuffer, progress: Progress) -> None:
        self._buffer = buffer
        self._progress = progress

    def receive(
        self,
        fill: Fill,
        sink: Sink,
        first: int,
        count: int,
    ) -> bool:
        """Receives pieces `first` .. `first + count`; False when some had wrong bytes (the rest is not read).

        Args:
            fill: fills the whole view with the next bytes of the run, or raises; tells on slow links how many
                bytes have come since it last told.
        """
        report = self._progress.verified
        manifest = sink.manifest
        offsets = manifest.offsets
        piece = reported = first
        end = first + count
        reported_at = time.monotonic()
        while piece < end:
            start = int(offsets[piece])
            # As uint64: for a Python int numpy would convert all offsets to float64, 0.6 ms of a 140 GB blob.
            stop = int(offsets.searchsorted(np.uint64(start + GRANULE_BYTES), side="right")) - 1
            stop = min(max(stop, piece + 1), end)
            view = self._buffer.part(int(offsets[stop]) - start)
            fill(view, lambda size: self._progress.progressed(manifest.id, size))
            bad = megalfs_ext.verify_chunks(
                view, manifest.lengths[piece:stop].data, manifest.blake3[piece:stop].data
            )
            if bad:
                if piece > reported:
                    report(manifest.id, reported, piece - reported)
                self._progress.corrupt(manifest.id, [piece + index for index in bad])
                return False
            sink.write(start, view)
            piece = stop
            now = time.monotonic()
            pending = int(offsets[piece] - offsets[reported])
            if piece == end or pending >= REPORT_BYTES or now - reported_at >= REPORT_INTERVAL_S:
                report(manifest.id, reported, piece - reported)
                reported, reported_at = piece, now
        return True
