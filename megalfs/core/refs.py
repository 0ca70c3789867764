"""Names of refs from outside: git's own rules (check-ref-format), and a few that git leaves to its callers.

Only branches and tags travel between nodes. A component that begins with a dash has been an option injection
elsewhere, a control character is a message for somebody's terminal; neither is ever written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from megalfs.errors import UsageError

__all__ = [
    "REFS_MAX",
    "REF_BYTES_MAX",
    "SHA1_BYTES",
    "ObjectFormat",
    "check_ref",
    "format_refs",
    "object_format",
    "object_name",
    "parse_commit",
    "parse_refs",
]

REF_BYTES_MAX = 255 + len("refs/heads/")  # what a file system can keep as a loose ref, component by component
REFS_MAX = 10_000  # of one repository's state: about 1 MB of record
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_BAD_COMPONENT = re.compile(r"[.-]|.*(?:\.lock|\.)\Z", re.DOTALL)
SHA1_BYTES = 20
ObjectFormat = Literal["sha1", "sha256"]  # as git names them
_PREFIXES = ("refs/heads/", "refs/tags/")
_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")


def parse_commit(text: str) -> str:
    """Checks an object name: 40 lower-case hex digits of SHA-1, or 64 of SHA-256.

    Raises:
        UsageError: anything else.
    """
    if not _COMMIT.match(text):
        raise UsageError(f"not a git object name: {text[:80]!r}")
    return text


def object_format(name: str) -> ObjectFormat:
    """By which hash a repository names its objects, as one of the names tells."""
    return "sha1" if len(name) == 2 * SHA1_BYTES else "sha256"


def object_name(content: bytes, names: ObjectFormat) -> str:
    """The name of an object as git stores it, `type SP size NUL content`."""
    return hashlib.new(names, content, usedforsecurity=False).hexdigest()


def check_ref(name: str) -> str:
    """Returns the name of a branch or tag that is safe to write.

    Raises:
        UsageError: it is refused.
    """
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    rest = name.removeprefix(prefix) if prefix else ""
    parts = rest.split("/")
    if (
        not rest
        or len(name.encode(errors="replace")) > REF_BYTES_MAX
        or not name.isprintable()
        or rest in {"@", "HEAD"}
        or _FORBIDDEN.search(rest)
        or any(not part or _BAD_COMPONENT.match(part) for part in parts)
    ):
        raise UsageError(f"the ref {name[:80]!r} is refused")
    return name


def format_refs(refs: Mapping[str, str]) -> str:
    """Lines `<oid> <ref>`, sorted by ref."""
    return "".join(f"{refs[name]} {name}\n" for name in sorted(refs))


def parse_refs(lines: Iterable[str]) -> dict[str, str]:
    """Reads the lines of `format_refs`, and only in that order.

    Raises:
        UsageError: a name or oid that is refused, out of order, twice, or too many.
    """
    refs: dict[str, str] = {}
    last = ""
    for line in lines:
        oid, _, name = line.partition(" ")
        if name <= last or len(refs) >= REFS_MAX:
            raise UsageError(f"refs out of order or too many at {name[:80]!r}")
        refs[check_ref(name)] = parse_commit(oid)
        last = name
    return refs
