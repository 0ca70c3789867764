"""git-lfs pointer files: the few lines that git stores instead of a blob. Pure.

Format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md - UTF-8 lines `key SP value`, `version`
first, the rest sorted, at most 1024 bytes. Extensions (`ext-0-...`) are read past: they do not change which
blob it is.
"""

from __future__ import annotations

import re

from msgspec import Struct

from megalfs.core.ids import Oid

__all__ = ["POINTER_BYTES_MAX", "Pointer"]

POINTER_BYTES_MAX = 1024
_VERSIONS = frozenset({"https://git-lfs.github.com/spec/v1", "https://hawser.github.com/spec/v1"})
_OID = re.compile(r"sha256:([0-9a-f]{64})\Z")
_SIZE = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")


class Pointer(Struct, frozen=True):
    """Which blob a pointer file stands for, and its size in bytes."""

    oid: Oid
    size: int

    @classmethod
    def parse(cls, content: bytes) -> Pointer | None:
        """Reads a pointer file; None for any other content, which is the ordinary case."""
        if len(content) > POINTER_BYTES_MAX or not content.startswith(b"version "):
            return None
        try:
            lines = content.decode("utf-8").rstrip("\n").split("\n")
        except UnicodeDecodeError:
            return None
        fields = dict(line.partition(" ")[::2] for line in lines)
        oid, size = _OID.match(fields.get("oid", "")), _SIZE.match(fields.get("size", ""))
        if fields["version"] not in _VERSIONS or oid is None or size is None:
            return None
        return cls(Oid.parse(oid[1]), int(fields["size"]))

    def encode(self) -> bytes:
        """The canonical pointer file, byte for byte as git-lfs writes it."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n".encode()
        )
