"""Cut points: the published answers, and every kernel against the definition and against pyfastcdc.

The golden values here never change: a changed cut is another chunk id on every machine.
"""

import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

import megalfs_ext
from megalfs_ext import reference

KERNELS = megalfs_ext.kernels("cdc")
COMPILED = [name for name in KERNELS if name != "reference"]
KIB = 1024
SEVERAL_PROFILES = ((16 * KIB, 64 * KIB, 256 * KIB), (64 * KIB, 256 * KIB, 1024 * KIB))
VECTORS = json.loads((Path(__file__).parent / "vectors" / "cdc.json").read_text())
FUZZ_CASES = int(os.environ.get("MEGALFS_FUZZ_CASES", "300"))


def splitmix64(seed: int, size: int) -> bytes:
    """Vigna's generator as a little-endian stream; seed 0 has the digest that cdc.md section 2 gives."""
    steps = np.arange(1, (size + 7) // 8 + 1, dtype=np.uint64)
    z = np.uint64(seed) + steps * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).astype("<u8").tobytes()[:size]


def bfloat16_weights(seed: int, size: int) -> bytes:
    values = np.random.default_rng(seed).normal(0, 0.02, size // 2 + 1).astype("<f4")
    return values.view("<u2")[1::2].tobytes()[:size]


STREAMS = {seed: splitmix64(seed, 4_000_000) for seed in (0, 1)}


def test_gear_is_md5_of_equal_bytes():
    assert reference.GEAR[0] == 0x3B5D3C7D207E37DC
    assert reference.GEAR[1] == 0x784D68BA91123086
    assert reference.GEAR[255] == 0xAABD2B2A451504E1


def test_masks_are_the_published_ones():
    assert {str(bits): f"{mask:x}" for bits, mask in reference.MASKS.items()} == VECTORS["masks"]


def test_stream_is_the_published_one():
    assert hashlib.sha256(STREAMS[0]).hexdigest().startswith("2cfccfd7f08d1eea")


@pytest.mark.parametrize("kernel", COMPILED)
@pytest.mark.parametrize("answer", VECTORS["splitmix64"], ids=lambda answer: answer["id"])
def test_known_answers(kernel, answer):
    cuts = megalfs_ext.cut_points(
        STREAMS[answer["seed"]], *(KIB * size for size in answer["kib"]), kernel=kernel
    )
    assert cuts.dtype == np.uint64
    assert cuts[: len(answer["first"])].tolist() == answer["first"]
    assert len(cuts) == answer["count"]
    assert hashlib.sha256(cuts.astype("<u8").tobytes()).hexdigest().startswith(answer["sha256"])


def test_reference_gives_a_known_answer():
    cuts = megalfs_ext.cut_points(STREAMS[1][:400_000], 64 * KIB, 256 * KIB, 1024 * KIB, kernel="reference")
    assert cuts.tolist() == [278755, 367399, 400_000]


@pytest.mark.parametrize("kernel", KERNELS)
def test_zeros_cut_at_max(kernel):
    cuts = megalfs_ext.cut_points(bytes(10240), 64, 256, 1024, kernel=kernel)
    assert cuts.tolist() == [1024 * i for i in range(1, 11)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_boundary_sizes(kernel):
    minimum, average, maximum = 64, 256, 1024
    limits = (0, minimum, average, maximum, 2 * maximum, 48, 128, 512, 4096)
    for size in sorted({max(limit + d, 0) for limit in limits for d in (-2, -1, 0, 1, 2)}):
        buffer = STREAMS[0][7 : 7 + size]
        expected = reference.cut_points(buffer, minimum, average, maximum, 1, 1)
        cuts = megalfs_ext.cut_points(buffer, minimum, average, maximum, kernel=kernel)
        assert cuts.astype("<u8").tobytes() == expected, size


@pytest.mark.parametrize("kernel", COMPILED)
@pytest.mark.parametrize(
    "odd", [(64, 256, 1024), (65, 257, 1025), (1001, 3001, 9001), (4097, 70_001, 200_003)]
)
@pytest.mark.parametrize("normalization", range(4))
def test_kernels_equal_reference(kernel, odd, normalization):
    """Odd bounds, every normalisation; averages on both sides of the masks that VBMI takes itself."""
    for buffer in (STREAMS[0][:150_001], bfloat16_weights(1, 60_000), bytes([255]) * 30_000):
        expected = reference.scan(buffer, *odd, normalization, is_final=True)
        assert (
            megalfs_ext.scan(buffer, *odd, normalization=normalization, is_final=True, kernel=kernel)
            == expected
        )


@pytest.mark.parametrize("kernel", COMPILED)
def test_every_alignment_of_one_buffer(kernel):
    for start in range(70):
        buffer = memoryview(STREAMS[0])[start : start + 40_000]
        expected = megalfs_ext.scan(buffer, 512, 2048, 8192, is_final=True, kernel="portable")
        assert megalfs_ext.scan(buffer, 512, 2048, 8192, is_final=True, kernel=kernel) == expected, start


@pytest.mark.parametrize("kernel", COMPILED)
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_nothing(kernel, threads):
    for stream in STREAMS.values():
        for sizes in (*SEVERAL_PROFILES, (64, 256, 1024)):
            expected = megalfs_ext.cut_points(stream, *sizes, kernel=kernel)
            cuts = megalfs_ext.cut_points(stream, *sizes, kernel=kernel, threads=threads)
            np.testing.assert_array_equal(cuts, expected)


@pytest.mark.parametrize("threads", [2, 64])
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 2047, 2048, 2049, 65537, 1_000_000])
def test_threads_on_small_and_periodic_buffers(threads, size):
    """Zeros never resynchronise unless the offsets agree, the worst case of joining."""
    for buffer in (bytes(size), STREAMS[0][:size]):
        expected = megalfs_ext.cut_points(buffer, 64, 256, 1024)
        np.testing.assert_array_equal(
            megalfs_ext.cut_points(buffer, 64, 256, 1024, threads=threads), expected
        )


