"""The first fetch into an empty repository: history comes as bundles from the swarm, git's own protocol adds the tip.

This is what `git clone --bundle-uri` does in newer versions, for any version: the remote helper puts the bundles
into the new repository before it answers `connect`, under refs that git then offers as what it has, and takes
these refs away at the end. Only bundles that the owner's signed state names get here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from megalfs.errors import StoreError

__all__ = ["FirstClone"]

ANCESTORS_MAX = 3  # git ls-remote, git remote-p2p, and a wrapper of the console script
PREFIX = "refs/bundles/"
# A bundle has all branches with all their history: not for who asked for less.
_LESS = frozenset({"depth", "deepen-since", "deepen-not", "filter", "followtags"})


class FirstClone:
    """An empty repository that git runs in and wants all of the remote's history for."""

    def __init__(
        self, repository: Path
    ) -> None:  # no Struct: its import would be a tenth of the helper's start
        self.repository = repository

    @classmethod
    def find(cls, git_dir: str | None, options: Mapping[str, str]) -> FirstClone | None:
        """The repository that git runs in, if it is such a one; `options` is what git told the helper, by name."""
        if git_dir is None or _LESS & options.keys() or _only_lists():
            return None
        path = Path(git_dir).absolute()
        objects = path / "objects"
        is_empty = (
            objects.is_dir()
            and not any((objects / "pack").glob("*.pack"))
            and not any(objects.glob("[0-9a-f][0-9a-f]"))
            and not (objects / "info" / "alternates").exists()
        )
        return cls(path) if is_empty else None

    @contextmanager
    def holding(self, bundles: Iterable[Path]) -> Iterator[None]:
        """Unpacks bundles in their order; until the end there are refs for what they brought.

        git checks that nothing is missing in what these refs reach. What does not fit is left out: the protocol
        brings it as well.
        """
        from megalfs.git.gitcmd import run_git  # with asyncio, 50 ms that a fetch need not pay

        try:
            for path in bundles:
                # Objects are checked as strictly as git's own clone would: not, unless the user's settings say so.
                run_git(
                    self.repository, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc",
                    path, f"+refs/*:{PREFIX}*", settings=(("fetch.fsckObjects", "false"),),
                )  # fmt: skip
        except StoreError as error:
            os.write(2, f"megalfs: {error}; the owner sends what is missing\n".encode())
        yield
        with suppress(StoreError):  # git has set refs of its own by now
            names = run_git(self.repository, "for-each-ref", "--format=delete %(refname)", PREFIX)
            run_git(self.repository, "update-ref", "--stdin", stdin=names)


def _only_lists() -> bool:
    """Whether git wants to know refs and nothing else; it tells its helper no such thing, but its caller's name."""
    pid = os.getppid()
    with suppress(OSError, ValueError):
        for _ in range(ANCESTORS_MAX):
            process = Path("/proc") / str(pid)
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"ls-remote" in words:
                return True
            pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return False
