"""Objects between the node's store and git-lfs's: taken in and handed over by link, so that no byte is stored twice."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.errors import IntegrityError, MegalfsError
from megalfs.store.blobs import Place
from megalfs.store.identity import Identity
from megalfs.store.ingest import publish
from megalfs.store.links import link_file

if TYPE_CHECKING:
    from megalfs.store.blobs import Store

__all__ = ["Objects"]

OUT_SUFFIX = ".out"
OUT_AGE_S_MAX = 3600.0  # a hand-over that git-lfs has not taken by then has no taker


class Objects:
    """The directory `lfs` of a root."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.directory = store.root.path / "lfs"
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def target(self, oid: Oid, storage: Path) -> Path:
        """Where a pull of an object goes: our own directory, when git-lfs's can have a link of what lies there."""
        own = self._beside(storage)
        if self.directory.stat().st_dev == own.stat().st_dev:
            return self.directory / str(oid)
        return own / str(oid)

    def hand_over(self, oid: Oid, storage: Path) -> Path | None:
        """A name for git-lfs to take away, on its own file system; None when the object is not here.

        Raises:
            StoreError, SpaceError: it is here, and could not be linked or copied.
        """
        try:
            with self._store.open(oid) as opened:
                source, is_ours = opened.path, opened.identity.is_linked
        except MegalfsError:
            return None
        directory = self._beside(storage)
        self._sweep(directory)
        out = directory / f"{oid}.{secrets.token_hex(4)}{OUT_SUFFIX}"
        link_file(source, out, mode="auto", to_work_tree=not is_ours, replace=False)
        return out

    def take_in(self, path: Path, oid: Oid, *, progress: Callable[[int], None] | None = None) -> int:
        """Publishes an object of git-lfs under a name of our own, which outlives the clone; returns its size.

        Raises:
            IntegrityError: the file holds something else than its name says.
        """
        own = self.directory / str(oid)
        known = self._store.at(own)
        if known is not None and known.oid == oid and known.manifests:
            return known.size
        link_file(path, own, mode="auto", to_work_tree=False, replace=True)
        published = publish(self._store, own, is_signed=True, progress=progress)
        if published.oid != oid:
            self._store.drop_place(published.oid, own)
            own.unlink(missing_ok=True)
            raise IntegrityError(f"{str(path)!r} holds {published.oid}", hint="git lfs fsck")
        self._store.record(Place(own, Identity.of(own.lstat()).linked()), oid, None)
        return published.size

    def remove(self, oid: Oid, path: Path) -> None:
        """Removes an object from git-lfs's storage, and our own name of it, which would keep its bytes."""
        self.release(oid)
        self._remove(oid, path)

    def release(self, oid: Oid) -> None:
        """Removes our own name of an object; git-lfs keeps its own."""
        self._remove(oid, self.directory / str(oid))

    def _remove(self, oid: Oid, path: Path) -> None:
        blob = self._store.find(oid)
        for place in blob.places if blob is not None else ():
            if place.path == path:
                self._store.drop_place(oid, path)
        path.unlink(missing_ok=True)

    def take_over(self, path: Path, oid: Oid) -> None:
        """Publishes a file of our own directory and gives it its name.

        Raises:
            IntegrityError: it holds something else.
        """
        published = publish(self._store, path, is_signed=True)
        if published.oid != oid:
            self._store.drop_place(published.oid, path)
            raise IntegrityError(f"these are the bytes of {published.oid}, not of {oid}")
        own = self.directory / str(oid)
        path.replace(own)
        self._store.record(Place(own, Identity.of(own.lstat()).linked()), oid, None)
        self._store.drop_place(oid, path)

    @staticmethod
    def _beside(storage: Path) -> Path:
        """Our directory in git-lfs's storage, which git-lfs does not sweep."""
        directory = storage / "megalfs"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @staticmethod
    def _sweep(directory: Path) -> None:
        """Removes hand-overs whose git-lfs was killed before it took them."""
        now_s = time.time()  # noqa: TID251 - compared with ctime
        for path in directory.glob(f"*{OUT_SUFFIX}"):
            with suppress(OSError):
                if now_s - path.lstat().st_ctime > OUT_AGE_S_MAX:
                    path.unlink()
