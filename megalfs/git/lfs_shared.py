"""LFS objects of shared repositories, which lie where git-lfs put them: ours to serve once somebody asks.

`megalfs repo add` publishes history; its large files may be terabytes that nobody wants. So an object is taken
into the node's store (a hard link or reflink, and its SHA-256) when the first one asks for it by its name, which
only who has the pointer knows.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.errors import MegalfsError
from megalfs.git.lfs_setup import git

if TYPE_CHECKING:
    from megalfs.core.ids import Oid
    from megalfs.git.lfs_objects import Objects
    from megalfs.store.blobs import Store
    from megalfs.store.repos import Repos

__all__ = ["SharedLfs"]


class SharedLfs:
    """The LFS storages of the repositories of a root."""

    def __init__(self, store: Store, repos: Repos, objects: Objects) -> None:
        self._store = store
        self._repos = repos
        self._objects = objects
        self._lock = threading.Lock()  # hashing fills a core, and two may ask for one object

    def take_in(self, name: str, oid: Oid) -> bool:
        """Whether the node serves an object now, after a look into the storage of one repository. Blocks.

        Raises:
            IntegrityError: the storage holds something else under that name.
        """
        if self._is_held(oid):
            return True
        path = self._place(name, oid)
        if path is None:
            return False
        with self._lock:
            if not self._is_held(oid):
                self._objects.take_in(path, oid)
        return True

    def _is_held(self, oid: Oid) -> bool:
        blob = self._store.find(oid)
        return blob is not None and blob.is_held

    def _place(self, name: str, oid: Oid) -> Path | None:
        try:
            repo = self._repos.served(name)
        except MegalfsError:
            return None
        storage = _storage_of(repo.path, _changed_at(Path(repo.path) / "config"))
        path = storage / "objects" / str(oid)[:2] / str(oid)[2:4] / str(oid)
        return path if path.is_file() and not path.is_symlink() else None


@functools.lru_cache(maxsize=64)
def _storage_of(git_dir: str, _: int) -> Path:
    """Where git-lfs keeps the objects of a repository of this user; asked again when its configuration changed."""
    try:
        storage = git("config", "--get", "lfs.storage", cwd=Path(git_dir)).rstrip("\n")
    except MegalfsError:
        storage = ""
    return Path(os.path.normpath(Path(git_dir) / (Path(storage).expanduser() if storage else "lfs")))


def _changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
