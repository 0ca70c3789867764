"""SHA-256 and BLAKE3: every kernel against hashlib, PyPI blake3 and a compression function written here.

Chaining states are what a file's proof rests on, so they are checked against FIPS 180-4 spelled out in this
file, which shares nothing with the kernels or with reference.py.
"""

import errno
import hashlib
import math
import os
import random
import struct

import numpy as np
import pytest
from blake3 import blake3

import megalfs_ext
from megalfs_ext import INITIAL_STATE, SEGMENT_BYTES, ChainHasher

SHA256 = megalfs_ext.kernels("sha256")
BLAKE3 = megalfs_ext.kernels("blake3")
SHA256_COMPILED = [name for name in SHA256 if name != "reference"]
BLAKE3_COMPILED = [name for name in BLAKE3 if name != "reference"]
# One segment takes the reference some seconds, so it is asked about as few as a test can do with.
RANDOM = np.random.default_rng(1).bytes(5 * SEGMENT_BYTES + 12345)
SIZES = sorted(
    {
        max(limit + d, 0)
        for limit in (
            64,
            128,
            1024,
            2048,
            3072,
            4096,
            8192,
            15 * 1024,
            16384,
            17 * 1024,
            31 * 1024,
            32768,
            65536,
        )
        for d in (-1, 0, 1)
    }
    | {262_143, 262_144, 262_145, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1}
)


def le64(values) -> bytes:
    return b"".join(int(value).to_bytes(8, "little") for value in values)


def split(buffer, ends):
    return [buffer[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def random_ends(rng: random.Random, size: int, count: int) -> list[int]:
    return [*sorted(rng.randrange(size + 1) for _ in range(count)), size]


PRIMES = [n for n in range(2, 312) if all(n % d for d in range(2, math.isqrt(n) + 1))]
# 53 bits of a root below 7 leave 50 for its fraction, of which 32 are used.
CUBE_ROOTS = [int(math.cbrt(prime) % 1 * 2**32) for prime in PRIMES]


def fips_180_4_compress(state: bytes, block: bytes) -> bytes:
    """One block of SHA-256, from the standard's text: section 6.2.2, functions 4.1.2, constants 4.2.2."""

    def rotr(x, n):
        return (x >> n) | (x << (32 - n)) & 0xFFFFFFFF

    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        sigma0 = rotr(w[t - 15], 7) ^ rotr(w[t - 15], 18) ^ (w[t - 15] >> 3)
        sigma1 = rotr(w[t - 2], 17) ^ rotr(w[t - 2], 19) ^ (w[t - 2] >> 10)
        w.append((sigma1 + w[t - 7] + sigma0 + w[t - 16]) % 2**32)
    a, b, c, d, e, f, g, h = before = struct.unpack(">8I", state)
    for t in range(64):
        t1 = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) + CUBE_ROOTS[t] + w[t]
        t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))
        a, b, c, d, e, f, g, h = (t1 + t2) % 2**32, a, b, c, (d + t1) % 2**32, e, f, g
    after = (a, b, c, d, e, f, g, h)
    return struct.pack(">8I", *((x + y) % 2**32 for x, y in zip(before, after, strict=True)))


def chain(buffer: bytes, kernel: str) -> bytes:
    """All states of a file that has `buffer`, the initial one first."""
    hasher = ChainHasher(kernel=kernel)
    hasher.update(buffer, le64([len(buffer)]))
    return INITIAL_STATE + hasher.states()


# ---- SHA-256 ----


@pytest.mark.parametrize("kernel", SHA256)
def test_sha256_of_every_length(kernel):
    for size in (*range(301), *SIZES):
        assert megalfs_ext.sha256(RANDOM[:size], kernel=kernel) == hashlib.sha256(RANDOM[:size]).digest(), (
            size
        )


@pytest.mark.parametrize("kernel", SHA256)
def test_sha256_many_equals_hashlib(kernel):
    rng = random.Random(1)
    layouts = [[], [0], [0, 0, 0], [1], [64], [64, 128], [55, 111, 168, 240], list(range(301))]
    layouts += [random_ends(rng, 300_000, count) for count in (1, 2, 3, 50)]
    layouts += [[5, 5, 2_000_000, 2_000_001], [2_000_000, 2_000_001, 2_000_001]]
    for ends in layouts:
        expected = b"".join(hashlib.sha256(chunk).digest() for chunk in split(RANDOM, ends)) if ends else b""
        assert megalfs_ext.sha256_many(RANDOM, le64(ends), kernel=kernel) == expected, ends


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
def test_two_lanes_of_all_pairs_of_block_counts(kernel):
    for first in range(0, 260, 13):
        for second in range(0, 260, 7):
            ends = [first, first + second]
            expected = b"".join(hashlib.sha256(chunk).digest() for chunk in split(RANDOM, ends))
            assert megalfs_ext.sha256_many(RANDOM, le64(ends), kernel=kernel) == expected, ends


