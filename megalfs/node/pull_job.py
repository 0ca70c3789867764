"""One file of a command that pulls: what is wanted, where it goes, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.node.pull_request import PullCounts

if TYPE_CHECKING:
    from pathlib import Path

    from megalfs.core.ids import Oid
    from megalfs.errors import MegalfsError
    from megalfs.node.pull import Pull
    from megalfs.node.resolve import Wanted

__all__ = ["Job"]


class Job(Struct):
    """One file: what is wanted and where it goes; then the running pull, then its final counts."""

    wanted: Wanted
    target: Path
    is_pointer: bool
    is_executable: bool | None = None  # None: nobody says
    tree: Oid | None = None  # whose file it is
    pull: Pull | None = None
    final: PullCounts | None = None
    error: MegalfsError | None = None
    size: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether it is here, or cannot be."""
        return self.final is not None or self.error is not None

    def counts(self) -> PullCounts:
        """As they are now."""
        if self.final is not None:
            return self.final
        return self.pull.counts() if self.pull is not None else PullCounts(bytes_total=self.wanted.size)

    def facts(self) -> dict[str, object]:
        """What a script is told of a file that is done."""
        return {"oid": str(self.wanted.oid), "path": str(self.target), "size": self.size}
