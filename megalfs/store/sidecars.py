"""The files from which the index can be rebuilt: manifests, signatures, place records, name records.

A manifest file is named by its SHA-256, so reading one proves it. A damaged one is removed: the blob is
published or asked for again. A place record repeats what the index says of one blob on this host.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.ids import ManifestId, Oid
from megalfs.core.signing import ManifestSignature, format_signatures, parse_signatures
from megalfs.errors import NotFoundError, UsageError
from megalfs.store.files import Json, fsync_dir, map_os_errors, read_json, write_atomic, write_json
from megalfs.store.identity import Identity
from megalfs.store.index import Blob, KnownManifest, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from megalfs.store.root import Root

__all__ = ["Sidecars"]

SIGNATURES_MAX = 32  # per manifest: as many as `parse_signatures` reads
_HEX = re.compile(r"[0-9a-f]{64}\Z")


class Sidecars:
    """Reads and writes the sidecars of one root."""

    def __init__(self, root: Root) -> None:
        self._root = root

    # Manifests, shared by all hosts of a root.

    def write_manifest(self, manifest_id: ManifestId, oid: Oid, encoded: bytes) -> None:
        """Keeps an encoded manifest under its id."""
        path = self._manifest_path(manifest_id, oid)
        with map_os_errors("cannot store the manifest"):
            if not path.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                write_atomic(path, encoded)

    def read_manifest(self, manifest_id: ManifestId, oid: Oid) -> bytes:
        """The encoded manifest.

        Raises:
            NotFoundError: there is none, or what was there is damaged; then it is removed.
        """
        path = self._manifest_path(manifest_id, oid)
        with map_os_errors(f"no manifest {manifest_id} of {oid}"):
            encoded = path.read_bytes()
        if hashlib.sha256(encoded).digest() != manifest_id.raw:
            with suppress(OSError):
                path.unlink()
            raise NotFoundError(
                f"the manifest {manifest_id} was damaged on disk", hint="publish the file again"
            )
        return encoded

    def mark_refuted(self, manifest_id: ManifestId, oid: Oid) -> None:
        """Remembers that a manifest lies, and drops its content: a mark of no bytes stays."""
        path = self._manifest_path(manifest_id, oid)
        with map_os_errors("cannot mark a manifest as refuted"):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.with_suffix(".refuted").touch(mode=0o600)
            path.unlink(missing_ok=True)
            path.with_suffix(".sig").unlink(missing_ok=True)

    def manifests(self) -> Iterator[tuple[Oid, ManifestId, bool]]:
        """Every manifest on disk; True with those that are refuted."""
        for directory in _hex_entries(self._root.manifests):
            for path in sorted(directory.iterdir()):
                if _HEX.match(path.stem) and path.suffix in ("", ".refuted"):
                    yield Oid.parse(directory.name), ManifestId.parse(path.stem), path.suffix == ".refuted"

    def oids(self) -> list[Oid]:
        """Every blob that has a manifest here, or lies among the small blobs."""
        paths = [*_hex_entries(self._root.manifests), *_hex_entries(self._root.blobs)]
        return [Oid.parse(name) for name in sorted({path.name for path in paths})]

    def files_of(self, oid: Oid) -> list[Path]:
        """The files that are ours: manifests, signatures, marks, and the small blob itself."""
        with suppress(OSError):
            return [*(self._root.manifests / str(oid)).iterdir(), self._root.blob_path(oid)]
        return [self._root.blob_path(oid)]

    def forget_manifests(self, oid: Oid) -> int:
        """Removes all manifests of a blob; returns the bytes freed."""
        directory, freed = self._root.manifests / str(oid), 0
        with suppress(FileNotFoundError):
            for path in directory.iterdir():
                freed += path.stat().st_blocks * 512
                path.unlink(missing_ok=True)
            with suppress(OSError):  # another process just added one
                directory.rmdir()
        return freed

    def signatures(self, manifest_id: ManifestId, oid: Oid) -> tuple[ManifestSignature, ...]:
        """Signatures of a manifest, as stored: nothing here checks them."""
        try:
            return parse_signatures(self._signature_path(manifest_id, oid).read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError, UsageError):
            return ()

    def add_signatures(
        self, manifest_id: ManifestId, oid: Oid, signatures: Iterable[ManifestSignature]
    ) -> None:
        """Adds signatures, one per key."""
        signatures = tuple(signatures)
        if not signatures:
            return
        known = {signature.key: signature for signature in self.signatures(manifest_id, oid)}
        merged = known | {signature.key: signature for signature in signatures}
        if merged != known:
            text = format_signatures(list(merged.values())[:SIGNATURES_MAX]) + "\n"
            with map_os_errors("cannot store a signature"):
                write_atomic(self._signature_path(manifest_id, oid), text.encode("ascii"))

    def has_manifest(self, manifest_id: ManifestId, oid: Oid) -> bool:
        """Whether the file of a manifest is there."""
        return self._manifest_path(manifest_id, oid).exists()

    def _signature_path(self, manifest_id: ManifestId, oid: Oid) -> Path:
        return self._manifest_path(manifest_id, oid).with_suffix(".sig")

    def _manifest_path(self, manifest_id: ManifestId, oid: Oid) -> Path:
        return self._root.manifests / str(oid) / str(manifest_id)

    # Place records, of this host.

    def write_blob(self, blob: Blob, computed: list[KnownManifest]) -> None:
        """Repeats what the index says of one blob."""
        places: list[Json] = [
            {"path": str(place.path), "identity": list(place.identity.fields()), "suspect": place.is_suspect}
            for place in blob.places
        ]
        document: dict[str, Json] = {
            "oid": str(blob.oid), "size": blob.size, "pinned": blob.is_pinned, "added": blob.added_s,
            "places": places, "computed": {str(entry.id): entry.chunks for entry in computed},
        }  # fmt: skip
        with map_os_errors("cannot write the record of a blob"):
            write_json(self._place_path(blob.oid), document)

    def drop_blob(self, oid: Oid) -> None:
        """Removes the record of a blob."""
        self._place_path(oid).unlink(missing_ok=True)

    def blobs(self) -> Iterator[tuple[Blob, list[KnownManifest]]]:
        """Every place record that can be read, with the manifests that were computed here."""
        for path in sorted(self._root.places.glob("*.json")):
            document = read_json(path)
            found = _blob_of(document) if document is not None else None
            if found is not None and path.stem == str(found[0].oid):
                yield found

    def _place_path(self, oid: Oid) -> Path:
        return self._root.places / f"{oid}.json"

    # Name records, of this host: rollback protection must not depend on what another host wrote.

    def write_name(self, key: bytes, name: str, record: bytes) -> None:
        """Keeps a signed name record; survives a power cut, for a lost seq would let an old record in."""
        file_name = hashlib.sha256(key + b"\0" + name.encode()).hexdigest()
        with map_os_errors("cannot store the name record"):
            write_atomic(self._root.names / file_name, record, durable=True)
            fsync_dir(self._root.names)

    def names(self) -> Iterator[bytes]:
        """The bytes of every name record; the reader checks them."""
        for path in _hex_entries(self._root.names):
            with suppress(OSError):
                yield path.read_bytes()


def _hex_entries(directory: Path) -> list[Path]:
    with suppress(FileNotFoundError):  # nothing was kept here, and the root cannot be written
        return sorted(path for path in directory.iterdir() if _HEX.match(path.name))
    return []


def _blob_of(document: dict[str, Json]) -> tuple[Blob, list[KnownManifest]] | None:
    """Reads a place record, which anybody with an editor may have changed."""
    match document:
        case {
            "oid": str(oid_text), "size": int(size), "pinned": bool(pinned), "added": int(added),
            "places": list(places), "computed": dict(computed),
        } if _HEX.match(oid_text) and size >= 0:  # fmt: skip
            oid = Oid.parse(oid_text)
            blob = Blob(oid, size, pinned, added, tuple(filter(None, map(_place_of, places))), ())
            return blob, [
                KnownManifest(ManifestId.parse(text), oid, chunks, is_computed=True)
                for text, chunks in computed.items()
                if _HEX.match(text) and isinstance(chunks, int)
            ]
    return None


def _place_of(entry: Json) -> Place | None:
    match entry:
        case {
            "path": str(path),
            "identity": [int(dev), int(ino), int(size), int(mtime_ns), int(ctime_ns)],
            "suspect": bool(suspect),
        }:
            return Place(Path(path), Identity(dev, ino, size, mtime_ns, ctime_ns), suspect)
        case _:
            return None
