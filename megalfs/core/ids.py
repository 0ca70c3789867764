"""Ids are types, parsed once at the edge; a raw string from outside never becomes a path or a key.

A digest is 32 bytes. Which 32 bytes they are is in the type: an `Oid` (SHA-256 of a blob, as in a git-lfs
pointer file), a `ChunkId` (BLAKE3-256 of a chunk), a `ManifestId` (SHA-256 of an encoded manifest).
"""

from __future__ import annotations

import re
from typing import Self

from msgspec import Struct

from megalfs.errors import UsageError

__all__ = ["DIGEST_BYTES", "ChunkId", "Digest", "ManifestId", "Oid"]

DIGEST_BYTES = 32
_HEX = re.compile(r"[0-9a-f]{64}\Z")


class Digest(Struct, frozen=True, order=True, gc=False):
    """Thirty-two bytes with a meaning; `str()` is 64 lower-case hex digits."""

    raw: bytes

    def __post_init__(self) -> None:
        assert len(self.raw) == DIGEST_BYTES

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads 64 hex digits in either case.

        Raises:
            UsageError: `text` is anything else.
        """
        if not _HEX.match(text.lower()):
            raise UsageError(f"no {cls.__name__.lower()}: {text[:80]!r}", hint="64 hex digits are expected")
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.raw.hex()


class Oid(Digest, frozen=True):
    """SHA-256 of all bytes of a blob."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads 64 hex digits, with or without the `sha256:` of a pointer file."""
        return super().parse(text.removeprefix("sha256:"))


class ChunkId(Digest, frozen=True):
    """BLAKE3-256 of one chunk."""


class ManifestId(Digest, frozen=True):
    """SHA-256 of the canonical encoding of a manifest."""
