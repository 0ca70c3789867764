"""A file's identity: what changes when its bytes may have, asked before and after they are served.

Size and mtime can be put back by anybody (`touch -r`); ctime cannot. ctime has the resolution of the kernel's
tick, so a write in the tick in which the identity was taken would leave no trace: `settle` waits that tick
out (git calls such entries racily clean).
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Self

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


@dataclass(frozen=True, slots=True)
class Identity:
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
        return astuple(self)[1:] == astuple(other)[1:]


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
