"""Kernels of megalfs: bytes in, numbers out, the GIL released.

FastCDC v2020 cut points, BLAKE3 and SHA-256 over many chunks, and SHA-256 chaining states that let a file's
digest be proven segment by segment. Every stage has several kernels that agree bit for bit with
`reference.py`; the default is measured on this machine, and naming one that cannot run is an error.

Buffers are anything contiguous and bytes-like. numpy is imported only where an array is returned, so that
hashing can start before numpy is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from megalfs_ext import reference
from megalfs_ext._buffers import view_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from megalfs_ext._buffers import BufferLike

try:
    import megalfs_ext._kernels as _kernels
except ModuleNotFoundError:
    # Not hidden: kernels() then lists "reference" alone, and naming any other kernel raises.
    _kernels = None  # type: ignore[assignment]  # the stub describes the compiled module only

__all__ = [
    "GROUP_BYTES",
    "INITIAL_STATE",
    "SEGMENT_BYTES",
    "ChainHasher",
    "Kernels",
    "blake3_groups",
    "blake3_join",
    "blake3_many",
    "cut_points",
    "finish_segment",
    "kernels",
    "scan",
    "sha256",
    "sha256_many",
    "verify_chunks",
    "verify_file_links",
    "verify_links",
    "verify_segments",
]

GROUP_BYTES: Final = 64 << 10  # a subtree of BLAKE3 that is verified alone
SEGMENT_BYTES: Final = 1 << 20  # distance between recorded SHA-256 states (DESIGN.md 4.2)
# SHA-256's initial value as eight big-endian words (FIPS 180-4, 5.3.3).
INITIAL_STATE: Final = bytes.fromhex("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19")

_SHA256_BYTES_END = 1 << 61  # the length in bits must fit 64 bits (FIPS 180-4, section 1)
_REFERENCE = "reference"
_COMPILED_NAMES = {
    "cdc": ("portable", "strips", "vbmi"),
    "sha256": ("portable", "shani", "avx512", "shani+avx512"),
    "blake3": ("portable", "avx2", "avx512"),
}


class Kernels(tuple[str, ...]):
    """Names of the kernels of one stage that can run on this machine."""

    default: str
    """The one that runs when none is named: the fastest in a self-measurement made once."""
    wrong: tuple[str, ...]
    """Those that did not answer as the portable one does in that measurement; they are not run."""


def kernels(stage: str = "cdc") -> Kernels:
    """What can run here for "cdc", "sha256" or "blake3"; the first call measures for about a millisecond.

    Only "reference" is listed when the compiled module is missing.

    Raises:
        ValueError: unknown stage.
    """
    if stage not in _COMPILED_NAMES:
        raise ValueError(f"unknown stage: {stage!r}")
    default, states = _REFERENCE, {}
    if _kernels is not None:
        default = _kernels.default_kernel(stage)
        states = _kernels.kernel_states(stage)
    result = Kernels([*(name for name, state in states.items() if state == "ok"), _REFERENCE])
    result.default = default
    result.wrong = tuple(name for name, state in states.items() if state == "wrong results")
    return result


def _is_reference(stage: str, kernel: str | None) -> bool:
    if kernel == _REFERENCE or (_kernels is None and kernel is None):
        return True
    if _kernels is None:
        known = kernel in _COMPILED_NAMES[stage]
        raise ValueError(
            f"{stage} kernel not compiled in: '{kernel}'" if known else f"unknown {stage} kernel: '{kernel}'"
        )
    return False


def cut_points(
    buffer: BufferLike,
    min: int,
    avg: int,
    max: int,
    *,
    normalization: int = 1,
    kernel: str | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint64]:
    """End offset of every FastCDC v2020 chunk of `buffer`, shape (chunks,), in bytes; the last is its size.

    Every kernel and every number of threads gives the same cuts, those of fastcdc-rs v2020 and pyfastcdc.

    Args:
        min: smallest chunk but the last, 64 to 2**20 bytes.
        avg: average chunk, 256 to 2**22 bytes.
        max: largest chunk, 2**10 to 2**24 bytes.
        normalization: 0 to 3, how strongly sizes gather around the average.
        threads: 1 to 64; parts of the buffer are scanned at once and joined where their cuts meet.

    Raises:
        ValueError: a parameter out of its limits, min > avg or avg > max, or a kernel that cannot run.
    """
    import numpy as np

    if _is_reference("cdc", kernel):
        raw = reference.cut_points(buffer, min, avg, max, normalization, threads)
    else:
        raw = _kernels.cut_points(buffer, min, avg, max, normalization, threads, kernel)
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)


def scan(
    buffer: BufferLike,
    min: int,
    avg: int,
    max: int,
    *,
    normalization: int = 1,
    is_final: bool,
    kernel: str | None = None,
) -> bytes:
    """Ends of the chunks that no further byte can change, as little-endian u64: the base of streaming.

    A chunk is decided when at least `max` bytes remain after its start, or all when `is_final`. The caller
    keeps the bytes behind the last end and puts them before what comes next.

    Raises:
        ValueError: as `cut_points`.
    """
    if _is_reference("cdc", kernel):
        return reference.scan(buffer, min, avg, max, normalization, is_final)
    return _kernels.scan(buffer, min, avg, max, normalization, is_final, kernel)


def blake3_many(buffer: BufferLike, ends: BufferLike, *, kernel: str | None = None) -> bytes:
    """BLAKE3-256 of every chunk, 32 bytes each.

    Args:
        ends: end offset of each chunk in `buffer`: a uint64 array or little-endian bytes, never descending.

    Raises:
        ValueError: an end below the one before or beyond the buffer, or a kernel that cannot run.
    """
    if _is_reference("blake3", kernel):
        return reference.blake3_many(buffer, ends)
    return _kernels.blake3_many(buffer, ends, kernel)


def blake3_groups(buffer: BufferLike, offset: int = 0, *, kernel: str | None = None) -> bytes:
    """Chaining values of the groups of a chunk, its subtrees of 64 KiB, 32 bytes each (BLAKE3 paper, section 2.1).

    Each group is verified alone by its value, and the chunk's id says by `blake3_join` that the values are right.

    Args:
        buffer: the bytes of some groups that follow each other; the last group of a chunk may be short.
        offset: where they start in the chunk, a multiple of `GROUP_BYTES` below 2**63.

    Raises:
        ValueError: another offset, or a kernel that cannot run.
    """
    if offset % GROUP_BYTES or not 0 <= offset < 1 << 63:
        raise ValueError(f"offset must be a multiple of {GROUP_BYTES} bytes below 2**63, not {offset}")
    if _is_reference("blake3", kernel):
        from megalfs_ext import reference_blake3

        return reference_blake3.groups(buffer, offset)
    return _kernels.blake3_groups(buffer, offset, kernel)


def blake3_join(groups: BufferLike, *, kernel: str | None = None) -> bytes:
    """The BLAKE3-256 of a chunk from the chaining values of all its groups.

    Args:
        groups: 2 to 4096 values of 32 bytes. The value of a chunk's only group is not its BLAKE3.

    Raises:
        ValueError: another size, or a kernel that cannot run.
    """
    if _is_reference("blake3", kernel):
        from megalfs_ext import reference_blake3

        return reference_blake3.join(groups)
    return _kernels.blake3_join(groups, kernel)


def sha256_many(buffer: BufferLike, ends: BufferLike, *, kernel: str | None = None) -> bytes:
    """SHA-256 of every chunk, 32 bytes each, two chunks at a time in one loop.

    Args:
        ends: as in `blake3_many`.

    Raises:
        ValueError: as `blake3_many`.
    """
    if _is_reference("sha256", kernel):
        return reference.sha256_many(buffer, ends)
    return _kernels.sha256_many(buffer, ends, kernel)


def verify_chunks(
    buffer: BufferLike, lengths: BufferLike, ids: BufferLike, *, kernel: str | None = None
) -> list[int]:
    """Indices of the chunks whose BLAKE3-256 is not their id; empty when all are right.

    Args:
        buffer: the chunks, one after the other and nothing else.
        lengths: size of each in bytes, uint32 or uint64 (an array or little-endian bytes).
        ids: 32 bytes for each chunk.

    Raises:
        ValueError: lengths that do not fill the buffer exactly, or not one for each id.
    """
    if _is_reference("blake3", kernel):
        return reference.verify_chunks(buffer, lengths, ids)
    return _kernels.verify_chunks(buffer, lengths, ids, kernel)


def verify_segments(buffer: BufferLike, states: BufferLike, *, kernel: str | None = None) -> list[int]:
    """Indices k of the segments that do not take SHA-256 state k to state k + 1; empty when all links hold.

    Args:
        buffer: n whole segments of `SEGMENT_BYTES`.
        states: n + 1 states of 32 bytes, eight big-endian words each.

    Raises:
        ValueError: a buffer of other than whole segments, or another number of states.
    """
    raw, size = view_of(states).cast("B"), view_of(buffer).nbytes
    wanted = 32 * (size // SEGMENT_BYTES + 1)
    if size % SEGMENT_BYTES == 0 and raw.nbytes != wanted:
        raise ValueError(f"states must be {wanted} bytes, not {raw.nbytes}")
    return verify_links(buffer, raw[:-32], raw[32:], kernel=kernel)


def verify_links(
    buffer: BufferLike, before: BufferLike, after: BufferLike, *, kernel: str | None = None
) -> list[int]:
    """As `verify_segments`, for segments that need not follow each other in their file.

    Segments are independent, so any set of them is proven alone: two at a time in one loop, or sixteen.

    Args:
        before: the state in front of each segment.
        after: the state behind each.
    """
    if _is_reference("sha256", kernel):
        return reference.verify_links(buffer, before, after)
    return _kernels.verify_links(buffer, before, after, kernel)


def verify_file_links(
    fd: int,
    size: int,
    offsets: BufferLike,
    before: BufferLike,
    after: BufferLike,
    *,
    kernel: str | None = None,
) -> list[int]:
    """As `verify_links`, for segments of an open file, read in slices that stay in the cache.

    The segment that ends the file may be short, and what stands behind it is the SHA-256 of the file.

    Args:
        size: bytes of the whole file, which end its last segment.
        offsets: where each segment starts: uint64 (an array or little-endian bytes), multiples of
            `SEGMENT_BYTES` below `size`; 0 in an empty file.
        before: the state in front of each segment, `INITIAL_STATE` at 0.
        after: the state behind each.

    Raises:
        OSError: a segment cannot be read; ENODATA if the file is shorter than `size`.
        ValueError: an offset where no segment starts, or not one state for each.
    """
    if _is_reference("sha256", kernel):
        return reference.verify_file_links(fd, size, offsets, before, after)
    return _kernels.verify_file_links(fd, size, offsets, before, after, kernel)


def finish_segment(
    state: BufferLike, tail: BufferLike, total_size: int, *, kernel: str | None = None
) -> bytes:
    """The SHA-256 digest of a file of `total_size` bytes that ends with `tail` after `state`: the last link.

    Args:
        state: the state at `total_size - len(tail)`, a multiple of `SEGMENT_BYTES`; `INITIAL_STATE` at 0.
        tail: 0 to `SEGMENT_BYTES` bytes.

    Raises:
        ValueError: sizes that do not fit together.
    """
    size = view_of(tail).nbytes
    is_whole = size <= total_size < _SHA256_BYTES_END and (total_size - size) % SEGMENT_BYTES == 0
    if size > SEGMENT_BYTES or not is_whole:
        raise ValueError(f"a tail of {size} bytes cannot end {total_size} bytes at a segment")
    return _finish(state, tail, total_size, kernel)


def _finish(state: BufferLike, tail: BufferLike, total: int, kernel: str | None) -> bytes:
    if _is_reference("sha256", kernel):
        return reference.sha256_finish(state, tail, total)
    return _kernels.sha256_finish(state, tail, total, kernel)


def sha256(buffer: BufferLike, *, kernel: str | None = None) -> bytes:
    """SHA-256 of the buffer, one lane."""
    if _is_reference("sha256", kernel):
        return reference.sha256(buffer)
    return _kernels.sha256_finish(INITIAL_STATE, buffer, view_of(buffer).nbytes, kernel)


class ChainHasher:
    """One pass over a file: its own SHA-256 with recorded states, and the SHA-256 of chunks of it.

    The file's chain and the chunks' digests share one loop, so that both cost little more than one. One `update`
    at a time: an object is for one thread, though the GIL is free during the call.

    Attributes:
        chunk_share: of a file's bytes, 0 to 1, how many are best digested as chunks here, beside the chain; the
            rest is better given to `sha256_many` in another thread.
    """

    __slots__ = ("_carry", "_kernel", "_state", "_states", "_total", "chunk_share")

    def __init__(self, *, kernel: str | None = None) -> None:
        """
        Raises:
            ValueError: a kernel that cannot run.
        """
        is_reference = _is_reference("sha256", kernel)
        self.chunk_share = 0.0 if is_reference else _kernels.chunk_share(kernel)
        self._kernel = kernel
        self._state = INITIAL_STATE
        self._carry = b""
        self._total = 0
        self._states = bytearray()

    def update(self, buffer: BufferLike, ends: BufferLike) -> bytes:
        """Take the next bytes of the file; return the SHA-256 of each chunk at their beginning, 32 bytes.

        Args:
            ends: as in `blake3_many`, of the chunks whose digests are wanted.

        Raises:
            ValueError: as `blake3_many`; nothing was taken then.
        """
        if _is_reference("sha256", self._kernel):
            step = reference.chain_update(self._state, self._carry, self._total, buffer, ends)
        else:
            step = _kernels.chain_update(self._state, self._carry, self._total, buffer, ends, self._kernel)
        self._state, self._carry, digests, states = step
        self._total += view_of(buffer).nbytes
        self._states += states
        return digests

    def states(self) -> bytes:
        """The states at every k * `SEGMENT_BYTES` inside the bytes so far, ends excluded, 32 bytes each.

        A state at exactly the end is not among them until more bytes come: at the end of the file this is the
        manifest's column, ceil(size / SEGMENT_BYTES) - 1 states.
        """
        count = -(-self._total // SEGMENT_BYTES) - 1
        return bytes(self._states[: 32 * max(count, 0)])

    def digest(self) -> bytes:
        """SHA-256 of everything so far; updating may go on."""
        return _finish(self._state, self._carry, self._total, self._kernel)
