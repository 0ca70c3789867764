"""The parts of a manifest as JSON values: layout, tensors, chunk rows. Shapes are checked, truth is not."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megalfs.errors import IntegrityError
from megalfs.formats.digests import Digests, digests_from_bytes
from megalfs.formats.layout import TENSORS_MAX, Layout, Plain, Tensor
from megalfs.formats.strict_json import JsonValue

__all__ = [
    "ChunkColumns",
    "chunks_from_json",
    "chunks_to_json",
    "layout_from_json",
    "layout_to_json",
    "states_from_json",
    "tensors_from_json",
    "tensors_to_json",
]

_REASON = re.compile(r"[a-z0-9-]{1,40}\Z")
_FORMAT = re.compile(r"[a-z0-9]{1,40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_LENGTH_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class ChunkColumns:
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
    if not isinstance(value, list):
        raise IntegrityError("a manifest without a list of states")
    raw = bytearray()
    for state in value:
        if not isinstance(state, str) or not _DIGEST.match(state):
            raise IntegrityError(f"bad state in a manifest: {str(state)[:80]!r}")
        raw += bytes.fromhex(state)
    return digests_from_bytes(bytes(raw))
