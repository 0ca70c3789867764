"""git's configuration for the agent: once per user or system, and what a repository commits to be found.

A repository may not name a transfer agent itself (git-lfs ignores that, for safety: research/gitlfs.md 1.7).
So it names a URL that never resolves, and the user's configuration says, for URLs below that one host only,
which agent knows them. Other remotes are left alone: there is never an agent for all of them.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from megalfs.errors import BusyError, NotFoundError, StoreError, UsageError
from megalfs.git.lfs_sources import CONFIG_NAME, RepositoryFile, parse_home

__all__ = ["AGENT_URL", "Scope", "git", "init_repository", "install", "installed", "stub_path", "uninstall"]

Scope = Literal["global", "system", "local"]

AGENT = "megalfs"
AGENT_URL = "https://megalfs.invalid/"
# git-lfs takes p2p:// for a host of ssh, but leaves URLs of remote helpers alone; git runs the same helper for both.
_SCHEMES = ("p2p://", "mega://", "megalfs://")
_PARTS = (
    f"lfs.customtransfer.{AGENT}",
    f"lfs.{AGENT_URL}",
    "lfs.megalfs::",
    *(f"url.megalfs::{scheme}" for scheme in _SCHEMES),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


def stub_path() -> Path:
    """The program that git-lfs starts."""
    return Path(__file__).resolve().parent / "lfs_agent_stub.py"


def git(*argv: str, cwd: Path | None = None) -> str:
    """What git answers.

    Raises:
        NotFoundError: there is no git.
        StoreError: git refused; its own words.
    """
    try:
        done = subprocess.run(
            ["git", *argv], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise NotFoundError("git is not installed", hint="install git and git-lfs") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StoreError(f"git {argv[0]}: {said[-1] if said else f'exit {done.returncode}'}")
    return done.stdout.decode("utf-8", "surrogateescape")


def _wanted() -> Mapping[str, str]:
    """Keys and values of an installation. The path is quoted by git-lfs, the arguments are read by a shell."""
    agent, by_url, by_scheme, *aliases = _PARTS
    return {
        f"{agent}.path": sys.executable,
        f"{agent}.args": f"-I -S {shlex.quote(str(stub_path()))}",
        f"{agent}.concurrent": "true",
        f"{by_url}.standalonetransferagent": AGENT,
        f"{by_scheme}.standalonetransferagent": AGENT,
        f"{by_scheme}.locksverify": "false",  # there are no locks without a server
        **{f"{alias}.insteadof": scheme for alias, scheme in zip(aliases, _SCHEMES, strict=True)},
    }


def installed(scope: Scope | None = None) -> Mapping[str, str]:
    """Which of the keys are set, in one scope or in effect."""
    found = {}
    for key in _wanted():
        with suppress(StoreError):
            found[key] = git("config", *([f"--{scope}"] if scope else []), "--get", key).rstrip("\n")
    return found


def install(scope: Scope) -> bool:
    """Writes the keys; False when all of them stood there already."""
    wanted, found = _wanted(), installed(scope)
    for key, value in wanted.items():
        if found.get(key) != value:
            git("config", f"--{scope}", "--replace-all", key, value)
    return found != wanted


def uninstall(scope: Scope) -> bool:
    """Removes the keys and nothing else; False when there were none."""
    found = installed(scope)
    for key in found:
        git("config", f"--{scope}", "--unset-all", key)
    for section in _PARTS:
        if any(key.rpartition(".")[0] == section for key in found):
            with suppress(StoreError):  # git removed the section with its last key
                git("config", f"--{scope}", "--remove-section", section)
    return bool(found)


def init_repository(
    directory: Path,
    *,
    name: str,
    trackers: Sequence[str],
    peers: Sequence[str],
    servers: Sequence[str],
    home: str | None,
    pushurl: str | None,
    force: bool,
) -> list[Path]:
    """Commits what makes a fresh clone find its objects; returns the files that changed.

    Raises:
        NotFoundError: no work tree.
        BusyError: the repository has another LFS server and `force` is not set.
        UsageError: the name is not SWARM/REPO, or an address may not be named by a repository.
    """
    try:
        top = Path(git("rev-parse", "--show-toplevel", cwd=directory).rstrip("\n"))
    except StoreError as error:
        raise NotFoundError(f"no git work tree at {str(directory)!r}", hint="git init") from error
    lfsconfig = top / ".lfsconfig"
    known = _url_of(lfsconfig)
    url = known if known.startswith(AGENT_URL) and not name else AGENT_URL + _checked_name(name, top)
    if known not in {"", url} and not force:
        raise BusyError(f"this repository has an LFS server: {known!r}", hint="--force replaces it")
    if known and not servers and not known.startswith(AGENT_URL):
        servers = [known]  # it stays an origin: a clone works when no peer is there
    if home is not None:
        servers = list(dict.fromkeys((*servers, parse_home(home))))
    text = _repository_file(trackers, peers, servers)
    if home is not None:
        # Not committed: where a push goes is for who pushes to say.
        git("config", "--local", "megalfs.home", home, cwd=top)
    git("config", "--file", str(lfsconfig), "lfs.url", url)
    if pushurl is not None:
        git("config", "--file", str(lfsconfig), "lfs.pushurl", pushurl)
    changed = [lfsconfig]
    if text:
        (top / CONFIG_NAME).write_text(text, encoding="utf-8")
        changed.append(top / CONFIG_NAME)
    names = [path.name for path in changed]
    git("add", "--force", "--", *names, cwd=top)
    if git("status", "--porcelain", "--", *names, cwd=top):
        git("commit", "--quiet", "-m", "Large files come from the swarm", "--", *names, cwd=top)
    return changed


def _checked_name(name: str, top: Path) -> str:
    name = name or f"open/{re.sub('[^A-Za-z0-9._-]', '-', top.name).lstrip('.-_') or 'repo'}"
    if not _NAME.match(name):
        raise UsageError(f"not SWARM/REPO in letters, digits, '.', '_' and '-': {name!r}")
    return name


def _url_of(lfsconfig: Path) -> str:
    """The LFS server that the repository names; empty when it names none."""
    with suppress(StoreError):
        return git("config", "--file", str(lfsconfig), "--get", "lfs.url").rstrip("\n")
    return ""


def _repository_file(trackers: Sequence[str], peers: Sequence[str], servers: Sequence[str]) -> str:
    """The content of `.megalfs.toml`, checked as a clone will check it."""
    text = ""
    for key, values in (("peers", peers), ("trackers", trackers), ("servers", servers)):
        if values:
            quoted = ", ".join(
                '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values
            )
            text += f"{key} = [{quoted}]\n"
    RepositoryFile.parse(text)
    return "# Where megalfs finds the large files of this repository.\n" + text if text else ""
