"""Publishing: one read of a file gives chunks, both digests of each, the file's SHA-256 and its states.

Two threads and a ring of slots. One reads (pread, never mmap: a truncated mapping is a SIGBUS, and mapped
pages count as memory), cuts and runs BLAKE3; the other runs the SHA-256 chain of the file, which is serial and
so the limit. The chunks' own SHA-256 goes where there is room: into the chain's loop (all of it on Zen 4, where that
is free) or sixteen chunks at a time into the first thread. On Golden Cove the threads decide window by window: a
chain that is behind takes no chunks, one that keeps up takes `ChainHasher.chunk_share` of them. Memory is the ring
and 72 bytes a chunk.
"""

from __future__ import annotations

import os
import queue
import threading
from array import array
from bisect import bisect_right
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

import megalfs_ext
from megalfs.core.ids import ManifestId, Oid
from megalfs.store.files import check_regular, map_os_errors
from megalfs.store.identity import ChangedError, Identity, open_regular, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from megalfs.core.chunker import Profile
    from megalfs.core.signing import SigningKey
    from megalfs.formats.manifest_fields import EncodedManifest
    from megalfs.store.blobs import Store
    from megalfs.store.cutting import Window

__all__ = ["Published", "hash_file", "publish", "publish_many"]

SLOTS = 4  # 3 MiB each: one being read, one being hashed, two in between
# Where chunks are hashed in many lanes, each window must fill them: 16 MiB are 50 chunks.
LANES_BYTES, LANES_SLOTS = 16 << 20, 3
# Starting a thread and waiting for it takes as long as hashing so many bytes.
INLINE_BYTES = 256 << 10
# Recorded together: what a kill costs is hashed again in a fraction of a second.
GROUP_FILES = 256
GROUP_BYTES = 64 << 20


class Published(Struct, frozen=True):
    """One file that the store holds now."""

    oid: Oid
    size: int  # bytes
    chunks: int
    manifest_id: ManifestId | None  # None for a blob that was pulled without one
    path: Path


def publish(
    store: Store,
    path: Path,
    *,
    is_signed: bool = False,
    profile: Profile | None = None,
    progress: Callable[[int], None] | None = None,
) -> Published:
    """Takes a file up where it lies; nothing is copied. An unchanged file that is known costs a stat.

    Args:
        is_signed: sign the manifest with the root's key, made when there is none.
        profile: how the file is cut; None: as it is known already, else the default.
        progress: called with bytes hashed.

    Raises:
        UsageError: not a regular file.
        ChangedError: the file was changed while it was read.
    """
    [published] = publish_many(store, [path], is_signed=is_signed, profile=profile, progress=progress)
    return published


def publish_many(
    store: Store,
    paths: Iterable[Path],
    *,
    is_signed: bool = False,
    profile: Profile | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Published]:
    """As `publish`, in the order of the paths. Records are written in groups: a transaction of the index
    waits for the disk, which took nine tenths of the time of small files.

    When it ends early, the files of the last group are hashed again by the next try.
    """
    signer = Signer(store) if is_signed else None
    group: list[_Found] = []
    bytes_hashed = 0
    for path in paths:
        found = _find(store, path, profile, progress)
        group.append(found)
        bytes_hashed += 0 if found.manifest is None else found.published.size
        if len(group) == GROUP_FILES or bytes_hashed >= GROUP_BYTES:
            yield from _record(store, group, signer)
            group, bytes_hashed = [], 0
    yield from _record(store, group, signer)


class _Found(Struct, frozen=True):
    """One file of a group: known before, or hashed and not recorded yet."""

    published: Published
    real: Path
    manifest: EncodedManifest | None
    identity: Identity | None


def _find(
    store: Store, path: Path, profile: Profile | None, progress: Callable[[int], None] | None
) -> _Found:
    check_regular(path)
    real = path.resolve()
    known = _known(store, real, profile)
    if known is not None:
        return _Found(replace(known, path=path), real, None, None)
    manifest, identity = _hash_path(real, profile, progress)
    hashed = Published(manifest.oid, manifest.size, manifest.piece_count, manifest.id, path)
    return _Found(hashed, real, manifest, identity)


def _record(store: Store, group: Sequence[_Found], signer: Signer | None) -> Sequence[Published]:
    fresh = [found for found in group if found.manifest is not None]
    with store.index.change() if fresh else nullcontext():
        for found in fresh:
            assert found.manifest is not None
            store.adopt(found.real, found.manifest, identity=found.identity, is_computed=True)
    published = [found.published for found in group]
    for each in published:
        if signer is not None and each.manifest_id is not None:
            signer.sign(each.manifest_id, each.oid)
    return published


def _known(store: Store, path: Path, profile: Profile | None) -> Published | None:
    blob = store.at(path)
    if blob is None or not blob.is_held:
        return None
    for manifest_id in blob.manifests if profile is not None else blob.manifests[:1]:
        known = store.index.manifest(manifest_id)
        if known is None or not store.sidecars.has_manifest(known.id, blob.oid):
            continue
        if profile is not None and store.load_manifest(known.id, blob.oid).profile != profile.id:
            continue
        chunks = known.chunks or store.load_manifest(known.id, blob.oid).piece_count
        return Published(blob.oid, blob.size, chunks, known.id, path)
    return None


