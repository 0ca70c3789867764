"""Chunks follow regions, and any split of the input gives the same ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megalfs_ext
from megalfs.core.chunker import DEFAULT_PROFILE, Profile, RegionChunker, chunk_buffer, plan_layout, regions
from megalfs.errors import PolicyError
from megalfs.formats.layout import Layout, NeedMore, Plain

SMALL = Profile(min=1024, avg=4096, max=16384)


def noise(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def safetensors_blob(lengths: list[int], seed: int = 1) -> bytes:
    entries, end = [], 0
    for number, length in enumerate(lengths):
        entries.append(
            f'"{number}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{end},{end + length}]}}'
        )
        end += length
    header = ("{" + ",".join(entries) + "}").encode()
    return struct.pack("<Q", len(header)) + header + noise(end, seed)


def pushed(blob: bytes, region_ends: Sequence[int], profile: Profile, steps: list[int]) -> list[int]:
    """Shows the blob in windows whose sizes are `steps`, over and over; keeps what is not decided."""
    chunker = RegionChunker(region_ends, profile)
    found: list[int] = []
    stop = turn = 0
    while stop < len(blob) or not turn:
        stop = min(len(blob), stop + steps[turn % len(steps)])
        turn += 1
        start = chunker.position
        ends = chunker.push(memoryview(blob)[start:stop], start, is_final=stop == len(blob))
        found += ends.tolist()
    assert chunker.position == len(blob)
    return found


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 200_000),
    cuts=st.lists(st.integers(1, 199_999), max_size=20),
    tiny=st.booleans(),
    steps=st.lists(st.integers(1, 50_000), min_size=1, max_size=5),
)
def test_any_split_gives_the_same_chunks(size: int, cuts: list[int], tiny: bool, steps: list[int]) -> None:
    blob = noise(size) if size % 3 else bytes(size)  # zeros: only the maximum cuts
    cuts += range(5000, 5100) if tiny else []
    region_ends = sorted({cut for cut in [*cuts, size] if 0 < cut <= size})
    whole = pushed(blob, region_ends, SMALL, [max(size, 1)])
    assert pushed(blob, region_ends, SMALL, steps) == whole
    expected: list[int] = []
    start = 0
    for end in region_ends:  # each region is a blob of its own
        cut = megalfs_ext.cut_points(blob[start:end], 1024, 4096, 16384)
        expected += (cut + np.uint64(start)).tolist()
        start = end
    assert whole == expected


def test_byte_by_byte() -> None:
    blob = noise(40_000)
    region_ends = [100, 101, 30_000, 40_000]
    assert pushed(blob, region_ends, SMALL, [1]) == pushed(blob, region_ends, SMALL, [40_000])


def test_a_window_of_the_largest_chunk_always_decides() -> None:
    blob = bytes(200_000)
    chunker = RegionChunker([200_000], SMALL)
    assert chunker.push(blob[: SMALL.max - 1], 0, is_final=False).tolist() == []
    assert chunker.push(blob[: SMALL.max], 0, is_final=False).tolist() == [SMALL.max]


def test_tensors_start_chunks() -> None:
    blob = safetensors_blob([70_000, 1, 0, 300_000, 5])
    ends, layout = chunk_buffer(blob)
    assert isinstance(layout, Layout)
    cuts = {tensor.offset for tensor in layout.tensors} | {len(blob)}
    assert cuts <= set(ends.tolist())
    assert int(np.diff(ends, prepend=np.uint64(0)).max()) <= DEFAULT_PROFILE.max


def test_reordered_tensors_share_their_chunks() -> None:
    parts = [noise(400_000, seed) for seed in range(4)]

    def ids(order: list[int]) -> set[bytes]:
        blob = safetensors_blob([400_000] * 4)
        blob = blob[: len(blob) - 1_600_000] + b"".join(parts[i] for i in order)
        ends, _ = chunk_buffer(blob)
        raw = megalfs_ext.blake3_many(blob, ends)
        return {raw[i : i + 32] for i in range(0, len(raw), 32)}

    assert len(ids([0, 1, 2, 3]) ^ ids([2, 0, 3, 1])) == 0


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536])
def test_a_small_blob_is_one_chunk_whatever_it_holds(size: int) -> None:
    blob = (safetensors_blob([60_000]) + bytes(65_536))[:size]
    ends, layout = chunk_buffer(blob)
    assert layout == Plain("small")
    assert ends.tolist() == ([size] if size else [])


def test_one_byte_more_is_not_small() -> None:
    blob = safetensors_blob([65_537])
    assert isinstance(plan_layout(blob, len(blob), DEFAULT_PROFILE), Layout)
    assert isinstance(plan_layout(blob[:5], len(blob), DEFAULT_PROFILE), NeedMore)


def test_many_tiny_regions_are_one_chunk_each() -> None:
    blob = safetensors_blob([3] * 50_000)
    ends, layout = chunk_buffer(blob)
    assert isinstance(layout, Layout)
    tensor_ends = ends[ends > layout.header_bytes]
    assert tensor_ends.tolist() == [t.offset + t.length for t in layout.tensors]
    assert regions(layout, len(blob), DEFAULT_PROFILE.avg).tolist()[1:] == tensor_ends.tolist()


@pytest.mark.parametrize("profile", [DEFAULT_PROFILE, SMALL, Profile(min=1 << 20, avg=1 << 22, max=1 << 24)])
def test_profile_ids(profile: Profile) -> None:
    assert Profile.parse(profile.id) == profile


def test_the_default_profile_is_the_promised_one() -> None:
    assert DEFAULT_PROFILE.id == "tensor-fastcdc-64-256-1024/1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tensor-fastcdc-64-256-1024/2",
        "tensor-fastcdc-64-256-1024",
        "fastcdc-64-256-1024/1",
        "tensor-fastcdc-064-256-1024/1",
        "tensor-fastcdc-256-256-1024/1",
        "tensor-fastcdc-64-256-16385/1",
        "tensor-fastcdc-64-255-1024/1",
        "tensor-fastcdc-64-8192-16384/1",
        "tensor-fastcdc-0-256-1024/1",
        "tensor-fastcdc-1025-2048-4096/1",
        "tensor-fastcdc-64-256-1024/1\n",
        "x" * 5000,
    ],
)
def test_unknown_profiles_need_an_upgrade(text: str) -> None:
    with pytest.raises(PolicyError):
        Profile.parse(text)