@pytest.mark.parametrize("kernel", SHA256)
def test_chain_hasher_equals_hashlib_over_random_chunks(kernel):
    """The same bytes under any chunking and any calls give the chunks' and the file's own SHA-256."""
    rng = random.Random(2)
    for _ in range(30 if kernel != "reference" else 3):
        size = rng.randrange(40_000)
        hasher, at = ChainHasher(kernel=kernel), 0
        while at < size:
            taken = min(rng.choice((1, 3, 63, 64, 65, 127, 1000, 9000)), size - at)
            buffer = memoryview(RANDOM)[at : at + taken]
            ends = random_ends(rng, taken, rng.randrange(4))
            expected = b"".join(hashlib.sha256(chunk).digest() for chunk in split(buffer, ends))
            assert hasher.update(buffer, np.array(ends, dtype=np.uint64)) == expected
            at += taken
        assert hasher.digest() == hashlib.sha256(RANDOM[:size]).digest()
        assert hasher.states() == b""


@pytest.mark.parametrize("kernel", SHA256)
def test_chain_hasher_of_nothing(kernel):
    hasher = ChainHasher(kernel=kernel)
    assert hasher.update(b"", b"") == b""
    assert hasher.update(b"", le64([0])) == hashlib.sha256(b"").digest()
    assert hasher.digest() == hashlib.sha256(b"").digest()
    assert hasher.states() == b""


@pytest.fixture(scope="module")
def standard_state() -> bytes:
    """The state after the first segment of RANDOM."""
    state = INITIAL_STATE
    for at in range(0, SEGMENT_BYTES, 64):
        state = fips_180_4_compress(state, RANDOM[at : at + 64])
    return state


