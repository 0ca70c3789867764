"""The parts of a manifest: layout, tensors and chunk rows as JSON values, and the one encoding of them all.

Shapes are checked, truth is not. numpy is imported only where rows become arrays: `encode_manifest` and
`manifest_fault` are shared by `Manifest`, whose columns are arrays, and by a publisher, which has plain bytes
and must not wait for numpy.
"""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from typing import TYPE_CHECKING, NamedTuple, Self

from msgspec import Struct

from megalfs.core.ids import DIGEST_BYTES, ManifestId, Oid
from megalfs.errors import IntegrityError, UsageError
from megalfs.formats import columns
from megalfs.formats.columns import Column
from megalfs.formats.layout import TENSORS_MAX, Layout, Plain, Tensor, layout_fault
from megalfs.formats.limits import SIZE_MAX
from megalfs.formats.profile import Profile
from megalfs.formats.strict_json import JsonValue, encode

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

    from megalfs.formats.digests import Digests

__all__ = [
    "EMPTY_OID",
    "MAGIC",
    "MANIFEST_BYTES_MAX",
    "SEGMENT_BYTES",
    "VERSION",
    "ChunkColumns",
    "EncodedManifest",
    "LengthSummary",
    "chunks_from_json",
    "chunks_to_json",
    "encode_manifest",
    "layout_from_json",
    "layout_to_json",
    "manifest_fault",
    "state_count",
    "states_from_json",
    "tensors_from_json",
    "tensors_to_json",
]

MAGIC = b"megalfsM"
VERSION = 1
SEGMENT_BYTES = 1 << 20  # DESIGN.md 4.2; the distance of two states
MANIFEST_BYTES_MAX = 256 << 20  # research/eco.md 6.3, case 11; enough for 900 GB at the default profile
CHUNKS_MAX = MANIFEST_BYTES_MAX // (4 + 2 * DIGEST_BYTES)
EMPTY_OID = Oid(hashlib.sha256(b"").digest())

