"""Which of several manifests lie, found out before anything large is fetched.

Two manifests of one oid that differ agree on what comes after the last segment where they differ (at the very
end on the oid itself). So the bytes of that segment, from anybody, decide: only the true ones lead from a true
state to the one that both name (anything else is a second preimage). Both may fit, with other profiles.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import megalfs_ext
from megalfs.core.conflict import first_conflict
from megalfs.core.ids import ManifestId
from megalfs.core.manifest import Manifest
from megalfs.core.proof import Proof, Segment
from megalfs.errors import MegalfsError
from megalfs.formats.hostport import HostPort
from megalfs.net.http import HttpClient
from megalfs.node.candidates import Candidate
from megalfs.node.sources import node_url
from megalfs.node.threads import in_daemon_thread

__all__ = ["find_liars", "fits"]

log = logging.getLogger(__name__)

# One deciding segment with the chunks around it is at most 1 MiB and two chunks of the largest profile.
DECIDING_BYTES_MAX = 64 << 20
COMPARED_MAX = 8


async def find_liars(
    ranked: Sequence[Candidate], load: Callable[[Candidate], Awaitable[Manifest]], http: HttpClient
) -> set[ManifestId]:
    """Compares the candidates with the best of them, pair by pair; returns those that were found false."""
    liars: set[ManifestId] = set()
    loaded: list[tuple[Candidate, Manifest]] = []
    for candidate in ranked[:COMPARED_MAX]:
        try:
            loaded.append((candidate, await load(candidate)))
        except MegalfsError as error:
            log.info("manifest %s: %s", candidate.manifest_id, error)
    for index, (first, a) in enumerate(loaded):
        for second, b in loaded[index + 1 :]:
            if a.id not in liars and b.id not in liars:
                peers = dict.fromkeys((*first.peers, *second.peers))
                liars |= await in_daemon_thread(_compare, a, b, list(peers), http)
    return liars


def _compare(a: Manifest, b: Manifest, peers: Sequence[HostPort], http: HttpClient) -> set[ManifestId]:
    conflict = first_conflict(a, b)
    if conflict is None or not (a.has_states and b.has_states):
        return set()
    for peer in peers:
        start, stop = conflict.fetch_offset, conflict.fetch_offset + conflict.fetch_length
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        try:
            reply = http.get(
                node_url(peer, f"/v1/file/{a.oid}"), bytes_max=DECIDING_BYTES_MAX, headers=headers
            )
        except MegalfsError as error:
            log.info("peer %s: %s", peer, error)
            continue
        if reply.status not in {200, 206} or not reply.body:
            continue
        base = start if reply.status == 206 else 0
        fits_a = fits(a, conflict.of_a, reply.body, base)
        fits_b = fits(b, conflict.of_b, reply.body, base)
        if fits_a or fits_b:
            return ({a.id} if not fits_a else set()) | ({b.id} if not fits_b else set())
    return set()


def fits(manifest: Manifest, segment: Segment, body: bytes, base: int) -> bool:
    """Whether these bytes (`body[0]` is byte `base` of the blob) fit the segment's link and its chunk ids."""
    view = memoryview(body)
    start = segment.offset - base
    if start < 0 or start + segment.length > len(body):
        return False
    states = Proof(manifest).states_of((segment,))
    part = view[start : start + segment.length]
    if segment.k == len(manifest.states):
        if segment.offset + segment.length + (len(body) - start - segment.length) > manifest.size:
            return False  # there are bytes beyond the end that this manifest claims
        if megalfs_ext.finish_segment(states[-32:], part, manifest.size) != manifest.oid.raw:
            return False
    elif megalfs_ext.verify_segments(part, states):
        return False
    first, count = manifest.pieces_covering(segment.offset, segment.length)
    offset, length = manifest.run_extent(first, count)
    if offset < base or offset + length > base + len(body):
        return False
    chunks = view[offset - base : offset - base + length]
    chosen = slice(first, first + count)
    return not megalfs_ext.verify_chunks(chunks, manifest.lengths[chosen].data, manifest.blake3[chosen].data)
