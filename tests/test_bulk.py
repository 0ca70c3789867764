"""Many small blobs in one exchange: the codec and the plan, drawn; the group of files on the disk; whole pulls."""

from __future__ import annotations

import pytest

from megalfs.core.bulk import (
    BULK_BYTES_MAX,
    NOT_HERE,
    OIDS_MAX,
    BulkPlan,
    decode_oids,
    encode_oids,
    encode_size,
    read_size,
)
from megalfs.core.ids import Oid
from megalfs.errors import RemoteProtocolError, UsageError


def oid(number: int) -> Oid:
    """The oid of a drawn blob."""
    return Oid(number.to_bytes(32, "big"))


# The codec.


@pytest.mark.parametrize("count", [1, 2, OIDS_MAX - 1, OIDS_MAX])
def test_oids_round_trip(count: int) -> None:
    oids = [oid(number) for number in range(count)]
    assert decode_oids(encode_oids(oids)) == oids


@pytest.mark.parametrize("length", [0, 1, 31, 33, 32 * OIDS_MAX + 32])
def test_what_is_no_list_of_oids_is_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"{length} bytes"):
        decode_oids(bytes(length))


def test_sizes_round_trip_and_large_ones_are_refused() -> None:
    for size in (None, 0, 1, BULK_BYTES_MAX):
        assert read_size(encode_size(size)) == size
    for size in (BULK_BYTES_MAX + 1, NOT_HERE - 1):
        with pytest.raises(RemoteProtocolError):
            read_size(encode_size(size))


# The plan: blobs are digits, peers letters.


def plan_of(blobs: str, peers: str) -> BulkPlan[str]:
    """A plan of blobs of one byte."""
    return BulkPlan({oid(int(blob)): 1 for blob in blobs}, set(peers))


def shown(oids: list[Oid]) -> str:
    """Blobs as digits."""
    return "".join(str(int.from_bytes(each.raw, "big")) for each in oids)


def test_what_one_peer_lacks_another_one_is_asked_for() -> None:
    plan = plan_of("123", "ab")
    assert shown(plan.take("a")) == "123"
    assert plan.take("b") == []  # everything is asked for
    plan.came(oid(1))
    plan.refused("a", oid(2))
    assert plan.take("a") == []  # it said that it lacks 2
    assert shown(plan.take("b")) == "2"
    plan.came(oid(2))
    plan.came(oid(3))
    assert plan.is_done
    assert plan.leftover == []


def test_what_nobody_has_is_left_over() -> None:
    plan = plan_of("12", "ab")
    plan.take("a")
    plan.came(oid(1))
    plan.refused("a", oid(2))
    assert not plan.is_done
    plan.take("b")
    plan.refused("b", oid(2))
    assert plan.is_done
    assert shown(plan.leftover) == "2"


def test_a_peer_that_goes_leaves_its_blobs_to_the_others() -> None:
    plan = plan_of("12", "ab")
    asked = plan.take("a")
    plan.gone("a")
    plan.unanswered(asked)
    assert shown(plan.take("b")) == "12"
    plan.gone("b")
    plan.unanswered([oid(1), oid(2)])
    assert plan.is_done
    assert shown(plan.leftover) == "12"


def test_without_peers_everything_is_left_over() -> None:
    plan = plan_of("12", "")
    assert plan.is_done
    assert shown(plan.leftover) == "12"


def test_a_request_is_bounded_by_count_and_bytes() -> None:
    many = BulkPlan({oid(number): 1 for number in range(OIDS_MAX + 1)}, {"a"})
    assert len(many.take("a")) == OIDS_MAX
    large = BulkPlan({oid(number): BULK_BYTES_MAX for number in range(9)}, {"a"})
    assert len(large.take("a")) == 4
    assert len(large.take("a")) == 4
    assert len(large.take("a")) == 1
