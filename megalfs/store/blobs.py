"""The store: which blobs this host holds, where, under which manifests. The assembled files are the store.

Nothing is copied here. A blob lies in one or more files of the user's; each is believed only while its
identity (device, inode, size, mtime, ctime) is the one it had when its bytes were hashed. A file that changed
is suspect: it is not served until `recheck` hashed it again. The index and the sidecars are changed together.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from megalfs.core.ids import ChunkId, Digest, ManifestId, Oid
from megalfs.errors import MegalfsError, NotFoundError, PolicyError
from megalfs.store.files import map_os_errors, pread_into, write_atomic
from megalfs.store.identity import ChangedError, Identity, open_regular
from megalfs.store.index import Blob, Index, KnownManifest, Place
from megalfs.store.open_blob import OpenBlob
from megalfs.store.sidecars import Sidecars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from megalfs.core.identity import NodeKey
    from megalfs.core.manifest import Manifest
    from megalfs.core.names import SignedName
    from megalfs.core.signing import ManifestSignature
    from megalfs.formats.manifest_fields import EncodedManifest
    from megalfs.store.chunks import DigestKind
    from megalfs.store.find_chunk import ChunkFinder
    from megalfs.store.gc import GcReport
    from megalfs.store.root import Root

__all__ = ["Blob", "ChunkPlace", "Place", "Store"]

CACHED_CHUNKS_MAX = 256 << 10  # manifests kept decoded: 256 Ki chunks are some 20 MB

ChunkPlace = tuple[Blob, int, int]  # the blob, and the chunk's offset and length in it (bytes)


class Store:
    """The blobs of one root. Methods may be called from any thread; several processes may use one root."""

    def __init__(self, root: Root) -> None:
        """Opens the store of a root; a missing or damaged index is rebuilt on first use."""
        self.root = root
        self.sidecars = Sidecars(root)
        self.index = Index(root, self._rebuild)
        self._lock = threading.RLock()
        self._manifests: OrderedDict[ManifestId, Manifest] = OrderedDict()
        self._finder: ChunkFinder | None = None

    def close(self) -> None:
        """Closes the index."""
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def version(self) -> tuple[int, int, int]:
        """A value that changes when this or another process changes what the store holds."""
        return self.index.version()

    # Blobs and the files they lie in.

    def find(self, oid: Oid) -> Blob | None:
        """What is known of a blob; `is_held` says whether it can be opened."""
        return self.index.blob(oid)

    def blobs(self) -> list[Blob]:
        """Every blob, oldest first."""
        return self.index.blobs()

    def at(self, path: Path) -> Blob | None:
        """The blob that a file is known to hold: it is recorded, and its identity is unchanged."""
        path = path.absolute()
        found = self.index.place_at(path)
        if found is None or found[1].is_suspect:
            return None
        with suppress(OSError):
            if found[1].identity.is_still(Identity.of(path.lstat())):
                return self.index.blob(found[0])
        return None

    def open(self, oid: Oid) -> OpenBlob:
        """Opens a blob in the first place that is unchanged; a changed place is withdrawn on the way.

        Raises:
            NotFoundError: the blob is not known here.
            ChangedError: it was, and no file holds it any more.
        """
        blob = self.index.blob(oid)
        if blob is None:
            raise NotFoundError(f"no blob {oid} here")
        for place in blob.places:
            if not place.is_suspect:
                opened = self._open_place(blob, place)
                if opened is not None:
                    return opened
        raise ChangedError(
            f"the files of {oid} changed or are gone", hint="megalfs publish takes them up again"
        )

    def _open_place(self, blob: Blob, place: Place) -> OpenBlob | None:
        def withdraw() -> None:
            self.withdraw(blob.oid, place.path)

        try:
            fd = open_regular(place.path)
        except (OSError, ChangedError):
            withdraw()
            return None
        identity = Identity.of_fd(fd)
        if place.identity.is_still(identity):
            identity = place.identity
        elif not self._was_renumbered(blob, place, identity, fd):
            os.close(fd)
            withdraw()
            return None
        return OpenBlob(fd, blob.oid, place.path, identity, withdraw)

    def _was_renumbered(self, blob: Blob, place: Place, identity: Identity, fd: int) -> bool:
        """Whether only the device number changed (a reboot): then samples are enough."""
        if not identity.is_same_but_device(place.identity) or not blob.manifests:
            return False
        from megalfs.store.verify import PieceReader, sample_runs

        manifest = self.load_manifest(blob.manifests[0], blob.oid)
        reader = PieceReader(fd, manifest)
        if any(reader.read(run)[1] for run in sample_runs(manifest)):
            return False
        with self._noting(blob.oid):
            self.index.put_place(blob.oid, Place(place.path, place.identity.renewed(identity)))
        return True

    def adopt(
        self,
        path: Path,
        manifest: Manifest | EncodedManifest,
        *,
        identity: Identity | None = None,
        signatures: Iterable[ManifestSignature] = (),
        is_computed: bool = False,
    ) -> Blob:
        """Records that a file holds a blob, after its bytes were proven.

        Args:
            identity: what the file was when they were; taken now when None.
            is_computed: this machine hashed every chunk itself, with SHA-256 as well.
        """
        path = path.absolute()
        if identity is None:
            with map_os_errors(f"cannot take up {str(path)!r}"):
                identity = Identity.of(path.lstat())
        if identity.size != manifest.size:
            raise ChangedError(f"{str(path)!r} has {identity.size} bytes, its manifest {manifest.size}")
        self.sidecars.write_manifest(manifest.id, manifest.oid, manifest.encode())
        self.sidecars.add_signatures(manifest.id, manifest.oid, signatures)
        known = KnownManifest(manifest.id, manifest.oid, manifest.piece_count, is_computed)
        return self.record(Place(path, identity), manifest.oid, known)

    def adopt_bare(self, path: Path, oid: Oid, *, identity: Identity | None = None) -> Blob:
        """As `adopt`, for a blob whose SHA-256 was proven as a whole and that has no manifest."""
        path = path.absolute()
        if identity is None:
            with map_os_errors(f"cannot take up {str(path)!r}"):
                identity = Identity.of(path.lstat())
        return self.record(Place(path, identity), oid, None)

    def record(self, place: Place, oid: Oid, known: KnownManifest | None) -> Blob:
        """Writes one place, and the manifest that describes it, to the index; that is stored already."""
        previous = self.index.place_at(place.path)
        others = [previous[0]] if previous is not None and previous[0] != oid else []
        with self._changing(oid, *others):
            self.index.put_blob(oid, place.identity.size)
            self.index.put_place(oid, place)
            if known is not None:
                self.index.put_manifest(known)
        blob = self.index.blob(oid)
        assert blob is not None
        return blob

    def may_replace(self, path: Path) -> bool:
        """Whether replacing what stands at `path` loses nothing: it is nothing, or was published or pulled.

        Raises:
            PolicyError: a symlink, a directory, a FIFO, a device: never replaced.
        """
        from megalfs.store.partial import check_target

        return not check_target(path) or self.at(path) is not None

    @contextmanager
    def _changing(self, *oids: Oid) -> Iterator[None]:
        """One change of the index; the sidecars of these blobs are rewritten before it is committed."""
        self.root.check_writable()
        with self.index.change():
            yield
            for oid in oids:
                self._write_sidecar(oid)

    @contextmanager
    def _noting(self, oid: Oid) -> Iterator[None]:
        """As `_changing`, for what was only seen on the way: where nothing can be written it is not kept."""
        with nullcontext() if self.root.is_read_only else self._changing(oid):
            yield

    def _write_sidecar(self, oid: Oid) -> None:
        blob = self.index.blob(oid)
        if blob is None:
            self.sidecars.drop_blob(oid)
        else:
            computed = [known for known in self.index.manifests(oid) if known.is_computed]
            self.sidecars.write_blob(blob, computed)

    def withdraw(self, oid: Oid, path: Path | None = None) -> None:
        """Stops offering a blob, or one file of it, until `recheck` hashed it again."""
        blob = self.index.blob(oid)
        if blob is None:
            return
        with self._noting(oid):
            for place in blob.places:
                if path is None or place.path == path:
                    self.index.put_place(oid, Place(place.path, place.identity, is_suspect=True))

    def drop_place(self, oid: Oid, path: Path) -> None:
        """Forgets that a file holds a blob."""
        with self._changing(oid):
            self.index.drop_place(path)

    def recheck(self, oid: Oid, *, progress: Callable[[int], None] | None = None) -> bool:
        """Hashes the suspect files of a blob; those that still hold it are offered again, others forgotten.

        Args:
            progress: called with bytes hashed.

        Returns:
            Whether the blob is held now.
        """
        blob = self.index.blob(oid)
        if blob is None:
            return False
        for place in blob.places:
            if place.is_suspect:
                identity = self._hash_place(blob, place.path, progress)
                with self._noting(oid):
                    if identity is None:
                        self.index.drop_place(place.path)
                    else:
                        self.index.put_place(oid, Place(place.path, place.identity.renewed(identity)))
        found = self.index.blob(oid)
        return found is not None and found.is_held

    def verify(self, oid: Oid, *, progress: Callable[[int], None] | None = None) -> dict[Path, bool]:
        """Hashes every file of a blob again; one that does not hold it is withdrawn.

        Raises:
            NotFoundError: the blob is not known here.
        """
        blob = self.index.blob(oid)
        if blob is None:
            raise NotFoundError(f"no blob {oid} here")
        results = {}
        for place in blob.places:
            identity = self._hash_place(blob, place.path, progress)
            results[place.path] = identity is not None
            with self._noting(oid):
                known = place.identity.renewed(identity) if identity else place.identity
                self.index.put_place(oid, Place(place.path, known, is_suspect=identity is None))
        return results

    def _hash_place(self, blob: Blob, path: Path, progress: Callable[[int], None] | None) -> Identity | None:
        """The identity of a file that holds the blob, by manifest or by SHA-256; None when it does not."""
        from megalfs.store.recheck import holds_blob

        manifest = None
        for manifest_id in blob.manifests:
            with suppress(MegalfsError):
                manifest = self.load_manifest(manifest_id, blob.oid)
                break
        return holds_blob(path, blob, manifest, progress)

    def pin(self, oid: Oid) -> None:
        """Keeps a blob's record whatever `gc` finds."""
        self._set_pinned(oid, is_pinned=True)

    def unpin(self, oid: Oid) -> None:
        """Undoes `pin`."""
        self._set_pinned(oid, is_pinned=False)

    def _set_pinned(self, oid: Oid, *, is_pinned: bool) -> None:
        if self.index.blob(oid) is None:
            raise NotFoundError(f"no blob {oid} here")
        with self._changing(oid):
            self.index.set_pinned(oid, is_pinned=is_pinned)

    def forget(self, oid: Oid) -> int:
        """Stops knowing a blob and removes its sidecars; the user's files stay. Returns the bytes freed."""
        with self._changing(oid):
            self.index.drop_blob(oid)
        freed = 0
        if not self._is_used_by_other_host(oid):
            freed = self.sidecars.forget_manifests(oid)
            with suppress(FileNotFoundError):
                owned = self.root.blob_path(oid)
                freed += owned.stat().st_blocks * 512
                owned.unlink()
        return freed

    def gc(self, *, is_dry: bool = False, partial_age_s: float | None = None) -> GcReport:
        """Removes records of gone files, orphaned manifests and stale partials; never users' files."""
        from megalfs.store.gc import PARTIAL_AGE_S, collect

        return collect(
            self, is_dry=is_dry, partial_age_s=PARTIAL_AGE_S if partial_age_s is None else partial_age_s
        )

    def orphans(self) -> list[Oid]:
        """Blobs that have sidecars here, but no place record of any host of this root."""
        return [oid for oid in self.sidecars.oids() if not self._is_used_by_other_host(oid)]

    def _is_used_by_other_host(self, oid: Oid) -> bool:
        """Manifests and small blobs are shared by the hosts of one root; place records say who uses them."""
        name = f"places/{oid}.json"
        return (self.root.path / name).exists() or any(self.root.path.glob(f"hosts/*/{name}"))

    # Manifests.

    def manifests(self, oid: Oid) -> list[ManifestId]:
        """The manifests of a blob that nobody refuted, those computed here first."""
        return [known.id for known in self.index.manifests(oid) if not known.is_refuted]

    def load_manifest(self, manifest_id: ManifestId, oid: Oid) -> Manifest:
        """A decoded manifest; the last few stay in memory.

        Raises:
            NotFoundError: there is none, or it was damaged on disk (and is forgotten).
        """
        with self._lock:
            found = self._manifests.pop(manifest_id, None) or self._read_manifest(manifest_id, oid)
            self._manifests[manifest_id] = found
            while len(self._manifests) > 1 and self._cached_chunks() > CACHED_CHUNKS_MAX:
                self._manifests.popitem(last=False)
            return found

    def _cached_chunks(self) -> int:
        return sum(manifest.piece_count for manifest in self._manifests.values())

    def _read_manifest(self, manifest_id: ManifestId, oid: Oid) -> Manifest:
        from megalfs.core.manifest import Manifest

        try:
            return Manifest.decode(self.sidecars.read_manifest(manifest_id, oid), oid=oid)
        except NotFoundError:
            with self._noting(oid):
                self.index.drop_manifest(manifest_id)
            raise

    def encoded_manifest(self, manifest_id: ManifestId, oid: Oid) -> bytes:
        """The bytes of a manifest, to be sent on."""
        return self.sidecars.read_manifest(manifest_id, oid)

    def signatures(self, manifest_id: ManifestId, oid: Oid) -> tuple[ManifestSignature, ...]:
        """The signatures of a manifest, not checked."""
        return self.sidecars.signatures(manifest_id, oid)

    def add_manifest(self, manifest: Manifest, signatures: Iterable[ManifestSignature] = ()) -> bool:
        """Keeps a manifest from elsewhere; False when it was refuted here before."""
        known = self.index.manifest(manifest.id)
        if known is not None and known.is_refuted:
            return False
        self.sidecars.write_manifest(manifest.id, manifest.oid, manifest.encode())
        self.sidecars.add_signatures(manifest.id, manifest.oid, signatures)
        with self._changing(manifest.oid):
            self.index.put_manifest(KnownManifest(manifest.id, manifest.oid, manifest.piece_count))
        return True

    def is_refuted(self, manifest_id: ManifestId) -> bool:
        """Whether this manifest was caught lying."""
        known = self.index.manifest(manifest_id)
        return known is not None and known.is_refuted

    def refute(self, manifest_id: ManifestId, oid: Oid) -> None:
        """Remembers that a manifest lies; it is never used or offered again."""
        self.sidecars.mark_refuted(manifest_id, oid)
        with self._lock:
            self._manifests.pop(manifest_id, None)
        with self._changing(oid):
            self.index.put_manifest(KnownManifest(manifest_id, oid, 0, is_refuted=True))

    # Chunks.

    def find_chunk(self, *, sha256: Oid | None = None, blake3: ChunkId | None = None) -> ChunkPlace | None:
        """Where a chunk lies among the blobs held, by one of its digests.

        A SHA-256 that only a manifest from elsewhere claims is computed here before it is believed.
        """
        assert (sha256 is None) != (blake3 is None)
        kind: DigestKind = "sha256" if sha256 is not None else "blake3"
        digest: Digest | None = sha256 if sha256 is not None else blake3
        assert digest is not None
        with self._lock:
            if self._finder is None:
                from megalfs.store.find_chunk import ChunkFinder

                self._finder = ChunkFinder(self)
        return self._finder.find(kind, digest.raw)

    # Names.

    def put_name(self, signed: SignedName) -> None:
        """Keeps a signed name; checked first, stored second, so a refused record leaves no trace.

        Raises:
            PolicyError: its seq is lower than one seen here, or equal with other content.
        """
        from megalfs.core.names import check_successor

        with self.index.change():
            key, name = signed.key, signed.record.name
            known = self.name(key, name)
            check_successor(known, signed)
            if known != signed:
                self.sidecars.write_name(key.raw, name, signed.encode())
                self.index.put_name(key.raw, name, signed.record.seq, signed.encode())

    def name(self, key: NodeKey, name: str) -> SignedName | None:
        """The newest record seen of a name; it may be expired."""
        from megalfs.core.names import SignedName

        found = self.index.name(key.raw, name)
        return None if found is None else SignedName.parse(found[1], key=key, name=name)

    def names(self) -> list[SignedName]:
        """Every name record kept here."""
        from megalfs.core.names import SignedName

        return [SignedName.parse(record) for record in self.index.names()]

    # Small blobs of our own.

    def put_bytes(self, content: bytes) -> Oid:
        """Keeps a small blob that has no file of its own, such as a tree, and publishes it."""
        import hashlib

        oid = Oid(hashlib.sha256(content).digest())
        path = self.root.blob_path(oid)
        if self.at(path) is None:
            from megalfs.store.ingest import publish

            with map_os_errors("cannot store a small blob"):
                write_atomic(path, content)
            publish(self, path)
        return oid

    def read_bytes(self, oid: Oid, *, bytes_max: int) -> bytes:
        """A small blob as a whole.

        Raises:
            NotFoundError, ChangedError: as `open`.
            PolicyError: it is larger than `bytes_max`.
        """
        with self.open(oid) as opened:
            if opened.size > bytes_max:
                raise PolicyError(f"{oid} has {opened.size} bytes; the limit is {bytes_max}")
            buffer = bytearray(opened.size)
            try:
                filled = pread_into(opened.fd, buffer, 0)
            except OSError:
                opened.spoil()
                filled = 0
            opened.check()
        if filled != len(buffer):
            raise ChangedError(f"{oid} was truncated while it was read")
        return bytes(buffer)

    # Rebuilding.

    def repair(self) -> int:
        """Throws the index away and builds it from the sidecars; returns how many blobs it has."""
        self.index.rebuild()
        return len(self.index.blobs())

    def _rebuild(self, index: Index) -> None:
        from megalfs.store.rebuild import fill_index

        fill_index(index, self.sidecars)
