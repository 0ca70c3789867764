"""How a swarm cuts long chunks, and how a part of one is verified without the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import blake3
import numpy as np
import pytest
from adversaries import flip, manifest_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.solo import bits

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.chunk_proofs import ChunkProofs
from megalfs.core.manifest import Manifest
from megalfs.core.parts import DIGEST_BYTES, Parts, Stretch
from megalfs.core.pieces import Pieces
from megalfs.errors import StoreError, TemporaryError
from megalfs.net.proofs import proof_of_run
from megalfs.net.sinks import GranuleBuffer, Progress, Receiver
from megalfs_ext import GROUP_BYTES

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PART_BYTES_MAX = 192 * KIB

CHUNK_LENGTHS = st.lists(
    st.one_of(
        st.integers(1, MIB),
        st.sampled_from([1, 64 * KIB, 128 * KIB, 192 * KIB, 192 * KIB + 1, 320 * KIB, MIB, 16 * MIB]),
    ),
    max_size=12,
)


def parts_of(lengths: Sequence[int]) -> Parts:
    chunks = np.array(lengths, np.uint32)
    return Parts(chunks, np.concatenate(([0], np.cumsum(chunks, dtype=np.uint64))).astype(np.uint64))


def ends_of(lengths: Sequence[int]) -> list[int]:
    return np.cumsum([0, *lengths]).tolist()


@settings(deadline=None)
@given(CHUNK_LENGTHS)
def test_parts_are_few_and_end_with_groups_of_their_chunk(lengths: list[int]) -> None:
    parts, limits = parts_of(lengths), ends_of(lengths)
    assert parts.lengths.sum() == limits[-1]
    assert parts.count == sum(max(1, -(-length // PART_BYTES_MAX)) for length in lengths)
    assert parts.are_chunks == all(length <= PART_BYTES_MAX for length in lengths)
    assert set(limits) <= set(parts.offsets.tolist())
    assert all(0 < length <= PART_BYTES_MAX for length in parts.lengths.tolist())
    for offset in parts.offsets.tolist():
        start = max(limit for limit in limits if limit <= offset)
        assert (offset - start) % GROUP_BYTES == 0
    for index in range(parts.count):
        assert parts.extent(index, 1) == (parts.offsets[index], parts.lengths[index])


@settings(deadline=None)
@given(CHUNK_LENGTHS, st.data())
def test_sets_of_chunks_and_of_parts(lengths: list[int], data: st.DataObject) -> None:
    parts, limits = parts_of(lengths), ends_of(lengths)
    chunks = bits(
        "".join(data.draw(st.lists(st.sampled_from("x "), min_size=len(lengths), max_size=len(lengths))))
    )
    held = parts.from_chunks(chunks)
    for index, offset in enumerate(parts.offsets[:-1].tolist()):
        assert held.has(index) == chunks.has(int(np.searchsorted(limits, offset, side="right")) - 1)
    assert held.count == len(held.bits.nonzero()[0])
    assert parts.whole_chunks(held) == chunks
    if held.count:
        lost = int(data.draw(st.sampled_from(held.bits.nonzero()[0].tolist())))
        less = held.copy()
        less.remove(lost, 1)
        assert parts.whole_chunks(less).count == chunks.count - 1


@settings(deadline=None)
@given(CHUNK_LENGTHS.filter(bool), st.data())
def test_a_run_is_whole_chunks_between_parts_of_two(lengths: list[int], data: st.DataObject) -> None:
    parts, limits = parts_of(lengths), ends_of(lengths)
    first = data.draw(st.integers(0, parts.count - 1))
    count = data.draw(st.integers(1, parts.count - first))
    at, proof_bytes = first, 0
    stretches = list(parts.stretches(first, count))
    for stretch in stretches:
        assert stretch.first == at
        start, length = parts.extent(stretch.first, stretch.count)
        chunk_start, chunk_end = limits[stretch.chunk], limits[stretch.chunk + max(1, stretch.chunks)]
        if stretch.chunks:
            assert (start, start + length) == (chunk_start, chunk_end)
        else:
            assert chunk_start <= start < start + length <= chunk_end
            assert length < chunk_end - chunk_start
            groups = parts.groups_of(stretch)
            assert groups.start * GROUP_BYTES == start - chunk_start
            assert groups.stop == -(-(start + length - chunk_start) // GROUP_BYTES)
            proof_bytes += DIGEST_BYTES * -(-(chunk_end - chunk_start) // GROUP_BYTES)
        at += stretch.count
    assert at == first + count
    assert len(stretches) <= 3
    assert not any(one.chunks and two.chunks for one, two in pairwise(stretches))
    assert parts.proof_bytes(first, count) == proof_bytes


def test_large_blobs_and_short_chunks_stay_as_they_are() -> None:
    at_most = [MIB] * 1024
    assert parts_of(at_most).count == 6144
    for lengths in ([*at_most, 1], [192 * KIB] * 9, [], [5]):
        parts = parts_of(lengths)
        assert parts.are_chunks
        assert parts.lengths.tolist() == lengths
        assert parts.chunk_starts is None
        assert parts.of_chunks(0, len(lengths)) == (0, len(lengths))
        if lengths:
            assert list(parts.stretches(0, len(lengths))) == [Stretch(0, len(lengths), 0, len(lengths))]
            assert parts.proof_bytes(0, len(lengths)) == 0


def test_a_large_blob_costs_no_memory_of_its_own() -> None:
    """560,000 chunks of a 140 GB blob: the columns of the manifest are used as they are."""
    lengths = np.full(560_000, 250_000, np.uint32)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.uint64))).astype(np.uint64)
    parts = Parts(lengths, offsets)
    assert parts.lengths is lengths
    assert parts.offsets is offsets


# What an origin may be asked for: chunks of 1, 3, 1 and 2 pieces.

STARTS = np.array([0, 1, 4, 5])


def pieces_with(have: str) -> Pieces:
    return Pieces(np.full(len(have), 100, np.uint32), bits(have), STARTS)


@pytest.mark.parametrize(
    ("have", "wanted", "provable"),
    [
        ("       ", "xxxxxxx", "xxxxxxx"),  # all of each chunk
        ("       ", " xx xx ", "    x  "),  # the rest of two chunks is asked of others
        (" x     ", "x  x x ", "x  x   "),  # a part is here, and with it the proof
        ("      x", "     x ", "     x "),
    ],
)
def test_what_can_be_verified_without_proofs(have: str, wanted: str, provable: str) -> None:
    assert (pieces_with(have).provable(bits(wanted).bits) == bits(provable).bits).all()


@pytest.mark.parametrize(
    ("have", "run", "moved"),
    [
        ("       ", Run(0, 7), Run(0, 7)),
        ("       ", Run(2, 1), Run(1, 3)),  # within one chunk: all of it
        ("       ", Run(2, 4), Run(1, 4)),  # from its beginning, not into the next but one
        ("       ", Run(3, 4), Run(1, 6)),
        (" x     ", Run(2, 1), Run(2, 1)),
        (" x     ", Run(2, 4), Run(2, 3)),
        (" x    x", Run(3, 3), Run(3, 3)),
    ],
)
def test_runs_without_proofs_end_with_chunks(have: str, run: Run, moved: Run) -> None:
    assert pieces_with(have).provable_run(run) == moved


# Real bytes.


class MemorySink:
    """The end of a pull that keeps its bytes in memory."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.proofs = ChunkProofs(manifest)
        self.content = bytearray(manifest.size)
        self.verified = Bitfield(manifest.parts.count)
        self.corrupt: list[int] = []

    def write(self, offset: int, buffer: memoryview) -> None:
        self.content[offset : offset + len(buffer)] = buffer

    def is_closed(self) -> bool:
        return False

    def receive(self, sent: bytes, first: int, count: int, *, has_proofs: bool = True) -> bool:
        """One run comes as these bytes, all of which must be read when it is right."""
        stream = memoryview(sent)

        def fill(view: memoryview, progressed: object) -> None:
            nonlocal stream
            view[:] = stream[: len(view)]
            stream = stream[len(view) :]

        progress = Progress(
            verified=lambda _, at, size: self.verified.fill(at, size),
            corrupt=lambda _, pieces: self.corrupt.extend(pieces),
            progressed=lambda _, size: None,
        )
        buffer = GranuleBuffer()
        try:
            is_right = Receiver(buffer, progress).receive(fill, self, first, count, has_proofs=has_proofs)
        finally:
            buffer.close()
        assert not (is_right and len(stream))
        return is_right


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "blob.bin"
    path.write_bytes(np.random.default_rng(11).bytes(6 * MIB))
    return path


