"""Who pushed what: the file that our post-receive hook appends to, a line a ref.

2026-11-26T13:00:00Z did:repo:z... refs/heads/main <old> <new> did:key:z...[ signed by did:key:z...]
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.refs import check_ref
from megalfs.core.repoid import RepoId
from megalfs.errors import UsageError
from megalfs.store.files import map_os_errors

if TYPE_CHECKING:
    from megalfs.store.root import Root

__all__ = ["Push", "push_log", "read_pushes"]

READ_BYTES_MAX = 4 << 20  # the last ten thousand or so


class Push(Struct, frozen=True):
    """One ref that somebody moved; `old` or `new` is all zeros where it was made or deleted."""

    time: str
    ref: str
    old: str
    new: str
    key: NodeKey
    signer: NodeKey | None

    @property
    def change(self) -> str:
        """What became of the ref, in words and short object names."""
        if not self.new.strip("0"):
            return f"deleted, was {self.old[:10]}"
        return f"new, {self.new[:10]}" if not self.old.strip("0") else f"{self.old[:10]}..{self.new[:10]}"


def push_log(root: Root) -> Path:
    """The file."""
    return root.host / "pushes.log"


def read_pushes(root: Root) -> dict[RepoId, list[Push]]:
    """The pushes to the repositories of this root, the oldest first.

    Raises:
        MegalfsError: the disk failed.
    """
    path, found = push_log(root), defaultdict[RepoId, list[Push]](list)
    if not path.exists():
        return found
    with map_os_errors("cannot read who pushed"), path.open("rb") as file:
        start = max(0, path.stat().st_size - READ_BYTES_MAX)
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()[1 if start else 0 :]
    for line in lines:
        with suppress(UsageError):  # a line that a full disk cut
            repo, push = _parse(line)
            found[repo].append(push)
    return found


def _parse(line: str) -> tuple[RepoId, Push]:
    match line.split(" "):
        case [time, repo, ref, old, new, key]:
            signer = None
        case [time, repo, ref, old, new, key, "signed", "by", text]:
            signer = NodeKey.parse(text)
        case _:
            raise UsageError(f"not a push: {line[:80]!r}")
    return RepoId.parse(repo), Push(time, check_ref(ref), old, new, NodeKey.parse(key), signer)
