"""Where a pull may put a file: nothing that stands there is followed, and only regular files are replaced."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from megalfs.core.pathrules import escape_for_terminal, path_fault
from megalfs.errors import PolicyError
from megalfs.store.files import kind_of, map_os_errors, rename_new

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_target", "give_name", "make_parent"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def check_target(path: Path) -> bool:
    """Whether a regular file stands at `path`; False when nothing does.

    Raises:
        PolicyError: a symlink, a directory, a FIFO, a socket or a device stands there.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        with map_os_errors(f"cannot use {str(path)!r}"):
            raise error
    if stat.S_ISREG(found.st_mode):
        return True
    raise PolicyError(f"will not replace {str(path)!r}: it is a {kind_of(found.st_mode)}")


def give_name(part: str | Path, target: Path, *, replace: bool, dir_fd: int | None = None) -> None:
    """Renames a whole file to its target.

    Args:
        dir_fd: the target's directory, which `part` is relative to.
        replace: cover what stands there.

    Raises:
        PolicyError: something stands there and is not to be replaced.
        OSError: as rename(2).
    """
    name = target if dir_fd is None else target.name
    if replace:
        os.replace(part, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        return
    try:
        rename_new(part, name, dir_fd=dir_fd)
    except FileExistsError as error:
        raise PolicyError(
            f"{str(target)!r} exists and was never published or pulled", hint="--force replaces it"
        ) from error


def make_parent(base: Path, relative: str) -> Path:
    """The path of `relative` below `base`, its directories made; no symlink is followed below `base`.

    Raises:
        PolicyError: the path breaks the rules, or a symlink or a file stands where a directory must be.
    """
    fault = path_fault(relative)
    if fault is not None:
        raise PolicyError(f"the path '{escape_for_terminal(relative)}' is refused: {fault}")
    parts = relative.split("/")
    with map_os_errors(f"cannot make the directory of {str(base / relative)!r}"):
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in parts[:-1]:
                fd = _enter(fd, name, relative)
        finally:
            os.close(fd)
    return base.joinpath(*parts)


def _enter(parent: int, name: str, relative: str) -> int:
    """Opens a directory of `parent`, made when there is none; closes `parent` when it succeeds."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        kind = kind_of(found.st_mode)
        raise PolicyError(f"will not write below '{escape_for_terminal(relative)}': {name!r} is a {kind}")
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    os.close(parent)
    return fd
