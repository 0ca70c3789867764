"""Small files written whole, and what the file system underneath can do.

A sidecar is either the old one or the new one, never half of one: it is written beside its name and renamed
over it. Nothing here trusts file locks (on Lustre, GPFS and some NFS they are granted to everybody).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from megalfs.errors import (
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    SpaceError,
    StoreError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Json",
    "check_regular",
    "fsync_dir",
    "is_network_file_system",
    "kind_of",
    "map_os_errors",
    "mode_with_x",
    "nonce",
    "pread_into",
    "read_json",
    "rename_new",
    "write_all",
    "write_atomic",
    "write_json",
    "write_new",
]

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

# statfs(2) f_type of file systems that several machines mount at once. FUSE is among them because sshfs and
# the parallel file systems' FUSE clients say nothing else.
NETWORK_MAGIC = frozenset(
    {0x6969, 0x0BD00BD0, 0x47504653, 0xFF534D42, 0xFE534D42, 0x65735546, 0x517B, 0x01021997}
)
SIDECAR_BYTES_MAX = 64 << 20  # the JSON beside a blob lists its places; 64 MiB is 300,000 of them
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_FOLLOWS_ALWAYS = os.link not in os.supports_follow_symlinks  # macOS cannot link a symlink itself
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What was asked for cannot be: a file in a directory's place, a name that is too long, a ring of links.
_NONSENSE = frozenset({errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})
_NO_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL})


@contextlib.contextmanager
def map_os_errors(what: str) -> Iterator[None]:
    """Maps `OSError` once, at the edge: full is exit 6, refused 7, missing 3, nonsense 2, the rest the disk's fault."""
    try:
        yield
    except OSError as error:
        raise _mapped(error, what) from error


def _mapped(error: OSError, what: str) -> MegalfsError:
    line = f"{what}: {(error.strerror or str(error)).lower()}"
    if error.errno in _NO_SPACE:
        return SpaceError(line, hint="free some space and run the same command again: it resumes")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotAuthorisedError(line)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(line)
    if error.errno in _NONSENSE:
        return UsageError(line)
    return StoreError(line)


def nonce() -> str:
    """Eight hex digits that no other process picks."""
    return os.urandom(4).hex()


def write_all(fd: int, buffer: bytes | bytearray | memoryview, offset: int) -> None:
    """Writes all of `buffer` at `offset`; a short write is continued."""
    view = memoryview(buffer).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def pread_into(fd: int, buffer: bytearray | memoryview, offset: int) -> int:
    """Fills `buffer` from `offset`; returns the bytes read, fewer only where the file ends."""
    view = memoryview(buffer)
    filled = 0
    while filled < len(view):
        count = _pread_once(fd, view[filled:], offset + filled)
        if not count:
            break
        filled += count
    return filled


def _pread_once(fd: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    block = os.pread(fd, len(view), offset)  # macOS before 11: one more copy
    view[: len(block)] = block
    return len(block)


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Replaces `path` by `content`; a reader sees the old bytes or the new ones.

    Args:
        durable: also survive a power cut (two fsyncs); a sidecar that can be rebuilt does not need it.
    """
    beside = path.with_name(f".{path.name[:100]}.{nonce()}.tmp")
    try:
        _write_file(beside, content, mode=mode, durable=durable)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if durable:
        fsync_dir(path.parent)


def write_new(path: Path, content: bytes, *, mode: int = 0o600) -> bool:
    """Writes `path` only when it does not exist; False when it does. Durable: keys are not rebuilt."""
    beside = path.with_name(f".{path.name[:100]}.{nonce()}.tmp")
    _write_file(beside, content, mode=mode, durable=True)
    try:
        rename_new(beside, path)
    except FileExistsError:
        beside.unlink()
        return False
    fsync_dir(path.parent)
    return True


def _write_file(path: Path, content: bytes, *, mode: int, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        write_all(fd, content, 0)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def rename_new(source: str | Path, target: str | Path, *, dir_fd: int | None = None) -> None:
    """Renames without replacing; names are relative to `dir_fd` when there is one.

    Three ways, best first: renameat2 (Linux), link and unlink (any POSIX file system with hard links), and a
    placeholder made with O_EXCL that the rename then covers (file systems with neither, as exFAT).

    Raises:
        FileExistsError: something has the target's name.
    """
    if _renameat2(source, target, dir_fd):
        return
    try:
        os.link(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=_FOLLOWS_ALWAYS)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(target, flags, 0o600, dir_fd=dir_fd))
        os.replace(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        return
    os.unlink(source, dir_fd=dir_fd)


def _renameat2(source: str | Path, target: str | Path, dir_fd: int | None) -> bool:
    """True when done; False when the kernel or the file system has no RENAME_NOREPLACE."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # musl before 1.2.6
        return False
    names, at = (os.fsencode(source), os.fsencode(target)), _AT_FDCWD if dir_fd is None else dir_fd
    if libc.renameat2(at, names[0], at, names[1], _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(target))


def fsync_dir(path: Path) -> None:
    """Makes a rename in `path` survive a power cut; file systems that cannot sync a directory need not."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def write_json(path: Path, document: dict[str, Json], *, mode: int = 0o600) -> None:
    """Writes a small JSON sidecar whole; names that are not UTF-8 survive as escaped lone surrogates.

    On one line: indented, the encoder is the one in Python, which took a tenth of the time of a small file.
    """
    write_atomic(path, (json.dumps(document) + "\n").encode("ascii"), mode=mode)


def read_json(path: Path) -> dict[str, Json] | None:
    """The object in `path`, or None when there is none that can be read: damaged is as good as none."""
    try:
        if path.stat().st_size > SIDECAR_BYTES_MAX:
            return None
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return cast("dict[str, Json]", document) if isinstance(document, dict) else None


def check_regular(path: Path) -> os.stat_result:
    """What `path` is, when it is a regular file (through a symlink to one, as every Unix tool reads).

    Raises:
        UsageError: a FIFO, a device, a socket or a directory: reading one may never end.
        NotFoundError: there is none.
    """
    with map_os_errors(f"cannot read {str(path)!r}"):
        found = path.stat()
    if stat.S_ISREG(found.st_mode):
        return found
    raise UsageError(f"not a regular file: {str(path)!r} is a {kind_of(found.st_mode)}")


def mode_with_x(mode: int, *, is_executable: bool) -> int:
    """The permission bits with an x beside every r, or with none."""
    return mode & ~0o111 | ((mode & 0o444) >> 2 if is_executable else 0)


def kind_of(mode: int) -> str:
    """The word for what is not a regular file."""
    kinds = {
        stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFCHR: "device", stat.S_IFBLK: "device",
        stat.S_IFSOCK: "socket", stat.S_IFLNK: "symlink", stat.S_IFREG: "file",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "special file")


def is_network_file_system(path: Path) -> bool:
    """True when other machines may mount the same files (statfs f_type); False where that cannot be asked."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; f_type is its first word
    if libc.statfs(os.fsencode(path), answer) != 0:
        return False
    f_type = int.from_bytes(answer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return f_type & 0xFFFFFFFF in NETWORK_MAGIC
