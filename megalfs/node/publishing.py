"""Publishing as people know it: a file or a directory in, a link out. No event loop, no network.

A directory becomes a tree blob beside the blobs of its files, so a sharded model is one name and one link.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.ids import ManifestId, Oid
from megalfs.errors import NotFoundError, UsageError
from megalfs.store.ingest import Published, publish

if TYPE_CHECKING:
    from megalfs.core.identity import NodeKey
    from megalfs.core.link import HostPort, Kind, Link
    from megalfs.store.blobs import Store

__all__ = ["Entry", "files_below", "link_of", "publish_path"]

NAME_LIFE_S = 366 * 86400  # a name that nobody publishes again is followed for a year


@dataclass(frozen=True, slots=True)
class Entry:
    """One PATH, published: a file, or a directory as the tree of its files."""

    path: Path
    blob: Published
    kind: Kind
    files: int
    bytes_total: int

    @property
    def oid(self) -> Oid:
        """The blob, or the tree blob."""
        return self.blob.oid

    @property
    def manifest_id(self) -> ManifestId | None:
        """The manifest of that blob."""
        return self.blob.manifest_id


def files_below(path: Path) -> Iterator[Path]:
    """The file, or the files below the directory, in a stable order.

    Symlinks to directories, git's own directory and what a pull has not finished are left out.

    Raises:
        NotFoundError: there is nothing.
    """
    if not path.is_dir():
        if not path.exists():
            raise NotFoundError(f"no such file: {str(path)!r}")
        yield path
        return
    from megalfs.store.partial import PART_SUFFIX, STATE_SUFFIX  # numpy comes with it: not for a single file

    for child in sorted(path.iterdir()):
        is_ours = child.name.endswith((PART_SUFFIX, STATE_SUFFIX))
        if child.name != ".git" and not is_ours and not (child.is_dir() and child.is_symlink()):
            yield from files_below(child)


def publish_path(
    store: Store,
    path: Path,
    *,
    progress: Callable[[int], None] | None = None,
    at: Callable[[str], None] | None = None,
) -> Entry:
    """Publishes and signs a file, or every file of a directory and its tree.

    Args:
        progress: called with bytes hashed.
        at: called with the name of each file before it is read.
    """
    if not path.is_dir():
        next(files_below(path))
        blob = publish(store, path, is_signed=True, progress=progress)
        return Entry(path, blob, "blob", 1, blob.size)
    return _publish_tree(store, path, progress, at)


def _publish_tree(
    store: Store, directory: Path, progress: Callable[[int], None] | None, at: Callable[[str], None] | None
) -> Entry:
    from megalfs.core.tree import Tree, TreeEntry

    entries = []
    for file in files_below(directory):
        if at is not None:
            at(file.name)
        blob = publish(store, file, is_signed=True, progress=progress)
        is_executable = bool(file.stat().st_mode & 0o100)
        entries.append(TreeEntry(file.relative_to(directory).as_posix(), is_executable, blob.oid, blob.size))
    if not entries:
        raise UsageError(f"no files below {str(directory)!r}")
    tree = Tree.of(entries)
    oid = store.put_bytes(tree.encode())
    blob = publish(store, store.root.blob_path(oid), is_signed=True)
    return Entry(directory, blob, "tree", len(entries), tree.total_size)


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
