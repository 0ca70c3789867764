"""Manifests: one encoding, every count checked, nothing taken on trust."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import megalfs_ext
from megalfs.core import manifest as manifest_module
from megalfs.core.chunker import Profile, chunk_buffer
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.manifest import SEGMENT_BYTES, Manifest, segment_count, state_count
from megalfs.errors import IntegrityError, PolicyError, UsageError
from megalfs.formats.digests import digests_from_bytes
from megalfs.formats.layout import Layout, Plain, Tensor
from megalfs.formats.profile import DEFAULT_PROFILE

SMALL = Profile(min=1024, avg=4096, max=16384)


def publish(blob: bytes, profile: Profile = DEFAULT_PROFILE) -> Manifest:
    """What a publisher does, in one go."""
    ends, layout = chunk_buffer(blob, profile)
    hasher = megalfs_ext.ChainHasher()
    sha256 = hasher.update(blob, ends)
    return Manifest(
        oid=Oid(hasher.digest()),
        size=len(blob),
        profile=profile.id,
        layout=layout,
        lengths=np.diff(ends, prepend=np.uint64(0)).astype(np.uint32),
        blake3=digests_from_bytes(megalfs_ext.blake3_many(blob, ends)),
        sha256=digests_from_bytes(sha256),
        states=digests_from_bytes(hasher.states()),
    )


def noise(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def safetensors_blob() -> bytes:
    header = json.dumps(
        {
            "ä/weight": {"dtype": "U8", "shape": [3, 2, 50_000], "data_offsets": [0, 300_000]},
            "bias": {"dtype": "F32", "shape": [], "data_offsets": [300_000, 300_004]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + noise(300_004)


BLOBS = {
    "empty": b"",
    "one byte": b"x",
    "one chunk": noise(65_536),
    "segment - 1": noise(SEGMENT_BYTES - 1),
    "segment": noise(SEGMENT_BYTES),
    "segment + 1": noise(SEGMENT_BYTES + 1),
    "three segments": noise(3 * SEGMENT_BYTES + 17),
    "tensors": safetensors_blob(),
}


@pytest.fixture(params=list(BLOBS))
def blob(request: pytest.FixtureRequest) -> bytes:
    return BLOBS[request.param]


@pytest.mark.parametrize(
    ("size", "states"),
    [(0, 0), (1, 0), ((1 << 20) - 1, 0), (1 << 20, 0), ((1 << 20) + 1, 1), (2 << 20, 1), ((2 << 20) + 1, 2)],
)
def test_state_count(size: int, states: int) -> None:
    assert state_count(size) == states == len([k for k in range(1, 5) if 0 < k << 20 < size])
    assert segment_count(size) == states + 1


def test_round_trips(blob: bytes) -> None:
    made = publish(blob)
    assert made.oid.raw == hashlib.sha256(blob).digest()
    assert (made.size, made.has_states) == (len(blob), True)
    read = Manifest.decode(made.encode(), oid=made.oid)
    assert read == made
    assert read.id == made.id == ManifestId(hashlib.sha256(made.encode()).digest())
    assert (read.layout, read.profile, read.tensors) == (made.layout, made.profile, made.tensors)
    for name in ("lengths", "blake3", "sha256", "states"):
        column = getattr(read, name)
        assert np.array_equal(column, getattr(made, name))
        assert not column.flags.writeable
    again = replace(read)  # nothing cached: encodes anew
    assert again.encode() == made.encode()
    assert Manifest.from_json(made.to_json(), oid=made.oid).encode() == made.encode()


def test_digests_are_of_the_chunks() -> None:
    blob = BLOBS["three segments"]
    made = publish(blob)
    for index in range(made.piece_count):
        offset, length = made.run_extent(index, 1)
        chunk = blob[offset : offset + length]
        assert made.sha256[index].tobytes() == hashlib.sha256(chunk).digest()
        assert made.index_of_sha256(Oid(hashlib.sha256(chunk).digest())) == index
        assert made.index_of_blake3(made.chunk_id(index)) == index


def test_promised_json() -> None:
    made = publish(safetensors_blob())
    told = json.loads(made.to_json())
    assert {"oid", "size", "chunks", "version", "profile", "states", "tensors"} <= set(told)
    assert (told["oid"], told["size"], told["version"]) == (str(made.oid), made.size, 1)
    assert set(told["chunks"][0]) == {"offset", "length", "sha256", "blake3"}
    assert [row["offset"] for row in told["chunks"]] == made.offsets[:-1].tolist()
    assert told["tensors"][0] == ["ä/weight", "U8", [3, 2, 50_000], made.layout.header_bytes, 300_000]
    assert Manifest.from_json(json.dumps(told, indent=3).encode()).id == made.id


def test_extents() -> None:
    made = publish(noise(50_000), SMALL)
    assert made.run_extent(0, made.piece_count) == (0, made.size)
    assert made.run_extent(made.piece_count, 0) == (made.size, 0)
    for first, count in ((-1, 1), (0, -1), (0, made.piece_count + 1)):
        with pytest.raises(UsageError):
            made.run_extent(first, count)
    for offset, length in ((-1, 1), (0, made.size + 1), (made.size + 1, 0), (5, -1)):
        with pytest.raises(UsageError):
            made.pieces_covering(offset, length)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_pieces_covering(data: st.DataObject) -> None:
    """The pieces found are those that overlap the range, no more and no fewer."""
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    made = made_up(lengths)
    offset = data.draw(st.integers(0, made.size))
    length = data.draw(st.integers(0, made.size - offset))
    first, count = made.pieces_covering(offset, length)
    edges = made.offsets.tolist()
    overlapping = [
        i for i in range(len(lengths)) if edges[i] < offset + length and edges[i + 1] > offset and length
    ]
    assert list(range(first, first + count)) == overlapping


def made_up(lengths: list[int], **changes: Any) -> Manifest:
    """A manifest of chunks nobody hashed."""
    count = len(lengths)
    ids = np.random.default_rng(count).integers(0, 256, (2, count, 32), np.uint8)
    fields: dict[str, Any] = {
        "oid": Oid(bytes(range(32))) if count else manifest_module.EMPTY_OID,
        "size": sum(lengths),
        "profile": DEFAULT_PROFILE.id,
        "layout": Plain("unknown-format"),
        "lengths": np.array(lengths, np.uint32),
        "blake3": ids[0],
        "sha256": ids[1],
        "states": np.zeros((0, 32), np.uint8),
    }
    return Manifest(**{**fields, **changes})


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 1 << 20), min_size=1, max_size=30),
    has_states=st.booleans(),
    names=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), unique=True, max_size=4),
)
def test_any_manifest_round_trips(lengths: list[int], has_states: bool, names: list[str]) -> None:
    size = sum(lengths)
    tensors = tuple(Tensor(name, "U8", (0, 7), 1, 0) for name in sorted(names))
    states = np.random.default_rng(size).integers(0, 256, (state_count(size) * has_states, 32), np.uint8)
    made = made_up(lengths, states=states, layout=Layout("safetensors", 1, tensors))
    assert Manifest.decode(made.encode()).to_json() == made.to_json()
    assert Manifest.from_json(made.to_json()).encode() == made.encode()


def test_the_first_of_equal_chunks_is_found() -> None:
    ids = np.zeros((5, 32), np.uint8)
    ids[:, 31] = [3, 1, 3, 1, 0]
    made = made_up([1] * 5, blake3=ids)
    assert [made.index_of_blake3(made.chunk_id(i)) for i in range(5)] == [0, 1, 0, 1, 4]
    other = np.full((1, 32), 255, np.uint8)
    wanted = np.concatenate((other, ids[::-1], np.zeros((1, 32), np.uint8)))
    assert made.indices_of_blake3(wanted).tolist() == [-1, 4, 1, 0, 1, 0, 4]
    empty = made_up([])
    assert empty.indices_of_blake3(wanted).tolist() == [-1] * 7
    assert empty.index_of_sha256(Oid(bytes(32))) is None


def test_the_first_of_very_many_equal_chunks_is_found() -> None:
    ids = np.zeros((5000, 32), np.uint8)
    ids[:, 0] = np.arange(5000) % 3
    made = made_up([1] * 5000, blake3=ids)
    assert made.indices_of_blake3(ids).tolist() == [i % 3 for i in range(5000)]


FAULTS: dict[str, Callable[[], Manifest]] = {
    "sum": lambda: made_up([5, 5], size=11),
    "huge size": lambda: made_up([5], size=1 << 63),
    "negative size": lambda: made_up([], size=-1),
    "zero-length chunk": lambda: made_up([5, 0, 5]),
    "only zero-length chunks": lambda: made_up([0], oid=manifest_module.EMPTY_OID),
    "chunk above the maximum": lambda: made_up([(1 << 20) + 1]),
    "too few ids": lambda: made_up([5, 5], blake3=np.zeros((1, 32), np.uint8)),
    "too many digests": lambda: made_up([5, 5], sha256=np.zeros((3, 32), np.uint8)),
    "states where none belong": lambda: made_up([5], states=np.zeros((1, 32), np.uint8)),
    "too few states": lambda: made_up([1 << 20] * 3, states=np.zeros((1, 32), np.uint8)),
    "too many states": lambda: made_up([1 << 20] * 3, states=np.zeros((3, 32), np.uint8)),
    "empty with another oid": lambda: made_up([], oid=Oid(bytes(32))),
    "header beyond the end": lambda: made_up([5], layout=Layout("gguf", 6, ())),
    "no header": lambda: made_up([5], layout=Layout("gguf", 0, ())),
    "tensor beyond the end": lambda: made_up([5], layout=Layout("gguf", 1, (Tensor("t", "U8", (5,), 1, 5),))),
    "tensor in the header": lambda: made_up([5], layout=Layout("gguf", 2, (Tensor("t", "U8", (3,), 1, 3),))),
    "tensors out of order": lambda: made_up(
        [5], layout=Layout("gguf", 1, (Tensor("t", "U8", (1,), 2, 1), Tensor("u", "U8", (1,), 1, 1)))
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(fault: str) -> None:
    with pytest.raises(IntegrityError):
        FAULTS[fault]()


def test_the_largest_chunk_is_taken() -> None:
    assert made_up([1 << 20]).size == 1 << 20


def test_an_unknown_profile_needs_an_upgrade() -> None:
    with pytest.raises(PolicyError):
        made_up([5], profile="rolling/9")


def test_another_oid_than_asked_for() -> None:
    made, other = made_up([5]), Oid(bytes(32))
    with pytest.raises(IntegrityError, match="asked for"):
        Manifest.decode(made.encode(), oid=other)
    with pytest.raises(IntegrityError, match="asked for"):
        Manifest.from_json(made.to_json(), oid=other)


def with_header(encoded: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The same columns under another header."""
    magic, version, count = struct.unpack_from("<8sII", encoded)
    header = json.loads(encoded[16 : 16 + count])
    body = encoded[16 + count + -(16 + count) % 64 :]
    changed = change(header)
    text = (
        changed
        if isinstance(changed, bytes)
        else json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    return struct.pack("<8sII", magic, version, len(text)) + text + bytes(-(16 + len(text)) % 64) + body


def test_the_header_helper_changes_nothing_by_itself() -> None:
    encoded = publish(safetensors_blob()).encode()
    assert with_header(encoded, lambda header: None) == encoded


HEADER_CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception]]] = {
    "unknown field": (lambda h: h.update(critical=1), PolicyError),
    "unknown column": (
        lambda h: h["columns"].append({"dtype": "|u1", "name": "x", "shape": [0]}),
        PolicyError,
    ),
    "column twice": (lambda h: h["columns"].append(h["columns"][0]), IntegrityError),
    "column missing": (lambda h: h["columns"].pop(), IntegrityError),
    "columns out of order": (lambda h: h["columns"].reverse(), IntegrityError),
    "column of another type": (lambda h: h["columns"][0].update(dtype="<u8"), IntegrityError),
    "column of an object type": (lambda h: h["columns"][0].update(dtype="|O"), IntegrityError),
    "column of 10^9": (lambda h: h["columns"][0].update(shape=[10**9]), IntegrityError),
    "column of 2^40": (lambda h: h["columns"][0].update(shape=[1 << 40]), IntegrityError),
    "column of -1": (lambda h: h["columns"][0].update(shape=[-1]), IntegrityError),
    "column of true": (lambda h: h["columns"][0].update(shape=[True]), IntegrityError),
    "flat ids": (lambda h: h["columns"][1].update(shape=[h["columns"][1]["shape"][0] * 32]), IntegrityError),
    "extra key in a column": (lambda h: h["columns"][0].update(x=1), IntegrityError),
    "oid in upper case": (lambda h: h.update(oid=h["oid"].upper()), IntegrityError),
    "oid with prefix": (lambda h: h.update(oid="sha256:" + h["oid"]), IntegrityError),
    "size as text": (lambda h: h.update(size=str(h["size"])), IntegrityError),
    "size as bool": (lambda h: h.update(size=True), IntegrityError),
    "size as float": (lambda h: h.update(size=1.0), IntegrityError),
    "other size": (lambda h: h.update(size=h["size"] + 1), IntegrityError),
    "no oid": (lambda h: h.pop("oid") and None, IntegrityError),
    "plain with tensors": (lambda h: h.update(layout={"plain": "x"}), IntegrityError),
    "odd reason": (lambda h: h.update(layout={"plain": "\x1b[31m"}), IntegrityError),
    "layout of both kinds": (lambda h: h["layout"].update(plain="x"), IntegrityError),
    "unknown profile": (lambda h: h.update(profile="x/2"), PolicyError),
    "spaces": (lambda h: json.dumps(h, sort_keys=True).encode(), IntegrityError),
    "unsorted": (
        lambda h: json.dumps(dict(reversed(h.items())), separators=(",", ":")).encode(),
        IntegrityError,
    ),
    "not JSON": (lambda h: b"{", IntegrityError),
    "a list": (lambda h: b"[]", IntegrityError),
    "too long": (lambda h: b" " * 65_537, IntegrityError),
}


