"""Publishing as people know it: a file or a directory in, a link out. No event loop, no network.

A directory becomes a tree blob beside the blobs of its files, so a sharded model is one name and one link.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.ids import ManifestId, Oid
from megalfs.errors import NotFoundError
from megalfs.store.ingest import Published, publish

if TYPE_CHECKING:
    from megalfs.core.identity import NodeKey
    from megalfs.core.link import HostPort, Kind, Link
    from megalfs.formats.profile import Profile
    from megalfs.store.blobs import Store

__all__ = ["Entry", "link_of", "publish_path", "size_of"]

NAME_LIFE_S = 366 * 86400  # a name that nobody publishes again is followed for a year


class Entry(Struct, frozen=True):
    """One PATH, published: a file, or a directory as the tree of its files."""

    path: Path
    blob: Published
    kind: Kind
    files: int
    bytes_total: int
    notes: tuple[str, ...] = ()  # what looks wrong in a directory

    @property
    def oid(self) -> Oid:
        """The blob, or the tree blob."""
        return self.blob.oid

    @property
    def manifest_id(self) -> ManifestId | None:
        """The manifest of that blob."""
        return self.blob.manifest_id


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a directory.

    Raises:
        NotFoundError: there is nothing.
        PolicyError, UsageError: a directory that cannot be published, as `walk`.
    """
    if path.is_dir():
        from megalfs.store.publish_tree import walk  # numpy comes with it: not for a single file

        return sum(found.size for found in walk(path))
    if not path.exists():
        raise NotFoundError(f"no such file: {str(path)!r}")
    return path.stat().st_size


def publish_path(
    store: Store,
    path: Path,
    *,
    profile: Profile | None = None,
    progress: Callable[[int], None] | None = None,
    at: Callable[[str], None] | None = None,
) -> Entry:
    """Publishes and signs a file, or every file of a directory and its tree.

    Args:
        profile: how files are cut; None: as they are known already, else the default.
        progress: called with bytes hashed.
        at: called with the name of each file before it is read.
    """
    if path.is_dir():
        return _publish_directory(store, path, profile, progress, at)
    size_of(path)  # raises when there is nothing
    blob = publish(store, path, is_signed=True, profile=profile, progress=progress)
    return Entry(path, blob, "blob", 1, blob.size)


def _publish_directory(
    store: Store,
    directory: Path,
    profile: Profile | None,
    progress: Callable[[int], None] | None,
    at: Callable[[str], None] | None,
) -> Entry:
    from megalfs.store.publish_tree import publish_tree
    from megalfs.store.shards import shard_notes

    found = publish_tree(
        store,
        directory,
        is_signed=True,
        profile=profile,
        progress=progress,
        on_file=None if at is None else lambda file: at(file.path.name),
    )
    names = [file.path.relative_to(directory).as_posix() for file in found.files]
    size = sum(file.size for file in found.files)
    return Entry(directory, found.tree, "tree", len(names), size, tuple(shard_notes(directory, names)))


def link_of(store: Store, entry: Entry, *, name: str | None, peers: tuple[HostPort, ...]) -> Link:
    """The link of an entry; a name is signed and stored first."""
    from megalfs.core.link import Link
    from megalfs.core.pathrules import name_fault

    key = _sign_name(store, entry, name) if name is not None else None
    shown = (name or entry.path.resolve().name).rpartition("/")[2]
    return Link(
        oid=entry.oid,
        name=shown if name_fault(shown) is None else None,
        size=entry.blob.size,
        manifest=entry.manifest_id,
        kind=entry.kind,
        key=key,
        peers=peers,
    )


def _sign_name(store: Store, entry: Entry, name: str) -> NodeKey:
    """Signs and stores the next record of a name; returns the key that signed."""
    from megalfs.core.names import NameRecord, SignedName

    private = store.root.load_or_create_key()
    known = store.name(private.public, name)
    now_s = int(time.time())  # noqa: TID251 - a record's dates are read on other machines
    record = NameRecord(
        name=name,
        oid=entry.oid,
        size=entry.blob.size,
        manifest=entry.manifest_id,
        kind=entry.kind,
        # From the clock: a root that lost its records does not start again below what others saw.
        seq=max(now_s, known.record.seq + 1 if known is not None else 0),
        expires=now_s + NAME_LIFE_S,
    )
    store.put_name(SignedName.sign(private, record))
    return private.public