class Signer:
    """Signs manifests with the root's key, each once; the key is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._public = store.root.public_key()
        self._key: SigningKey | None = None

    def sign(self, manifest_id: ManifestId, oid: Oid) -> None:
        """Adds the signature, unless it is there."""
        if any(signature.key == self._public for signature in self._store.signatures(manifest_id, oid)):
            return
        from megalfs.core.signing import sign_manifest

        self._key = self._key or self._store.root.load_or_create_key()
        self._store.sidecars.add_signatures(manifest_id, oid, [sign_manifest(self._key, manifest_id)])


def _hash_path(
    path: Path, profile: Profile | None, progress: Callable[[int], None] | None
) -> tuple[EncodedManifest, Identity]:
    with map_os_errors(f"cannot publish {str(path)!r}"):
        fd = open_regular(path)
        try:
            settle(os.fstat(fd))
            before = Identity.of_fd(fd)
            manifest = hash_file(fd, before.size, profile=profile, progress=progress)
            if Identity.of_fd(fd) != before:
                raise ChangedError("it was written to while it was read")
        except ChangedError as error:
            raise ChangedError(
                f"cannot publish {str(path)!r}: {error}", hint="publish it when it is whole"
            ) from error
        finally:
            os.close(fd)
    return manifest, before


def hash_file(
    fd: int, size: int, *, profile: Profile | None = None, progress: Callable[[int], None] | None = None
) -> EncodedManifest:
    """The manifest of an open file, from one read of it. Imports no numpy: that takes 100 ms.

    Raises:
        ChangedError: it has fewer than `size` bytes.
    """
    from megalfs.core.chunker import DEFAULT_PROFILE
    from megalfs.formats.manifest_fields import EncodedManifest
    from megalfs.store.cutting import cut_windows, read_file_layout

    profile = profile or DEFAULT_PROFILE
    layout = read_file_layout(fd, size, profile)
    lengths, blake3, sha256 = array("I"), bytearray(), []
    with ChainThread(size, profile) as chain:
        for window in cut_windows(fd, size, layout, profile, chain.take_slot):
            sha256.append(sha256_from(window, chain.put(window)))
            lengths.extend(window.lengths())
            blake3 += window.blake3
            if progress is not None:
                progress(len(window.view))
        chain.finish()
    return EncodedManifest.of(
        oid=Oid(chain.hasher.digest()),
        size=size,
        profile=profile,
        layout=layout,
        lengths=lengths,
        blake3=blake3,
        sha256=b"".join(part for window in zip(chain.sha256, sha256, strict=True) for part in window),
        states=chain.hasher.states(),
    )


def sha256_from(window: Window, first: int) -> bytes:
    """SHA-256 of the chunks of a window from `first` on, sixteen at a time where the kernel does that."""
    if first == len(window.ends):
        return b""
    start = window.ends[first - 1] if first else 0
    return megalfs_ext.sha256_many(
        window.view[start:], array("Q", [end - start for end in window.ends[first:]])
    )


class ChainThread:
    """The thread of the SHA-256 chain, and the ring of slots that it empties.

    It takes the first chunks of a window along, `chunk_share` of its bytes, unless it is behind. A small file is one
    window, hashed by the thread that read it.
    """

    def __init__(self, size: int, profile: Profile) -> None:
        from megalfs.store.cutting import SLOT_BYTES, slot_bytes

        self.hasher = megalfs_ext.ChainHasher()
        self.sha256: list[bytes] = []
        self._free: queue.SimpleQueue[bytearray | BaseException] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[Window, int] | None] = queue.SimpleQueue()  # at most one a slot
        window, slots = (SLOT_BYTES, SLOTS) if self.hasher.chunk_share == 1 else (LANES_BYTES, LANES_SLOTS)
        is_one_window = size <= SLOT_BYTES
        for _ in range(1 if is_one_window else slots):
            self._free.put(bytearray(size if is_one_window else slot_bytes(profile, min(window, size))))
        self._thread = None
        if size > INLINE_BYTES:
            self._thread = threading.Thread(target=self._run, name="megalfs-sha256", daemon=True)

    def __enter__(self) -> ChainThread:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()

    def take_slot(self) -> bytearray:
        """A slot that was hashed; waits for one."""
        slot = self._free.get()
        if isinstance(slot, BaseException):
            raise slot
        return slot

    def put(self, window: Window) -> int:
        """Hands a window over; returns how many of its first chunks get their SHA-256 here.

        None of them while every other slot waits for the chain: then it is behind, and the caller has the time.
        """
        is_behind = self._free.empty() and self.hasher.chunk_share < 1
        count = 0 if is_behind else bisect_right(window.ends, self.hasher.chunk_share * len(window.view))
        if self._thread is None:
            self._hash(window, count)
        else:
            self._full.put((window, count))
        return count

    def finish(self) -> None:
        """Waits until everything handed over is hashed."""
        self._join()
        while not self._free.empty():
            self.take_slot()

    def _run(self) -> None:
        try:
            while (job := self._full.get()) is not None:
                self._hash(*job)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for slots
            self._free.put(error)

    def _hash(self, window: Window, count: int) -> None:
        self.sha256.append(self.hasher.update(window.view, window.ends[:count]))
        self._free.put(window.slot)
