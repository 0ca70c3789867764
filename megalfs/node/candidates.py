"""Which manifest to try next: those offered, ranked by how much speaks for them, less those refuted.

Nothing here makes a manifest true; that is for the proof. The order only saves time: first one that a trusted
key signed, then the one the link names, then those with chaining states (proven in parallel and from the
end), then those that more peers hold. A manifest without states can only be proven serially: last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId
from megalfs.formats.hostport import HostPort
from megalfs.node.sources import Offer

__all__ = ["Candidate", "rank"]


class Candidate(Struct, frozen=True):
    """One manifest, who offers it, and the trusted key that signed it, if one did."""

    manifest_id: ManifestId
    peers: tuple[HostPort, ...]
    size: int
    trusted_by: NodeKey | None
    has_states: bool


def rank(
    offers: Sequence[Offer],
    *,
    refuted: Iterable[ManifestId],
    named: ManifestId | None,
    trusted_keys: frozenset[NodeKey],
    size: int | None,
) -> list[Candidate]:
    """The manifests worth trying, best first; offers of another size than the pointer says are left out."""
    by_id: dict[ManifestId, list[Offer]] = {}
    for offer in offers:
        if size is None or offer.size == size:
            by_id.setdefault(offer.manifest_id, []).append(offer)
    for manifest_id in refuted:
        by_id.pop(manifest_id, None)
    candidates = [_candidate(manifest_id, group, trusted_keys) for manifest_id, group in by_id.items()]
    return sorted(
        candidates,
        key=lambda each: (
            each.trusted_by is None,
            each.manifest_id != named,
            not each.has_states,
            -len(each.peers),
            each.manifest_id,
        ),
    )


def _candidate(manifest_id: ManifestId, offers: Sequence[Offer], trusted: frozenset[NodeKey]) -> Candidate:
    return Candidate(
        manifest_id,
        tuple(dict.fromkeys(offer.peer for offer in offers)),
        offers[0].size,
        next(filter(None, (_signer(offer, trusted) for offer in offers)), None),
        any(offer.has_states for offer in offers),
    )


def _signer(offer: Offer, trusted: frozenset[NodeKey]) -> NodeKey | None:
    """The trusted key that really signed; a signature by a key that nobody named adds nothing."""
    for signature in offer.signatures:
        if signature.key in trusted and signature.is_genuine(offer.manifest_id):
            return signature.key
    return None
