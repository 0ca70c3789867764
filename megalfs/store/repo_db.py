"""The SQLite file of repositories and nodes: schema, versions, and how several processes share it.

Unlike the index of blobs it cannot be rebuilt (which state was seen last is what protects from rollbacks), so
it keeps SQLite's rollback journal: safe with several processes, where the WAL of the version here has a bug.
Commands write to it while a node runs; the node notices by `data_version`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from megalfs.errors import BusyError, StoreError

__all__ = ["SCHEMA_VERSION", "RepoDb"]

BUSY_S_MAX = 10.0
SCHEMA_VERSION = 3

# One script per version: the first makes the tables that the system we come from had, the next what we add.
_MIGRATIONS = (
    """
    CREATE TABLE repos (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, creator TEXT NOT NULL, description TEXT NOT NULL DEFAULT '',
        language TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0,
        latest_commit_at INTEGER NOT NULL DEFAULT 0, path TEXT NOT NULL DEFAULT '',
        bundle TEXT NOT NULL DEFAULT '', is_external INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL) STRICT;
    CREATE TABLE nodes (
        id TEXT PRIMARY KEY, alias TEXT NOT NULL DEFAULT '', addresses TEXT NOT NULL DEFAULT '',
        node_type TEXT NOT NULL DEFAULT '', version TEXT NOT NULL DEFAULT '',
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL) STRICT;
    CREATE TABLE refs (
        repo_id TEXT NOT NULL REFERENCES repos ON DELETE CASCADE, ref_name TEXT NOT NULL,
        commit_hash TEXT NOT NULL, PRIMARY KEY (repo_id, ref_name)) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE repos ADD COLUMN root TEXT NOT NULL DEFAULT '';
    ALTER TABLE repos ADD COLUMN is_followed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE nodes ADD COLUMN http TEXT NOT NULL DEFAULT '';
    CREATE UNIQUE INDEX own_names ON repos (name) WHERE is_external = 0;
    CREATE TABLE states (
        repo_id TEXT NOT NULL, seq INTEGER NOT NULL, hash TEXT NOT NULL, record BLOB NOT NULL,
        is_fork INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (repo_id, seq, hash)) STRICT;
    CREATE TABLE writers (repo_id TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (repo_id, key)) STRICT;
    CREATE TABLE clones (path TEXT PRIMARY KEY, repo_id TEXT NOT NULL, seq INTEGER NOT NULL) STRICT;
    CREATE TABLE faults (
        peer TEXT NOT NULL, repo_id TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL,
        updated_at INTEGER NOT NULL, PRIMARY KEY (peer, repo_id, reason)) STRICT;
    """,
    """
    ALTER TABLE repos ADD COLUMN keeps_lfs INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE large_files (
        repo_id TEXT NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL,
        PRIMARY KEY (repo_id, oid)) STRICT, WITHOUT ROWID;
    """,
)
assert len(_MIGRATIONS) == SCHEMA_VERSION


class RepoDb:
    """A connection that any thread of the process may use, one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        with self._mapped():
            self._db = sqlite3.connect(
                path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
        self._migrate()
        path.chmod(0o600)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, whole or not at all.

        Raises:
            BusyError: another process held the file for ten seconds.
            StoreError: the file is damaged, or the disk failed.
        """
        with self._lock, self._mapped():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """All rows of a query."""
        with self._lock, self._mapped():
            return self._db.execute(query, values).fetchall()

    @property
    def version(self) -> int:
        """Another number when another process wrote."""
        (row,) = self.rows("PRAGMA data_version")
        assert isinstance(row[0], int)
        return row[0]

    def _migrate(self) -> None:
        with self.writing() as db:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found > SCHEMA_VERSION:
                raise StoreError(
                    f"{str(self._path)!r} has version {found}, this megalfs reads {SCHEMA_VERSION}",
                    hint="upgrade megalfs",
                )
            for number in range(found, SCHEMA_VERSION):
                # executescript would commit first; every statement here is part of this transaction.
                for statement in _MIGRATIONS[number].split(";"):
                    if statement.strip():
                        db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise BusyError(f"another process uses {str(self._path)!r}") from error
            raise StoreError(f"cannot use {str(self._path)!r}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{str(self._path)!r} is damaged: {error}") from error
