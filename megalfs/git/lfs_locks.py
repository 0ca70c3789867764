"""Locks of the LFS server: one row per locked path of a repository, in a database of its own.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/locking.md
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.errors import NotAuthorisedError, NotFoundError, StoreError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Lock", "LockedError", "Locks"]

PATH_BYTES_MAX = 4096
LIMIT_MAX = 1000
BUSY_S = 5.0
_TABLE = """
create table if not exists locks (
    id text primary key, repository text not null, path text not null, owner text not null,
    locked_at text not null, unique (repository, path)
)
"""


class Lock(Struct, frozen=True):
    """One locked path."""

    id: str
    path: str
    owner: str
    locked_at: str

    def to_json(self) -> dict[str, object]:
        """As the API shows it."""
        return {"id": self.id, "path": self.path, "locked_at": self.locked_at, "owner": {"name": self.owner}}


class LockedError(Exception):
    """Somebody has that lock already."""

    def __init__(self, lock: Lock) -> None:
        super().__init__(f"{lock.owner} locked it")
        self.lock = lock


class Locks:
    """The locks of every repository of one node. Methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, repository: str, path: str, owner: str) -> Lock:
        """Locks a path.

        Raises:
            LockedError: it is locked.
            UsageError: not a path.
        """
        if not path or len(path.encode()) > PATH_BYTES_MAX or "\0" in path:
            raise UsageError(f"not a path: {path[:80]!r}")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lock = Lock(secrets.token_hex(16), path, owner, now)
        with self._database() as database:
            try:
                database.execute(
                    "insert into locks (id, repository, path, owner, locked_at) values (?, ?, ?, ?, ?)",
                    (lock.id, repository, path, owner, now),
                )
            except sqlite3.IntegrityError as error:
                found = self._select(database, repository, path=path)
                raise (LockedError(found[0]) if found else StoreError(str(error))) from error
        return lock

    def find(
        self, repository: str, *, path: str = "", lock_id: str = "", cursor: str = "", limit: int = LIMIT_MAX
    ) -> tuple[list[Lock], str]:
        """Locks in order of their paths from `cursor` on, and the cursor of the next ones."""
        limit = min(max(limit, 1), LIMIT_MAX)
        with self._database() as database:
            found = self._select(
                database, repository, path=path, lock_id=lock_id, cursor=cursor, limit=limit + 1
            )
        return found[:limit], found[limit].path if len(found) > limit else ""

    def remove(self, repository: str, lock_id: str, owner: str, *, force: bool) -> Lock:
        """Unlocks.

        Raises:
            NotFoundError: there is no such lock.
            NotAuthorisedError: it is somebody else's, and `force` is not set.
        """
        with self._database() as database:
            found = self._select(database, repository, lock_id=lock_id)
            if not found:
                raise NotFoundError(f"no lock {lock_id[:80]!r}")
            if found[0].owner != owner and not force:
                raise NotAuthorisedError(
                    f"{found[0].owner} locked {found[0].path!r}", hint="--force unlocks it"
                )
            database.execute("delete from locks where id = ?", (lock_id,))
        return found[0]

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_S)) as database, database:
                database.execute("begin immediate")
                database.execute(_TABLE)
                yield database
        except sqlite3.OperationalError as error:
            raise StoreError(f"cannot use {str(self._path)!r}: {error}") from error

    @staticmethod
    def _select(
        database: sqlite3.Connection,
        repository: str,
        *,
        path: str = "",
        lock_id: str = "",
        cursor: str = "",
        limit: int = 1,
    ) -> list[Lock]:
        rows = database.execute(
            "select id, path, owner, locked_at from locks where repository = ? and (? = '' or path = ?)"
            " and (? = '' or id = ?) and path >= ? order by path limit ?",
            (repository, path, path, lock_id, lock_id, cursor, limit),
        )
        return [Lock(*row) for row in rows]
