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
from megalfs.core.chunk_proofs import ChunkProofs
from megalfs.core.ids import ManifestId
from megalfs.core.manifest import Manifest
from megalfs.core.parts import DIGEST_BYTES, Stretch
from megalfs.errors import TemporaryError

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
    proofs: ChunkProofs

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
    """Reads one run of parts from any byte source into a sink, verifying all of it before it is written."""

    def __init__(self, buffer: GranuleBuffer, progress: Progress) -> None:
        self._buffer = buffer
        self._progress = progress

    def receive(self, fill: Fill, sink: Sink, first: int, count: int, *, has_proofs: bool = True) -> bool:
        """Receives parts `first` .. `first + count`; False when some had wrong bytes (the rest is not read).

        Args:
            fill: fills the whole view with the next bytes of the run, or raises; tells on slow links how many
                bytes have come since it last told.
            has_proofs: the run begins with the proofs of chunks that it has not all parts of.

        Raises:
            TemporaryError: without them a proof was needed that is not known.
        """
        stretches = list(sink.manifest.parts.stretches(first, count))
        if has_proofs and not self._receive_proofs(fill, sink, stretches):
            return False
        for stretch in stretches:
            receive = self._receive_chunks if stretch.chunks else self._receive_parts
            if not receive(fill, sink, stretch):
                return False
        return True

    def _receive_proofs(self, fill: Fill, sink: Sink, stretches: list[Stretch]) -> bool:
        for stretch in stretches:
            if not stretch.chunks:
                proof = bytearray(DIGEST_BYTES * sink.manifest.parts.group_count(stretch.chunk))
                self._fill(fill, sink, memoryview(proof))
                if not sink.proofs.put(stretch.chunk, bytes(proof)):
                    self._progress.corrupt(sink.manifest.id, [stretch.first])
                    return False
        return True

    def _receive_parts(self, fill: Fill, sink: Sink, stretch: Stretch) -> bool:
        manifest = sink.manifest
        start, length = manifest.parts.extent(stretch.first, stretch.count)
        view = self._buffer.part(length)
        self._fill(fill, sink, view)
        verifies = sink.proofs.verifies(stretch, view)
        if verifies is None:
            raise TemporaryError(f"parts of chunk {stretch.chunk} came without a proof")
        if not verifies:
            self._progress.corrupt(manifest.id, list(range(stretch.first, stretch.first + stretch.count)))
            return False
        sink.write(start, view)
        self._progress.verified(manifest.id, stretch.first, stretch.count)
        return True

    def _receive_chunks(self, fill: Fill, sink: Sink, stretch: Stretch) -> bool:
        report = self._progress.verified
        manifest = sink.manifest
        offsets, parts = manifest.offsets, manifest.parts
        chunk = reported = stretch.chunk
        end = chunk + stretch.chunks
        reported_at = time.monotonic()
        while chunk < end:
            start = int(offsets[chunk])
            # As uint64: for a Python int numpy would convert all offsets to float64, 0.6 ms of a 140 GB blob.
            stop = int(offsets.searchsorted(np.uint64(start + GRANULE_BYTES), side="right")) - 1
            stop = min(max(stop, chunk + 1), end)
            view = self._buffer.part(int(offsets[stop]) - start)
            self._fill(fill, sink, view)
            bad = megalfs_ext.verify_chunks(
                view, manifest.lengths[chunk:stop].data, manifest.blake3[chunk:stop].data
            )
            if bad:
                if chunk > reported:
                    report(manifest.id, *parts.of_chunks(reported, chunk - reported))
                wrong = [parts.of_chunks(chunk + index, 1) for index in bad]
                self._progress.corrupt(
                    manifest.id, [first + at for first, count in wrong for at in range(count)]
                )
                return False
            sink.write(start, view)
            chunk = stop
            now = time.monotonic()
            pending = int(offsets[chunk] - offsets[reported])
            if chunk == end or pending >= REPORT_BYTES or now - reported_at >= REPORT_INTERVAL_S:
                report(manifest.id, *parts.of_chunks(reported, chunk - reported))
                reported, reported_at = chunk, now
        return True

    def _fill(self, fill: Fill, sink: Sink, view: memoryview) -> None:
        fill(view, lambda size: self._progress.progressed(sink.manifest.id, size))
