"""Which process wrote something, and whether it still runs: the answer that file locks would lie about.

A pid alone says little: pids are reused, a home directory is mounted on 64 machines, and two containers of
one machine both have a pid 7. So an owner is machine, boot, pid namespace, pid and the process's start time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct
from msgspec.structs import asdict

if TYPE_CHECKING:
    from megalfs.store.files import Json

__all__ = ["Owner", "machine_id"]

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_START_TIME_FIELD = 19  # field 22 of /proc/PID/stat, counted after the command's closing bracket


class Owner(Struct, frozen=True):
    """One running process of one machine."""

    machine: str
    boot: str
    pid_namespace: int
    pid: int
    started: int  # clock ticks since boot; 0 where it cannot be read

    @classmethod
    def here(cls, machine: str) -> Self:
        """This process."""
        return cls(machine, _boot_id(), _pid_namespace(), os.getpid(), _started(os.getpid()))

    @classmethod
    def from_json(cls, document: Json) -> Self | None:
        """Reads what `to_json` wrote; None when it is anything else."""
        if not isinstance(document, dict):
            return None
        machine, boot = document.get("machine"), document.get("boot")
        namespace, pid, started = (document.get(name) for name in ("pid_namespace", "pid", "started"))
        if not (isinstance(machine, str) and isinstance(boot, str)):
            return None
        if not (isinstance(namespace, int) and isinstance(pid, int) and isinstance(started, int)):
            return None
        return cls(machine, boot, namespace, pid, started)

    def to_json(self) -> dict[str, Json]:
        """The fields by name."""
        return asdict(self)

    def is_alive(self, here: Owner) -> bool | None:
        """Whether the process still runs; None when `here` cannot see it (another machine or container)."""
        if self.machine != here.machine:
            return None
        if self.boot != here.boot:
            return False
        if self.pid_namespace != here.pid_namespace:
            return None
        if self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it runs, as another user
        return _started(self.pid) == self.started


def machine_id() -> str:
    """An id of this machine for megalfs only: 32 hex digits, derived, since machine-id itself is private."""
    import hashlib

    for path in _MACHINE_ID_FILES:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            break
    else:
        text = os.uname().nodename  # no machine-id: a container, or not Linux
    return hashlib.sha256(b"megalfs:machine:v1\0" + text.encode()).hexdigest()[:32]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return sys.platform  # then only the pid speaks, which errs towards "still alive"


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _started(pid: int) -> int:
    """Start time of a process in clock ticks since boot; -1 for a zombie, 0 when it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return -1 if fields[0] in (b"Z", b"X") else int(fields[_START_TIME_FIELD])
    except (OSError, ValueError, IndexError):
        return 0
