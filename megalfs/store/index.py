"""The index: which blobs this host holds, where they lie, which manifests and names it knows.

SQLite, thrown away at will: every row is also in a sidecar (places/<oid>.json, manifests/, names/), written
in the same transaction, so a damaged, missing or older database is rebuilt from them. No row per chunk.

Several processes write one index. Rollback journal and short IMMEDIATE transactions, not WAL: SQLite before
3.51.3 can corrupt a WAL database when two connections write (research/eco.md 3.2), we write once per blob,
and a rollback journal has no such bug. `index.sqlite` is a symlink to the database of this generation: SQLite
names the journal after the real file, so a rebuilt database can never be handed the old one's hot journal.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from megalfs.core.ids import ManifestId, Oid
from megalfs.errors import BusyError, MegalfsError, SpaceError, StoreError
from megalfs.store.files import map_os_errors, nonce
from megalfs.store.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from megalfs.store.root import Root

    T = TypeVar("T")

__all__ = ["Blob", "Index", "KnownManifest", "Place"]

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 20.0  # a transaction takes milliseconds; 20 s is a disk in trouble
_SCHEMA = f"""
BEGIN;
CREATE TABLE blobs (
  oid BLOB PRIMARY KEY, size INTEGER NOT NULL, pinned INTEGER NOT NULL, added INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE places (
  path BLOB PRIMARY KEY, oid BLOB NOT NULL, dev INTEGER NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, suspect INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX places_of_oid ON places (oid);
CREATE TABLE manifests (
  id BLOB PRIMARY KEY, oid BLOB NOT NULL, chunks INTEGER NOT NULL, is_computed INTEGER NOT NULL,
  is_refuted INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX manifests_of_oid ON manifests (oid);
CREATE TABLE names (
  key BLOB NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (key, name)
) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_PLACE_COLUMNS = "path, dev, ino, size, mtime_ns, ctime_ns, suspect"
_CORRUPT = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_ERROR}
)


class Place(Struct, frozen=True):
    """One file that holds a blob; a suspect one changed and is not served before it was hashed again."""

    path: Path
    identity: Identity
    is_suspect: bool = False


class KnownManifest(Struct, frozen=True):
    """What is known of one manifest: `is_computed` when this machine hashed the bytes itself."""

    id: ManifestId
    oid: Oid
    chunks: int
    is_computed: bool = False
    is_refuted: bool = False


class Blob(Struct, frozen=True):
    """One blob of the index. `manifests` holds no refuted one; those computed here come first."""

    oid: Oid
    size: int
    is_pinned: bool
    added_s: int  # seconds since 1970
    places: tuple[Place, ...]
    manifests: tuple[ManifestId, ...]

    @property
    def is_held(self) -> bool:
        """Whether a file with these bytes is believed to be there."""
        return any(not place.is_suspect for place in self.places)


class Index:
    """The database of one root, shared by the threads of this process."""

    def __init__(self, root: Root, rebuild: Callable[[Index], None]) -> None:
        """Opens the index.

        Args:
            rebuild: fills an empty index from the sidecars; called when the database is missing or damaged.
        """
        self._root = root
        self._rebuild = rebuild
        self._lock = threading.RLock()
        self._writes = 0
        self._depth = 0
        self._connection: sqlite3.Connection | None = None
        self._ino = 0
        self._filling = False
        self._in_memory = False

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection, self._in_memory = None, False

    def version(self) -> tuple[int, int, int]:
        """A value that changes when this or any other process changes the index."""
        with self._lock:
            return self._ino, self._ask("PRAGMA data_version", ())[0][0], self._writes

    # Reading.

    def blob(self, oid: Oid) -> Blob | None:
        """One blob with its places and manifests."""
        with self._lock:
            rows = self._ask("SELECT oid, size, pinned, added FROM blobs WHERE oid = ?", (oid.raw,))
            return self._blob(rows[0]) if rows else None

    def blobs(self) -> list[Blob]:
        """Every blob, oldest first."""
        with self._lock:
            rows = self._ask("SELECT oid, size, pinned, added FROM blobs ORDER BY added, oid", ())
            return [self._blob(row) for row in rows]

    def _blob(self, row: tuple[bytes, int, int, int]) -> Blob:
        oid = Oid(row[0])
        known = tuple(entry.id for entry in self.manifests(oid) if not entry.is_refuted)
        return Blob(oid, row[1], bool(row[2]), row[3], tuple(self.places(oid)), known)

    def places(self, oid: Oid) -> list[Place]:
        """The files that hold a blob, good ones first."""
        query = f"SELECT {_PLACE_COLUMNS} FROM places WHERE oid = ? ORDER BY suspect, path"  # noqa: S608 - constant
        return [_place(row) for row in self._ask(query, (oid.raw,))]

    def place_at(self, path: Path) -> tuple[Oid, Place] | None:
        """Which blob a file is recorded to hold."""
        query = f"SELECT {_PLACE_COLUMNS}, oid FROM places WHERE path = ?"  # noqa: S608 - constant
        rows = self._ask(query, (os.fsencode(path),))
        return (Oid(rows[0][7]), _place(rows[0][:7])) if rows else None

    def manifests(self, oid: Oid) -> list[KnownManifest]:
        """The manifests of a blob, those computed here first."""
        query = "SELECT id, oid, chunks, is_computed, is_refuted FROM manifests WHERE oid = ?"
        rows = self._ask(query + " ORDER BY is_computed DESC, id", (oid.raw,))
        return [_known(row) for row in rows]

    def manifest(self, manifest_id: ManifestId) -> KnownManifest | None:
        """One manifest by its id."""
        query = "SELECT id, oid, chunks, is_computed, is_refuted FROM manifests WHERE id = ?"
        rows = self._ask(query, (manifest_id.raw,))
        return _known(rows[0]) if rows else None

    def name(self, key: bytes, name: str) -> tuple[int, bytes] | None:
        """Seq and bytes of a signed name record."""
        rows = self._ask("SELECT seq, record FROM names WHERE key = ? AND name = ?", (key, name))
        return (rows[0][0], rows[0][1]) if rows else None

    def names(self) -> list[bytes]:
        """Every name record."""
        return [row[0] for row in self._ask("SELECT record FROM names ORDER BY name, key", ())]

    # Writing: inside `with index.change():`.

    @contextmanager
    def change(self) -> Iterator[None]:
        """One IMMEDIATE transaction; nested calls join it. All or nothing."""
        with self._lock:
            if self._depth == 0:
                self._execute("BEGIN IMMEDIATE", ())
                self._writes += 1
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._roll_back()
                raise
            if self._depth == 1:
                self._commit()
            self._depth -= 1

    def _commit(self) -> None:
        try:
            self._execute("COMMIT", ())
        except MegalfsError:
            self._depth -= 1
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def put_blob(self, oid: Oid, size: int, *, is_pinned: bool = False, added_s: int | None = None) -> None:
        """Adds a blob; one that is there keeps its pin and its date."""
        added_s = time.time_ns() // 10**9 if added_s is None else added_s
        self._execute(
            "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)", (oid.raw, size, int(is_pinned), added_s)
        )

    def put_place(self, oid: Oid, place: Place) -> None:
        """Records that a file holds a blob; a file holds one at a time."""
        row = (*place.identity.fields(), int(place.is_suspect))
        query = "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        self._execute(query, (os.fsencode(place.path), oid.raw, *row))

    def put_manifest(self, known: KnownManifest) -> None:
        """Records a manifest; what was computed or refuted once stays so."""
        row = (known.id.raw, known.oid.raw, known.chunks, int(known.is_computed), int(known.is_refuted))
        self._execute(
            "INSERT INTO manifests VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " chunks = max(chunks, excluded.chunks), is_computed = max(is_computed, excluded.is_computed),"
            " is_refuted = max(is_refuted, excluded.is_refuted)",
            row,
        )

    def drop_manifest(self, manifest_id: ManifestId) -> None:
        """Forgets a manifest whose file is gone or damaged."""
        self._execute("DELETE FROM manifests WHERE id = ?", (manifest_id.raw,))

    def set_pinned(self, oid: Oid, *, is_pinned: bool) -> None:
        """Pins or unpins a blob."""
        self._execute("UPDATE blobs SET pinned = ? WHERE oid = ?", (int(is_pinned), oid.raw))

    def drop_place(self, path: Path) -> None:
        """Forgets that a file holds anything."""
        self._execute("DELETE FROM places WHERE path = ?", (os.fsencode(path),))

    def drop_blob(self, oid: Oid) -> None:
        """Forgets a blob, its places and its manifests."""
        for table in ("places", "manifests", "blobs"):
            self._execute(f"DELETE FROM {table} WHERE oid = ?", (oid.raw,))  # noqa: S608 - constant names

    def put_name(self, key: bytes, name: str, seq: int, record: bytes) -> None:
        """Stores a name record over the one that is there."""
        self._execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", (key, name, seq, record))

    # The database file.

    def _ask(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._guarded(lambda connection: connection.execute(query, values).fetchall())

    def _execute(self, query: str, values: tuple[object, ...]) -> None:
        self._guarded(lambda connection: connection.execute(query, values))

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs one statement; a damaged database is replaced first, a busy one is exit 8."""
        try:
            return work(self._current())
        except sqlite3.Error as error:
            if self._depth or not _is_corrupt(error):
                raise _mapped(error, self._root.index) from error
        self.rebuild()
        try:
            return work(self._current())
        except sqlite3.Error as error:
            raise _mapped(error, self._root.index) from error

    def _current(self) -> sqlite3.Connection:
        """The open database; another generation of it, made by another process, is opened anew."""
        if self._connection is not None and (self._depth or self._filling or self._in_memory):
            return self._connection
        if not os.access(self._root.local, os.W_OK):
            return self._build_in_memory()
        try:
            ino = self._root.index.stat().st_ino
        except FileNotFoundError:
            ino = 0
        if self._connection is None or ino != self._ino:
            self.close()
            with map_os_errors(f"cannot use the index {str(self._root.index)!r}"):
                if not ino:
                    self._build(replaces=None)
                self._open()
        assert self._connection is not None
        return self._connection

    def _build_in_memory(self) -> sqlite3.Connection:
        """Of a root that cannot be written: SQLite could not roll back what a crash left in the file there."""
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.executescript(_SCHEMA)
        self._in_memory, self._connection = True, connection
        self._rebuild(self)
        return connection

    def _open(self) -> None:
        connection = _connect(self._root.index)
        try:
            is_good = connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
            is_good = is_good and connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.Error as error:
            connection.close()
            if not _is_corrupt(error):
                raise
            is_good = False
        if not is_good:
            connection.close()
            self._build(replaces=self._generation())
            connection = _connect(self._root.index)
        self._connection = connection
        self._ino = self._root.index.stat().st_ino

    def _generation(self) -> str | None:
        """Which database `index.sqlite` names now."""
        try:
            return str(self._root.index.readlink())
        except OSError:
            return None

    def rebuild(self) -> None:
        """Builds a new database from the sidecars and puts it in the old one's place."""
        with self._lock:
            assert self._depth == 0
            before = self._generation()
            self.close()
            with map_os_errors(f"cannot rebuild the index {str(self._root.index)!r}"):
                self._build(replaces=before)

    def _build(self, *, replaces: str | None) -> None:
        """Under a lock of the local directory, unless somebody else was faster."""
        lock = os.open(self._root.local / "index.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._generation() != replaces:
                return
            name = f"index-{nonce()}.sqlite"
            self._fill(self._root.local / name)
            link = self._root.local / f".{name}.link"
            link.symlink_to(name)
            link.replace(self._root.index)
            self._sweep(keep=(name, replaces))
        finally:
            os.close(lock)

    def _fill(self, path: Path) -> None:
        connection = _connect(path)
        # Nobody has seen this file: what a power cut loses of it is zeros, which `_open` finds and builds anew.
        # Synced, it cost the first pull into a fresh root 7 to 11 ms; 1.2 ms without.
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_SCHEMA)
        previous, self._connection, self._filling = self._connection, connection, True
        try:
            self._rebuild(self)
        finally:
            self._connection, self._filling = previous, False
            connection.close()

    def _sweep(self, *, keep: tuple[str | None, ...]) -> None:
        """Removes older generations; the one just replaced stays for whoever wants to see what broke it."""
        for path in self._root.local.glob("index-*.sqlite*"):
            if path.name.removesuffix("-journal") not in keep:
                path.unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    path.chmod(0o600)
    connection.execute("PRAGMA journal_mode = TRUNCATE")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _is_corrupt(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _CORRUPT


def _mapped(error: sqlite3.Error, path: Path) -> MegalfsError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyError(
            f"the index is busy: {str(path)!r}", hint="another megalfs process holds it; try again"
        )
    if code == sqlite3.SQLITE_FULL:
        return SpaceError(f"no space for the index: {str(path)!r}")
    return StoreError(f"the index failed: {str(path)!r}: {error}", hint="megalfs repair rebuilds it")


def _place(row: tuple[Any, ...]) -> Place:
    return Place(Path(os.fsdecode(row[0])), Identity(*row[1:6]), bool(row[6]))


def _known(row: tuple[Any, ...]) -> KnownManifest:
    return KnownManifest(ManifestId(row[0]), Oid(row[1]), row[2], bool(row[3]), bool(row[4]))
