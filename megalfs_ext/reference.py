"""What is right, in plain Python: the definition every compiled kernel must equal bit for bit.

It is slow (some MB/s of cuts, less of SHA-256 states) and runs when `kernel="reference"` is named, or for
everything when the compiled module is missing. Cut points are FastCDC v2020 (Xia et al., TPDS 2020;
fastcdc-rs) in its one-byte form; SHA-256 states are FIPS 180-4; digests come from hashlib and PyPI blake3, groups of
BLAKE3 from reference_blake3.py.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import struct
from typing import TYPE_CHECKING

from megalfs_ext._buffers import view_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megalfs_ext._buffers import BufferLike


__all__ = [
    "GEAR",
    "MASKS",
    "blake3_many",
    "chain_update",
    "cut_points",
    "scan",
    "sha256",
    "sha256_finish",
    "sha256_many",
    "verify_chunks",
    "verify_file_links",
    "verify_links",
]

SEGMENT_BYTES = 1 << 20
BLOCK_BYTES = 64
WORD = 0xFFFFFFFF

# First eight bytes of MD5(64 equal bytes), big-endian (destor; fastcdc-rs).
GEAR = tuple(
    int.from_bytes(hashlib.md5(bytes([i]) * 64, usedforsecurity=False).digest()[:8], "big")
    for i in range(256)
)
# By number of bits, 5 to 25 (destor; restic-FastCDC).
MASKS = dict(
    enumerate(
        (
            0x1804110, 0x1803110, 0x18035100, 0x1800035300, 0x19000353000, 0x590003530000, 0xD90003530000,
            0xD90103530000, 0xD90303530000, 0xD90313530000, 0xD90F03530000, 0xD90303537000, 0xD90703537000,
            0xD90707537000, 0xD91707537000, 0xD91747537000, 0xD91767537000, 0xD93767537000, 0xD93777537000,
            0xD93777577000, 0xDB3777577000,
        ),
        start=5,
    )
)  # fmt: skip


def _check_parameters(minimum: int, average: int, maximum: int, normalization: int) -> None:
    limits = (
        ("min", minimum, 64, 1 << 20),
        ("avg", average, 256, 4 << 20),
        ("max", maximum, 1 << 10, 16 << 20),
        ("normalization", normalization, 0, 3),
    )
    for name, value, lowest, highest in limits:
        if not lowest <= value <= highest:
            raise ValueError(f"{name} must be {lowest} to {highest}, not {value}")
    if not minimum <= average <= maximum:
        raise ValueError(f"min <= avg <= max must hold: min={minimum} avg={average} max={maximum}")


def _first_cut(chunk: memoryview, minimum: int, average: int, masks: tuple[int, int]) -> int:
    """Size of the first chunk of at most `max` bytes; the byte at the cut belongs to the next one."""
    if len(chunk) <= minimum:
        return len(chunk)
    # The published loop steps by two bytes, so its bounds are even.
    start, center, stop = (bound & ~1 for bound in (minimum, min(average, len(chunk)), len(chunk)))
    hash_ = 0
    for at in range(start, stop):
        hash_ = (hash_ << 1) + GEAR[chunk[at]] & 0xFFFF_FFFF_FFFF_FFFF
        if hash_ & masks[at >= center] == 0:
            return at
    return len(chunk)


def scan(
    buffer: BufferLike, minimum: int, average: int, maximum: int, normalization: int, is_final: bool
) -> bytes:
    """Ends of all decided chunks as little-endian u64."""
    _check_parameters(minimum, average, maximum, normalization)
    view = view_of(buffer).cast("B")
    bits = (average**2).bit_length() // 2  # log2 rounded to the nearest
    masks = MASKS[bits + normalization], MASKS[bits - normalization]
    ends = bytearray()
    at = 0
    while len(view) - at >= maximum or (is_final and at < len(view)):
        at += _first_cut(view[at : at + maximum], minimum, average, masks)
        ends += at.to_bytes(8, "little")
    return bytes(ends)


def cut_points(
    buffer: BufferLike, minimum: int, average: int, maximum: int, normalization: int, threads: int
) -> bytes:
    """As `scan` to the end; threads cannot change the cuts and are not used."""
    if not 1 <= threads <= 64:
        raise ValueError(f"threads must be 1 to 64, not {threads}")
    return scan(buffer, minimum, average, maximum, normalization, is_final=True)


def _chunks(buffer: BufferLike, ends: BufferLike) -> Iterator[memoryview]:
    view, ends_view = view_of(buffer).cast("B"), view_of(ends)
    raw = ends_view.cast("B")
    if len(raw) % 8 or ends_view.itemsize not in (1, 8):
        raise ValueError("ends must be uint64 values")
    start = 0
    for i in range(0, len(raw), 8):
        end = int.from_bytes(raw[i : i + 8], "little")
        if not start <= end <= len(view):
            raise ValueError(
                f"end {i // 8} is {end}: ends must ascend within the buffer of {len(view)} bytes"
            )
        yield view[start:end]
        start = end


def blake3_many(buffer: BufferLike, ends: BufferLike) -> bytes:
    """BLAKE3 of every chunk."""
    from blake3 import blake3

    return b"".join(blake3(chunk).digest() for chunk in _chunks(buffer, ends))


def sha256_many(buffer: BufferLike, ends: BufferLike) -> bytes:
    """SHA-256 of every chunk."""
    return b"".join(hashlib.sha256(chunk).digest() for chunk in _chunks(buffer, ends))


def sha256(buffer: BufferLike) -> bytes:
    """SHA-256 of the buffer."""
    return hashlib.sha256(view_of(buffer)).digest()


def verify_chunks(buffer: BufferLike, lengths: BufferLike, ids: BufferLike) -> list[int]:
    """Indices of the consecutive chunks whose BLAKE3 is not their id."""
    id_view, lengths_view = view_of(ids).cast("B"), view_of(lengths)
    raw = lengths_view.cast("B")
    if len(id_view) % 32:
        raise ValueError(f"ids must be 32 bytes each, not {len(id_view)} in all")
    count = len(id_view) // 32
    width = lengths_view.itemsize
    if width == 1:
        width = 4 if len(raw) == 4 * count else 8
    if width not in (4, 8) or len(raw) != width * count:
        raise ValueError("lengths must be one uint32 or uint64 for each 32-byte id")
    sizes = [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)]
    size = view_of(buffer).nbytes
    if sum(sizes) != size:
        raise ValueError(f"lengths sum to {sum(sizes)}, not to the buffer's {size} bytes")
    ends = b"".join(sum(sizes[: i + 1]).to_bytes(8, "little") for i in range(count))
    digests = blake3_many(buffer, ends)
    return [i for i in range(count) if digests[32 * i : 32 * i + 32] != id_view[32 * i : 32 * i + 32]]


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def _integer_cube_root(value: int) -> int:
    root = round(math.cbrt(value))
    while root**3 > value:
        root -= 1
    while (root + 1) ** 3 <= value:
        root += 1
    return root


# First 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
_K = [_integer_cube_root(prime << 96) & WORD for prime in _primes(64)]


def _rotate(word: int, by: int) -> int:
    return (word >> by | word << 32 - by) & WORD


def _compress(state: list[int], block: memoryview) -> list[int]:
    """FIPS 180-4, 6.2.2."""
    w = [int.from_bytes(block[i : i + 4], "big") for i in range(0, BLOCK_BYTES, 4)]
    for t in range(16, 64):
        x, y = w[t - 15], w[t - 2]
        s0 = _rotate(x, 7) ^ _rotate(x, 18) ^ x >> 3
        s1 = _rotate(y, 17) ^ _rotate(y, 19) ^ y >> 10
        w.append(w[t - 16] + s0 + w[t - 7] + s1 & WORD)
    a, b, c, d, e, f, g, h = state
    for k, word in zip(_K, w, strict=True):
        t1 = h + (_rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)) + (e & f ^ ~e & g) + k + word
        t2 = (_rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = t1 + t2 & WORD, a, b, c, d + t1 & WORD, e, f, g
    return [x + y & WORD for x, y in zip(state, (a, b, c, d, e, f, g, h), strict=True)]


def _run(state: bytes, blocks: memoryview) -> bytes:
    words = [int.from_bytes(state[i : i + 4], "big") for i in range(0, 32, 4)]
    for at in range(0, len(blocks), BLOCK_BYTES):
        words = _compress(words, blocks[at : at + BLOCK_BYTES])
    return b"".join(word.to_bytes(4, "big") for word in words)


def _sized(buffer: BufferLike, size: int, what: str) -> bytes:
    raw = bytes(view_of(buffer).cast("B"))
    if len(raw) != size:
        raise ValueError(f"{what} must be {size} bytes, not {len(raw)}")
    return raw


def verify_links(buffer: BufferLike, before: BufferLike, after: BufferLike) -> list[int]:
    """Indices of the segments that do not take their state in `before` to the one in `after`."""
    view = view_of(buffer).cast("B")
    if len(view) % SEGMENT_BYTES:
        raise ValueError(f"buffer must be whole segments of {SEGMENT_BYTES} bytes, not {len(view)}")
    count = len(view) // SEGMENT_BYTES
    starts, stops = _sized(before, 32 * count, "states before"), _sized(after, 32 * count, "states after")
    return [
        k
        for k in range(count)
        if _run(starts[32 * k : 32 * k + 32], view[k * SEGMENT_BYTES : (k + 1) * SEGMENT_BYTES])
        != stops[32 * k : 32 * k + 32]
    ]


def verify_file_links(
    fd: int, size: int, offsets: BufferLike, before: BufferLike, after: BufferLike
) -> list[int]:
    """As `verify_links`, of a file of `size` bytes; behind its last segment stands its digest."""
    raw = view_of(offsets)
    if raw.nbytes % 8 or raw.itemsize not in (1, 8):
        raise ValueError("offsets must be uint64 values")
    if not 0 <= size < 1 << 61:
        raise ValueError(f"no file has {size} bytes")
    places = struct.unpack(f"<{raw.nbytes // 8}Q", raw)
    starts, stops = (
        _sized(before, 4 * raw.nbytes, "states before"),
        _sized(after, 4 * raw.nbytes, "states after"),
    )
    for i, offset in enumerate(places):
        if offset % SEGMENT_BYTES or offset >= max(size, 1):
            raise ValueError(f"offset {i} is {offset}: no segment of a file of {size} bytes starts there")
    failed = []
    for k, offset in enumerate(places):
        segment = os.pread(fd, min(SEGMENT_BYTES, size - offset), offset)
        if len(segment) < min(SEGMENT_BYTES, size - offset):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        state = starts[32 * k : 32 * k + 32]
        is_last = offset + len(segment) == size
        reached = sha256_finish(state, segment, size) if is_last else _run(state, memoryview(segment))
        if reached != stops[32 * k : 32 * k + 32]:
            failed.append(k)
    return failed


def sha256_finish(state: BufferLike, tail: BufferLike, total: int) -> bytes:
    """The digest when `tail` ends a message of `total` bytes whose whole blocks before it led to `state`."""
    raw, rest = _sized(state, 32, "state"), bytes(view_of(tail).cast("B"))
    if total < len(rest) or (total - len(rest)) % BLOCK_BYTES:
        raise ValueError(f"a tail of {len(rest)} bytes cannot end {total} bytes")
    zeros = bytes(-(len(rest) + 9) % BLOCK_BYTES)
    return _run(raw, memoryview(rest + b"\x80" + zeros + (8 * total).to_bytes(8, "big")))


def chain_update(
    state: BufferLike, carry: BufferLike, total: int, buffer: BufferLike, ends: BufferLike
) -> tuple[bytes, bytes, bytes, bytes]:
    """One step of ChainHasher: (state, carry) after it, the chunks' digests, the states reached."""
    raw, carried = _sized(state, 32, "state"), _sized(carry, total % BLOCK_BYTES, "carry")
    view = view_of(buffer).cast("B")
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in _chunks(view, ends))
    left = memoryview(carried + bytes(view))
    at = total - len(carried)
    states = bytearray()
    while len(left) >= BLOCK_BYTES:
        size = min(SEGMENT_BYTES - at % SEGMENT_BYTES, len(left) - len(left) % BLOCK_BYTES)
        raw = _run(raw, left[:size])
        left = left[size:]
        at += size
        if at % SEGMENT_BYTES == 0:
            states += raw
    return raw, bytes(left), digests, bytes(states)