def stream_in_parts(buffer: bytes, sizes: tuple[int, int, int], splits: list[int], kernel: str) -> list[int]:
    tail, at, ends = b"", 0, []
    for start, stop in zip([0, *splits], [*splits, len(buffer)], strict=True):
        tail += buffer[start:stop]
        is_final = stop == len(buffer)
        found = np.frombuffer(
            megalfs_ext.scan(tail, *sizes, is_final=is_final, kernel=kernel), "<u8"
        ).tolist()
        ends += [at + end for end in found]
        if found:
            at, tail = at + found[-1], tail[found[-1] :]
        assert len(tail) < sizes[2], "a decided chunk was kept back"
    return ends


@pytest.mark.parametrize("kernel", KERNELS)
def test_byte_by_byte_is_the_whole(kernel):
    sizes, buffer = (64, 256, 1024), STREAMS[1][:2600]
    expected = megalfs_ext.cut_points(buffer, *sizes, kernel=kernel).tolist()
    assert stream_in_parts(buffer, sizes, list(range(1, len(buffer))), kernel) == expected


@pytest.mark.parametrize("kernel", COMPILED)
def test_every_split_is_the_whole(kernel):
    sizes = (64, 256, 1024)
    buffer = STREAMS[1][:6000]
    expected = megalfs_ext.cut_points(buffer, *sizes, kernel=kernel).tolist()
    for split in range(len(buffer) + 1):
        assert stream_in_parts(buffer, sizes, [split], kernel) == expected, split


@pytest.mark.parametrize("kernel", COMPILED)
def test_random_splits_are_the_whole(kernel):
    rng = random.Random(5)
    buffer = STREAMS[0][:1_500_000]
    sizes = (16 * KIB, 64 * KIB, 256 * KIB)
    expected = megalfs_ext.cut_points(buffer, *sizes, kernel=kernel).tolist()
    for _ in range(10):
        splits = sorted(rng.randrange(len(buffer)) for _ in range(rng.randrange(1, 12)))
        assert stream_in_parts(buffer, sizes, splits, kernel) == expected, splits


def test_fuzz_against_pyfastcdc():
    """Any buffer and any parameters give the cuts of an independent port of fastcdc-rs, with every kernel."""
    pyfastcdc = pytest.importorskip(
        "pyfastcdc", reason="pyfastcdc, the oracle of published cuts, is not installed"
    )
    rng = random.Random(2020)
    pools = (*STREAMS.values(), bfloat16_weights(2, 3_000_000), bytes(3_000_000))
    for case in range(FUZZ_CASES):
        pool = rng.choice(pools)
        size = int(2 ** rng.uniform(0, 21.5))
        start = rng.randrange(max(len(pool) - size, 1))
        buffer = pool[start : start + size]
        average = int(2 ** rng.uniform(8, 18))
        minimum = min(max(64, int(average * rng.uniform(0.1, 1))), average, 1 << 20)
        maximum = max(1 << 10, int(average * rng.uniform(1, 6)))
        normalization = rng.randrange(4)
        chunker = pyfastcdc.FastCDC(
            avg_size=average, min_size=minimum, max_size=maximum, normalized_chunking=normalization
        )
        expected = [chunk.offset + chunk.length for chunk in chunker.cut_buf(buffer)]
        for kernel in COMPILED:
            cuts = megalfs_ext.cut_points(
                buffer,
                minimum,
                average,
                maximum,
                normalization=normalization,
                kernel=kernel,
                threads=1 + case % 3,
            )
            assert cuts.tolist() == expected, (case, kernel, minimum, average, maximum, normalization)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "sizes",
    [
        (63, 256, 1024),
        ((1 << 20) + 1, 4 << 20, 16 << 20),
        (64, 255, 1024),
        (64, (4 << 20) + 1, 16 << 20),
        (64, 256, 1023),
        (64, 256, (16 << 20) + 1),
        (257, 256, 1024),
        (64, 2048, 1024),
        (0, 0, 0),
        (-64, 256, 1024),
        (64, 256, -1),
    ],
)
def test_sizes_out_of_their_limits_are_refused(kernel, sizes):
    with pytest.raises(ValueError, match=r"min|avg|max"):
        megalfs_ext.cut_points(b"", *sizes, kernel=kernel)
    with pytest.raises(ValueError, match=r"min|avg|max"):
        megalfs_ext.scan(b"", *sizes, is_final=True, kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_limits_themselves_are_taken(kernel):
    assert megalfs_ext.cut_points(b"abc", 64, 256, 1024, kernel=kernel).tolist() == [3]
    assert megalfs_ext.cut_points(
        b"abc", 1 << 20, 4 << 20, 16 << 20, normalization=3, kernel=kernel
    ).tolist() == [3]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("normalization", [-1, 4])
def test_normalization_out_of_its_limits_is_refused(kernel, normalization):
    with pytest.raises(ValueError, match="normalization"):
        megalfs_ext.cut_points(b"", 64, 256, 1024, normalization=normalization, kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [0, -1, 65])
def test_threads_out_of_their_limits_are_refused(kernel, threads):
    with pytest.raises(ValueError, match="threads"):
        megalfs_ext.cut_points(b"", 64, 256, 1024, threads=threads, kernel=kernel)


def test_strided_buffers_are_refused():
    strided = memoryview(bytes(4096))[::2]
    with pytest.raises(BufferError):
        megalfs_ext.cut_points(strided, 64, 256, 1024, kernel="portable")
