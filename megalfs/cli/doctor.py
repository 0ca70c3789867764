"""`megalfs doctor`: looks at this machine and this root, and says what would make megalfs slow or fail.

Each finding has an id that scripts may rely on, what was seen, and what to do about it when that is not well.
"""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import asdict

from megalfs.cli.ui import size_text
from megalfs.errors import MegalfsError

if TYPE_CHECKING:
    from megalfs.cli.context import Context

__all__ = ["Finding", "run_doctor"]

FREE_BYTES_MIN = 1 << 30
FILES_MIN = 1024
TOOL_S_MAX = 5.0
DEFAULT_PORT = 7427
# Two connections that write a WAL database can corrupt it before this one; the index does not use WAL.
SQLITE_WAL_FIXED = (3, 51, 3)


class Finding(Struct, frozen=True):
    """One thing looked at. `seen` is what there is; `fix` what to do, empty when all is well."""

    id: str
    level: Literal["ok", "note", "bad"]
    seen: str
    fix: str = ""


def run_doctor(context: Context) -> int:
    """Prints every finding; 0 unless one is bad."""
    findings = list(_examine(context))
    for finding in findings:
        if context.ui.is_json:
            context.ui.record(asdict(finding))
        else:
            fix = f"; {finding.fix}" if finding.fix else ""
            context.ui.result(f"{finding.level:<4} {finding.id:<12} {finding.seen}{fix}")
    return int(any(finding.level == "bad" for finding in findings))


def _examine(context: Context) -> Iterator[Finding]:
    yield _python()
    yield _sqlite()
    yield from _kernels()
    yield _scheduler()
    yield _open_files()
    yield from _root(context)
    yield _reflink(context)
    yield _port()
    yield from (_tool(name) for name in ("git", "git-lfs"))
    yield from _git_lfs(context)


def _git_lfs(context: Context) -> Iterator[Finding]:
    from megalfs.git.lfs_doctor import examine

    for found in examine(Path.cwd(), context.root_path, context.settings()):
        yield Finding(found.id, found.level, found.seen, found.fix)


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", f"{version} at {sys.executable}")


def _sqlite() -> Finding:
    if sqlite3.sqlite_version_info >= SQLITE_WAL_FIXED:
        return Finding("sqlite", "ok", sqlite3.sqlite_version)
    seen = f"{sqlite3.sqlite_version} has the WAL bug of two writers; megalfs keeps a rollback journal"
    return Finding("sqlite", "ok", seen)


def _kernels() -> Iterator[Finding]:
    import megalfs_ext

    for stage in ("cdc", "sha256", "blake3"):
        found = megalfs_ext.kernels(stage)
        seen = f"{found.default}, of {' '.join(found)}"
        if found.default == "reference":
            fix = "build the C extension: pip install from source with a C compiler"
            yield Finding(f"kernel-{stage}", "bad", f"{seen}: Python, a thousand times slower", fix)
        elif found.wrong:
            fix = "look at this machine's memory and CPU; megalfs does not use what is wrong"
            yield Finding(
                f"kernel-{stage}", "bad", f"{seen}; wrong results from {' '.join(found.wrong)}", fix
            )
        else:
            yield Finding(f"kernel-{stage}", "ok", seen)


def _scheduler() -> Finding:
    found = find_spec("megalfs.core.swarm")
    if found is not None and found.origin is not None and found.origin.endswith(".py"):
        fix = "install megalfs again where there are a C compiler and mypy"
        return Finding("scheduler", "note", "Python: a node of many peers takes more CPU", fix)
    return Finding("scheduler", "ok", "compiled")


def _open_files() -> Finding:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < FILES_MIN:
        return Finding(
            "open-files", "note", f"{limit} at most", f"ulimit -n {FILES_MIN} or more for many peers"
        )
    return Finding("open-files", "ok", f"{limit} at most")


def _root(context: Context) -> Iterator[Finding]:
    path = context.root_path
    try:
        root = context.root(create=False)
        root.check()
    except MegalfsError as error:
        level: Literal["note", "bad"] = "bad" if path.exists() else "note"
        yield Finding(
            "root", level, str(error), error.hint or "let this user write there, or name another with --root"
        )
        yield _free_space(_nearest_parent(path))
        return
    where = f"{path}, shared with other machines: index in {root.local}" if root.is_shared else str(path)
    yield Finding("root", "ok", where)
    yield _free_space(path)
    running = root.read_node()
    if running is None:
        yield Finding("node", "ok", "none runs on this root")
    else:
        yield Finding("node", "ok", f"pid {running.owner.pid} listens on {running.listen}")


def _free_space(path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    if free < FREE_BYTES_MIN:
        return Finding("free-space", "note", f"{size_text(free)} at {path}", "free some, or move the root")
    return Finding("free-space", "ok", f"{size_text(free)} at {path}")


def _nearest_parent(path: Path) -> Path:
    return next(parent for parent in [path, *path.absolute().parents] if parent.exists())


def _reflink(context: Context) -> Finding:
    """Tries it: a file of the root's file system, given a second name in this directory."""
    from megalfs.store.links import link_file

    root, here = _nearest_parent(context.root_path), Path.cwd()
    fix = "files that both need are copied; one file system with reflinks (XFS, Btrfs) would share them"
    try:
        with tempfile.TemporaryDirectory(dir=root) as one, tempfile.TemporaryDirectory(dir=here) as two:
            source = Path(one) / "probe"
            source.write_bytes(b"megalfs")
            link_file(source, Path(two) / "probe", mode="reflink", to_work_tree=True, replace=False)
    except (MegalfsError, OSError):
        return Finding("reflink", "note", f"none between {root} and {here}", fix)
    return Finding("reflink", "ok", f"between {root} and {here}")


def _port() -> Finding:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", DEFAULT_PORT))
        return Finding("port", "ok", f"{DEFAULT_PORT} is free")
    return Finding("port", "note", f"{DEFAULT_PORT} is taken", "a second node needs --listen HOST:PORT")


def _tool(name: str) -> Finding:
    try:
        done = subprocess.run(
            [name, "--version"], capture_output=True, text=True, timeout=TOOL_S_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return Finding(name, "note", "not found", f"install {name} to pull into git repositories")
    return Finding(name, "ok", done.stdout.strip().splitlines()[0])
