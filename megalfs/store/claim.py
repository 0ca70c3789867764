"""Taking over a partial that nobody tends: whose owner is dead, or silent for 30 s on another machine.

The ticket is a rename of the sidecar to a name of our own: of several processes one succeeds. Between that and
the moment our name stands in it, another process may read the dead owner's name and rename it again. So
whoever has the ticket looks into it once more: a live owner's gets it back; and whoever wrote its name looks
whether the ticket is still there.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from megalfs.core.bitfield import Bitfield
from megalfs.store.files import nonce
from megalfs.store.partial_state import PartialState, overwrite, read_state

if TYPE_CHECKING:
    from pathlib import Path

    from megalfs.core.ids import Oid
    from megalfs.store.owner import Owner

__all__ = [
    "PART_SUFFIX",
    "STATE_SUFFIX",
    "Claim",
    "claim_abandoned",
    "is_abandoned",
    "is_begun",
    "is_own_file",
    "part_names",
    "silence_s",
    "state_name_of",
]

PART_SUFFIX = ".megalfs-part"
STATE_SUFFIX = ".megalfs-state"
LINK_SUFFIX = ".megalfs-link"
NAME_BYTES_MAX = 160  # of the target's name in ours: of the 255 allowed, the rest is room for ids
HEARTBEAT_S_MAX = 30.0  # a puller flushes five times a second; a machine under load may stall for seconds
GIVE_BACK_S_MAX = 0.05  # how long a ticket may be away while somebody looks into it


class Claim(Struct, frozen=True):
    """A partial that is ours now: open files, and what its sidecar says from now on."""

    fd: int
    state_fd: int
    state: PartialState


def is_own_file(name: str) -> bool:
    """Whether a file name is one of ours beside a target: a partial, its sidecar, a link being made."""
    return name.startswith(".") and name.endswith((PART_SUFFIX, STATE_SUFFIX, LINK_SUFFIX))


def part_names(target: Path, oid: Oid) -> tuple[str, str]:
    """Names of a new partial and its sidecar; the nonce makes them this process's own."""
    part = _stem(target, oid) + nonce() + PART_SUFFIX
    return part, state_name_of(part)


def state_name_of(part: str) -> str:
    """The name of a partial's sidecar."""
    return part.removesuffix(PART_SUFFIX) + STATE_SUFFIX


def _stem(target: Path, oid: Oid) -> str:
    name = os.fsdecode(os.fsencode(target.name)[:NAME_BYTES_MAX])
    return f".{name}.{str(oid)[:8]}."


def is_begun(target: Path, oid: Oid) -> bool:
    """Whether a pull of this blob to this target was begun and did not end."""
    return bool(_names(target.parent, _stem(target, oid), STATE_SUFFIX))


def _names(directory: Path, stem: str, suffix: str) -> list[str]:
    """Sorted. Names, not paths: a directory of a tree may hold 100,000 files, and each of them asks."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name.startswith(stem) and name.endswith(suffix))


def claim_abandoned(target: Path, directory_fd: int, wanted: PartialState) -> Claim | None:
    """Takes over the fullest abandoned partial of this target and blob."""
    for path, found in _abandoned(target, wanted):
        part, state_name = part_names(target, wanted.oid)
        claimed, records = _claims(found, wanted)
        state = replace(wanted, part=part, claimed=claimed, records=records)
        state_fd = _take_state(path, target.parent / state_name, state)
        if state_fd is None:
            continue
        old_part = path.name.removesuffix(STATE_SUFFIX) + PART_SUFFIX
        fd = _take_part(directory_fd, [old_part, *([found.part] if found else [])], part)
        if fd is not None:
            return Claim(fd, state_fd, state)
        (target.parent / state_name).unlink(missing_ok=True)
        os.close(state_fd)
    return None


def _abandoned(target: Path, wanted: PartialState) -> list[tuple[Path, PartialState | None]]:
    """Sidecars of this target and blob that nobody tends any more, the fullest first."""
    stem, found = _stem(target, wanted.oid), []
    for name in _names(target.parent, stem, STATE_SUFFIX):
        entry = target.parent / name
        state = read_state(entry)
        if (state is None or state.oid == wanted.oid) and is_abandoned(entry, state, wanted.owner):
            found.append((entry, state))
    return sorted(found, key=lambda pair: -(pair[1].bits().count if pair[1] else 0))


def is_abandoned(path: Path, state: PartialState | None, here: Owner) -> bool:
    """Whether nobody tends the partial with this sidecar; `here` is this process."""
    is_alive = None if state is None else state.owner.is_alive(here)
    return silence_s(path) > HEARTBEAT_S_MAX if is_alive is None else not is_alive


def silence_s(path: Path) -> float:
    """Seconds since the last heartbeat by the file system's own clock; 0 when the sidecar is gone."""
    probe = path.parent / f".{nonce()}{STATE_SUFFIX}-clock"
    try:
        with probe.open("xb"):
            pass
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _claims(found: PartialState | None, wanted: PartialState) -> tuple[bytes, bytes]:
    """The bits and records to look at: with another manifest, or a damaged sidecar, any chunk may be there."""
    if found is not None and (found.manifest, found.pieces) == (wanted.manifest, wanted.pieces):
        return found.bits().to_bytes(), found.records
    return Bitfield.full(wanted.pieces).to_bytes(), b""


def _take_state(path: Path, new: Path, state: PartialState) -> int | None:
    """Renames a sidecar and writes our name into it; None when somebody else was faster."""
    try:
        path.rename(new)
        fd = os.open(new, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = read_state(new)
        if found is not None and not is_abandoned(new, found, state.owner):
            # Its new owner wrote its name after we read the old one: back to the name that it chose.
            with suppress(FileNotFoundError):
                new.rename(path.with_name(state_name_of(found.part)))
        else:
            overwrite(fd, state)
            if _has_ticket(new, fd):
                return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _has_ticket(path: Path, fd: int) -> bool:
    """Whether the sidecar is still under our name; one that was taken by mistake comes back at once."""
    deadline = time.monotonic() + GIVE_BACK_S_MAX
    while True:
        with suppress(FileNotFoundError):
            if path.lstat().st_ino == os.fstat(fd).st_ino:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(GIVE_BACK_S_MAX / 10)


def _take_part(directory_fd: int, names: list[str], new: str) -> int | None:
    """Renames the data of a claimed partial and opens it; None when it is gone or not ours to write."""
    for name in names:
        try:
            os.rename(name, new, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except OSError:
            continue
        try:
            fd = os.open(new, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory_fd)
        except OSError:
            return None
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return fd
        os.close(fd)
        return None
    return None
