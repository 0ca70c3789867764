"""Runs and bitfields, against sets of integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalfs.core.bitfield import Bitfield, Run
from megalfs.errors import RemoteProtocolError

SIZES = st.integers(0, 70)


def runs_within(size: int) -> st.SearchStrategy[Run]:
    return st.integers(0, size).flatmap(
        lambda first: st.integers(0, size - first).map(lambda count: Run(first, count))
    )


def draw(field: Bitfield) -> str:
    return "".join("x" if bit else " " for bit in field.bits.tolist())


@settings(deadline=None)  # a busy machine is no failure
@given(st.data(), SIZES)
def test_a_bitfield_is_a_set_of_indexes(data: st.DataObject, size: int) -> None:
    field, model = Bitfield(size), set[int]()
    for _ in range(data.draw(st.integers(0, 8))):
        run = data.draw(runs_within(size))
        indexes = set(range(run.first, run.end))
        assert field.has_any(*run) == bool(indexes & model)
        assert field.has_all(*run) == (indexes <= model)
        if not indexes & model and data.draw(st.booleans()):
            field.fill(*run)
            model |= indexes
        elif data.draw(st.booleans()):
            assert field.add(*run) == len(indexes - model)
            model |= indexes
        else:
            assert field.remove(*run) == len(indexes & model)
            model -= indexes
        assert field.count == len(model)
    assert {index for index in range(size) if field.has(index)} == model
    assert field.is_full == (len(model) == size)
    assert Bitfield.from_runs(size, field.runs()) == field
    assert Bitfield.from_bytes(field.to_bytes(), size) == field
    assert field.copy() == field


def test_runs_are_maximal() -> None:
    field = Bitfield.from_runs(10, [(0, 2), (2, 1), (5, 1), (9, 1)])
    assert draw(field) == "xxx  x   x"
    assert field.runs() == [Run(0, 3), Run(5, 1), Run(9, 1)]
    assert Bitfield.full(3).runs() == [Run(0, 3)]
    assert Bitfield(0).runs() == []


@given(runs_within(20), runs_within(20))
def test_minus_and_overlap_split_a_run(one: Run, two: Run) -> None:
    left = [index for part in one.minus(two) for index in range(part.first, part.end)]
    common = one.overlap(two)
    shared = set() if common is None else set(range(common.first, common.end))
    assert sorted(left) == sorted(set(range(one.first, one.end)) - set(range(two.first, two.end)))
    assert shared == set(range(one.first, one.end)) & set(range(two.first, two.end))


@pytest.mark.parametrize(
    ("packed", "size"), [(b"", 1), (b"\0\0", 8), (b"\x01", 7), (b"\xff\x80", 8), (b"\xff", 0)]
)
def test_from_bytes_refuses(packed: bytes, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Bitfield.from_bytes(packed, size)
