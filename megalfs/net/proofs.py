"""What a sender puts before a run that begins or ends within a chunk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import megalfs_ext
from megalfs.errors import StoreError

if TYPE_CHECKING:
    from megalfs.core.chunk_proofs import ChunkProofs
    from megalfs.core.manifest import Manifest

__all__ = ["proof_of_run"]


def proof_of_run(manifest: Manifest, proofs: ChunkProofs, first: int, count: int, fd: int) -> bytes:
    """The proofs of chunks that a run of parts has not all parts of.

    Args:
        proofs: what is known; what was read is added.
        fd: of a file that has all of every chunk whose proof is not known.

    Raises:
        StoreError: it has not.
    """
    stretches = manifest.parts.stretches(first, count)
    return b"".join(_proof_of(manifest, proofs, each.chunk, fd) for each in stretches if not each.chunks)


def _proof_of(manifest: Manifest, proofs: ChunkProofs, chunk: int, fd: int) -> bytes:
    proof = proofs.get(chunk)
    if proof is None:
        offset, length = manifest.run_extent(chunk, 1)
        proof = megalfs_ext.blake3_groups(os.pread(fd, length, offset))
        if not proofs.put(chunk, proof):
            raise StoreError(f"chunk {chunk} of {manifest.oid} changed on disk")
    return proof
