"""A file's identity: what changes when its bytes may have, asked before and after they are served.

Size and mtime can be put back by anybody (`touch -r`); ctime cannot. ctime has the resolution of the kernel's
tick, so a write in the tick in which the identity was taken would leave no trace: `settle` waits that tick
out (git calls such entries racily clean).
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Self

from msgspec import Struct
from msgspec.structs import replace

from megalfs.errors import StoreError
from megalfs.store.files import kind_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ChangedError", "Identity", "open_regular", "settle"]

# The coarsest tick of a Linux kernel (CONFIG_HZ=100) is 10 ms; since 6.13 inodes have finer clocks.
SETTLE_NS = 12_000_000
_SIGNED_MAX = (1 << 63) - 1  # SQLite's integers are signed; some FUSE file systems have 64-bit inode numbers


class ChangedError(StoreError):
    """A file is not the one that was hashed: it was edited, truncated or replaced."""


class Identity(Struct, frozen=True):
    """Device, inode, size in bytes, and the two times in nanoseconds since 1970."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """The identity that a stat call saw."""
        dev, ino = found.st_dev & _SIGNED_MAX, found.st_ino & _SIGNED_MAX
        return cls(dev, ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @classmethod
    def of_fd(cls, fd: int) -> Self:
        """The identity of an open file."""
        return cls.of(os.fstat(fd))

    def is_same_but_device(self, other: Identity) -> bool:
        """Whether only the device number differs: a reboot or a new mount renumbers devices."""
        return other.is_still(replace(self, dev=other.dev))

    def fields(self) -> tuple[int, int, int, int, int]:
        """As records keep it, in the order of `Identity`'s arguments."""
        return self.dev, self.ino, self.size, self.mtime_ns, self.ctime_ns

    @property
    def is_linked(self) -> bool:
        """Whether this is of a file that shares its inode with another store: see `linked`."""
        return self.ctime_ns == 0

    def linked(self) -> Self:
        """The identity of a file of which another store (git-lfs) has a hard link.

        Making, renaming and removing that link changes ctime and not one byte, so ctime does not count. Only
        for files nobody edits: an editor would change mtime, and who restores mtime fools only himself, since
        peers verify what they get.
        """
        return replace(self, ctime_ns=0)

    def renewed(self, found: Self) -> Self:
        """What to remember of the same file after it was hashed again: `found`, linked when this is."""
        return found.linked() if self.is_linked else found

    def is_still(self, found: Identity) -> bool:
        """Whether `found`, taken now, is the file that this identity was taken of."""
        return found == self or (self.is_linked and found.linked() == self)


def settle(found: os.stat_result) -> None:
    """Waits until a later change must show in ctime: not at all for a file that is 12 ms old."""
    age_ns = time.time_ns() - found.st_ctime_ns
    if 0 <= age_ns < SETTLE_NS:
        time.sleep((SETTLE_NS - age_ns) / 1e9)


def open_regular(path: Path) -> int:
    """Opens a regular file for reading, following no symlink and never waiting for a FIFO's writer.

    Raises:
        OSError: there is none, or it may not be read.
        ChangedError: something else has its name now.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise ChangedError(f"not a regular file any more: {str(path)!r} is a {kind_of(mode)}")
    return fd
