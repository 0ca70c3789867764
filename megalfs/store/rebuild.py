"""Building an index from the sidecars: what `repair` does, and what happens to a damaged or older database."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from megalfs.errors import PolicyError, UsageError
from megalfs.store.index import Index, KnownManifest

if TYPE_CHECKING:
    from megalfs.store.sidecars import Sidecars

__all__ = ["fill_index"]


def fill_index(index: Index, sidecars: Sidecars) -> None:
    """Puts in an empty index what the sidecars say; what cannot be read is left out."""
    with index.change():
        _fill_blobs(index, sidecars)
        for oid, manifest_id, is_refuted in sidecars.manifests():
            index.put_manifest(KnownManifest(manifest_id, oid, 0, is_refuted=is_refuted))
        _fill_names(index, sidecars)


def _fill_blobs(index: Index, sidecars: Sidecars) -> None:
    now_s = time.time_ns() // 10**9  # a record of the future would stay the newest for ever
    for blob, computed in sidecars.blobs():
        index.put_blob(blob.oid, blob.size, is_pinned=blob.is_pinned, added_s=min(blob.added_s, now_s))
        for place in blob.places:
            index.put_place(blob.oid, place)
        for known in computed:
            if sidecars.has_manifest(known.id, known.oid):
                index.put_manifest(known)


def _fill_names(index: Index, sidecars: Sidecars) -> None:
    records = list(sidecars.names())
    if not records:
        return
    from megalfs.core.names import SignedName

    for record in records:
        with suppress(UsageError, PolicyError):
            signed = SignedName.parse(record)
            index.put_name(signed.key.raw, signed.record.name, signed.record.seq, record)