@pytest.fixture(scope="module")
def manifest(blob: Path) -> Manifest:
    return manifest_of(blob)


@pytest.fixture
def fd(blob: Path) -> Iterator[int]:
    opened = os.open(blob, os.O_RDONLY)
    yield opened
    os.close(opened)


def sent_by(seeder: ChunkProofs, manifest: Manifest, fd: int, first: int, count: int) -> bytearray:
    """A run as a seeder sends it."""
    offset, size = manifest.parts.extent(first, count)
    proof = proof_of_run(manifest, seeder, first, count, fd)
    assert len(proof) == manifest.parts.proof_bytes(first, count)
    return bytearray(proof + os.pread(fd, size, offset))


def cut_chunk(manifest: Manifest) -> tuple[int, int, int]:
    """A chunk of several parts: its number, its first part, and how many."""
    chunk = int(np.flatnonzero(manifest.lengths > PART_BYTES_MAX)[0])
    return (chunk, *manifest.parts.of_chunks(chunk, 1))


def test_every_run_arrives_from_a_seeder(manifest: Manifest, fd: int) -> None:
    seeder, parts = ChunkProofs(manifest), manifest.parts
    content = os.pread(fd, manifest.size, 0)
    assert not parts.are_chunks
    for first in range(parts.count):
        for count in range(1, min(6, parts.count - first) + 1):
            sink = MemorySink(manifest)
            assert sink.receive(bytes(sent_by(seeder, manifest, fd, first, count)), first, count)
            assert sink.verified.runs() == [Run(first, count)]
            start, size = parts.extent(first, count)
            assert sink.content[start : start + size] == content[start : start + size]
            assert sink.content.count(0) >= manifest.size - size