@pytest.mark.parametrize("kernel", SHA256)
def test_states_are_those_of_the_standard(kernel, standard_state):
    assert chain(RANDOM[: SEGMENT_BYTES + 1], kernel)[32:] == standard_state


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
def test_states_do_not_depend_on_the_calls(kernel):
    rng = random.Random(3)
    expected = chain(RANDOM, kernel)
    for _ in range(5):
        hasher, at = ChainHasher(kernel=kernel), 0
        while at < len(RANDOM):
            taken = min(rng.choice((1, 63, 100_000, SEGMENT_BYTES, 3_000_000)), len(RANDOM) - at)
            hasher.update(memoryview(RANDOM)[at : at + taken], le64(random_ends(rng, taken, 3)))
            at += taken
            count = -(-at // SEGMENT_BYTES) - 1
            assert hasher.states() == expected[32 : 32 + 32 * count], at
        assert INITIAL_STATE + hasher.states() == expected


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_state_at_the_very_end_is_not_recorded(kernel, extra):
    hasher = ChainHasher(kernel=kernel)
    hasher.update(RANDOM[: SEGMENT_BYTES + extra], le64([SEGMENT_BYTES + extra]))
    assert len(hasher.states()) == (32 if extra > 0 else 0)
    hasher.update(b"x", le64([1]))
    assert len(hasher.states()) == (32 if extra >= 0 else 0)


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_segments_hold_and_tampered_ones_are_named(kernel, count):
    states = chain(RANDOM, kernel)[: 32 * (count + 1)]
    buffer = bytearray(RANDOM[: count * SEGMENT_BYTES])
    assert megalfs_ext.verify_segments(buffer, states, kernel=kernel) == []
    for k in range(count):
        for place in (k * SEGMENT_BYTES, (k + 1) * SEGMENT_BYTES - 1):
            buffer[place] ^= 0x80
            assert megalfs_ext.verify_segments(buffer, states, kernel=kernel) == [k]
            buffer[place] ^= 0x80
    for k in range(count + 1):
        wrong = bytearray(states)
        wrong[32 * k + 31] ^= 1
        expected = [link for link in (k - 1, k) if 0 <= link < count]
        assert megalfs_ext.verify_segments(buffer, wrong, kernel=kernel) == expected


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
@pytest.mark.parametrize("count", [11, 12, 13, 15, 16, 17, 19, 32, 33])
def test_many_segments_in_any_order_share_the_lanes(kernel, count):
    """Around the sixteen lanes of AVX-512, and what is left for pairs behind them."""
    order = random.Random(count).choices(range(5), k=count)
    states = chain(RANDOM, kernel)
    buffer = bytearray().join(RANDOM[k * SEGMENT_BYTES : (k + 1) * SEGMENT_BYTES] for k in order)
    before = bytearray().join(states[32 * k : 32 * k + 32] for k in order)
    after = b"".join(states[32 * k + 32 : 32 * k + 64] for k in order)
    assert megalfs_ext.verify_links(buffer, before, after, kernel=kernel) == []
    wrong = sorted({0, count // 2, count - 1})
    for k in wrong:
        buffer[(k + 1) * SEGMENT_BYTES - 1] ^= 1
    assert megalfs_ext.verify_links(buffer, before, after, kernel=kernel) == wrong
    before[0] ^= 1
    with pytest.raises(ValueError, match="states after must be"):
        megalfs_ext.verify_links(buffer, before, after[:-1], kernel=kernel)


SLICE_BYTES = 32 << 10  # of a segment that is read from a file


@pytest.fixture
def segments_of(tmp_path):
    """Writes a file that starts like RANDOM; returns its descriptor and its segments' offsets and states."""
    opened = []

    def make(size):
        path = tmp_path / str(len(opened))
        path.write_bytes(RANDOM[:size])
        opened.append(os.open(path, os.O_RDWR))
        count = max(1, -(-size // SEGMENT_BYTES))
        links = (
            chain(RANDOM[: (count - 1) * SEGMENT_BYTES + 1], "portable")
            + hashlib.sha256(RANDOM[:size]).digest()
        )
        offsets = [k * SEGMENT_BYTES for k in range(count)]
        return opened[-1], offsets, [links[32 * k : 32 * k + 64] for k in range(count)]

    yield make
    for fd in opened:
        os.close(fd)


def verify_file(fd, size, offsets, links, **options):
    before, after = b"".join(link[:32] for link in links), b"".join(link[32:] for link in links)
    return megalfs_ext.verify_file_links(fd, size, le64(offsets), before, after, **options)


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
def test_segments_of_a_file_of_every_length(kernel, segments_of):
    """Around a block, its padding, a slice and a segment, up to a last segment that stands behind others."""
    limits = (0, 55, 64, 119, 128, SLICE_BYTES, 2 * SLICE_BYTES, SEGMENT_BYTES, 2 * SEGMENT_BYTES)
    for size in sorted({max(limit + d, 0) for limit in limits for d in (-1, 0, 1)} | {len(RANDOM)}):
        fd, offsets, links = segments_of(size)
        assert verify_file(fd, size, offsets, links, kernel=kernel) == [], size
        for k in range(len(offsets)):
            assert verify_file(fd, size, offsets[k:], links[k:], kernel=kernel) == [], (size, k)
        links[-1] = links[-1][:-1] + bytes([links[-1][-1] ^ 1])
        assert verify_file(fd, size, offsets, links, kernel=kernel) == [len(offsets) - 1], size


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 11, 12, 13, 15, 16, 17, 33])
def test_segments_of_a_file_in_any_order(kernel, count, segments_of):
    """Tampered ones are named, wherever they and the short last segment fall among the lanes."""
    rng = random.Random(count)
    size = len(RANDOM)
    fd, offsets, links = segments_of(size)
    order = rng.choices(range(len(offsets)), k=count)
    chosen, claimed = [offsets[k] for k in order], [links[k] for k in order]
    assert verify_file(fd, size, chosen, claimed, kernel=kernel) == []
    for bad in range(len(offsets)):
        place = rng.randrange(offsets[bad], min(offsets[bad] + SEGMENT_BYTES, size))
        os.pwrite(fd, bytes([RANDOM[place] ^ 1]), place)
        found = verify_file(fd, size, chosen, claimed, kernel=kernel)
        assert found == [i for i, k in enumerate(order) if k == bad], place
        os.pwrite(fd, RANDOM[place : place + 1], place)


def test_reference_proves_segments_of_a_file(segments_of):
    for size in (0, 1, 64, 100):
        fd, offsets, links = segments_of(size)
        assert verify_file(fd, size, offsets, links, kernel="reference") == []
        assert verify_file(fd, size, offsets, [INITIAL_STATE * 2], kernel="reference") == [0]
    fd, offsets, links = segments_of(SEGMENT_BYTES + 1)
    assert verify_file(fd, SEGMENT_BYTES + 1, offsets[::-1], links[::-1], kernel="reference") == []


@pytest.mark.parametrize("kernel", SHA256)
def test_segments_that_cannot_be_read(kernel, segments_of, tmp_path):
    size = 13 * SEGMENT_BYTES
    fd, offsets, links = segments_of(5000)
    for cut in (0, 4999):
        os.ftruncate(fd, cut)
        with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
            verify_file(fd, 5000, offsets, links, kernel=kernel)
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        verify_file(fd, size, range(0, size, SEGMENT_BYTES), links * 13, kernel=kernel)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            verify_file(directory, 5000, offsets, links, kernel=kernel)
    finally:
        os.close(directory)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        verify_file(-1, 5000, offsets, links, kernel=kernel)


@pytest.mark.parametrize("kernel", SHA256)
def test_offsets_where_no_segment_starts_are_refused(kernel, segments_of):
    fd, _, links = segments_of(100)
    for size, offset in (
        (100, 1),
        (100, SEGMENT_BYTES),
        (SEGMENT_BYTES, SEGMENT_BYTES),
        (0, SEGMENT_BYTES),
        (9, 2**63),
    ):
        with pytest.raises(ValueError, match=r"offset 0 is .*: no segment"):
            verify_file(fd, size, [offset], links, kernel=kernel)
    for size in (-1, 1 << 61):
        with pytest.raises(ValueError, match="no file has"):
            verify_file(fd, size, [0], links, kernel=kernel)
    with pytest.raises(ValueError, match="uint64"):
        megalfs_ext.verify_file_links(fd, 100, bytes(7), INITIAL_STATE, INITIAL_STATE, kernel=kernel)
    with pytest.raises(ValueError, match="states after must be"):
        megalfs_ext.verify_file_links(fd, 100, bytes(8), INITIAL_STATE, b"", kernel=kernel)
    with pytest.raises(ValueError, match="states before must be"):
        megalfs_ext.verify_file_links(fd, 100, bytes(8), INITIAL_STATE * 2, INITIAL_STATE, kernel=kernel)


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
def test_sixteen_lanes_of_all_mixes_of_lengths(kernel):
    rng = random.Random(16)
    for count in range(1, 40):
        for longest in (0, 1, 64, 130, 5000):
            lengths = [rng.randrange(longest + 1) for _ in range(count)]
            ends = [sum(lengths[: k + 1]) for k in range(count)]
            expected = b"".join(hashlib.sha256(chunk).digest() for chunk in split(RANDOM, ends))
            assert megalfs_ext.sha256_many(RANDOM, le64(ends), kernel=kernel) == expected, lengths


def test_reference_names_tampered_segments_too():
    states = chain(RANDOM, SHA256.default)[:96]
    buffer = RANDOM[:SEGMENT_BYTES] + bytes(SEGMENT_BYTES)
    assert megalfs_ext.verify_segments(buffer, states, kernel="reference") == [1]


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
def test_last_link_gives_the_digest(kernel):
    for size in (
        0,
        1,
        55,
        56,
        64,
        SEGMENT_BYTES - 1,
        SEGMENT_BYTES,
        SEGMENT_BYTES + 1,
        3 * SEGMENT_BYTES,
        len(RANDOM),
    ):
        states = chain(RANDOM[:size], kernel)
        count = len(states) // 32 - 1
        tail = RANDOM[count * SEGMENT_BYTES : size]
        digest = megalfs_ext.finish_segment(states[-32:], tail, size, kernel=kernel)
        assert digest == hashlib.sha256(RANDOM[:size]).digest(), size


def test_reference_last_link_gives_the_digest():
    for size in (0, 1, 55, 56, 119, 120, 1000):
        digest = megalfs_ext.finish_segment(INITIAL_STATE, RANDOM[:size], size, kernel="reference")
        assert digest == hashlib.sha256(RANDOM[:size]).digest(), size


@pytest.mark.parametrize("kernel", SHA256)
def test_links_with_wrong_sizes_are_refused(kernel):
    for tail_size, total in (
        (1, 0),
        (2, 1),
        (1, SEGMENT_BYTES),
        (SEGMENT_BYTES + 1, SEGMENT_BYTES + 1),
        (0, -1),
        (0, 1 << 61),
    ):
        with pytest.raises(ValueError, match="cannot end"):
            megalfs_ext.finish_segment(INITIAL_STATE, bytes(tail_size), total, kernel=kernel)
    for state in (b"", INITIAL_STATE[:-1], INITIAL_STATE + b"\0"):
        with pytest.raises(ValueError, match="32 bytes"):
            megalfs_ext.finish_segment(state, b"", 0, kernel=kernel)
    for size in (1, SEGMENT_BYTES - 1, SEGMENT_BYTES + 1):
        with pytest.raises(ValueError, match="whole segments"):
            megalfs_ext.verify_segments(bytes(size), INITIAL_STATE * 2, kernel=kernel)
    for states in (b"", INITIAL_STATE, INITIAL_STATE * 2 + b"\0", INITIAL_STATE * 3):
        with pytest.raises(ValueError, match="states must be 64 bytes"):
            megalfs_ext.verify_segments(bytes(SEGMENT_BYTES), states, kernel=kernel)


@pytest.mark.parametrize("kernel", SHA256)
def test_chunks_that_do_not_fit_the_buffer_are_refused_by_the_chain(kernel):
    hasher = ChainHasher(kernel=kernel)
    for ends in ([101], [60, 40], [60, 40, 100]):
        with pytest.raises(ValueError, match="end"):
            hasher.update(bytes(100), le64(ends))
    assert hasher.digest() == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("kernel", SHA256)
def test_the_chain_takes_what_lies_behind_the_chunks(kernel):
    hasher = ChainHasher(kernel=kernel)
    assert 0 <= hasher.chunk_share <= 1
    for ends in ([], [0], [1], [64, 99], [100], [3, 70, 70]):
        expected = b"".join(hashlib.sha256(chunk).digest() for chunk in split(RANDOM, ends)) if ends else b""
        assert hasher.update(RANDOM[:100], le64(ends)) == expected, ends
    assert hasher.digest() == hashlib.sha256(RANDOM[:100] * 6).digest()


@pytest.mark.parametrize("kernel", SHA256_COMPILED)
@pytest.mark.parametrize("count", [*range(11), 16, 40])
def test_chunks_beside_the_chain(kernel, count):
    """Fewer chunks than lanes and more, empty ones and some that outlast the chain, at every carry."""
    rng = random.Random(count)
    for carried in (0, 1, 55, 63, 64):
        size = rng.choice((0, 511, 512, 513, 70_000, SEGMENT_BYTES + 77))
        ends = sorted(rng.randrange(size + 1) for _ in range(count))
        buffer = RANDOM[carried : carried + size]
        hasher = ChainHasher(kernel=kernel)
        hasher.update(RANDOM[:carried], b"")
        expected = b"".join(hashlib.sha256(chunk).digest() for chunk in split(buffer, ends)) if ends else b""
        assert hasher.update(buffer, le64(ends)) == expected, (carried, size, ends)
        assert hasher.digest() == hashlib.sha256(RANDOM[: carried + size]).digest()
        assert INITIAL_STATE + hasher.states() == chain(RANDOM[: carried + size], "portable")


# ---- BLAKE3 ----


@pytest.mark.parametrize("kernel", BLAKE3)
def test_blake3_of_every_boundary(kernel):
    rng = random.Random(4)
    for size in (*range(200), *SIZES, *(rng.randrange(5000) for _ in range(300))):
        assert (
            megalfs_ext.blake3_many(RANDOM, le64([size]), kernel=kernel) == blake3(RANDOM[:size]).digest()
        ), size


@pytest.mark.parametrize("kernel", BLAKE3_COMPILED)
def test_blake3_of_every_number_of_leaves(kernel):
    """1 to 70 leaves pass every shape of tree and every count of used lanes."""
    for leaves in range(1, 71):
        for size in (1024 * leaves, 1024 * leaves - 500):
            digest = megalfs_ext.blake3_many(RANDOM, le64([size]), kernel=kernel)
            assert digest == blake3(RANDOM[:size]).digest(), size


@pytest.mark.parametrize("kernel", BLAKE3)
def test_blake3_many_chunks_share_lanes_and_forests(kernel):
    rng = random.Random(6)
    layouts = [[], [0], [0, 0], [1024, 2048, 3072], [1023, 2048, 3073]]
    layouts += [
        random_ends(rng, size, count) for size in (10_000, 300_000, len(RANDOM)) for count in (1, 7, 300)
    ]
    layouts += [list(range(0, 200_000, 700)), list(range(1024, 5_000_000, 1024 * 41))]
    for ends in layouts:
        expected = b"".join(blake3(chunk).digest() for chunk in split(RANDOM, ends)) if ends else b""
        assert megalfs_ext.blake3_many(RANDOM, le64(ends), kernel=kernel) == expected, ends[:5]


@pytest.mark.parametrize("kernel", BLAKE3_COMPILED)
def test_blake3_larger_than_a_forest(kernel):
    """4 MiB are one forest of whole subtrees; past it, subtrees are joined."""
    forest = 4 << 20
    buffer = RANDOM * 2
    for size in (
        forest - 1,
        forest,
        forest + 1,
        forest + 1024,
        forest + 1025,
        2 * forest,
        2 * forest + 1,
        len(buffer),
    ):
        ends = [3000, 3000 + size] if 3000 + size <= len(buffer) else [size]
        expected = b"".join(blake3(chunk).digest() for chunk in split(buffer, ends))
        assert megalfs_ext.blake3_many(buffer, le64(ends), kernel=kernel) == expected, size


def ids_of(buffer, lengths) -> bytes:
    ends = np.cumsum(lengths).tolist()
    return b"".join(blake3(chunk).digest() for chunk in split(buffer, ends)) if ends else b""


@pytest.mark.parametrize("kernel", BLAKE3)
@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_chunks_hold_and_tampered_ones_are_named(kernel, dtype):
    for lengths in ([], [0], [1], [1024], [5000, 1, 0, 262_144, 1023], [100_000] * 9):
        buffer = bytearray(RANDOM[: sum(lengths)])
        ids = ids_of(RANDOM, lengths)
        column = np.array(lengths, dtype=dtype)
        assert megalfs_ext.verify_chunks(buffer, column, ids, kernel=kernel) == []
        assert megalfs_ext.verify_chunks(buffer, column.tobytes(), ids, kernel=kernel) == []
        for i, length in enumerate(lengths):
            if length:
                place = sum(lengths[: i + 1]) - 1
                buffer[place] ^= 1
                assert megalfs_ext.verify_chunks(buffer, column, ids, kernel=kernel) == [i]
                buffer[place] ^= 1
        wrong = bytes(32) * len(lengths)
        assert megalfs_ext.verify_chunks(buffer, column, wrong, kernel=kernel) == list(range(len(lengths)))


@pytest.mark.parametrize("kernel", BLAKE3)
def test_lengths_that_do_not_fit_are_refused(kernel):
    big = 2**64 - 1
    for lengths, count in (
        ([99], 1),
        ([101], 1),
        ([50, 51], 2),
        ([big, 101], 2),
        ([big], 1),
        ([100, 0], 1),
    ):
        with pytest.raises(ValueError, match="length"):
            megalfs_ext.verify_chunks(bytes(100), le64(lengths), bytes(32 * count), kernel=kernel)
    with pytest.raises(ValueError, match="ids"):
        megalfs_ext.verify_chunks(bytes(100), le64([100]), bytes(33), kernel=kernel)
    with pytest.raises(ValueError, match="lengths"):
        megalfs_ext.verify_chunks(bytes(100), np.array([50, 50], np.uint16), bytes(64), kernel=kernel)


@pytest.mark.parametrize(
    ("call", "kernels"), [(megalfs_ext.blake3_many, BLAKE3), (megalfs_ext.sha256_many, SHA256)]
)
def test_ends_that_do_not_fit_are_refused(call, kernels):
    for kernel in kernels:
        for ends in (le64([101]), le64([50, 40]), le64([2**64 - 1]), le64([2**63]), bytes(7), bytes(9)):
            with pytest.raises(ValueError, match="end"):
                call(bytes(100), ends, kernel=kernel)
        with pytest.raises(ValueError, match="uint64"):
            call(bytes(100), np.array([50, 0, 100, 0], np.uint32), kernel=kernel)


def test_any_contiguous_buffer_is_taken():
    raw = RANDOM[:5000]
    expected = blake3(raw).digest()
    for buffer in (raw, bytearray(raw), memoryview(raw), np.frombuffer(raw, np.uint8).reshape(50, 100)):
        assert megalfs_ext.blake3_many(buffer, le64([5000])) == expected
        assert megalfs_ext.sha256(buffer) == hashlib.sha256(raw).digest()
        assert megalfs_ext.ChainHasher().update(buffer, le64([5000])) == hashlib.sha256(raw).digest()
