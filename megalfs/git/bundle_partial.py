"""What there is of a bundle whose transfer over a link was cut: its first chunks, to go on from.

Nothing says that they are right; the SHA-256 of the whole does, once the rest is there. The file is named by the
repository too, of which one task at a time fetches bundles, so it has one writer.
"""

from __future__ import annotations

import os
from pathlib import Path

from megalfs.core.bundle_protocol import CHUNK_BYTES, BundleReceiver
from megalfs.core.repoid import RepoId
from megalfs.store.files import map_os_errors, write_all

__all__ = ["BundlePartial", "forget_partials"]

READ_BYTES = 16 * CHUNK_BYTES


class BundlePartial:
    """A file beside `path`, the place of the whole bundle."""

    def __init__(self, path: Path, repo: RepoId) -> None:
        self._path = path.with_name(f".{path.stem}{_suffix(repo)}")
        self._target = path
        self._fd = -1
        self._end = 0

    def open(self, receiver: BundleReceiver, size: int) -> BundlePartial:
        """Hands the full chunks that are here to the receiver of a bundle of `size` bytes; cuts off the rest. Blocks.

        Raises:
            StoreError, SpaceError: the disk failed.
        """
        with map_os_errors("cannot keep a bundle"):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            whole = min(os.fstat(self._fd).st_size, size) // CHUNK_BYTES * CHUNK_BYTES
            os.ftruncate(self._fd, whole)
            for start in range(0, whole, READ_BYTES):
                receiver.resume(os.pread(self._fd, READ_BYTES, start))
        self._end = whole
        return self

    def append(self, content: bytes) -> None:
        """The next bytes."""
        with map_os_errors("cannot keep a bundle"):
            write_all(self._fd, content, self._end)
        self._end += len(content)

    def close(self) -> None:
        """What is here stays."""
        os.close(self._fd)

    def finish(self) -> None:
        """All of it is here and right: it gets its name."""
        with map_os_errors("cannot keep a bundle"):
            self._path.rename(self._target)

    def discard(self) -> None:
        """It is no good."""
        self._path.unlink(missing_ok=True)


def forget_partials(directory: Path, repo: RepoId) -> None:
    """Removes what is left of bundles that a repository no longer needs: it is at its newest state."""
    for path in directory.glob(f".*{_suffix(repo)}"):
        path.unlink(missing_ok=True)


def _suffix(repo: RepoId) -> str:
    return f"-{repo.digest.hex()}.partial"
