"""safetensors headers, with the library itself as oracle, and the cuts that follow from a layout."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from megalfs.formats.header import read_layout
from megalfs.formats.layout import Layout, NeedMore, Plain, Tensor, layout_fault, regions

U8 = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def blob_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def layout_of(blob: bytes) -> Layout:
    layout = read_layout(blob, len(blob))
    assert isinstance(layout, Layout), layout
    return layout


def test_offsets_agree_with_the_library() -> None:
    rng = np.random.default_rng(7)
    arrays = {
        "experts": rng.integers(0, 255, (3, 5, 7), np.uint8),
        "weight/../name": rng.standard_normal((11, 13)).astype(np.float32),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "bias": rng.standard_normal(17).astype(np.float16),
    }
    blob = safetensors.numpy.save(arrays, {"format": "np"})
    layout = layout_of(blob)
    found = {tensor.name: tensor for tensor in layout.tensors}
    for name, told in safetensors.deserialize(blob):
        tensor = found.pop(name)
        assert (tensor.dtype, list(tensor.shape)) == (told["dtype"], told["shape"])
        assert blob[tensor.offset : tensor.offset + tensor.length] == bytes(told["data"])
    assert not found
    assert layout.header_bytes == len(blob) - sum(array.nbytes for array in arrays.values())
    assert layout_fault(layout, len(blob)) is None


def test_every_prefix_gives_the_same_answer_or_asks_for_more() -> None:
    blob = blob_of({"a": U8, "__metadata__": {"k": "v"}}, b"data")
    whole = layout_of(blob)
    for count in range(len(blob) + 1):
        answer = read_layout(blob[:count], len(blob))
        if isinstance(answer, NeedMore):
            assert count < answer.prefix_bytes <= len(blob)
        else:
            assert answer == whole


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"[]", b"", "unknown-format"),
        (b"{", b"", "json-invalid"),
        (b"{}", b"x", "trailing-bytes"),
        ({"a": U8}, b"abc", "tensors-beyond-end"),
        ({"a": U8}, b"abcde", "trailing-bytes"),
        ({"a": {**U8, "data_offsets": [1, 5]}}, b"abcde", "gap"),
        ({"a": U8, "b": {**U8, "data_offsets": [2, 6]}}, b"abcdef", "tensors-overlap"),
        ({"a": U8, "b": {**U8, "data_offsets": [5, 9]}}, b"123456789", "gap"),
        ({"a": {**U8, "data_offsets": [4, 0]}}, b"abcd", "bad-offset"),
        ({"a": {**U8, "data_offsets": [0, 1 << 63]}}, b"abcd", "bad-offset"),
        ({"a": {**U8, "data_offsets": [0, 4, 4]}}, b"abcd", "bad-tensor"),
        ({"a": {**U8, "data_offsets": [False, 4]}}, b"abcd", "bad-shape"),
        ({"a": {**U8, "shape": [5]}}, b"abcd", "size-is-not-shape"),
        ({"a": {**U8, "shape": [1 << 62, 1 << 62, 4]}}, b"abcd", "size-is-not-shape"),
        ({"a": {**U8, "shape": [-2, -2]}}, b"abcd", "bad-shape"),
        ({"a": {**U8, "shape": [1] * 33 + [4]}}, b"abcd", "bad-shape"),
        ({"a": {**U8, "shape": [4.0]}}, b"abcd", "not-an-integer"),
        ({"a": {**U8, "dtype": "x-y", "shape": []}}, b"abcd", "bad-dtype"),
        ({"a": [U8]}, b"abcd", "bad-tensor"),
        ({"": U8}, b"abcd", "bad-name"),
        ({"n" * 1025: U8}, b"abcd", "bad-name"),
        ({"\ud800": U8}, b"abcd", "bad-name"),
        ({"__metadata__": {"k": 1}}, b"", "bad-metadata"),
        ({"__metadata__": "text"}, b"", "bad-metadata"),
        (b'{"a":%s,"a":%s}' % ((json.dumps(U8).encode(),) * 2), b"abcd", "duplicate-key"),
        (b'{"a":NaN}', b"", "not-an-integer"),
        (b'{"a":%s}' % (b"9" * 5000), b"", "integer-too-long"),
        (b'{"a":' + b"[" * 100_000, b"", "json-too-deep"),
        (b'{"a":"' + b"[" * 100_000 + b'"}', b"", "bad-tensor"),
        (b'{"\xff":1}', b"", "json-invalid"),
    ],
)
def test_a_bad_header_makes_the_file_plain(header: Any, data: bytes, reason: str) -> None:
    blob = blob_of(header, data)
    assert read_layout(blob, len(blob)) == Plain(reason)


def test_header_length_is_capped_before_anything_is_asked_for() -> None:
    cap = 16 << 20
    start = struct.pack("<Q", cap) + b"{"
    assert read_layout(start, cap + 8) == NeedMore(cap + 8)
    assert read_layout(start, cap + 7) == Plain("header-beyond-end")
    start = struct.pack("<Q", cap + 1) + b"{"
    assert read_layout(start, cap + 9) == Plain("header-too-large")
    assert read_layout(struct.pack("<Q", (1 << 64) - 1) + b"{", 1 << 40) == Plain("header-too-large")


@pytest.mark.parametrize("size", range(10))
def test_tiny_files_are_plain(size: int) -> None:
    assert read_layout(bytes(size), size) == Plain("unknown-format")


def test_too_many_tensors() -> None:
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    blob = blob_of(("{" + ",".join(f'"{i}":{entry}' for i in range(200_001)) + "}").encode())
    assert read_layout(blob, len(blob)) == Plain("too-many-tensors")
    tensors = tuple(Tensor(f"{i:06}", "U8", (0,), 1, 0) for i in range(200_001))
    assert layout_fault(Layout("safetensors", 1, tensors[:-1]), 1) is None
    assert layout_fault(Layout("safetensors", 1, tensors), 1) == "too-many-tensors"


def test_a_dtype_from_the_future_and_unknown_fields_are_taken() -> None:
    blob = blob_of({"a": {"dtype": "F2_X", "shape": [32], "data_offsets": [0, 4], "new": "x"}}, b"abcd")
    assert layout_of(blob).tensors[0].length == 4


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_the_library_refuses_we_refuse(data: st.DataObject) -> None:
    """Of mutated headers that we take as tensors, the library takes every one, and reads the same bytes."""
    blob = bytearray(blob_of({"ab": U8, "c": {**U8, "data_offsets": [4, 8]}}, b"abcdefgh"))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(8, len(blob) - 9))] = data.draw(st.sampled_from(b'{}[]",:0123456789 aU\\'))
    answer = read_layout(bytes(blob), len(blob))
    assert not isinstance(answer, NeedMore)
    if isinstance(answer, Layout) and all(tensor.dtype == "U8" for tensor in answer.tensors):
        told = dict(safetensors.deserialize(bytes(blob)))
        for tensor in answer.tensors:
            assert blob[tensor.offset : tensor.offset + tensor.length] == bytes(told[tensor.name]["data"])


def test_regions_cut_header_tensors_and_outer_indices() -> None:
    layout = Layout(
        "safetensors",
        10,
        (
            Tensor("flat", "U8", (40, 1), 10, 40),
            Tensor("none", "U8", (0,), 50, 0),
            Tensor("experts", "U8", (3, 4, 5), 50, 60),
            Tensor("small", "U8", (3, 2, 5), 112, 30),
        ),
    )
    assert regions(layout, 142, 20).tolist() == [10, 50, 70, 90, 110, 112, 142]
    assert regions(layout, 142, 21).tolist() == [10, 50, 110, 112, 142]
    assert regions(layout, 142, 10).tolist() == [10, 50, 70, 90, 110, 112, 122, 132, 142]
    assert regions(Plain("x"), 142, 20).tolist() == [142]
    assert regions(Plain("x"), 0, 20).tolist() == []


def test_regions_are_capped() -> None:
    count = 1 << 21
    layout = Layout("gguf", 1, (Tensor("t", "U8", (count, 1, 1), 1, count),))
    assert len(regions(layout, count + 1, 1)) == 2
    layout = Layout("gguf", 1, (Tensor("t", "U8", (count - 4, 1, 1), 1, count - 4),))
    assert len(regions(layout, count - 3, 1)) == count - 3