def test_who_holds_one_part_passes_it_on_with_its_proof(manifest: Manifest, fd: int, tmp_path: Path) -> None:
    _, first, _ = cut_chunk(manifest)
    relay = MemorySink(manifest)
    assert relay.receive(bytes(sent_by(ChunkProofs(manifest), manifest, fd, first + 1, 1)), first + 1, 1)
    partial = tmp_path / "partial"
    partial.write_bytes(relay.content)  # nothing but that part
    with partial.open("rb") as file:
        sent = sent_by(relay.proofs, manifest, file.fileno(), first + 1, 1)
    assert MemorySink(manifest).receive(bytes(sent), first + 1, 1)


def test_wrong_bytes_of_a_part(manifest: Manifest, fd: int) -> None:
    _, first, count = cut_chunk(manifest)
    sent = sent_by(ChunkProofs(manifest), manifest, fd, first, count - 1)
    sent[-1] ^= 1
    sink = MemorySink(manifest)
    assert not sink.receive(bytes(sent), first, count - 1)
    assert sink.corrupt == list(range(first, first + count - 1))
    assert not any(sink.content)
    assert not sink.verified.count


def test_a_wrong_proof(manifest: Manifest, fd: int) -> None:
    _, first, _ = cut_chunk(manifest)
    right = sent_by(ChunkProofs(manifest), manifest, fd, first, 1)
    for at in (0, DIGEST_BYTES * 4 + 3):
        sent = right.copy()
        sent[at] ^= 1
        sink = MemorySink(manifest)
        assert not sink.receive(bytes(sent), first, 1)
        assert sink.corrupt == [first]
        assert not any(sink.content)
        assert sink.receive(bytes(right), first, 1), "a lie must not stay"
        assert not sink.receive(bytes(sent), first, 1), "nor pass once the truth is known"


