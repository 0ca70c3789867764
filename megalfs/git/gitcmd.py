"""Runs git in an environment of ours: nothing of the user's settings, nothing of a stranger's.

git reads settings from many places, and some of them name programs to run. Here the environment is empty but
for what stands below, settings come as GIT_CONFIG_* variables (an argument list is for everyone to read),
and hooks from a directory of ours. A repository's own config is read by git all the same: only repositories
that belong to this user are ever opened.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from megalfs.errors import MegalfsError, NotFoundError, StoreError

__all__ = ["Setting", "check_git", "git_environment", "run_git", "start_git"]

Setting = tuple[str, str]
GIT_S_MAX = 3600.0
PIPE_BYTES = 1 << 20
_SAFE: tuple[Setting, ...] = (
    ("transfer.fsckObjects", "true"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("protocol.allow", "never"),  # nothing that we run fetches from anywhere ...
    ("protocol.file.allow", "always"),  # ... but bundles and repositories of this root
    ("core.fsmonitor", "false"),
    ("core.hooksPath", "/dev/null"),
    ("init.defaultBranch", "main"),
    ("advice.detachedHead", "false"),
)


def git_environment(
    directory: Path | None, settings: Sequence[Setting] = (), more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of one git process; later settings beat earlier ones, lists grow."""
    pairs = [*_SAFE, *([("safe.directory", str(directory))] if directory else []), *settings]
    environ = {
        "PATH": os.pathsep.join(os.get_exec_path()),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_CONFIG_COUNT": str(len(pairs)),
    }
    for index, (name, value) in enumerate(pairs):
        environ |= {f"GIT_CONFIG_KEY_{index}": name, f"GIT_CONFIG_VALUE_{index}": value}
    return environ | dict(more or {})


def run_git(
    directory: Path | None,
    *argv: str | Path,
    stdin: bytes | None = None,
    settings: Sequence[Setting] = (),
    error: type[MegalfsError] = StoreError,
) -> bytes:
    """The standard output of one git command, run in `directory`.

    Raises:
        MegalfsError: of class `error`, with git's last line, when it fails.
        NotFoundError: there is no git.
    """
    words = ["git", *(("-C", str(directory)) if directory else ()), *map(str, argv)]
    try:
        done = subprocess.run(
            words,
            env=git_environment(directory, settings),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=GIT_S_MAX,
            check=False,
        )
    except FileNotFoundError as missing:
        raise NotFoundError("git is not installed", hint="apt install git") from missing
    except subprocess.TimeoutExpired as expired:
        raise error(f"git {argv[0]} took more than {GIT_S_MAX:.0f} s") from expired
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
        line = next((each for each in said if each.startswith(("fatal:", "error:"))), said[-1])
        raise error(f"git {argv[0]}: {line[:300]}")
    return done.stdout


async def start_git(
    directory: Path,
    *argv: str,
    settings: Sequence[Setting] = (),
    more: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """Starts a git command whose standard streams are ours."""
    process = await asyncio.create_subprocess_exec(
        "git",
        *argv,
        cwd=directory,
        env=git_environment(directory, settings, more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=PIPE_BYTES,
    )
    transport = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
    _widen(transport.get_extra_info("pipe"))
    return process


def _widen(pipe: BinaryIO) -> None:
    """Gives a pipe a megabyte instead of 64 KiB: a quarter of the turns, for who copies packs through Python."""
    with suppress(OSError, ValueError, AttributeError):  # no room for this user; closed by now; no Linux
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def check_git() -> str:
    """The version of the git that is installed; raises NotFoundError."""
    return run_git(None, "--version").decode().strip()
