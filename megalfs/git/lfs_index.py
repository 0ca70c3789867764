"""git's index: telling git that files are what it has there, without git reading them.

git believes an entry as long as the file's stat data is what the entry says. After a pull it is not, and git
would send every byte of the file through git-lfs's filter to find out. The pull has proven those bytes, so
only the stat fields of the entries are written: same objects, same names, same everything else.

https://git-scm.com/docs/index-format; versions 2 to 4, SHA-1 and SHA-256. A split index (`link`) keeps its
entries elsewhere and is left alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from megalfs.errors import BusyError, StoreError
from megalfs.store.files import map_os_errors

__all__ = ["refresh", "with_stats"]

_HEADER = struct.Struct(">4sII")
_STAT = struct.Struct(">IIIIIIIIII")  # ctime, mtime (s and ns each), dev, ino, mode, uid, gid, size
_FLAG_EXTENDED = 0x4000
_NAME_MASK = 0xFFF
_LOW32 = 0xFFFFFFFF


def refresh(index: Path, files: Mapping[bytes, Path], *, oid_bytes: int) -> int:
    """Writes the stat data of files into the index; returns how many entries that were.

    Args:
        files: by their names in the index. The caller proved that each holds what its entry says.

    Raises:
        BusyError: git is writing the index right now.
        StoreError: the index cannot be read or written.
    """
    stats = {name: path.lstat() for name, path in files.items()}
    _wait_out_second(max((found.st_mtime for found in stats.values()), default=0.0))
    lock = index.with_name(index.name + ".lock")
    with map_os_errors(f"cannot refresh {str(index)!r}"):
        try:
            fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError as error:
            raise BusyError(f"git is at work: {str(lock)!r} exists", hint="git status, later") from error
        try:
            with os.fdopen(fd, "wb") as file:
                content, count = with_stats(index.read_bytes(), stats, oid_bytes=oid_bytes)
                file.write(content)
            lock.chmod(index.stat().st_mode & 0o777)
            lock.replace(index)
        finally:
            with suppress(FileNotFoundError):
                lock.unlink()
    return count


def with_stats(content: bytes, stats: Mapping[bytes, os.stat_result], *, oid_bytes: int) -> tuple[bytes, int]:
    """The index with other stat data, and how many entries changed.

    Raises:
        StoreError: it is no index that this code knows.
    """
    index = bytearray(content)
    try:
        magic, version, entries = _HEADER.unpack_from(index)
        if magic != b"DIRC" or version not in {2, 3, 4}:
            raise StoreError(f"not an index that megalfs can refresh: version {version}")
        position, name, count = _HEADER.size, b"", 0
        for _ in range(entries):
            name, end = _entry(index, position, name, version=version, oid_bytes=oid_bytes)
            if name in stats:
                _write_stat(index, position, stats[name])
                count += 1
            position = end
    except (struct.error, ValueError, IndexError) as error:
        raise StoreError(f"a damaged index: {error}", hint="git status") from error
    if index[position : position + 4] == b"link":
        raise StoreError("a split index is not refreshed")
    trailer = index[-oid_bytes:]
    if any(trailer):  # zeros: index.skipHash
        digest = hashlib.sha1 if oid_bytes == 20 else hashlib.sha256
        index[-oid_bytes:] = digest(index[:-oid_bytes]).digest()
    return bytes(index), count


def _entry(
    index: bytearray, position: int, previous: bytes, *, version: int, oid_bytes: int
) -> tuple[bytes, int]:
    """The name of an entry, and where the next one begins."""
    at = position + _STAT.size + oid_bytes
    (flags,) = struct.unpack_from(">H", index, at)
    at += 4 if version >= 3 and flags & _FLAG_EXTENDED else 2
    if version == 4:
        strip, at = _offset(index, at)
        end = index.index(0, at)
        return previous[: len(previous) - strip] + bytes(index[at:end]), end + 1
    end = index.index(0, at + (min(_NAME_MASK, flags & _NAME_MASK)))
    # One to eight NULs, so that entries begin at multiples of eight.
    return bytes(index[at:end]), position + ((end - position + 8) & ~7)


def _offset(index: bytearray, at: int) -> tuple[int, int]:
    """The number that version 4 puts before a name (as in packs), and where it ends."""
    value = index[at] & 0x7F
    while index[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (index[at] & 0x7F)
    return value, at + 1


def _write_stat(index: bytearray, position: int, found: os.stat_result) -> None:
    (mode,) = struct.unpack_from(">I", index, position + 24)
    ctime_s, ctime_ns = divmod(found.st_ctime_ns, 10**9)
    mtime_s, mtime_ns = divmod(found.st_mtime_ns, 10**9)
    fields = (ctime_s, ctime_ns, mtime_s, mtime_ns, found.st_dev, found.st_ino, mode)
    owners = (found.st_uid, found.st_gid, found.st_size)
    _STAT.pack_into(index, position, *(field & _LOW32 for field in (*fields, *owners)))


def _wait_out_second(mtime_s: float) -> None:
    """An entry as young as the index itself is not believed (git's racy entries): seconds are what git compares."""
    now_s = time.time()  # noqa: TID251 - compared with a file's time
    if int(now_s) <= int(mtime_s) <= now_s + 1:
        time.sleep(int(mtime_s) + 1 - now_s)