def test_a_proof_is_of_one_chunk_and_of_its_length(manifest: Manifest, fd: int) -> None:
    chunk, first, _ = cut_chunk(manifest)
    proof = proof_of_run(manifest, ChunkProofs(manifest), first, 1, fd)
    other = next(at for at in range(chunk + 1, manifest.piece_count) if manifest.lengths[at] > PART_BYTES_MAX)
    for wrong in (b"", proof[:-1], proof[:DIGEST_BYTES], proof + bytes(DIGEST_BYTES)):
        assert not ChunkProofs(manifest).put(chunk, wrong)
    assert not ChunkProofs(manifest).put(other, proof)
    assert ChunkProofs(manifest).put(chunk, proof)


def test_groups_are_verified_where_they_belong(manifest: Manifest, fd: int) -> None:
    """The bytes of one part do not pass as another's: a chaining value counts its leaves from the chunk's start."""
    chunk, first, count = cut_chunk(manifest)
    proofs = ChunkProofs(manifest)
    proof_of_run(manifest, proofs, first, 1, fd)
    offsets = [manifest.parts.extent(first + at, 1) for at in range(count)]
    for number in range(count):
        for offset, size in offsets:
            view = memoryview(os.pread(fd, size, offset))
            is_its = (offset, size) == offsets[number]
            assert proofs.verifies(Stretch(first + number, 1, chunk, 0), view) == is_its


def test_an_origin_sends_no_proofs(manifest: Manifest, fd: int) -> None:
    chunk, first, count = cut_chunk(manifest)
    offset, size = manifest.run_extent(chunk, 1)
    content = os.pread(fd, size, offset)
    part_size = manifest.parts.extent(first, 1)[1]
    sink = MemorySink(manifest)
    with pytest.raises(TemporaryError):
        sink.receive(content[:part_size], first, 1, has_proofs=False)
    assert sink.receive(content, first, count, has_proofs=False)
    sink = MemorySink(manifest)
    assert sink.receive(bytes(sent_by(ChunkProofs(manifest), manifest, fd, first, 1)), first, 1)
    assert sink.receive(content[part_size:], first + 1, count - 1, has_proofs=False)
    assert blake3.blake3(sink.content[offset : offset + size]).digest() == manifest.blake3[chunk].tobytes()


def test_a_file_that_changed_proves_nothing(manifest: Manifest, blob: Path, tmp_path: Path) -> None:
    chunk, first, _ = cut_chunk(manifest)
    copy = tmp_path / "copy"
    copy.write_bytes(blob.read_bytes())
    flip(copy, int(manifest.offsets[chunk]) + 5)
    with copy.open("rb") as file, pytest.raises(StoreError, match=f"chunk {chunk} .* changed on disk"):
        proof_of_run(manifest, ChunkProofs(manifest), first + 1, 1, file.fileno())
    os.truncate(copy, int(manifest.offsets[chunk]) + 1)
    with copy.open("rb") as file, pytest.raises(StoreError):
        proof_of_run(manifest, ChunkProofs(manifest), first + 1, 1, file.fileno())


def long_pieces() -> Pieces:
    """Forty pieces of 100 bytes: chunks of one and of three."""
    starts = np.array([at for at in range(40) if at % 4 < 2])
    return Pieces(np.full(40, 100, np.uint32), Bitfield(40), starts)


@pytest.mark.parametrize(
    ("first", "size", "count"),
    [
        (0, 1150, 9),  # eleven would fit: the last two are of a chunk of three
        (0, 1200, 12),
        (3, 1000, 10),  # ends with a chunk; where it begins is not ours to move
        (0, 750, 7),  # a short one may end anywhere
        (38, 1200, 2),
    ],
)
def test_long_runs_end_with_a_chunk(first: int, size: int, count: int) -> None:
    assert long_pieces().fit(first, size) == count


@pytest.mark.parametrize(("end", "size", "count"), [(40, 1150, 11), (40, 1050, 8), (40, 750, 7), (2, 900, 2)])
def test_and_begin_with_one_when_they_are_taken_from_the_end(end: int, size: int, count: int) -> None:
    assert long_pieces().fit_before(end, size) == count


def test_runs_lie_side_by_side_from_chunk_to_chunk() -> None:
    pieces = long_pieces()
    assert {pieces.grid(at, 1200) for at in range(29)} <= {at for at in range(29) if at % 4 < 2}
    assert pieces.grid(11, 250) == 10  # short ones do not care
