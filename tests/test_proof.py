"""The proof by chaining states, against publishers that lie in every part of a manifest."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from test_manifest import noise, publish

import megalfs_ext
from megalfs.core.chunker import Profile
from megalfs.core.conflict import Conflict, first_conflict, shared_chunks
from megalfs.core.ids import Oid
from megalfs.core.manifest import SEGMENT_BYTES, Manifest, segment_count
from megalfs.core.proof import Proof, Segment, SerialProof, open_proof, segment_of

BLOB = noise(5 * SEGMENT_BYTES + 777_777)
TRUE = publish(BLOB)
LAST = segment_count(TRUE.size) - 1
OTHER_PROFILE = publish(BLOB, Profile(min=32 << 10, avg=128 << 10, max=512 << 10))


def link_holds(manifest: Manifest, segments: tuple[Segment, ...], data: bytes) -> list[bool]:
    """What the driver does with segments that were taken: one bool each, in the order taken (descending)."""
    states = Proof(manifest).states_of(segments)
    start = segments[-1].offset
    holds = [True] * len(segments)
    whole = len(segments)
    if segments[0].k == segment_count(manifest.size) - 1:
        tail = data[segments[0].offset - start :]
        holds[0] = megalfs_ext.finish_segment(states[-32:], tail, manifest.size) == manifest.oid.raw
        whole -= 1
    if whole:
        wrong = megalfs_ext.verify_segments(data[: whole * SEGMENT_BYTES], states[: (whole + 1) * 32])
        for index in wrong:
            holds[len(segments) - 1 - index] = False
    return holds


def fits(manifest: Manifest, first: int, count: int, blob: bytes) -> bool:
    """Whether the bytes of these pieces have their chunk ids."""
    offset, length = manifest.run_extent(first, count)
    wrong = megalfs_ext.verify_chunks(
        blob[offset : offset + length],
        manifest.lengths[first : first + count],
        manifest.blake3[first : first + count].tobytes(),
    )
    return not wrong


def run(
    manifest: Manifest, blob: bytes, *, pieces: list[int] | None = None, seed: int = 0, limit: int = 1
) -> Proof:
    """Pieces arrive in random order, those that fit their ids are written; every ready segment is checked."""
    proof = Proof(manifest)
    order = list(range(manifest.piece_count)) if pieces is None else pieces
    random.Random(seed).shuffle(order)
    for piece in order:
        if fits(manifest, piece, 1, blob):
            proof.on_disk([(piece, 1)])
        while segments := proof.take(limit):
            data = blob[segments[-1].offset : segments[0].offset + segments[0].length]
            for segment, holds in zip(segments, link_holds(manifest, segments, data), strict=True):
                proof.settle(segment, holds=holds)
    return proof


def forged(**changes: Any) -> Manifest:
    return replace(TRUE, **changes)


def changed(column: np.ndarray, row: int) -> np.ndarray:
    copy = column.copy()
    copy[row] ^= 1
    return copy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, len(BLOB)])
def test_a_true_manifest_is_proven(size: int, limit: int, seed: int) -> None:
    blob = BLOB[:size]
    proof = run(publish(blob), blob, seed=seed, limit=limit)
    if not size:  # no piece ever arrives
        for segment in proof.take():
            proof.settle(segment, holds=link_holds(publish(b""), (segment,), b"")[0])
    assert (proof.is_proven, proof.is_condemned, proof.proven_from) == (True, False, 0)


def test_the_last_segment_comes_first() -> None:
    proof = Proof(TRUE)
    proof.on_disk([(0, TRUE.piece_count)])
    assert [segment.k for segment in proof.take(2)] == [LAST, LAST - 1]
    assert [segment.k for segment in proof.take(100)] == list(range(LAST - 2, -1, -1))
    assert proof.take() == ()


def test_taken_segments_lie_side_by_side() -> None:
    proof = Proof(TRUE)
    for k in (0, 1, 3, 4):
        segment = segment_of(TRUE.size, k)
        proof.on_disk([TRUE.pieces_covering(segment.offset, segment.length)])
    assert [segment.k for segment in proof.take(9)] == [4, 3]  # 2 lacks a piece that neither 1 nor 3 has
    assert [segment.k for segment in proof.take(9)] == [1, 0]


def test_what_is_put_back_comes_again() -> None:
    proof = Proof(TRUE)
    proof.on_disk([(0, TRUE.piece_count)])
    taken = proof.take(3)
    proof.put_back(taken)
    assert proof.take(3) == taken


def test_links_from_the_front_prove_nothing_until_all_hold() -> None:
    proof = Proof(TRUE)
    proof.on_disk([(0, TRUE.piece_count)])
    segments = proof.take(100)
    for segment in reversed(segments):
        assert (proof.is_proven, proof.proven_from) == (False, TRUE.size)
        proof.settle(segment, holds=True)
    assert (proof.is_proven, proof.proven_from) == (True, 0)


def test_links_from_the_end_prove_their_bytes_at_once() -> None:
    proof = Proof(TRUE)
    proof.on_disk([(0, TRUE.piece_count)])
    for segment in proof.take(100):
        proof.settle(segment, holds=True)
        assert proof.proven_from == segment.offset


def test_a_piece_told_twice_counts_once() -> None:
    proof = Proof(TRUE)
    for _ in range(3):
        proof.on_disk([(TRUE.piece_count - 1, 1)])
        proof.on_disk([(TRUE.piece_count - 1, 0)])
    proof.on_disk([(0, TRUE.piece_count)])
    assert len(proof.take(100)) == LAST + 1


def test_a_withheld_piece_leaves_the_file_unproven() -> None:
    """Everything but one piece in the middle: the suffix behind it is proven, the file is not."""
    withheld = TRUE.piece_count // 2
    others = [piece for piece in range(TRUE.piece_count) if piece != withheld]
    proof = run(TRUE, BLOB, pieces=others)
    end = int(TRUE.offsets[withheld + 1])
    assert not proof.is_proven
    assert not proof.is_condemned
    assert proof.proven_from == -(-end // SEGMENT_BYTES) * SEGMENT_BYTES


@pytest.mark.parametrize("state", range(LAST))
def test_a_forged_state_condemns_the_manifest(state: int) -> None:
    proof = run(forged(states=changed(TRUE.states, state)), BLOB, limit=3)
    assert proof.is_condemned
    assert not proof.is_proven
    assert proof.condemned_by is not None
    assert proof.condemned_by.k in (state, state + 1)
    assert proof.take(9) == ()


@pytest.mark.parametrize("k", range(LAST + 1))
def test_one_spliced_segment_condemns_the_manifest(k: int) -> None:
    """The forger puts own bytes into segment k, with ids that fit them; all states are the true ones."""
    segment = segment_of(TRUE.size, k)
    spliced = bytearray(BLOB)
    spliced[segment.offset : segment.offset + segment.length] = noise(segment.length, seed=99)
    lie = publish(bytes(spliced))
    manifest = replace(lie, oid=TRUE.oid, states=TRUE.states)
    proof = run(manifest, bytes(spliced))
    assert proof.condemned_by == segment
    assert not proof.is_proven
    assert proof.proven_from >= segment.offset + segment.length


def test_spliced_with_its_own_states_fails_at_a_link_too() -> None:
    """With the states of the spliced file every link holds but the last, which must give the oid."""
    spliced = bytearray(BLOB)
    spliced[0] ^= 1
    lie = replace(publish(bytes(spliced)), oid=TRUE.oid)
    proof = run(lie, bytes(spliced))
    assert proof.condemned_by == segment_of(TRUE.size, LAST)
    assert proof.proven_from == TRUE.size


def test_a_forged_id_is_a_piece_nobody_can_deliver() -> None:
    """True bytes never fit it, so nothing is written: the manifest starves, and no link condemns anybody."""
    piece = TRUE.piece_count // 2
    manifest = forged(blake3=changed(TRUE.blake3, piece))
    proof = run(manifest, BLOB)
    assert not proof.is_proven
    assert not proof.is_condemned
    conflict = first_conflict(TRUE, manifest)
    assert conflict is not None
    assert conflict.fetch_offset <= TRUE.offsets[piece]
    first, count = manifest.pieces_covering(conflict.fetch_offset, conflict.fetch_length)
    assert not fits(manifest, first, count, BLOB)
    assert fits(TRUE, first, count, BLOB)


def test_a_forged_cut_is_two_pieces_nobody_can_deliver() -> None:
    lengths = TRUE.lengths.copy()
    middle = int(np.argmax(lengths[1:-1])) + 1  # the largest: its length may shrink
    lengths[middle] -= 1
    lengths[middle + 1] += 1
    manifest = forged(lengths=lengths)
    assert not run(manifest, BLOB).is_proven
    conflict = first_conflict(manifest, TRUE)
    assert conflict is not None
    assert conflict.of_a.k == (int(TRUE.offsets[middle + 2]) - 1) // SEGMENT_BYTES
    assert not fits(manifest, *manifest.pieces_covering(conflict.fetch_offset, conflict.fetch_length), BLOB)


def without_states(manifest: Manifest) -> Manifest:
    return replace(manifest, states=manifest.states[:0])


def test_a_manifest_without_states_is_proven_in_order() -> None:
    proof = open_proof(without_states(TRUE))
    assert isinstance(proof, SerialProof)
    half = TRUE.piece_count // 2
    proof.on_disk([(half, TRUE.piece_count - half)])
    assert proof.take(9) == ()
    proof.on_disk([(0, half)])
    taken = proof.take(2)
    assert [segment.k for segment in taken] == [0, 1]
    proof.put_back(taken)
    assert [segment.k for segment in proof.take(99)] == list(range(LAST + 1))
    assert proof.is_all_taken
    assert (proof.is_proven, proof.proven_from) == (False, TRUE.size)
    proof.finish(TRUE.oid.raw)
    assert (proof.is_proven, proof.proven_from, proof.is_condemned) == (True, 0, False)


def test_a_wrong_digest_condemns_a_manifest_without_states() -> None:
    proof = SerialProof(without_states(TRUE))
    proof.on_disk([(0, TRUE.piece_count)])
    proof.take(99)
    proof.finish(bytes(32))
    assert (proof.is_proven, proof.is_condemned, proof.take(9)) == (False, True, ())


def test_up_to_one_segment_no_states_are_needed() -> None:
    assert isinstance(open_proof(publish(BLOB[:SEGMENT_BYTES])), Proof)


def test_equal_manifests_do_not_conflict() -> None:
    assert first_conflict(TRUE, replace(TRUE)) is None
    assert first_conflict(TRUE, without_states(TRUE)) is None
    assert first_conflict(publish(b""), publish(b"")) is None


@pytest.mark.parametrize("state", range(LAST))
def test_a_forged_state_is_decided_by_the_segment_behind_it(state: int) -> None:
    lie = forged(states=changed(TRUE.states, state))
    conflict = first_conflict(TRUE, lie)
    assert conflict is not None
    assert conflict.of_a == conflict.of_b == segment_of(TRUE.size, state + 1)
    segment = conflict.of_a
    data = BLOB[segment.offset : segment.offset + segment.length]
    assert link_holds(TRUE, (segment,), data) == [True]
    assert link_holds(lie, (segment,), data) == [False]


def test_the_range_holds_whole_chunks_of_both() -> None:
    conflict = first_conflict(TRUE, OTHER_PROFILE)
    assert conflict is not None
    for manifest in (TRUE, OTHER_PROFILE):
        first, count = manifest.pieces_covering(conflict.of_a.offset, conflict.of_a.length)
        offset, length = manifest.run_extent(first, count)
        assert conflict.fetch_offset <= offset
        assert offset + length <= conflict.fetch_offset + conflict.fetch_length
        assert fits(manifest, first, count, BLOB), "both may be right"


def test_other_sizes_conflict_in_their_last_segments() -> None:
    lie = replace(publish(BLOB[: 2 * SEGMENT_BYTES]), oid=TRUE.oid)
    conflict = first_conflict(TRUE, lie)
    assert conflict is not None
    assert (conflict.of_a.k, conflict.of_b.k) == (LAST, 1)
    assert conflict.fetch_offset + conflict.fetch_length == TRUE.size
    assert conflict.fetch_offset <= SEGMENT_BYTES


def test_a_conflict_is_the_same_from_both_sides() -> None:
    lie = forged(sha256=changed(TRUE.sha256, 3))
    one, two = first_conflict(TRUE, lie), first_conflict(lie, TRUE)
    assert one == two
    assert isinstance(one, Conflict)


def test_shared_chunks_of_a_changed_file() -> None:
    edited = BLOB[:2_000_000] + b"inserted" + BLOB[2_000_000:]
    new = publish(edited)
    found = shared_chunks(TRUE, new)
    for piece, old in enumerate(found.tolist()):
        if old >= 0:
            offset, length = new.run_extent(piece, 1)
            start, old_length = TRUE.run_extent(old, 1)
            assert edited[offset : offset + length] == BLOB[start : start + old_length]
    assert (found < 0).sum() <= 6
    assert shared_chunks(new, TRUE).shape == (TRUE.piece_count,)
    assert shared_chunks(publish(b""), TRUE).tolist() == [-1] * TRUE.piece_count
    assert shared_chunks(TRUE, publish(b"")).tolist() == []


def test_a_chunk_with_one_true_and_one_forged_digest_is_not_shared() -> None:
    assert shared_chunks(TRUE, forged(sha256=changed(TRUE.sha256, 2))).tolist()[2] == -1
    assert shared_chunks(TRUE, forged(blake3=changed(TRUE.blake3, 2))).tolist()[2] == -1


def test_conflicts_are_of_one_oid() -> None:
    with pytest.raises(AssertionError):
        first_conflict(TRUE, replace(TRUE, oid=Oid(bytes(32))))
