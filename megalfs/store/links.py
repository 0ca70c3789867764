"""Giving a file a second name without a second copy, where that is safe: reflink, hard link, or copy.

Between stores of ours and git-lfs's, whose files nobody edits: reflink, else hard link, else copy. Into a
work tree: reflink, else copy, because a program that writes into a hard-linked file damages the object behind
it; `--link hard` and `--link sym` are for who wants one inode all the same, and make the file read-only.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Literal

from megalfs.errors import PolicyError, StoreError, UsageError
from megalfs.store.files import fsync_dir, map_os_errors, nonce, rename_new, write_all
from megalfs.store.identity import Identity, open_regular
from megalfs.store.target import check_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["LinkMode", "Linked", "link_file"]

LinkMode = Literal["auto", "reflink", "hard", "sym", "copy"]

_FICLONE = 0x40049409  # _IOW(0x94, 9, int) of linux/fs.h
_COPY_BYTES = 8 << 20  # a slow disk does that in a fraction of a second: then somebody may want to stop
_NO_REFLINK = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF}
)
_NO_HARD_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_NO_COPY_RANGE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EBADF})


class Linked(Enum):
    """How a file came to its second name."""

    REFLINK = "reflink"
    HARD = "hard"
    SYM = "sym"
    COPY = "copy"


def link_file(
    source: Path,
    target: Path,
    *,
    mode: LinkMode,
    to_work_tree: bool,
    replace: bool,
    durable: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Linked:
    """Makes `target` hold what `source` holds; it appears whole or not at all.

    Args:
        mode: `auto` follows the policy above; `reflink` fails where the file system has none.
        to_work_tree: people and programs edit the target.
        replace: cover a regular file that stands there.
        durable: the bytes, and then the name, survive a power cut.
        progress: called with bytes copied; what it raises ends the copy, and nothing of it stays.

    Raises:
        UsageError: `mode` names a way that this file system does not have.
        PolicyError: something stands at the target that must not be replaced.
    """
    check_target(target)
    beside = target.with_name(f".{target.name[:100]}.{nonce()}.megalfs-link")
    with map_os_errors(f"cannot link {str(source)!r} to {str(target)!r}"):
        try:
            linked = _link(source, beside, mode, to_work_tree=to_work_tree, progress=progress)
            if durable and linked in {Linked.COPY, Linked.REFLINK}:
                _sync(beside)
            if replace:
                beside.replace(target)
            else:
                rename_new(beside, target)
            if durable:
                fsync_dir(target.parent)
        except FileExistsError as error:
            raise PolicyError(f"{str(target)!r} exists already", hint="--force replaces it") from error
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()  # renaming a hard link over another name of its inode does nothing
    return linked


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _link(
    source: Path,
    target: Path,
    mode: LinkMode,
    *,
    to_work_tree: bool,
    progress: Callable[[int], None] | None,
) -> Linked:
    if mode == "sym":
        target.symlink_to(source.absolute())
        return Linked.SYM
    if mode == "hard" or (mode == "auto" and not to_work_tree):
        return _hard_or_less(source, target, mode, progress)
    if mode != "copy" and _reflink(source, target):
        return Linked.REFLINK
    if mode == "reflink":
        raise UsageError(f"no reflinks from {str(source)!r} to {str(target.parent)!r}", hint="--link copy")
    copy_file(source, target, progress)
    return Linked.COPY


def _hard_or_less(
    source: Path, target: Path, mode: LinkMode, progress: Callable[[int], None] | None
) -> Linked:
    """`hard`: that or an error. `auto`: reflink, else hard link, else copy."""
    if mode == "auto" and _reflink(source, target):
        return Linked.REFLINK
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        if mode == "hard":
            raise UsageError(
                f"no hard links from {str(source)!r} to {str(target.parent)!r}", hint="--link copy"
            ) from error
        copy_file(source, target, progress)
        return Linked.COPY
    if mode == "hard":
        target.chmod(source.stat().st_mode & 0o555)  # one inode: whoever writes to it would damage the seed
    return Linked.HARD


def _reflink(source: Path, target: Path) -> bool:
    """Shares the blocks of a file; False where the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    fd = open_regular(source)
    try:
        new = _create(target, fd)
        try:
            fcntl.ioctl(new, _FICLONE, fd)
        except OSError as error:
            target.unlink()
            if error.errno not in _NO_REFLINK:
                raise
            return False
        finally:
            os.close(new)
    finally:
        os.close(fd)
    return True


def copy_file(source: Path, target: Path, progress: Callable[[int], None] | None = None) -> Identity:
    """Copies inside the kernel where it can; returns the source's identity, equal before and after.

    Raises:
        StoreError: the source changed meanwhile.
    """
    fd = open_regular(source)
    try:
        before = Identity.of_fd(fd)
        new = _create(target, fd)
        try:
            _copy_bytes(fd, new, before.size, progress)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(new)
        if Identity.of_fd(fd) != before:
            target.unlink()
            raise StoreError(f"{str(source)!r} changed while it was copied")
    finally:
        os.close(fd)
    return before


def _create(target: Path, source_fd: int) -> int:
    mode = 0o666 | (os.fstat(source_fd).st_mode & 0o111)
    return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def _copy_bytes(fd: int, new: int, size: int, progress: Callable[[int], None] | None) -> None:
    offset, has_range = 0, hasattr(os, "copy_file_range")
    while offset < size:
        if has_range:
            try:
                count = os.copy_file_range(fd, new, min(size - offset, _COPY_BYTES), offset, offset)
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                count = 0  # no bytes though there are some: old kernels on some file systems
            if count:
                offset += count
                if progress is not None:
                    progress(count)
                continue
            has_range = False
        block = os.pread(fd, min(_COPY_BYTES, size - offset), offset)
        if not block:
            return
        write_all(new, block, offset)
        offset += len(block)
        if progress is not None:
            progress(len(block))
