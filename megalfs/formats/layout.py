"""What a header says about a file: where its tensors lie, or why it is cut as plain bytes.

A reader of one format looks at the first bytes and answers a `Layout`, `Plain`, or `NeedMore`. The answer
depends on the file only, never on how long a prefix it was shown, because every publisher must cut alike.
Reasons are short stable words for the same reason: the manifest records them, so they are part of the
profile.
"""

from __future__ import annotations

import re
from array import array
from typing import TypeAlias

from msgspec import Struct

from megalfs.formats.limits import SIZE_MAX

__all__ = [
    "HEADER_BYTES_MAX",
    "TENSORS_MAX",
    "Layout",
    "NeedMore",
    "Plain",
    "Reading",
    "Refused",
    "Tensor",
    "layout_fault",
    "regions",
]

HEADER_BYTES_MAX = 16 << 20  # research/eco.md 6.3, case 17; a GGUF with 256k tokens has about 8 MiB
TENSORS_MAX = 200_000  # same
DIMENSIONS_MAX = 32
TENSOR_NAME_BYTES_MAX = 1024
REGIONS_MAX = 1 << 21  # two million regions of 256 KiB are 512 GiB; more would not fit a manifest
_DTYPE = re.compile(r"[A-Za-z0-9_]{1,32}\Z")


class Tensor(Struct, frozen=True):
    """One tensor: `shape` outermost first, `offset` from the start of the file, `length` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class Layout(Struct, frozen=True):
    """A file whose header was understood; tensors in file order (offset, length, name)."""

    format: str
    header_bytes: int
    tensors: tuple[Tensor, ...]


class Plain(Struct, frozen=True):
    """A file cut without a header; `reason` is a stable word such as `unknown-format`."""

    reason: str


class NeedMore(Struct, frozen=True):
    """The prefix is too short; ask again with the first `prefix_bytes` bytes."""

    prefix_bytes: int


Reading: TypeAlias = Layout | Plain | NeedMore


class Refused(ValueError):  # noqa: N818 - control flow inside the readers, never seen outside
    """Raised inside a reader: the header makes the file plain for the reason in `str()`."""


def layout_fault(layout: Layout, size: int) -> str | None:
    """Why this layout cannot be of a file of `size` bytes; None when it can."""
    if not 0 < layout.header_bytes <= min(size, HEADER_BYTES_MAX + 8):
        return "header-size"
    if len(layout.tensors) > TENSORS_MAX:
        return "too-many-tensors"
    if len({tensor.name for tensor in layout.tensors}) != len(layout.tensors):
        return "duplicate-key"
    end, previous = layout.header_bytes, (0, 0, "")
    for tensor in layout.tensors:
        fault = _tensor_fault(tensor)
        if fault is not None:
            return fault
        order = (tensor.offset, tensor.length, tensor.name)
        if tensor.offset < end or order < previous:
            return "tensors-overlap"
        end, previous = tensor.offset + tensor.length, order
    return "tensors-beyond-end" if end > size else None


def _tensor_fault(tensor: Tensor) -> str | None:
    if not _DTYPE.match(tensor.dtype):
        return "bad-dtype"
    if len(tensor.shape) > DIMENSIONS_MAX or not all(0 <= extent <= SIZE_MAX for extent in tensor.shape):
        return "bad-shape"
    if tensor.offset < 0 or not 0 <= tensor.length <= SIZE_MAX:
        return "bad-offset"
    try:
        name_bytes = len(tensor.name.encode("utf-8"))
    except UnicodeEncodeError:
        return "bad-name"
    return None if 0 < name_bytes <= TENSOR_NAME_BYTES_MAX else "bad-name"


def regions(layout: Layout | Plain, size: int, avg: int) -> array[int]:
    """Ends of the regions that are chunked each on its own: ascending, unique, the last one `size`.

    The header is one region, every tensor start and end is a cut, and so is each outermost index of a tensor
    of three or more dimensions whose slice has at least `avg` bytes (fused experts). When that would make
    more than 2**21 regions, the outermost indices are left out.
    """
    ends = array("Q")
    if isinstance(layout, Layout) and size:
        slices = [_slice_count(tensor, avg) for tensor in layout.tensors]
        if sum(slices) + 2 * len(slices) + 2 > REGIONS_MAX:
            slices = [0] * len(slices)
        ends.append(layout.header_bytes)
        for tensor, count in zip(layout.tensors, slices, strict=True):  # in order, and none overlaps the next
            step = tensor.length // count if count else 0
            for index in range(count or 1):
                if tensor.offset + index * step > ends[-1]:
                    ends.append(tensor.offset + index * step)
            if tensor.offset + tensor.length > ends[-1]:
                ends.append(tensor.offset + tensor.length)
    if size and (not ends or ends[-1] < size):
        ends.append(size)
    return ends


def _slice_count(tensor: Tensor, avg: int) -> int:
    if len(tensor.shape) < 3 or tensor.shape[0] == 0 or tensor.length % tensor.shape[0]:
        return 0
    return tensor.shape[0] if tensor.length // tensor.shape[0] >= avg else 0
