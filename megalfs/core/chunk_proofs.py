"""Proofs of chunks that are fetched in parts: what a chunk's groups are, known from somebody or from the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import megalfs_ext
from megalfs.core.parts import DIGEST_BYTES, Stretch

if TYPE_CHECKING:
    from megalfs.core.manifest import Manifest

__all__ = ["ChunkProofs"]


class ChunkProofs:
    """The chaining values of the groups of each chunk, once known: 1/2000 of a blob at most. From any thread."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._known: dict[int, bytes] = {}

    def get(self, chunk: int) -> bytes | None:
        """The proof of a chunk, where it is known."""
        return self._known.get(chunk)

    def put(self, chunk: int, proof: bytes) -> bool:
        """Takes a proof that somebody sent; False when it is none of this chunk."""
        known = self._known.get(chunk)
        if known is not None:
            return known == proof
        if len(proof) != DIGEST_BYTES * self._manifest.parts.group_count(chunk):
            return False
        if megalfs_ext.blake3_join(proof) != self._manifest.blake3[chunk].tobytes():
            return False
        self._known[chunk] = proof
        return True

    def verifies(self, stretch: Stretch, view: memoryview) -> bool | None:
        """Whether these are the bytes of some parts of a chunk; None when its proof is not known."""
        known = self._known.get(stretch.chunk)
        if known is None:
            return None
        groups = self._manifest.parts.groups_of(stretch)
        wanted = known[DIGEST_BYTES * groups.start : DIGEST_BYTES * groups.stop]
        return megalfs_ext.blake3_groups(view, groups.start * megalfs_ext.GROUP_BYTES) == wanted