@pytest.mark.parametrize("change", HEADER_CHANGES)
def test_a_changed_header_is_refused(change: str) -> None:
    edit, error = HEADER_CHANGES[change]
    with pytest.raises(error):
        Manifest.decode(with_header(publish(safetensors_blob()).encode(), edit))


def test_bytes_around_are_refused() -> None:
    encoded = publish(safetensors_blob()).encode()
    for changed in (
        b"",
        encoded[:15],
        encoded + b"\0",
        encoded + bytes(64),
        encoded[:-1],
        encoded[:-64],
        b"x" + encoded,
    ):
        with pytest.raises(IntegrityError):
            Manifest.decode(changed)
    newer = encoded[:8] + struct.pack("<I", 2) + encoded[12:]
    with pytest.raises(PolicyError):
        Manifest.decode(newer)


def test_every_flipped_byte_is_refused_or_another_manifest() -> None:
    """No change to any byte leaves the same manifest: an encoding has no slack."""
    made = publish(safetensors_blob())
    encoded = made.encode()
    for position in range(len(encoded)):
        changed = bytearray(encoded)
        changed[position] ^= 1
        try:
            other = Manifest.decode(bytes(changed))
        except (IntegrityError, PolicyError):
            continue
        assert replace(other).encode() == bytes(changed)


