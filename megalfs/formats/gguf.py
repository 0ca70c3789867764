"""GGUF versions 2 and 3, little-endian: magic, version, counts, metadata, tensor table, padding, tensors.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Metadata is skipped, not kept; only
`general.alignment` is read. A prefix that ends inside the header raises `_Short` where it ends, so the same
code serves every prefix.
"""

from __future__ import annotations

import struct

from megalfs.formats.ggml_types import GGML_TYPES
from megalfs.formats.layout import (
    HEADER_BYTES_MAX,
    TENSORS_MAX,
    Layout,
    NeedMore,
    Reading,
    Refused,
    Tensor,
    layout_fault,
)
from megalfs.formats.limits import SIZE_MAX

__all__ = ["MAGIC", "read"]

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
ALIGNMENT_DEFAULT = 32
ALIGNMENT_MAX = 1 << 20
METADATA_MAX = 65_536  # keys; real files have some tens
KEY_BYTES_MAX = 65_535  # the specification's limit
DIMENSIONS_MAX = 4  # GGML_MAX_DIMS
ARRAY_DEPTH_MAX = 4
NEED_MORE_BYTES_MIN = 1 << 16  # a prefix that grows byte by byte would be read again as often

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Short(Exception):  # noqa: N818 - control flow, not an error
    """The prefix ends before this many bytes."""

    def __init__(self, prefix_bytes: int) -> None:
        super().__init__(prefix_bytes)
        self.prefix_bytes = prefix_bytes


class _Cursor:
    """A position in the header that never passes the end of the file, the cap, or the prefix."""

    __slots__ = ("_prefix", "_size", "position")

    def __init__(self, prefix: bytes | memoryview, size: int) -> None:
        self._prefix = prefix
        self._size = size
        self.position = 0

    def skip(self, count: int) -> int:
        """Moves over `count` bytes and returns where they start."""
        start, end = self.position, self.position + count
        if end > HEADER_BYTES_MAX:
            raise Refused("header-too-large")
        if end > self._size:
            raise Refused("header-beyond-end")
        if end > len(self._prefix):
            raise _Short(end)
        self.position = end
        return start

    def u32(self) -> int:
        number: int = _U32.unpack_from(self._prefix, self.skip(4))[0]
        return number

    def u64(self) -> int:
        number: int = _U64.unpack_from(self._prefix, self.skip(8))[0]
        return number

    def text(self, bytes_max: int) -> str:
        count = self.u64()
        if not 0 < count <= bytes_max:
            raise Refused("bad-name")
        start = self.skip(count)
        try:
            return bytes(self._prefix[start : self.position]).decode("utf-8")
        except UnicodeDecodeError as e:
            raise Refused("bad-name") from e


def read(prefix: bytes | memoryview, size: int) -> Reading:
    """Reads the header of a file of `size` bytes that starts with `prefix` and with the magic.

    Raises:
        Refused: the header cannot be used.
    """
    try:
        return _read(_Cursor(prefix, size), size)
    except _Short as short:
        # Doubling: reading all of it again costs then no more than reading it twice.
        wanted = max(short.prefix_bytes, 2 * len(prefix), NEED_MORE_BYTES_MIN)
        return NeedMore(min(wanted, HEADER_BYTES_MAX, size))


def _read(cursor: _Cursor, size: int) -> Layout:
    cursor.skip(len(MAGIC))
    if cursor.u32() not in (2, 3):  # also what a big-endian file shows
        raise Refused("gguf-version")
    tensor_count, metadata_count = cursor.u64(), cursor.u64()
    if tensor_count > TENSORS_MAX:
        raise Refused("too-many-tensors")
    if metadata_count > METADATA_MAX:
        raise Refused("too-many-keys")
    alignment = _read_alignment(cursor, metadata_count)
    entries = [_read_tensor(cursor) for _ in range(tensor_count)]
    header_bytes = min(_align(cursor.position, alignment), size)
    tensors = [Tensor(t.name, t.dtype, t.shape, header_bytes + t.offset, t.length) for t in entries]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.length, tensor.name))
    layout = Layout("gguf", header_bytes, tuple(tensors))
    _check_packed(layout, size, alignment)
    return layout


def _read_alignment(cursor: _Cursor, metadata_count: int) -> int:
    keys: set[str] = set()
    alignment = ALIGNMENT_DEFAULT
    for _ in range(metadata_count):
        key = cursor.text(KEY_BYTES_MAX)
        if key in keys:
            raise Refused("duplicate-key")
        keys.add(key)
        kind = cursor.u32()
        if key != ALIGNMENT_KEY:
            _skip_value(cursor, kind, 0)
            continue
        alignment = cursor.u32() if kind == _UINT32 else 0
        if not 0 < alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
            raise Refused("bad-alignment")
    return alignment


def _skip_value(cursor: _Cursor, kind: int, depth: int) -> None:
    if kind in _SCALAR_BYTES:
        cursor.skip(_SCALAR_BYTES[kind])
    elif kind == _STRING:
        cursor.skip(cursor.u64())
    elif kind == _ARRAY and depth < ARRAY_DEPTH_MAX:
        _skip_array(cursor, depth)
    else:
        raise Refused("bad-metadata")


def _skip_array(cursor: _Cursor, depth: int) -> None:
    kind, count = cursor.u32(), cursor.u64()
    if kind in _SCALAR_BYTES:
        cursor.skip(count * _SCALAR_BYTES[kind])
        return
    if count > HEADER_BYTES_MAX // 8:  # a string or array has at least a length of eight bytes
        raise Refused("header-too-large")
    for _ in range(count):
        _skip_value(cursor, kind, depth + 1)


def _read_tensor(cursor: _Cursor) -> Tensor:
    """One row of the table; its offset counts from the start of the tensors."""
    name = cursor.text(KEY_BYTES_MAX)
    dimension_count = cursor.u32()
    if dimension_count > DIMENSIONS_MAX:
        raise Refused("bad-shape")
    extents = [cursor.u64() for _ in range(dimension_count)]  # innermost first
    ggml_type = GGML_TYPES.get(cursor.u32())
    offset = cursor.u64()
    if ggml_type is None:
        raise Refused("unknown-dtype")
    values = 1
    for extent in extents:
        values *= extent
    if (extents[0] if extents else 1) % ggml_type.block_values:
        raise Refused("size-is-not-shape")
    length = values // ggml_type.block_values * ggml_type.block_bytes
    if max(offset, length, *extents, 0) > SIZE_MAX:
        raise Refused("bad-offset")
    return Tensor(name, ggml_type.name, tuple(reversed(extents)), offset, length)


def _check_packed(layout: Layout, size: int, alignment: int) -> None:
    """Every tensor starts at the first aligned place after the one before; padding may end the file."""
    data_start = layout.header_bytes
    end = 0
    for tensor in layout.tensors:
        offset = tensor.offset - data_start
        if offset != _align(end, alignment):
            raise Refused("gap" if offset > end else "tensors-overlap")
        end = offset + tensor.length
    if size - data_start not in (end, _align(end, alignment)):
        raise Refused("trailing-bytes" if size - data_start > end else "tensors-beyond-end")
    fault = layout_fault(layout, size)
    if fault is not None:
        raise Refused(fault)


def _align(position: int, alignment: int) -> int:
    return position + -position % alignment