_REASON = re.compile(r"[a-z0-9-]{1,40}\Z")
_FORMAT = re.compile(r"[a-z0-9]{1,40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_LENGTH_MAX = (1 << 32) - 1


class ChunkColumns(Struct, frozen=True):
    """The `chunks` rows of a JSON manifest, turned into columns."""

    lengths: NDArray[np.uint32]
    sha256: Digests
    blake3: Digests


def layout_to_json(layout: Layout | Plain) -> JsonValue:
    """`{"plain": reason}`, or `{"format", "header_bytes"}`; the tensors stand apart."""
    if isinstance(layout, Plain):
        return {"plain": layout.reason}
    return {"format": layout.format, "header_bytes": layout.header_bytes}


def layout_from_json(value: JsonValue, tensors: tuple[Tensor, ...] | None) -> Layout | Plain:
    """Puts both parts together again; a plain file has no tensor table, any other has one."""
    match value:
        case {"plain": str(reason), **rest} if not rest and tensors is None and _REASON.match(reason):
            return Plain(reason)
        case {"format": str(name), "header_bytes": int(count), **rest} if not rest and tensors is not None:
            if _FORMAT.match(name) and type(count) is int:
                return Layout(name, count, tensors)
    raise IntegrityError(f"bad layout in a manifest: {str(value)[:80]!r}")


def tensors_to_json(layout: Layout | Plain) -> JsonValue:
    """`[[name, dtype, [extent, ...], offset, length], ...]`, or null for a plain file."""
    if isinstance(layout, Plain):
        return None
    return [[t.name, t.dtype, list(t.shape), t.offset, t.length] for t in layout.tensors]


def tensors_from_json(value: JsonValue) -> tuple[Tensor, ...] | None:
    """Reads `tensors_to_json`."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > TENSORS_MAX:
        raise IntegrityError("the tensor table is no list, or too long")
    return tuple(_tensor(entry) for entry in value)


def _tensor(entry: JsonValue) -> Tensor:
    """Types only; `layout_fault` checks ranges. Not a `match`: that takes 3 us, and there may be 200,000."""
    if type(entry) is list and len(entry) == 5:
        name, dtype, extents, offset, length = entry
        if type(name) is str and type(dtype) is str and type(extents) is list:
            shape = tuple(extent for extent in extents if type(extent) is int)
            if len(shape) == len(extents) and type(offset) is int and type(length) is int:
                return Tensor(name, dtype, shape, offset, length)
    raise IntegrityError(f"bad tensor in a manifest: {str(entry)[:80]!r}")


def chunks_to_json(offsets: NDArray[np.uint64], columns: ChunkColumns) -> JsonValue:
    """`[{"offset", "length", "sha256", "blake3"}, ...]`, the keys promised in DESIGN.md section 6."""
    rows = zip(offsets.tolist(), columns.lengths.tolist(), columns.sha256, columns.blake3, strict=True)
    return [
        {"offset": offset, "length": length, "sha256": s.tobytes().hex(), "blake3": b.tobytes().hex()}
        for offset, length, s, b in rows
    ]


def chunks_from_json(value: JsonValue) -> ChunkColumns:
    """Reads `chunks_to_json`; the rows must follow each other without a gap."""
    if not isinstance(value, list):
        raise IntegrityError("a manifest without chunks")
    end = 0
    lengths, sha256, blake3 = [], bytearray(), bytearray()
    for row in value:
        offset, length, row_sha256, row_blake3 = _chunk_row(row)
        if offset != end:
            raise IntegrityError(f"a chunk at {offset} where the one before ends at {end}")
        end += length
        lengths.append(length)
        sha256 += row_sha256
        blake3 += row_blake3
    import numpy as np

    from megalfs.formats.digests import digests_from_bytes

    return ChunkColumns(
        np.array(lengths, np.uint32), digests_from_bytes(bytes(sha256)), digests_from_bytes(bytes(blake3))
    )


def _chunk_row(row: JsonValue) -> tuple[int, int, bytes, bytes]:
    match row:
        case {"offset": int(offset), "length": int(length), "sha256": str(s), "blake3": str(b), **rest}:
            is_number = type(offset) is int and type(length) is int and 0 <= length <= _LENGTH_MAX
            if is_number and not rest and _DIGEST.match(s) and _DIGEST.match(b):
                return offset, length, bytes.fromhex(s), bytes.fromhex(b)
        case _:
            pass
    raise IntegrityError(f"bad chunk in a manifest: {str(row)[:80]!r}")


def states_from_json(value: JsonValue) -> Digests:
    """A list of 64 hex digits each."""
    from megalfs.formats.digests import digests_from_bytes

    if not isinstance(value, list):
        raise IntegrityError("a manifest without a list of states")
    raw = bytearray()
    for state in value:
        if not isinstance(state, str) or not _DIGEST.match(state):
            raise IntegrityError(f"bad state in a manifest: {str(state)[:80]!r}")
        raw += bytes.fromhex(state)
    return digests_from_bytes(bytes(raw))


def state_count(size: int) -> int:
    """How many states a blob of `size` bytes has: the k with 0 < k * 2**20 < size."""
    return max(0, -(-size // SEGMENT_BYTES) - 1)


class LengthSummary(NamedTuple):
    """What must hold of the chunks' lengths together, in bytes; all 0 where there are no chunks."""

    chunks: int
    total: int
    least: int
    most: int


def manifest_fault(
    *,
    oid: Oid,
    size: int,
    profile: str,
    layout: Layout | Plain,
    lengths: LengthSummary,
    blake3: int,
    sha256: int,
    states: int,
) -> str | None:
    """Why these cannot be the parts of one manifest; None when they can.

    Args:
        blake3, sha256, states: how many there are of each.

    Raises:
        PolicyError: the profile is unknown.
    """
    if not 0 <= size <= SIZE_MAX:
        return f"size {size}"
    if not blake3 == sha256 == lengths.chunks <= CHUNKS_MAX:
        return f"{lengths.chunks} lengths, {blake3} chunk ids, {sha256} digests"
    if states not in (0, state_count(size)):
        return f"{states} states instead of {state_count(size)}"
    if size == 0 and oid != EMPTY_OID:
        return "no bytes, but not the oid of no bytes"
    fault = _lengths_fault(lengths, size, Profile.parse(profile).max)
    return fault or (layout_fault(layout, size) if isinstance(layout, Layout) else None)


def _lengths_fault(lengths: LengthSummary, size: int, length_max: int) -> str | None:
    if lengths.total != size:
        return f"chunks of {lengths.total} bytes in a blob of {size}"
    if size and not 0 < lengths.least <= lengths.most <= length_max:
        return f"a chunk of {lengths.least} or {lengths.most} bytes; the limit is {length_max}"
    return "a chunk of no bytes" if size == 0 and lengths.chunks else None


def encode_manifest(
    *,
    oid: Oid,
    size: int,
    profile: str,
    layout: Layout | Plain,
    lengths: ReadableBuffer,
    blake3: ReadableBuffer,
    sha256: ReadableBuffer,
    states: ReadableBuffer,
) -> bytes:
    """The canonical bytes of a manifest without faults, whose SHA-256 is its id.

    Args:
        lengths: little-endian u32, one for each chunk.
        blake3, sha256, states: 32 bytes each.

    Raises:
        UsageError: the blob has too many chunks for its profile.
    """
    fields: dict[str, JsonValue] = {
        "layout": layout_to_json(layout), "oid": str(oid), "profile": profile, "size": size,
    }  # fmt: skip
    tensors = encode(tensors_to_json(layout))
    encoded = columns.pack(
        MAGIC,
        VERSION,
        fields,
        {
            Column("lengths", "<u4", (memoryview(lengths).nbytes // 4,)): lengths,
            _digest_column("blake3", blake3): blake3,
            _digest_column("sha256", sha256): sha256,
            _digest_column("states", states): states,
            Column("tensors", "|u1", (len(tensors),)): tensors,
        },
    )
    if len(encoded) > MANIFEST_BYTES_MAX:
        raise UsageError(f"the manifest of {oid} has {len(encoded)} bytes", hint="use larger chunks")
    return encoded


def _digest_column(name: str, digests: ReadableBuffer) -> Column:
    return Column(name, "|u1", (memoryview(digests).nbytes // DIGEST_BYTES, DIGEST_BYTES))


class EncodedManifest(Struct, frozen=True):
    """A manifest that was checked and encoded and is only to be kept: what `Manifest` is, without its columns."""

    id: ManifestId
    oid: Oid
    size: int
    piece_count: int
    encoded: bytes

    @classmethod
    def of(
        cls,
        *,
        oid: Oid,
        size: int,
        profile: Profile,
        layout: Layout | Plain,
        lengths: array[int],
        blake3: bytes | bytearray,
        sha256: bytes | bytearray,
        states: bytes,
    ) -> Self:
        """Builds from what the kernels return: lengths in bytes, and digests one after the other.

        Raises:
            IntegrityError: counts, lengths or extents that cannot belong to a blob of this size.
            UsageError: as `encode_manifest`.
        """
        fault = manifest_fault(
            oid=oid,
            size=size,
            profile=profile.id,
            layout=layout,
            lengths=LengthSummary(
                len(lengths), sum(lengths), min(lengths, default=0), max(lengths, default=0)
            ),
            blake3=len(blake3) // DIGEST_BYTES,
            sha256=len(sha256) // DIGEST_BYTES,
            states=len(states) // DIGEST_BYTES,
        )
        if fault is not None:
            raise IntegrityError(f"manifest of {oid}: {fault}")
        encoded = encode_manifest(
            oid=oid,
            size=size,
            profile=profile.id,
            layout=layout,
            lengths=struct.pack(f"<{len(lengths)}I", *lengths),
            blake3=blake3,
            sha256=sha256,
            states=states,
        )
        return cls(ManifestId(hashlib.sha256(encoded).digest()), oid, size, len(lengths), encoded)

    def encode(self) -> bytes:
        """As `Manifest.encode`: the store takes either."""
        return self.encoded
