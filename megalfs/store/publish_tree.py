"""Publishing a directory: each file where it lies, and the tree blob that names them all.

Symlinks to files are followed, because model caches are made of them; symlinks to directories are refused,
since a cycle or half a home directory would follow. Our own partials and `.git` are left out.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.pathrules import escape_for_terminal, path_fault, paths_fault
from megalfs.errors import PolicyError, UsageError
from megalfs.store.claim import is_own_file
from megalfs.store.files import kind_of, map_os_errors
from megalfs.store.ingest import Published, publish, publish_many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from megalfs.formats.profile import Profile
    from megalfs.store.blobs import Store

__all__ = ["FileFound", "PublishedTree", "publish_tree", "walk"]

DEPTH_MAX = 64
_LEFT_OUT = frozenset({".git"})


class FileFound(Struct, frozen=True):
    """One file below a directory; `name` is its path there, joined by `/`."""

    name: str
    path: Path
    size: int
    is_executable: bool


class PublishedTree(Struct, frozen=True):
    """A directory that the store holds now."""

    tree: Published
    files: tuple[Published, ...]


def walk(directory: Path) -> list[FileFound]:
    """The files below a directory, sorted by the bytes of their names.

    Raises:
        PolicyError: a name that no puller would accept, or two that are one where case does not count.
        UsageError: a FIFO, a device, or a symlink to a directory.
    """
    with map_os_errors(f"cannot read {str(directory)!r}"):
        found = sorted(_below(directory, "", 0), key=lambda file: file.name.encode("utf-8"))
    clash = paths_fault(file.name for file in found)
    if clash is not None:
        raise PolicyError(f"{str(directory)!r} cannot be published: {clash}")
    return found


def _below(directory: Path, prefix: str, depth: int) -> Iterator[FileFound]:
    if depth > DEPTH_MAX:
        raise PolicyError(f"{str(directory)!r} is nested deeper than {DEPTH_MAX}")
    for path in directory.iterdir():
        if path.name in _LEFT_OUT or is_own_file(path.name):
            continue
        name = prefix + path.name
        fault = path_fault(name)
        if fault is not None:
            raise PolicyError(f"the path '{escape_for_terminal(name)}' cannot be published: {fault}")
        if stat.S_ISDIR(path.lstat().st_mode):
            yield from _below(path, f"{name}/", depth + 1)
        else:
            yield _file(path, name)


def _file(path: Path, name: str) -> FileFound:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = "a symlink to a directory" if stat.S_ISDIR(found.st_mode) else f"a {kind_of(found.st_mode)}"
        raise UsageError(f"not a regular file: {str(path)!r} is {what}")
    return FileFound(name, path, found.st_size, bool(found.st_mode & stat.S_IXUSR))


def publish_tree(
    store: Store,
    directory: Path,
    *,
    is_signed: bool = False,
    profile: Profile | None = None,
    progress: Callable[[int], None] | None = None,
    on_file: Callable[[FileFound], None] | None = None,
) -> PublishedTree:
    """Publishes every file below a directory, and the tree that lists them.

    Args:
        profile: how files are cut, as for `publish`.
        progress: called with bytes hashed.
        on_file: called before each file.

    Raises:
        UsageError: there are none.
        As `walk` and `publish`.
    """
    from megalfs.core.tree import Tree, TreeEntry

    below = walk(directory)
    if not below:
        raise UsageError(f"no files below {str(directory)!r}")

    def paths() -> Iterator[Path]:
        for found in below:
            if on_file is not None:
                on_file(found)
            yield found.path

    files = tuple(publish_many(store, paths(), is_signed=is_signed, profile=profile, progress=progress))
    entries = [
        TreeEntry(found.name, found.is_executable, published.oid, published.size)
        for found, published in zip(below, files, strict=True)
    ]
    oid = store.put_bytes(Tree.of(entries).encode())
    tree = publish(store, store.root.blob_path(oid), is_signed=is_signed)
    return PublishedTree(tree, files)
