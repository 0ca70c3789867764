"""A container of numeric columns: magic, version, a canonical JSON header, then the raw columns.

    8 bytes magic | u32 LE version | u32 LE header bytes | header | zeros to 64 | column | zeros to 64 | ...

The header lists every column under `columns`: name, numpy type string, shape. Reading makes numpy views of
the input and parses no element. One content has one encoding: padding is zero, nothing trails, the header is
canonical. Writing takes raw bytes and needs no numpy: a publisher has none.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.errors import IntegrityError, PolicyError
from megalfs.formats import strict_json
from megalfs.formats.strict_json import JsonFault, JsonValue

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "HEADER_BYTES_MAX", "Column", "Columns", "pack", "unpack"]

ALIGNMENT = 64  # a cache line; also every vector load is aligned when the buffer is
HEADER_BYTES_MAX = 64 << 10  # a manifest's header has about 700 bytes
_PREAMBLE = struct.Struct("<8sII")
_ITEM_BYTES = {"<u4": 4, "<u8": 8, "|u1": 1}


class Column(Struct, frozen=True):
    """One column as the header names it; `shape` is (count,) or (count, width)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        count = _ITEM_BYTES[self.dtype]
        for extent in self.shape:
            count *= extent
        return count


class Columns(Struct, frozen=True):
    """What `unpack` read: the header's own fields, and views of the input by column name."""

    fields: dict[str, JsonValue]
    arrays: dict[str, NDArray[np.generic]]


def pack(
    magic: bytes,
    version: int,
    fields: Mapping[str, JsonValue],
    columns: Mapping[Column, ReadableBuffer],
) -> bytes:
    """Writes columns in the order given, each from its contiguous little-endian bytes."""
    plan: list[JsonValue] = [
        {"dtype": column.dtype, "name": column.name, "shape": list(column.shape)} for column in columns
    ]
    header = strict_json.encode({**fields, "columns": plan})
    assert len(header) <= HEADER_BYTES_MAX
    parts: list[ReadableBuffer] = [_PREAMBLE.pack(magic, version, len(header)), header]
    parts.append(bytes(-(_PREAMBLE.size + len(header)) % ALIGNMENT))
    for column, content in columns.items():
        assert memoryview(content).nbytes == column.byte_count
        parts += (content, bytes(-column.byte_count % ALIGNMENT))
    return b"".join(parts)


def unpack(magic: bytes, version: int, data: bytes) -> Columns:
    """Reads what `pack` wrote; arrays are read-only views of `data`.

    Raises:
        IntegrityError: anything that `pack` would not have written.
        PolicyError: another version.
    """
    import numpy as np

    header, position = _read_header(magic, version, data)
    columns = _read_plan(header.pop("columns", None))
    spans = []
    for column in columns:
        start = position + -position % ALIGNMENT
        spans.append(start)
        position = start + column.byte_count
    if position + -position % ALIGNMENT != len(data):
        raise IntegrityError("the columns do not fill the file")
    arrays: dict[str, NDArray[np.generic]] = {}
    for column, start in zip(columns, spans, strict=True):
        count = column.byte_count // _ITEM_BYTES[column.dtype]
        flat = np.frombuffer(data, column.dtype, count, start)
        arrays[column.name] = flat.reshape(column.shape)
        _check_padding(data, start + column.byte_count)
    return Columns(header, arrays)


def _read_header(magic: bytes, version: int, data: bytes) -> tuple[dict[str, JsonValue], int]:
    if len(data) < _PREAMBLE.size or not data.startswith(magic):
        raise IntegrityError(f"not a {magic.decode('ascii')} file: {data[:16]!r}")
    _, found_version, header_bytes = _PREAMBLE.unpack_from(data)
    if found_version != version:
        raise PolicyError(
            f"{magic.decode('ascii')} version {found_version} is unknown", hint="upgrade megalfs"
        )
    if header_bytes > min(HEADER_BYTES_MAX, len(data) - _PREAMBLE.size):
        raise IntegrityError(f"a header of {header_bytes} bytes")
    end = _PREAMBLE.size + header_bytes
    try:
        header = strict_json.parse_canonical(data[_PREAMBLE.size : end])
    except JsonFault as e:
        raise IntegrityError(f"bad header: {e}") from e
    if not isinstance(header, dict):
        raise IntegrityError("the header is not an object")
    _check_padding(data, end)
    return header, end


def _read_plan(listed: JsonValue) -> list[Column]:
    if not isinstance(listed, list):
        raise IntegrityError("the header lists no columns")
    columns = [_read_column(entry) for entry in listed]
    if len({column.name for column in columns}) != len(columns):
        raise IntegrityError("a column is listed twice")
    return columns


def _read_column(entry: JsonValue) -> Column:
    match entry:
        case {"dtype": str(dtype), "name": str(name), "shape": [*extents], **rest} if not rest:
            shape = tuple(extent for extent in extents if type(extent) is int and 0 <= extent < 1 << 32)
            if dtype in _ITEM_BYTES and 1 <= len(extents) <= 2 and len(shape) == len(extents):
                return Column(name, dtype, shape)
    raise IntegrityError(f"bad column {str(entry)[:120]!r}")


def _check_padding(data: bytes, end: int) -> None:
    if any(data[end : end + -end % ALIGNMENT]):
        raise IntegrityError("the padding is not zero")
