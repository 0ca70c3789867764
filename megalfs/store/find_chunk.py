"""Finding a chunk among all blobs held, by one of its digests."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from megalfs.errors import NotFoundError
from megalfs.store.chunks import ChunkColumns, DigestKind
from megalfs.store.files import pread_into
from megalfs.store.identity import ChangedError

if TYPE_CHECKING:
    from megalfs.core.ids import ManifestId
    from megalfs.store.blobs import Blob, ChunkPlace, Store

__all__ = ["ChunkFinder"]


class ChunkFinder:
    """Searches the columns of a store's manifests; the list of blobs is read again when the store changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._columns = ChunkColumns()
        self._lock = threading.Lock()
        self._version: tuple[int, int, int] | None = None
        self._held: list[Blob] = []

    def find(self, kind: DigestKind, digest: bytes) -> ChunkPlace | None:
        """The first place of the chunk."""
        for blob in self._blobs():
            for manifest_id in blob.manifests:
                with suppress(NotFoundError):
                    extent = self._extent(blob, manifest_id, kind, digest)
                    if extent is not None:
                        return blob, *extent
        return None

    def _blobs(self) -> list[Blob]:
        version = self._store.version()
        with self._lock:
            if version != self._version:
                self._held = [blob for blob in self._store.blobs() if blob.is_held]
                self._version = version
            return self._held

    def _extent(
        self, blob: Blob, manifest_id: ManifestId, kind: DigestKind, digest: bytes
    ) -> tuple[int, int] | None:
        with self._lock:
            found = self._columns.find(
                manifest_id, kind, digest, lambda: self._store.load_manifest(manifest_id, blob.oid)
            )
        if found is None:
            return None
        extent = found[1:]
        return extent if kind == "blake3" or self._is_true(blob, manifest_id, extent, digest) else None

    def _is_true(self, blob: Blob, manifest_id: ManifestId, extent: tuple[int, int], digest: bytes) -> bool:
        """Whether the chunk's SHA-256 was computed on this machine: at publishing, else now."""
        known = self._store.index.manifest(manifest_id)
        if known is not None and known.is_computed:
            return True
        buffer = bytearray(extent[1])
        with suppress(ChangedError, NotFoundError), self._store.open(blob.oid) as opened:
            is_whole = pread_into(opened.fd, buffer, extent[0]) == extent[1]
            return is_whole and hashlib.sha256(buffer).digest() == digest
        return False
