"""A tree: the files of a published directory, itself a blob, so that many files are one name and one link.

    megalfs tree 1
    <oid> <size> x|- <path>
    ...

UTF-8, one line a file, sorted by the bytes of the path, a newline behind each line. Paths obey `pathrules`,
so no line holds a control character. One set of files has exactly one encoding.
"""

from __future__ import annotations

import re

from msgspec import Struct

from megalfs.core.ids import Oid
from megalfs.core.pathrules import escape_for_terminal, path_fault, paths_fault, work_tree_fault
from megalfs.errors import IntegrityError, PolicyError, UsageError
from megalfs.formats.limits import SIZE_MAX

__all__ = ["TREE_BYTES_MAX", "TREE_ENTRIES_MAX", "Tree", "TreeEntry"]

TREE_BYTES_MAX = 64 << 20
TREE_ENTRIES_MAX = 200_000  # the largest repositories on the hub have some 100,000 files
_FIRST_LINE = b"megalfs tree 1\n"
_VERSION = re.compile(rb"megalfs tree [1-9][0-9]{0,8}\n")
_LINE = re.compile(r"([0-9a-f]{64}) (0|[1-9][0-9]{0,18}) ([x-]) ([^\n]+)\Z")


class TreeEntry(Struct, frozen=True):
    """One file: its path below the directory, whether it may be executed, and its blob."""

    path: str
    is_executable: bool
    oid: Oid
    size: int


class Tree(Struct, frozen=True):
    """Files sorted by the UTF-8 bytes of their paths; checked when made.

    Raises:
        IntegrityError: a path or size that is refused, paths that clash, wrong order, or too many files.
    """

    entries: tuple[TreeEntry, ...]

    def __post_init__(self) -> None:
        if len(self.entries) > TREE_ENTRIES_MAX:
            raise IntegrityError(f"a tree of {len(self.entries)} files; the limit is {TREE_ENTRIES_MAX}")
        for entry in self.entries:
            fault = path_fault(entry.path) or (None if 0 <= entry.size <= SIZE_MAX else "its size is refused")
            if fault is not None:
                raise IntegrityError(
                    f"the path '{escape_for_terminal(entry.path[:300])}' is refused: {fault}"
                )
        keys = [entry.path.encode("utf-8") for entry in self.entries]
        if keys != sorted(keys):
            raise IntegrityError("a tree that is not sorted")
        clash = paths_fault(entry.path for entry in self.entries)
        if clash is not None:
            raise IntegrityError(f"a tree is refused: {clash}")

    @classmethod
    def of(cls, entries: list[TreeEntry]) -> Tree:
        """A tree of files in any order."""
        return cls(tuple(sorted(entries, key=lambda entry: entry.path.encode("utf-8", "replace"))))

    @property
    def total_size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    def encode(self) -> bytes:
        """The canonical bytes.

        Raises:
            UsageError: longer than 64 MiB.
        """
        lines = [f"{e.oid} {e.size} {'x' if e.is_executable else '-'} {e.path}\n" for e in self.entries]
        encoded = _FIRST_LINE + "".join(lines).encode("utf-8")
        if len(encoded) > TREE_BYTES_MAX:
            raise UsageError(f"a tree of {len(encoded)} bytes; the limit is {TREE_BYTES_MAX}")
        return encoded

    @classmethod
    def decode(cls, encoded: bytes) -> Tree:
        """Reads `encode`, and nothing else.

        Raises:
            IntegrityError: malformed, unsafe, or beyond a limit.
            PolicyError: another version.
        """
        first_line = _VERSION.match(encoded)
        if len(encoded) > TREE_BYTES_MAX or first_line is None:
            raise IntegrityError(f"not a tree: {encoded[:32]!r}")
        if first_line[0] != _FIRST_LINE:
            raise PolicyError(f"unknown tree version: {encoded[:32]!r}", hint="upgrade megalfs")
        try:
            text = encoded[len(_FIRST_LINE) :].decode("utf-8")
        except UnicodeDecodeError as e:
            raise IntegrityError("a tree that is not UTF-8") from e
        lines = text.split("\n")
        if lines.pop() or len(lines) > TREE_ENTRIES_MAX:
            raise IntegrityError("a tree that does not end with its last line, or is too long")
        return cls(tuple(_entry(line) for line in lines))

    def check_for_work_tree(self) -> None:
        """Returns when the files may be created inside a git work tree.

        Raises:
            IntegrityError: git, git-lfs or megalfs would obey one of them.
        """
        for entry in self.entries:
            fault = work_tree_fault(entry.path)
            if fault is not None:
                shown = escape_for_terminal(entry.path)
                raise IntegrityError(f"the path '{shown}' is refused in a work tree: {fault}")


def _entry(line: str) -> TreeEntry:
    found = _LINE.match(line)
    if found is None:
        raise IntegrityError(f"bad line in a tree: '{escape_for_terminal(line[:300])}'")
    oid, size, mode, path = found.groups()
    return TreeEntry(path, mode == "x", Oid.parse(oid), int(size))
