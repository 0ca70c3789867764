"""Which paths from outside may be created here: research/eco.md 6.3, cases 1, 2, 3 and 6.

A path is relative, its parts joined by `/`. The rules are the same on every system, so that a tree that was
published can be pulled anywhere. Functions answer why a path is refused, or None; the caller knows whose
fault it is. The file system's part of the rules (symbolic links, devices: cases 4 and 5) is in `store`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["escape_for_terminal", "name_fault", "path_fault", "paths_fault", "work_tree_fault"]

NAME_BYTES_MAX = 255  # ext4, XFS, APFS, Lustre
PATH_BYTES_MAX = 4096  # PATH_MAX of Linux

_DRIVE = re.compile(r"[A-Za-z]:")
_HIDDEN_CATEGORIES = frozenset(
    {"Cc", "Cf", "Cs", "Zl", "Zp"}
)  # control, bidi and zero-width, surrogates, lines
# Git reads these from a work tree and acts on them; a short name is what NTFS and FAT answer to as well.
_GIT_READS = frozenset({".git", ".gitattributes", ".gitmodules", ".lfsconfig", ".megalfs.toml"})
_SHORT_NAMES = re.compile(
    r"(?:git|gitatt|gi[0-9a-f]{4}|gitmod|lfscon|lf[0-9a-f]{4}|megalf|me[0-9a-f]{4})~[1-9]\Z"
)


def name_fault(name: str) -> str | None:
    """Why one part of a path is refused."""
    if name in ("", ".", ".."):
        return "it is empty, . or .."
    if "/" in name or "\\" in name:
        return "it holds a slash or backslash"
    if _DRIVE.match(name):
        return "it starts with a drive letter"
    if any(unicodedata.category(char) in _HIDDEN_CATEGORIES for char in name):
        return "it holds a control, direction or invisible character"
    if len(name.encode("utf-8")) > NAME_BYTES_MAX:
        return f"it is longer than {NAME_BYTES_MAX} bytes"
    return None


def path_fault(path: str) -> str | None:
    """Why a relative path is refused."""
    if len(path) > PATH_BYTES_MAX or len(path.encode("utf-8", "replace")) > PATH_BYTES_MAX:
        return f"it is longer than {PATH_BYTES_MAX} bytes"
    if path.startswith("/"):
        return "it is absolute"
    return next((fault for name in path.split("/") if (fault := name_fault(name)) is not None), None)


def work_tree_fault(path: str) -> str | None:
    """Why a path is refused under a git work tree: git, git-lfs or we would obey the file."""
    for name in path.split("/"):
        plain = _as_git_folds(name)
        if plain in _GIT_READS or _SHORT_NAMES.match(plain):
            return "git would obey it"
    return None


def paths_fault(paths: Iterable[str]) -> str | None:
    """Why these files cannot stand side by side on a file system that folds case or normalises names."""
    files: dict[str, str] = {}
    for path in paths:
        folded = _fold(path)
        if folded in files:
            return f"{escape_for_terminal(path)} and {escape_for_terminal(files[folded])} are one name"
        files[folded] = path
    for folded, path in files.items():
        parents = _parents(folded)
        clash = next((parent for parent in parents if parent in files), None)
        if clash is not None:
            above = escape_for_terminal(files[clash])
            return f"{above} is a file, and the directory of {escape_for_terminal(path)}"
    return None


def escape_for_terminal(text: str) -> str:
    """The text with everything that a terminal or a log could obey as a backslash escape."""
    return "".join(char if char.isprintable() and char != "\\" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _fold(path: str) -> str:
    folded = unicodedata.normalize("NFC", path).casefold()
    return unicodedata.normalize("NFC", folded)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _as_git_folds(name: str) -> str:
    """As the most lenient file system reads it: HFS+ skips invisible characters, NTFS final dots, streams."""
    visible = "".join(char for char in name if unicodedata.category(char) not in _HIDDEN_CATEGORIES)
    return unicodedata.normalize("NFKC", visible).casefold().partition(":")[0].rstrip(". ")
