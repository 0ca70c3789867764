"""Chunks of a blob that this disk has already: in any blob of the store, or in an older file at the target.

A plan says for every piece where it lies, as two numpy columns; nothing walks the pieces one by one. It is
copied in runs that are consecutive in both files, so an unchanged part is a few large preads. What a plan
says is a hint: every byte is hashed between the read and the write.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.chunker import DEFAULT_PROFILE, Profile
from megalfs.errors import MegalfsError, NotFoundError
from megalfs.formats.digests import SortedDigests, digests_from_bytes
from megalfs.store.cutting import cut_windows, read_file_layout, slot_bytes
from megalfs.store.identity import ChangedError, open_regular
from megalfs.store.verify import PieceReader, split, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from megalfs.core.ids import Oid
    from megalfs.core.manifest import Manifest
    from megalfs.store.blobs import Store
    from megalfs.store.partial import Partial

__all__ = ["FileChunks", "ReusePlan", "chunk_file", "copy", "plan"]


@dataclass(frozen=True, slots=True)
class FileChunks:
    """The chunks of one file on this disk."""

    path: Path
    offsets: NDArray[np.uint64]  # where each chunk starts, in bytes
    lengths: NDArray[np.uint32]
    blake3: NDArray[np.uint8]  # (n, 32)


@dataclass(frozen=True, slots=True)
class ReuseRun:
    """Consecutive pieces that lie one after the other in one file, from `offset`."""

    run: Run
    source: int
    offset: int


@dataclass(frozen=True, slots=True)
class ReusePlan:
    """For each piece the source that has it (-1: none) and where in it (bytes)."""

    manifest: Manifest
    sources: tuple[Path, ...]
    source: NDArray[np.int32]
    offset: NDArray[np.uint64]

    @property
    def pieces(self) -> Bitfield:
        """The pieces that some file here claims to have."""
        found = Bitfield(len(self.source))
        found.bits[:] = self.source >= 0
        found.count = int(np.count_nonzero(found.bits))
        return found

    @property
    def bytes_planned(self) -> int:
        """Bytes that need not be fetched when every hint holds."""
        return int(self.manifest.lengths[self.source >= 0].sum(dtype=np.uint64))

    def runs(self) -> Iterator[ReuseRun]:
        """The pieces to copy, in the order of the blob, joined where both files are consecutive."""
        ends = self.offset + self.manifest.lengths
        is_apart = (self.source[1:] >= 0) & (self.offset[1:] != ends[:-1])
        is_break = (self.source[1:] != self.source[:-1]) | is_apart
        edges = [0, *(np.flatnonzero(is_break) + 1).tolist(), len(self.source)]
        for first, end in pairwise(edges):
            if end > first and self.source[first] >= 0:
                yield ReuseRun(Run(first, end - first), int(self.source[first]), int(self.offset[first]))


def plan(
    manifest: Manifest,
    store: Store,
    extra_paths: Iterable[Path] = (),
    *,
    wanted: Bitfield | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ReusePlan:
    """Finds the pieces of a blob on this disk.

    Args:
        extra_paths: files that may hold an older version; one that the store does not know is chunked first.
        wanted: the pieces to look for; all when None.
    """
    found = _Found(manifest, wanted)
    known = list(store.blobs())
    for path in extra_paths:
        if store.at(path) is None and not found.is_done:
            with suppress(OSError, MegalfsError):
                found.add(chunk_file(path, Profile.parse(manifest.profile), should_stop=should_stop))
    for blob in known:
        if found.is_done or (should_stop is not None and should_stop()):
            break
        if blob.is_held and blob.manifests:
            with suppress(NotFoundError, ChangedError):
                found.add(_chunks_of(store, blob.oid, manifest))
    return ReusePlan(manifest, tuple(found.paths), found.source, found.offset)


class _Found:
    """The columns of a plan while it is made."""

    def __init__(self, manifest: Manifest, wanted: Bitfield | None) -> None:
        self._manifest = manifest
        self.paths: list[Path] = []
        self.source = np.full(manifest.piece_count, -1, np.int32)
        self.offset = np.zeros(manifest.piece_count, np.uint64)
        self._open = np.arange(manifest.piece_count) if wanted is None else np.flatnonzero(wanted.bits)

    @property
    def is_done(self) -> bool:
        return len(self._open) == 0

    def add(self, chunks: FileChunks) -> None:
        """Takes from one file what nobody had yet."""
        ids = self._manifest.blake3[self._open]
        places = SortedDigests.of(chunks.blake3).find_many(ids)
        hit = places >= 0
        hit[hit] = chunks.lengths[places[hit]] == self._manifest.lengths[self._open[hit]]
        if not hit.any():
            return
        pieces = self._open[hit]
        self.source[pieces] = len(self.paths)
        self.offset[pieces] = chunks.offsets[places[hit]]
        self.paths.append(chunks.path)
        self._open = self._open[~hit]


def _chunks_of(store: Store, oid: Oid, wanted: Manifest) -> FileChunks:
    """The chunks of a held blob, under the manifest of the same profile where there is one."""
    ids = store.manifests(oid)
    manifest = store.load_manifest(ids[0], oid)
    for manifest_id in ids[1:]:
        if manifest.profile == wanted.profile:
            break
        manifest = store.load_manifest(manifest_id, oid)
    with store.open(oid) as opened:
        return FileChunks(opened.path, manifest.offsets[:-1], manifest.lengths, manifest.blake3)


def chunk_file(
    path: Path, profile: Profile = DEFAULT_PROFILE, *, should_stop: Callable[[], bool] | None = None
) -> FileChunks:
    """Cuts a file that the store does not know: CDC and BLAKE3 only, some 2 to 3 GB/s on one core.

    Raises:
        OSError, ChangedError: it cannot be read, or is no regular file.
    """
    fd = open_regular(path)
    ends: list[NDArray[np.uint64]] = [np.zeros(1, np.uint64)]
    digests = bytearray()
    try:
        size = os.fstat(fd).st_size
        slots = [bytearray(min(slot_bytes(profile), profile.max + max(size, 1))) for _ in range(2)]

        def take_slot() -> bytearray:
            slots.reverse()
            return slots[0]

        for window in cut_windows(fd, size, read_file_layout(fd, size, profile), profile, take_slot):
            ends.append(np.array(window.ends, np.uint64) + np.uint64(window.base))
            digests += window.blake3
            if should_stop is not None and should_stop():
                break
    finally:
        os.close(fd)
    edges = np.concatenate(ends)
    return FileChunks(path, edges[:-1], np.diff(edges).astype(np.uint32), digests_from_bytes(bytes(digests)))


def copy(
    reuse: ReusePlan,
    partial: Partial,
    on_verified: Callable[[int, int], None],
    on_failed: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> int:
    """Copies what the plan found into the partial, hashing all of it; runs in a thread of its own.

    Args:
        on_verified: called with (first, count) after pieces were written and marked.
        on_failed: called with (first, count) of pieces that were not there after all.

    Returns:
        Bytes copied.

    Raises:
        SpaceError: the disk is full.
    """
    descriptors: dict[int, int | None] = {}
    copied = 0
    try:
        for part in reuse.runs():
            if should_stop():
                break
            if part.source not in descriptors:
                descriptors[part.source] = _open_or_none(reuse.sources[part.source])
            fd = descriptors[part.source]
            if fd is None:
                on_failed(*part.run)
            else:
                copied += _copy_run(reuse, part, fd, partial, on_verified, on_failed, should_stop)
    finally:
        for fd in descriptors.values():
            if fd is not None:
                os.close(fd)
    return copied


def _open_or_none(path: Path) -> int | None:
    try:
        return open_regular(path)
    except (OSError, ChangedError):
        return None


def _copy_run(
    reuse: ReusePlan,
    part: ReuseRun,
    fd: int,
    partial: Partial,
    on_verified: Callable[[int, int], None],
    on_failed: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> int:
    manifest, copied = reuse.manifest, 0
    reader = PieceReader(fd, manifest)
    base = int(manifest.offsets[part.run.first])
    for window in windows(manifest, part.run):
        if should_stop():
            break
        start, _ = manifest.run_extent(*window)
        view, bad = reader.read(window, offset=part.offset + start - base)
        for run, is_good in split(window, bad):
            if not is_good:
                on_failed(*run)
                continue
            offset, length = manifest.run_extent(*run)
            partial.write(offset, view[offset - start : offset - start + length])
            partial.mark(*run)
            on_verified(*run)
            copied += length
    return copied