def test_manifests_above_the_limit_are_not_read() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return (256 << 20) + 1

    with pytest.raises(IntegrityError, match="limit"):
        Manifest.decode(Huge(b"megalfsM"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", IntegrityError),
        (b"[]", IntegrityError),
        (b"{}", PolicyError),
        (b'{"version":2}', PolicyError),
        (b'{"version":1,"x":1}', PolicyError),
        (b'{"version":1}', IntegrityError),
        (b'{"version":1,"version":1}', IntegrityError),
        (b'{"version":1,"size":NaN}', IntegrityError),
        (b"[" * 100_000, IntegrityError),
    ],
)
def test_bad_json_is_refused(text: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"length": 6},
        {"length": -5},
        {"length": 5.0},
        {"length": 1 << 40},
        {"sha256": "00"},
        {"blake3": "G" * 64},
        {"blake3": None},
        {"extra": 1},
    ],
)
def test_bad_json_chunks_are_refused(change: dict[str, Any]) -> None:
    fields = json.loads(made_up([5]).to_json())
    fields["chunks"][0].update(change)
    with pytest.raises(IntegrityError):
        Manifest.from_json(json.dumps(fields).encode())


def test_size_of_the_manifest_of_140_gb() -> None:
    """DESIGN.md 4.2: small enough to send. 560,000 chunks of 68 bytes, and 133,514 states of 32."""
    count, size = 560_000, 140_000_000_000
    rng = np.random.default_rng(3)
    states = rng.bytes(32 * state_count(size))
    made = Manifest(
        oid=Oid(bytes(32)),
        size=size,
        profile=DEFAULT_PROFILE.id,
        layout=Plain("unknown-format"),
        lengths=np.full(count, size // count, np.uint32),
        blake3=digests_from_bytes(rng.bytes(32 * count)),
        sha256=digests_from_bytes(rng.bytes(32 * count)),
        states=digests_from_bytes(states),
    )
    encoded = made.encode()
    print(f"manifest of {size} bytes: {len(encoded)} bytes, {count} chunks")
    assert len(encoded) - 68 * count - len(states) < 1024
    assert len(encoded) / count < 76
    read = Manifest.decode(encoded)
    assert np.shares_memory(read.sha256, np.frombuffer(encoded, np.uint8)), "columns are views, not copies"
    assert read.index_of_blake3(made.chunk_id(count - 1)) == count - 1
