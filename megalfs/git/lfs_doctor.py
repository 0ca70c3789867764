"""What makes git-lfs fail, or say nothing but `EOF`, looked at before it does: for `megalfs doctor`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from megalfs.errors import MegalfsError
from megalfs.git.lfs_setup import AGENT_URL, git, installed, stub_path
from megalfs.git.lfs_sources import S3_SCHEME
from megalfs.git.worktree import WorkTree

if TYPE_CHECKING:
    from megalfs.config import Settings
    from megalfs.git.lfs_sources import Sources

__all__ = ["LfsFinding", "examine"]

CONNECT_S_MAX = 2.0
CONNECTIONS_MAX = 16
GIT_LFS_MIN = (3, 0)  # of Debian 12 and Ubuntu 22.04; older ones lack fixes of the transfer queue


class LfsFinding(Struct, frozen=True):
    """As `cli.doctor.Finding`."""

    id: str
    level: Literal["ok", "note", "bad"]
    seen: str
    fix: str = ""


def examine(directory: Path, root: Path, settings: Settings) -> Iterator[LfsFinding]:
    """Looks at git's configuration, and at the repository that `directory` is in."""
    version = _git("lfs", "version")
    found = re.match(r"git-lfs/(\d+)\.(\d+)", version)
    if found is None:
        return  # that git-lfs is missing is said already
    if (int(found[1]), int(found[2])) < GIT_LFS_MIN:
        yield LfsFinding("lfs-version", "bad", version.split()[0], "install git-lfs 3 or newer")
    if not _git("config", "filter.lfs.process"):
        yield LfsFinding("lfs-filter", "note", "git-lfs is not set up", "git lfs install")
    yield _agent()
    everywhere = _git("config", "lfs.standalonetransferagent")
    if everywhere:
        seen = f"every repository uses the transfer agent {everywhere!r}"
        yield LfsFinding(
            "lfs-global", "note", seen, "git config --global --unset lfs.standalonetransferagent"
        )
    tree = WorkTree.find(directory)
    if tree is not None:
        yield from _repository(tree, root, settings)


def _agent() -> LfsFinding:
    found = installed()
    path, args = (
        next((v for key, v in found.items() if key.endswith(end)), "") for end in (".path", ".args")
    )
    if not path:
        return LfsFinding("lfs-agent", "note", "git-lfs does not know megalfs", "megalfs lfs install")
    if not os.access(path, os.X_OK) or path.startswith("~") or str(stub_path()) not in args:
        seen = f"git-lfs would start {path!r} {args}, and say only EOF"
        return LfsFinding("lfs-agent", "bad", seen, "megalfs lfs install")
    return LfsFinding("lfs-agent", "ok", path)


def _repository(tree: WorkTree, root: Path, settings: Settings) -> Iterator[LfsFinding]:
    url = _git("config", "lfs.url", cwd=tree.top)
    committed = _git("config", "--file", ".lfsconfig", "lfs.url", cwd=tree.top)
    if url and committed and url != committed:
        seen = f"git's configuration says lfs.url is {url!r}, .lfsconfig says {committed!r}"
        yield LfsFinding("lfs-url", "note", seen, "git config --unset lfs.url")
    in_effect = url or committed
    if not in_effect:
        yield from _remotes(tree)
    if in_effect.startswith((AGENT_URL, "megalfs::")):
        try:
            sources = tree.sources(settings)
        except MegalfsError as error:
            yield LfsFinding("lfs-sources", "bad", str(error), "correct it, and commit")
        else:
            if sources.is_empty:
                fix = "megalfs lfs init-repo --tracker URL, or: git config megalfs.peer HOST:PORT"
                yield LfsFinding(
                    "lfs-sources", "bad", "no peer and no tracker of this repository is known", fix
                )
            else:
                yield LfsFinding("lfs-sources", "ok", sources.description)
                yield from _reach(sources)
    with suppress(OSError):
        storage = next(path for path in (tree.storage, *tree.storage.parents) if path.exists())
        if root.exists() and storage.stat().st_dev != root.stat().st_dev:
            seen = f"{str(tree.storage)!r} is on another file system than {str(root)!r}: objects are copied"
            yield LfsFinding("lfs-storage", "note", seen, "put MEGALFS_ROOT on the same one")


def _reach(sources: Sources) -> Iterator[LfsFinding]:
    """Whether they can be asked: which answer a connection, and what a bucket needs."""
    if any(url.startswith(S3_SCHEME) for url in sources.servers) and find_spec("obstore") is None:
        yield LfsFinding("lfs-s3", "bad", "a bucket needs the extra s3", "pip install 'megalfs[s3]'")
    urls = [url for url in (*sources.trackers, *sources.servers) if not url.startswith(S3_SCHEME)]
    parts = [urlsplit(url) for url in urls]
    named = [(each.hostname or "", each.port or (443 if each.scheme == "https" else 80)) for each in parts]
    addresses = list(dict.fromkeys([*((peer.host, peer.port) for peer in sources.peers), *named]))
    with ThreadPoolExecutor(CONNECTIONS_MAX) as pool:
        answers = list(pool.map(_why_not_reached, addresses))
    silent = [f"{host}:{port} ({why})" for (host, port), why in zip(addresses, answers, strict=True) if why]
    if silent:
        level: Literal["note", "bad"] = "note" if len(silent) < len(addresses) else "bad"
        seen = f"does not answer: {', '.join(silent)}"
        yield LfsFinding(
            "lfs-reach", level, seen, "start it there (megalfs node start), or correct the address"
        )


def _why_not_reached(address: tuple[str, int]) -> str:
    """Empty when somebody listens there."""
    try:
        socket.create_connection(address, timeout=CONNECT_S_MAX).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _remotes(tree: WorkTree) -> Iterator[LfsFinding]:
    for line in _git("remote", "-v", cwd=tree.top).splitlines():
        name, _, rest = line.partition("\t")
        url, _, kind = rest.partition(" ")
        is_ssh = url.startswith("ssh://") or re.match(r"[\w.-]+@[\w.-]+:", url)
        if is_ssh and kind == "(fetch)":
            seen = f"git-lfs runs git-lfs-transfer over ssh first, for {name} ({url})"
            yield LfsFinding("lfs-ssh", "note", seen, "megalfs lfs init-repo, or set lfs.url")


def _git(*argv: str, cwd: Path | None = None) -> str:
    """What git answers; empty when it fails."""
    with suppress(MegalfsError):
        return git(*argv, cwd=cwd).strip()
    return ""
