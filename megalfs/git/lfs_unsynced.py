"""Objects that git-lfs got before the disk had them.

A sync of a gigabyte takes as long as its transfer, and git-lfs has work to do meanwhile: it hashes the object and
copies it into the work tree. So a large one is handed over first and synced later. What a power cut could have
damaged stands in a list that is on disk before the object is; a node that finds it hashes those files again
before it serves them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.errors import UsageError
from megalfs.store.files import fsync_dir, map_os_errors, write_atomic

if TYPE_CHECKING:
    from megalfs.store.blobs import Store

__all__ = ["LATE_BYTES_MIN", "Unsynced"]

log = logging.getLogger(__name__)

LATE_BYTES_MIN = 32 << 20  # below, a sync takes less than two writes of the list
LIST_FILE = "unsynced.json"


class Unsynced:
    """The list of one root, and its objects. Methods block, and may be called from any thread."""

    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._path = directory / LIST_FILE
        self._lock = threading.Lock()
        self._paths: dict[str, str] = {}

    def add(self, oid: Oid, path: Path) -> None:
        """An object will be at a path, and not be synced; raises StoreError."""
        with self._lock:
            self._paths[str(oid)] = str(path)
            self._write()

    def settle(self, oid: Oid) -> None:
        """Syncs an object, or finds that it is not there; raises StoreError."""
        with self._lock:
            path = Path(self._paths[str(oid)])
        with map_os_errors(f"cannot sync {str(path)!r}"), suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            fsync_dir(path.parent)
        with self._lock:
            del self._paths[str(oid)]
            self._write()

    def withdraw(self) -> list[Oid]:
        """Stops offering what an earlier node left on the list, and returns it: hash it again."""
        found = []
        with suppress(OSError, ValueError, UsageError):
            for name, path in json.loads(self._path.read_bytes()).items():
                oid = Oid.parse(name)
                self._store.withdraw(oid, Path(path))
                found.append(oid)
        return found

    def recheck(self, oids: list[Oid]) -> None:
        """Hashes what `withdraw` returned; what is whole is offered again, the rest forgotten."""
        for oid in oids:
            if not self._store.recheck(oid):
                log.warning("%s was damaged when this machine went down, and is forgotten", oid)
        with self._lock:
            self._write()

    def _write(self) -> None:
        write_atomic(self._path, json.dumps(self._paths).encode(), durable=True)
