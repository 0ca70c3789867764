"""What this node holds of a blob right now: a file of the store, or the verified pieces of a running pull."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.bitfield import Bitfield
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.manifest import Manifest
from megalfs.errors import NotFoundError
from megalfs.node.serving import PieceSource

if TYPE_CHECKING:
    from megalfs.node.node import Node

__all__ = ["Holding", "holding_of"]


class Holding(Struct, frozen=True):
    """An open file, and which bytes of it are verified; `have` is None for a blob without a manifest."""

    source: PieceSource
    size: int
    manifest: Manifest | None
    manifest_id: ManifestId | None
    have: Bitfield | None
    is_whole: bool

    def holds(self, offset: int, size: int) -> bool:
        """Whether all these bytes are verified."""
        if self.is_whole or size == 0:
            return True
        assert self.manifest is not None
        assert self.have is not None
        first, count = self.manifest.pieces_covering(offset, size)
        return self.have.has_all(first, count)


@contextlib.contextmanager
def holding_of(node: Node, oid: Oid) -> Iterator[Holding]:
    """Opens what is held of a blob, the whole one first.

    Raises:
        NotFoundError: nothing of it is here.
        ChangedError: it was, and its file changed.
    """
    blob = node.store.find(oid)
    if blob is not None and blob.is_held:
        opened = node.store.open(oid)
        try:
            manifest_id = blob.manifests[0] if blob.manifests else None
            have = None
            if manifest_id is not None:
                have = Bitfield.full(node.store.load_manifest(manifest_id, oid).piece_count)
            yield Holding(opened, opened.size, None, manifest_id, have, is_whole=True)
        finally:
            opened.close()
        return
    for driver in node.drivers_of(oid):
        source = node.source(driver.manifest.id)
        if source is not None:
            manifest, have = driver.manifest, driver.have_chunks()
            yield Holding(source, manifest.size, manifest, manifest.id, have, is_whole=have.is_full)
            return
    raise NotFoundError(f"no blob {oid} here")
