"""GGUF headers, written by a small writer of our own from the specification."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalfs.formats.ggml_types import GGML_TYPES
from megalfs.formats.header import read_layout
from megalfs.formats.layout import Layout, NeedMore, Plain

U32, STRING, ARRAY = 4, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass
class Writer:
    """Writes what it is told, right or wrong."""

    version: int = 3
    alignment: int = 32
    keys: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)

    def key(self, name: str, kind: int, value: Any) -> None:
        self.keys.append(text(name) + struct.pack("<I", kind) + encoded(kind, value))

    def tensor(
        self, name: str, dims: list[int], ggml: int, length: int, *, offset: int | None = None
    ) -> None:
        self.data += bytes(-len(self.data) % self.alignment)
        start = len(self.data) if offset is None else offset
        head = text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        self.tensors.append(head + struct.pack("<IQ", ggml, start))
        self.data += bytes([len(self.tensors)]) * length

    def header(self) -> bytes:
        counts = struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        return b"GGUF" + counts + b"".join(self.keys) + b"".join(self.tensors)

    def blob(self) -> bytes:
        head = self.header()
        return head + bytes(-len(head) % self.alignment) + bytes(self.data)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def encoded(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(encoded(inner, one) for one in values)
    return struct.pack("<" + SCALARS[kind], value)


def model(**changes: Any) -> Writer:
    writer = Writer(**changes)
    for kind in SCALARS:
        writer.key(f"scalar.{kind}", kind, 1)
    writer.key("tokens", ARRAY, (STRING, ["a", "", "ccc"]))
    writer.key("scores", ARRAY, (6, [1.0, 2.0]))
    writer.key("nested", ARRAY, (ARRAY, [(U32, [1, 2]), (U32, [])]))
    if writer.alignment != 32:
        writer.key("general.alignment", U32, writer.alignment)
    writer.tensor("embed", [32, 3], 8, 34 * 3)
    writer.tensor("experts", [256, 2, 5], 12, 144 * 10)
    writer.tensor("scalar", [], 0, 4)
    return writer


def read(blob: bytes) -> Any:
    return read_layout(blob, len(blob))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_tensors_lie_where_the_writer_put_them(version: int, alignment: int) -> None:
    writer = model(version=version, alignment=alignment)
    blob = writer.blob()
    layout = read(blob)
    assert isinstance(layout, Layout)
    assert layout.header_bytes == len(writer.header()) + -len(writer.header()) % alignment
    assert [(t.name, t.dtype, t.shape, t.length) for t in layout.tensors] == [
        ("embed", "Q8_0", (3, 32), 102),
        ("experts", "Q4_K", (5, 2, 256), 1440),
        ("scalar", "F32", (), 4),
    ]
    for number, tensor in enumerate(layout.tensors, 1):
        assert blob[tensor.offset : tensor.offset + tensor.length] == bytes([number]) * tensor.length


def test_padding_may_end_the_file() -> None:
    writer = model()
    blob = writer.blob()
    padded = blob + bytes(-len(writer.data) % 32)
    assert len(padded) > len(blob)
    assert isinstance(read(padded), Layout)
    assert read(padded + b"\0") == Plain("trailing-bytes")
    assert read(padded[:-1]) == Plain("trailing-bytes")
    assert read(blob[:-1]) == Plain("tensors-beyond-end")


def test_every_prefix_gives_the_same_answer_or_asks_for_more() -> None:
    blob = model().blob()
    whole = read(blob)
    for count in range(len(blob) + 1):
        answer = read_layout(blob[:count], len(blob))
        if isinstance(answer, NeedMore):
            assert count < answer.prefix_bytes <= len(blob)
        else:
            assert answer == whole


@pytest.mark.parametrize("number", sorted(GGML_TYPES))
def test_each_type_has_its_block(number: int) -> None:
    kind = GGML_TYPES[number]
    writer = Writer()
    writer.tensor("t", [kind.block_values * 3, 2], number, kind.block_bytes * 6)
    layout = read(writer.blob())
    assert isinstance(layout, Layout)
    assert (layout.tensors[0].dtype, layout.tensors[0].length) == (kind.name, kind.block_bytes * 6)


# Bits per weight as llama.cpp's quantize prints them, written down apart from the table.
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("Q4_0", 4.5),
        ("Q5_K", 5.5),
        ("Q6_K", 6.5625),
        ("IQ4_XS", 4.25),
        ("IQ2_XXS", 2.0625),
        ("IQ1_S", 1.5625),
        ("IQ3_S", 3.4375),
        ("Q2_K", 2.625),
        ("Q3_K", 3.4375),
        ("TQ1_0", 1.6875),
        ("MXFP4", 4.25),
        ("BF16", 16),
    ],
)
def test_bits_per_weight(name: str, bits: float) -> None:
    kind = next(kind for kind in GGML_TYPES.values() if kind.name == name)
    assert kind.block_bytes * 8 / kind.block_values == bits


def bad_headers() -> list[tuple[str, bytes, str]]:
    found = []

    def add(label: str, writer: Writer, reason: str) -> None:
        found.append((label, writer.blob(), reason))

    add("version 1", Writer(version=1), "gguf-version")
    add("big-endian", Writer(version=3 << 24), "gguf-version")
    for alignment in (0, 3, 1 << 21):
        writer = Writer()
        writer.key("general.alignment", U32, alignment)
        add(f"alignment {alignment}", writer, "bad-alignment")
    writer = Writer()
    writer.key("general.alignment", 10, 32)
    add("alignment of another type", writer, "bad-alignment")
    writer = Writer()
    writer.key("k", U32, 1)
    writer.key("k", U32, 1)
    add("duplicate key", writer, "duplicate-key")
    writer = Writer(keys=[text("k") + struct.pack("<I", 13)])
    add("unknown value type", writer, "bad-metadata")
    deep = struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 50
    add("nesting bomb", Writer(keys=[text("k") + deep]), "bad-metadata")
    huge = struct.pack("<IIQ", ARRAY, STRING, 1 << 60)
    add("huge array of strings", Writer(keys=[text("k") + huge]), "header-too-large")
    huge = struct.pack("<IIQ", ARRAY, 12, 1 << 63)
    add("huge array of numbers", Writer(keys=[text("k") + huge]), "header-too-large")
    add(
        "string beyond the end",
        Writer(keys=[text("k") + struct.pack("<IQ", STRING, 999)]),
        "header-beyond-end",
    )
    add("key that is not UTF-8", Writer(keys=[struct.pack("<Q", 1) + b"\xff" + bytes(12)]), "bad-name")
    writer = Writer()
    writer.tensor("t", [1] * 5, 0, 4)
    add("five dimensions", writer, "bad-shape")
    writer = Writer()
    writer.tensor("t", [31], 8, 34)
    add("a part of a block", writer, "size-is-not-shape")
    writer = Writer()
    writer.tensor("t", [1], 4, 4)
    add("a removed type", writer, "unknown-dtype")
    writer = Writer()
    writer.tensor("t", [1 << 62, 1 << 62], 0, 4)
    add("overflow", writer, "bad-offset")
    writer = Writer()
    writer.tensor("t", [1], 0, 4)
    writer.tensor("t", [1], 0, 4)
    add("duplicate tensor", writer, "duplicate-key")
    writer = Writer()
    writer.tensor("t", [1], 0, 4)
    writer.tensor("u", [1], 0, 4, offset=0)
    add("overlap", writer, "tensors-overlap")
    writer = Writer()
    writer.tensor("t", [1], 0, 4)
    writer.tensor("u", [1], 0, 36, offset=64)
    add("gap", writer, "gap")
    writer = Writer()
    writer.tensor("", [1], 0, 4)
    add("no name", writer, "bad-name")
    found.append(("tensor count", b"GGUF" + struct.pack("<IQQ", 3, 200_001, 0), "too-many-tensors"))
    found.append(("key count", b"GGUF" + struct.pack("<IQQ", 3, 0, 65_537), "too-many-keys"))
    found.append(("cut off", b"GGUF" + struct.pack("<IQQ", 3, 200_000, 0), "header-beyond-end"))
    return found


@pytest.mark.parametrize(("blob", "reason"), [pytest.param(b, r, id=i) for i, b, r in bad_headers()])
def test_a_bad_header_makes_the_file_plain(blob: bytes, reason: str) -> None:
    assert read(blob) == Plain(reason)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_never_raise(data: st.DataObject) -> None:
    """Whatever bytes a header holds, the answer is a layout inside the file, or plain."""
    blob = bytearray(model().blob())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(4, len(blob) - 1))] = data.draw(st.integers(0, 255))
    answer = read(bytes(blob))
    assert isinstance(answer, Layout | Plain)
    if isinstance(answer, Layout):
        assert all(0 < t.offset <= t.offset + t.length <= len(blob) for t in answer.tensors)
