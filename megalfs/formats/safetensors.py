"""safetensors: u64 LE header length, a JSON header, then the tensors without gap, overlap or trailing byte.

Specification: https://github.com/huggingface/safetensors, "Format". Stricter than the library in one place:
duplicate names are refused, because readers differ on which one counts (research/eco.md 6.1).
"""

from __future__ import annotations

from megalfs.formats import strict_json
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
from megalfs.formats.strict_json import JsonFault, JsonValue

__all__ = ["is_safetensors", "read"]

LENGTH_BYTES = 8
PROBE_BYTES = LENGTH_BYTES + 1

_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


def is_safetensors(prefix: bytes | memoryview) -> bool:
    """Whether the first nine bytes can start one; there is no magic, but the header must start with `{`."""
    return len(prefix) >= PROBE_BYTES and prefix[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"


def read(prefix: bytes | memoryview, size: int) -> Reading:
    """Reads the header of a file of `size` bytes, of which `prefix` is the start and at least nine bytes.

    Raises:
        Refused: the header cannot be used.
    """
    header_bytes = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if header_bytes > HEADER_BYTES_MAX:
        raise Refused("header-too-large")
    data_start = LENGTH_BYTES + header_bytes
    if data_start > size:
        raise Refused("header-beyond-end")
    if len(prefix) < data_start:
        return NeedMore(data_start)
    try:
        header = strict_json.parse(bytes(prefix[LENGTH_BYTES:data_start]))
    except JsonFault as e:
        raise Refused(str(e)) from e
    layout = Layout("safetensors", data_start, _tensors(header, data_start))
    _check_gapless(layout, size)
    return layout


def _tensors(header: JsonValue, data_start: int) -> tuple[Tensor, ...]:
    if not isinstance(header, dict):
        raise Refused("json-invalid")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise Refused("bad-metadata")
    if len(header) > TENSORS_MAX:
        raise Refused("too-many-tensors")
    tensors = [_tensor(name, entry, data_start) for name, entry in header.items()]
    return tuple(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.length, tensor.name)))


def _tensor(name: str, entry: JsonValue, data_start: int) -> Tensor:
    """One entry; fields we do not know are ignored, as the library does."""
    match entry:
        case {"dtype": str(dtype), "shape": list(extents), "data_offsets": [int(begin), int(end)]}:
            shape = tuple(extent for extent in extents if type(extent) is int and 0 <= extent <= SIZE_MAX)
            if len(shape) != len(extents) or type(begin) is not int or type(end) is not int:
                raise Refused("bad-shape")
            if not 0 <= begin <= end <= SIZE_MAX:
                raise Refused("bad-offset")
            if not _is_size_of(dtype, shape, end - begin):
                raise Refused("size-is-not-shape")
            return Tensor(name, dtype, shape, data_start + begin, end - begin)
        case _:
            raise Refused("bad-tensor")


def _is_size_of(dtype: str, shape: tuple[int, ...], length: int) -> bool:
    """A dtype from the future is believed: only offsets matter for cutting."""
    if dtype not in _BITS:
        return True
    bits = _BITS[dtype]
    for extent in shape:
        bits *= extent
    return bits == 8 * length


def _check_gapless(layout: Layout, size: int) -> None:
    end = layout.header_bytes
    for tensor in layout.tensors:
        if tensor.offset != end:
            raise Refused("gap" if tensor.offset > end else "tensors-overlap")
        end += tensor.length
    if end != size:
        raise Refused("trailing-bytes" if end < size else "tensors-beyond-end")
    fault = layout_fault(layout, size)
    if fault is not None:
        raise Refused(fault)
