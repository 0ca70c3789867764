"""Which blob of this root a TARGET means: an oid, a link, a file, a pointer file, or a published name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.core.link import LINK_SCHEME, Link
from megalfs.core.pathrules import name_fault
from megalfs.errors import NotFoundError, UsageError
from megalfs.formats.pointer import POINTER_BYTES_MAX, Pointer

if TYPE_CHECKING:
    from megalfs.store.blobs import Blob, Store

__all__ = ["describe", "find_blob", "link_of"]


def find_blob(store: Store, target: str) -> Blob:
    """The blob that `target` means.

    Raises:
        NotFoundError: nothing that this root knows.
    """
    oid = _oid_in(target)
    blob = store.find(oid) if oid is not None else store.at(Path(target)) or _named(store, target)
    if blob is None:
        raise NotFoundError(f"not known in this root: {target!r}", hint="megalfs ls shows what is")
    return blob


def _oid_in(target: str) -> Oid | None:
    if target.lower().startswith(LINK_SCHEME):
        return Link.parse(target).oid
    try:
        return Oid.parse(target)
    except UsageError:
        pointer = _pointer_at(Path(target))
        return pointer.oid if pointer is not None else None


def _pointer_at(path: Path) -> Pointer | None:
    try:
        if not path.is_file() or path.stat().st_size > POINTER_BYTES_MAX:
            return None
        return Pointer.parse(path.read_bytes())
    except (OSError, ValueError):  # no such file, a NUL in the name
        return None


def _named(store: Store, name: str) -> Blob | None:
    """The blob of the newest record of a name, whichever key signed it."""
    records = [signed.record for signed in store.names() if signed.record.name == name]
    return store.find(max(records, key=lambda record: record.seq).oid) if records else None


def link_of(store: Store, blob: Blob) -> Link:
    """The link that `publish` printed, less the addresses."""
    signed = next((each for each in store.names() if each.record.oid == blob.oid), None)
    file_name = next((place.path.name for place in blob.places), "")
    shown = (signed.record.name if signed is not None else file_name).rpartition("/")[2]
    return Link(
        oid=blob.oid,
        name=shown if name_fault(shown) is None else None,
        size=blob.size,
        manifest=blob.manifests[0] if blob.manifests else None,
        kind=signed.record.kind if signed is not None else "blob",
        key=signed.key if signed is not None else None,
    )


def describe(store: Store, target: str) -> dict[str, object]:
    """What a TARGET of `pull` is: its kind, its oid when it says so, its size, whether it is here."""
    path = Path(target)
    if path.is_dir():
        return {
            "kind": "directory",
            "pointers": sum(_pointer_at(file) is not None for file in path.rglob("*")),
        }
    oid = _oid_in(target)
    if oid is None:
        blob = _named(store, target)
        return {"kind": "name", "oid": None if blob is None else str(blob.oid), "held": blob is not None}
    kind = "link" if target.lower().startswith(LINK_SCHEME) else "pointer" if path.is_file() else "oid"
    blob = store.find(oid)
    size = blob.size if blob is not None else _size_in(target)
    return {"kind": kind, "oid": str(oid), "size": size, "held": blob is not None and blob.is_held}


def _size_in(target: str) -> int | None:
    if target.lower().startswith(LINK_SCHEME):
        return Link.parse(target).size
    pointer = _pointer_at(Path(target))
    return pointer.size if pointer is not None else None
