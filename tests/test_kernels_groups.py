"""BLAKE3 in groups of 64 KiB: every kernel and the reference against PyPI blake3, and each other where it has no word.

PyPI blake3 has no chaining values of subtrees. That those of a whole chunk are right follows from their join, which is
its digest; those of parts are then slices of these.
"""

import random
from itertools import pairwise

import numpy as np
import pytest
from blake3 import blake3

import megalfs_ext
from megalfs_ext import GROUP_BYTES

KERNELS = megalfs_ext.kernels("blake3")
COMPILED = [name for name in KERNELS if name != "reference"]
MIB = 1 << 20
RANDOM = np.random.default_rng(2).bytes(9 * MIB)
LEAF_BYTES = 1024
# Around groups, leaves and blocks; 4 MiB are as many leaves as the kernels take at once.
SIZES = sorted(
    {
        limit + d
        for limit in (
            *(n * GROUP_BYTES for n in (2, 3, 4, 5, 16, 63, 64, 65, 128)),
            *(GROUP_BYTES + n * LEAF_BYTES for n in (1, 2, 3, 8, 15, 16, 17, 33, 63)),
            4 * MIB + LEAF_BYTES,
            4 * MIB + 2 * LEAF_BYTES,
        )
        for d in (-1, 0, 1)
    }
    | {GROUP_BYTES + n for n in (1, 63, 64, 65, 1000)}
)


def groups_of(size: int, offset: int = 0, kernel: str | None = None) -> bytes:
    return megalfs_ext.blake3_groups(memoryview(RANDOM)[:size], offset, kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_join_of_all_groups_is_the_digest(kernel):
    rng = random.Random(1)
    for size in (*SIZES, *(rng.randrange(GROUP_BYTES + 1, 2 * MIB) for _ in range(30)), len(RANDOM)):
        values = groups_of(size, kernel=kernel)
        assert len(values) == 32 * -(-size // GROUP_BYTES)
        assert megalfs_ext.blake3_join(values, kernel=kernel) == blake3(RANDOM[:size]).digest(), size


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_official_vector(kernel):
    """BLAKE3's test_vectors.json has one input of more than a group: bytes 0 to 250, repeated."""
    chunk = bytes(i % 251 for i in range(102_400))
    digest = megalfs_ext.blake3_join(megalfs_ext.blake3_groups(chunk, kernel=kernel), kernel=kernel)
    assert digest.hex() == "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"


@pytest.mark.parametrize("kernel", KERNELS)
def test_groups_of_a_part_are_those_of_the_whole(kernel):
    rng = random.Random(2)
    for size in (GROUP_BYTES + 1, 3 * GROUP_BYTES, 10 * GROUP_BYTES + 1025, 70 * GROUP_BYTES + 5):
        whole = groups_of(size)
        count = len(whole) // 32
        cuts = sorted({0, 1, count - 1, count, *(rng.randrange(count) for _ in range(4))})
        for first, end in pairwise(cuts):
            part = memoryview(RANDOM)[first * GROUP_BYTES : min(end * GROUP_BYTES, size)]
            values = megalfs_ext.blake3_groups(part, first * GROUP_BYTES, kernel=kernel)
            assert values == whole[32 * first : 32 * end], (size, first, end)


@pytest.mark.parametrize("kernel", COMPILED)
def test_groups_equal_the_reference_at_every_offset(kernel):
    """From where the numbers of leaves fill a word, and at the end of what can be named."""
    word = LEAF_BYTES << 32
    for offset in (0, GROUP_BYTES, word - GROUP_BYTES, word, 3 * word, 2**63 - GROUP_BYTES):
        for size in (0, 1, 1023, 1024, 1025, 5000, 17 * 1024 + 63, 65_535, 65_536, 65_537, 200_000):
            expected = groups_of(size, offset, "reference")
            assert groups_of(size, offset, kernel) == expected, (offset, size)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_group_has_another_value_elsewhere(kernel):
    offsets = [0, *(GROUP_BYTES << n for n in range(47))]
    for size in (1, 1024, 5000):
        assert len({groups_of(size, offset, kernel) for offset in offsets}) == len(offsets)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_value_of_an_only_group_is_not_the_digest(kernel):
    for size in (1, 64, 1024, 1025, 2048, 65_535, 65_536):
        values = groups_of(size, kernel=kernel)
        assert len(values) == 32
        assert values != blake3(RANDOM[:size]).digest(), size


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_bytes_have_no_groups(kernel):
    assert groups_of(0, kernel=kernel) == b""
    assert groups_of(0, 5 * GROUP_BYTES, kernel) == b""


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_bit_changes_the_value_of_its_group_alone(kernel):
    size = 3 * GROUP_BYTES + 1
    right = groups_of(size, kernel=kernel)
    for place in (0, GROUP_BYTES - 1, GROUP_BYTES, 2 * GROUP_BYTES + 5000, 3 * GROUP_BYTES):
        chunk = bytearray(RANDOM[:size])
        chunk[place] ^= 1
        values = megalfs_ext.blake3_groups(chunk, kernel=kernel)
        differ = [k for k in range(4) if values[32 * k : 32 * k + 32] != right[32 * k : 32 * k + 32]]
        assert differ == [place // GROUP_BYTES]


@pytest.mark.parametrize("kernel", COMPILED)
def test_joins_equal_the_reference_up_to_the_most(kernel):
    for count in (*range(2, 71), 127, 128, 129, 1000, 4095, 4096):
        values = RANDOM[: 32 * count]
        expected = megalfs_ext.blake3_join(values, kernel="reference")
        assert megalfs_ext.blake3_join(values, kernel=kernel) == expected, count


@pytest.mark.parametrize("kernel", KERNELS)
def test_offsets_where_no_group_starts_are_refused(kernel):
    for offset in (
        1,
        1024,
        GROUP_BYTES - 1,
        GROUP_BYTES + 1,
        -1,
        -GROUP_BYTES,
        2**63,
        2**64,
        2**64 + GROUP_BYTES,
    ):
        with pytest.raises(ValueError, match=f"offset must be .*, not {offset}$"):
            groups_of(100, offset, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_joins_of_too_few_too_many_and_broken_values_are_refused(kernel):
    for size in (0, 1, 31, 32, 33, 63, 65, 32 * 4096 + 1, 32 * 4097):
        with pytest.raises(ValueError, match=f"2 to 4096 values of 32 bytes, not {size} bytes"):
            megalfs_ext.blake3_join(bytes(size), kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_contiguous_buffer_is_taken_and_no_other(kernel):
    raw = RANDOM[: GROUP_BYTES + 1000]
    values, digest = megalfs_ext.blake3_groups(raw), blake3(raw).digest()
    words = np.frombuffer(raw, np.uint32)
    for buffer in (bytearray(raw), memoryview(raw), words, words.reshape(2, -1)):
        assert megalfs_ext.blake3_groups(buffer, kernel=kernel) == values
    for buffer in (bytearray(values), memoryview(values), np.frombuffer(values, np.uint64).reshape(4, 2)):
        assert megalfs_ext.blake3_join(buffer, kernel=kernel) == digest
    for call in (megalfs_ext.blake3_groups, megalfs_ext.blake3_join):
        for buffer in (memoryview(bytes(256))[::2], words[:32:2]):
            with pytest.raises((TypeError, ValueError, BufferError), match=r"contiguous|C-contiguous"):
                call(buffer, kernel=kernel)
