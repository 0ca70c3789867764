"""Hashing what is on disk against a manifest: pread into one reused buffer, never mmap.

One C call checks a window of whole pieces with the GIL released; what it returns are the pieces that do not
fit. A window is a few MiB, so memory does not depend on the file's size.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

import megalfs_ext
from megalfs.core.bitfield import Run
from megalfs.errors import CancelledByUserError
from megalfs.store.files import pread_into
from megalfs.store.identity import ChangedError, Identity, open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from megalfs.core.ids import Oid
    from megalfs.core.manifest import Manifest

__all__ = ["PieceReader", "identity_holding", "sample_runs", "sha256_of_fd", "windows"]

WINDOW_BYTES = 4 << 20  # reading in 256 KiB to 8 MiB costs the same (research/cdc.md section 3)
SAMPLES = 16  # pieces looked at when only the device number changed


def windows(manifest: Manifest, run: Run, bytes_max: int = WINDOW_BYTES) -> Iterator[Run]:
    """Cuts a run into runs of at most `bytes_max`, or of one piece where that is larger."""
    offsets, first = manifest.offsets, run.first
    while first < run.end:
        limit = int(offsets[first]) + bytes_max
        last = int(np.searchsorted(offsets[first : run.end + 1], np.uint64(limit), "right")) - 1
        count = max(1, last)
        yield Run(first, count)
        first += count


class PieceReader:
    """Reads pieces of one file through one buffer and says which of them fit the manifest."""

    def __init__(self, fd: int, manifest: Manifest, *, base: int = 0) -> None:
        """
        Args:
            base: where the manifest's byte 0 lies in the file.
        """
        self._fd, self._manifest, self._base = fd, manifest, base
        largest = int(manifest.lengths.max(initial=1))
        self._buffer = memoryview(bytearray(min(max(WINDOW_BYTES, largest), max(manifest.size, 1))))

    def read(self, run: Run, *, offset: int | None = None) -> tuple[memoryview, list[int]]:
        """The bytes of one window, and the indices (from `run.first`) of pieces that do not fit.

        The view is overwritten by the next call. Pieces beyond the end of the file do not fit.

        Args:
            offset: where the run lies in the file, when not where the manifest puts it.
        """
        start, length = self._manifest.run_extent(*run)
        view = self._buffer[:length]
        filled = pread_into(self._fd, view, self._base + start if offset is None else offset)
        if filled < length:
            view[filled:] = bytes(length - filled)
        chosen = slice(run.first, run.end)
        lengths, ids = self._manifest.lengths[chosen], self._manifest.blake3[chosen]
        bad = megalfs_ext.verify_chunks(view, lengths.data, ids.data)
        if filled < length:  # zeros might be right by chance of content; the file has none there
            ends = self._manifest.offsets[run.first + 1 : run.end + 1] - np.uint64(start)
            bad = sorted({*bad, *np.flatnonzero(ends > filled).tolist()})
        return view, bad

    def check(self, run: Run, *, should_stop: Callable[[], bool] | None = None) -> Iterator[tuple[Run, bool]]:
        """Checks a run of any length; yields sub-runs in order, each all good or all bad.

        Raises:
            CancelledByUserError: `should_stop` answered True.
        """
        for window in windows(self._manifest, run):
            if should_stop is not None and should_stop():
                raise CancelledByUserError("stopped while checking", exit_code=143)
            _, bad = self.read(window)
            yield from split(window, bad)


def split(window: Run, bad: list[int]) -> Iterator[tuple[Run, bool]]:
    """The sub-runs of a window between its bad pieces, and the bad pieces themselves."""
    start = 0
    for index in bad:
        if index > start:
            yield Run(window.first + start, index - start), True
        yield Run(window.first + index, 1), False
        start = index + 1
    if start < window.count:
        yield Run(window.first + start, window.count - start), True


def sample_runs(manifest: Manifest) -> list[Run]:
    """A few pieces spread evenly over the blob, first and last included."""
    chosen = np.unique(np.linspace(0, manifest.piece_count - 1, SAMPLES).astype(np.int64))
    return [Run(index, 1) for index in chosen.tolist()] if manifest.piece_count else []


def sha256_of_fd(fd: int, *, progress: Callable[[int], None] | None = None) -> tuple[bytes, int]:
    """SHA-256 and size of everything in a file, serially: for blobs without a manifest."""
    hasher, offset = hashlib.sha256(), 0
    buffer = memoryview(bytearray(WINDOW_BYTES))
    while filled := pread_into(fd, buffer, offset):
        hasher.update(buffer[:filled])
        offset += filled
        if progress is not None:
            progress(filled)
    return hasher.digest(), offset


def identity_holding(
    path: Path, oid: Oid, *, progress: Callable[[int], None] | None = None
) -> Identity | None:
    """The identity of a file that holds a blob; None when it holds something else, or is not to be followed.

    Args:
        progress: called with bytes hashed; what it raises ends the hashing.
    """
    try:
        fd = open_regular(path)
    except (OSError, ChangedError):
        return None
    try:
        before = Identity.of_fd(fd)
        digest, _ = sha256_of_fd(fd, progress=progress)
        return before if digest == oid.raw and Identity.of_fd(fd) == before else None
    finally:
        os.close(fd)
