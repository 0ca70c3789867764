"""Finding a chunk by its id among all blobs: one sorted column of eight-byte prefixes per manifest.

A row per chunk in a database would be 59 bytes and 7 microseconds each (research/eco.md 3.1); a sorted column
is 12 bytes and is read from the manifest that is there anyway. Eight bytes of a hash collide only by intent,
so a hit is compared in full.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from megalfs.core.ids import ManifestId
    from megalfs.core.manifest import Manifest

__all__ = ["ChunkColumns", "DigestKind"]

DigestKind = Literal["blake3", "sha256"]

ENTRIES_MAX = 4 << 20  # 12 bytes each: 48 MiB, the chunks of 1 TB at the default profile


class Column(Struct, frozen=True):
    """Prefixes in order, and the piece each belongs to."""

    prefixes: NDArray[np.uint64]
    pieces: NDArray[np.uint32]

    @classmethod
    def of(cls, digests: NDArray[np.uint8]) -> Column:
        """Sorts the first eight bytes of (n, 32) digests."""
        prefixes = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1)
        order = np.argsort(prefixes, kind="stable")
        return cls(prefixes[order], order.astype(np.uint32))

    def candidates(self, digest: bytes) -> list[int]:
        """Pieces whose digest begins as this one does: at most one, but for duplicates and forgeries."""
        prefix = np.frombuffer(digest, "<u8", count=1)[0]
        first, last = (
            np.searchsorted(self.prefixes, prefix, "left"),
            np.searchsorted(self.prefixes, prefix, "right"),
        )
        return [int(piece) for piece in self.pieces[first:last]]


class ChunkColumns:
    """The columns asked for lately."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._columns: OrderedDict[tuple[ManifestId, DigestKind], Column] = OrderedDict()

    def find(
        self, manifest_id: ManifestId, kind: DigestKind, digest: bytes, load: Callable[[], Manifest]
    ) -> tuple[int, int, int] | None:
        """Piece, offset and length of the chunk with this digest; `load` is called only where it must be."""
        key = (manifest_id, kind)
        column = self._columns.pop(key, None)
        if column is None:
            column = Column.of(_digests(load(), kind))
        self._columns[key] = column
        self._shrink()
        pieces = column.candidates(digest)
        if not pieces:
            return None
        manifest = load()
        digests = _digests(manifest, kind)
        for piece in pieces:
            if digests[piece].tobytes() == digest:
                return piece, int(manifest.offsets[piece]), int(manifest.lengths[piece])
        return None

    def _shrink(self) -> None:
        while len(self._columns) > 1 and self._entries() > self._entries_max:
            self._columns.popitem(last=False)

    def _entries(self) -> int:
        return sum(len(column.pieces) for column in self._columns.values())


def _digests(manifest: Manifest, kind: DigestKind) -> NDArray[np.uint8]:
    return manifest.blake3 if kind == "blake3" else manifest.sha256
