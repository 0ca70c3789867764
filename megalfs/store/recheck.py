"""Hashing a user's file again: does it still hold the blob that it held?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from megalfs.core.bitfield import Run
from megalfs.store.identity import ChangedError, Identity, open_regular, settle
from megalfs.store.verify import PieceReader, sha256_of_fd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from megalfs.core.manifest import Manifest
    from megalfs.store.index import Blob

__all__ = ["holds_blob"]


def holds_blob(
    path: Path, blob: Blob, manifest: Manifest | None, progress: Callable[[int], None] | None = None
) -> Identity | None:
    """The identity of the file when every byte of the blob is in it and stayed so while it was read.

    Args:
        manifest: checked chunk by chunk; the whole file's SHA-256 when None.
    """
    try:
        fd = open_regular(path)
    except (OSError, ChangedError):
        return None
    try:
        settle(os.fstat(fd))
        before = Identity.of_fd(fd)
        if before.size != blob.size:
            return None
        is_right = (
            _fits(fd, manifest, progress)
            if manifest
            else sha256_of_fd(fd, progress=progress)[0] == blob.oid.raw
        )
        return before if is_right and Identity.of_fd(fd) == before else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _fits(fd: int, manifest: Manifest, progress: Callable[[int], None] | None) -> bool:
    reader = PieceReader(fd, manifest)
    for run, is_good in reader.check(Run(0, manifest.piece_count)):
        if not is_good:
            return False
        if progress is not None:
            progress(manifest.run_extent(*run)[1])
    return True
