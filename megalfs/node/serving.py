"""Where the pieces of a swarm are read from: a file of the store, or the partial of a pull that still runs."""

from __future__ import annotations

import os
from typing import Protocol

from megalfs.store.identity import ChangedError, Identity

__all__ = ["PartialSource", "PieceSource"]


class PieceSource(Protocol):
    """An open file with verified pieces; shared by the lanes that send from it."""

    def fileno(self) -> int:
        """The descriptor to send from; stays open while the swarm is."""

    def check(self) -> None:
        """Raises StoreError when the bytes may no longer be the ones that were verified."""

    def spoil(self) -> None:
        """The disk could not read it, or read other bytes: every later `check` raises."""

    def close(self) -> None:
        """Closes the file."""


class PartialSource:
    """The file of one pull, through a descriptor of its own: it outlives the rename to the target's name.

    While the pull runs the file is ours alone and changes only by verified pieces; from `settle` on it is the
    user's, and watched like any other.
    """

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._identity: Identity | None = None
        self._is_spoiled = False

    def settle(self, identity: Identity) -> None:
        """The file has its final name; `identity` is what it was when its bytes were proven."""
        self._identity = identity

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def check(self) -> None:
        """One fstat once the file is the user's; nothing before.

        Raises:
            ChangedError: somebody wrote into it since, or the disk failed.
        """
        if self._is_spoiled:
            raise ChangedError("the file cannot be read as it was pulled", hint="look at the disk")
        if self._identity is not None and not self._identity.is_still(Identity.of_fd(self._fd)):
            raise ChangedError("the file changed since it was pulled", hint="publish it again")

    def spoil(self) -> None:
        """The disk could not read it, or read other bytes."""
        self._is_spoiled = True

    def close(self) -> None:
        """Closes the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
