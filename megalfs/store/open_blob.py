"""A blob opened for serving: a file descriptor that knows which file it must still be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from megalfs.store.identity import ChangedError, Identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from megalfs.core.ids import Oid

__all__ = ["OpenBlob"]


class OpenBlob:
    """Serve from `fd`, and call `check` before and after each range: changed bytes were never offered."""

    __slots__ = ("_is_spoiled", "_withdraw", "fd", "identity", "oid", "path", "size")

    def __init__(
        self, fd: int, oid: Oid, path: Path, identity: Identity, withdraw: Callable[[], None]
    ) -> None:
        self.fd = fd
        self.oid = oid
        self.path = path
        self.identity = identity
        self.size = identity.size  # bytes
        self._withdraw = withdraw
        self._is_spoiled = False

    def check(self) -> None:
        """That the open file is still the one that was hashed: one fstat.

        Raises:
            ChangedError: it is not, or the disk could not read it; it is withdrawn already, and the connection
                must be aborted.
        """
        if self._is_spoiled:
            self._withdraw()
            raise ChangedError(f"{str(self.path)!r} cannot be read as it was hashed", hint="look at the disk")
        if not self.identity.is_still(Identity.of_fd(self.fd)):
            self._withdraw()
            raise ChangedError(f"{str(self.path)!r} changed since it was hashed", hint="publish it again")

    def spoil(self) -> None:
        """The disk could not read it, or read other bytes: the next `check` withdraws it. From any thread."""
        self._is_spoiled = True

    def fileno(self) -> int:
        """The descriptor, for sendfile."""
        return self.fd

    def close(self) -> None:
        """Closes the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
