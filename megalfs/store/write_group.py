"""Many small files written at once: all of them, then one wait for the disk, then all names, then all records.

Order is what a single pull's is: data before the rename, the rename before the record. Waiting for the disk
once per group instead of four times per file is what makes 10,000 files a matter of seconds. A group that is
killed leaves temporary files, which the next command removes (`group_journal.py`).
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.errors import IntegrityError, MegalfsError, StoreError
from megalfs.store.claim import part_names
from megalfs.store.files import fsync_dir, map_os_errors, mode_with_x, write_all
from megalfs.store.group_journal import group_journal
from megalfs.store.identity import ChangedError, Identity
from megalfs.store.ingest import hash_file
from megalfs.store.partial import register_directory
from megalfs.store.target import check_target, give_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from megalfs.core.ids import Oid
    from megalfs.formats.manifest_fields import EncodedManifest
    from megalfs.store.blobs import Store

__all__ = ["NewFile", "write_group"]


class NewFile(Struct, frozen=True):
    """A small file to be: its bytes are proven, and `may_replace` a regular file that stands there."""

    target: Path
    oid: Oid
    content: bytes
    is_executable: bool
    may_replace: bool


class _Written(Struct):
    file: NewFile
    part: Path
    manifest: EncodedManifest
    identity: Identity  # before it has its name


def write_group(store: Store, files: Sequence[NewFile], *, durable: bool) -> dict[Path, MegalfsError]:
    """Makes the files and records them; returns why some of them are not there.

    Args:
        durable: bytes and names survive a power cut before anything is recorded.
    """
    errors: dict[Path, MegalfsError] = {}
    parts = [(file, file.target.with_name(part_names(file.target, file.oid)[0])) for file in files]
    try:
        with group_journal(store.root, [part for _, part in parts]):
            _make(store, parts, errors, durable=durable)
    except MegalfsError as error:
        errors.update({file.target: error for file in files if file.target not in errors})
    return errors


def _make(
    store: Store, parts: Sequence[tuple[NewFile, Path]], errors: dict[Path, MegalfsError], *, durable: bool
) -> None:
    written: list[_Written] = []
    directories = dict.fromkeys(part.parent for _, part in parts)
    for directory in directories:
        register_directory(store.root, directory)
    try:
        for file, part in parts:
            try:
                written.append(_write(file, part))
            except MegalfsError as error:
                errors[file.target] = error
        if durable:
            with map_os_errors("cannot sync what was pulled"):
                _sync([each.part for each in written])
        named = [(each, found) for each in written if (found := _name(each, errors)) is not None]
        if durable:
            with map_os_errors("cannot sync what was pulled"):
                for directory in directories:
                    fsync_dir(directory)
        _record(store, named, errors)
    finally:
        for each in written:
            with suppress(FileNotFoundError):
                each.part.unlink()


def _write(file: NewFile, part: Path) -> _Written:
    check_target(file.target)
    with map_os_errors(f"cannot write beside {str(file.target)!r}"):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, mode_with_x(0o666, is_executable=file.is_executable))
        try:
            write_all(fd, file.content, 0)
            manifest, identity = hash_file(fd, len(file.content)), Identity.of_fd(fd)
        except BaseException:
            part.unlink()
            raise
        finally:
            os.close(fd)
    if manifest.oid != file.oid:
        part.unlink()
        raise IntegrityError(f"what was written to {str(part)!r} is not what is there", hint="check the disk")
    return _Written(file, part, manifest, identity)


def _sync(parts: Sequence[Path]) -> None:
    """Returns when the bytes of these files are on the disk: one call for each file system of them."""
    by_device = {part.lstat().st_dev: part.parent for part in parts}
    if sys.platform.startswith("linux") and all(map(_sync_file_system, by_device.values())):
        return
    for part in parts:
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sync_file_system(directory: Path) -> bool:
    """syncfs(2); False where the C library has none."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        return False
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)
    return True


def _name(written: _Written, errors: dict[Path, MegalfsError]) -> Identity | None:
    """Renames one file to its target; what it is under its name, or None when it could not be."""
    target = written.file.target
    try:
        with map_os_errors(f"cannot finish {str(target)!r}"):
            give_name(written.part, target, replace=written.file.may_replace)
            identity = Identity.of(target.lstat())
        if identity.fields()[:-1] != written.identity.fields()[:-1]:  # a rename changes ctime
            raise ChangedError(f"{str(target)!r} was written to as soon as it was there")
    except MegalfsError as error:
        errors[target] = error
        return None
    return identity


def _record(
    store: Store, named: Iterable[tuple[_Written, Identity]], errors: dict[Path, MegalfsError]
) -> None:
    with store.index.change():
        for each, identity in named:
            try:
                store.adopt(each.file.target, each.manifest, identity=identity, is_computed=True)
            except StoreError as error:
                errors[each.file.target] = error
