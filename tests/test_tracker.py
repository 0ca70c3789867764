"""The tracker's table: who has what, for how long, and what liars cannot do to it."""

from __future__ import annotations

from random import Random

import pytest

from megalfs.core.ids import Oid
from megalfs.core.topology import Labels
from megalfs.core.tracker import (
    EXPIRY_S,
    PEERS_PER_OID_MAX,
    PEERS_PER_SOURCE_MAX,
    Announcement,
    TrackerTable,
)
from megalfs.errors import UsageError

OID = Oid(bytes(32))
OTHER = Oid(bytes([1]) * 32)


def body(
    number: int, *, oids: tuple[Oid, ...] = (OID,), host: str = "", **changes: object
) -> dict[str, object]:
    return {
        "host": host,
        "port": 7427,
        "instance": f"{number:032x}",
        "labels": {"host": "", "rack": "", "zone": ""},
        "blobs": [{"oid": str(oid), "complete": True} for oid in oids],
        "leaving": False,
        **changes,
    }


def announce(table: TrackerTable, number: int, *, remote: str, now: float = 0.0, **changes: object) -> None:
    table.announce(Announcement.from_json(body(number, **changes), remote=remote), now=now)  # type: ignore[arg-type]


@pytest.fixture
def table() -> TrackerTable:
    return TrackerTable(rng=Random(1))


def test_who_announced_is_named_until_it_expires(table: TrackerTable) -> None:
    announce(table, 1, remote="10.0.0.1")
    (peer,) = table.peers(OID, now=EXPIRY_S - 1)
    assert (peer.host, peer.port, peer.is_complete) == ("10.0.0.1", 7427, True)
    assert table.peers(OTHER, now=0.0) == []
    assert table.peers(OID, now=EXPIRY_S) == []
    assert table.oid_count == 0


def test_what_is_announced_again_replaces_what_was(table: TrackerTable) -> None:
    announce(table, 1, remote="10.0.0.1", oids=(OID, OTHER))
    announce(table, 1, remote="10.0.0.1", oids=(OTHER,), now=1.0)
    assert table.peers(OID, now=2.0) == []
    assert len(table.peers(OTHER, now=2.0)) == 1


def test_who_leaves_is_forgotten(table: TrackerTable) -> None:
    announce(table, 1, remote="10.0.0.1", oids=(OID, OTHER))
    announce(table, 1, remote="10.0.0.1", leaving=True)
    assert table.peers(OID, now=0.0) == table.peers(OTHER, now=0.0) == []


def test_the_address_that_the_node_advertises_is_told(table: TrackerTable) -> None:
    announce(table, 1, remote="172.17.0.2", host="node7.cluster")
    assert table.peers(OID, now=0.0)[0].host == "node7.cluster"


def test_ten_thousand_fakes_from_one_address_do_not_push_out_the_real_ones(table: TrackerTable) -> None:
    for number in range(8):
        announce(table, number, remote=f"10.0.0.{number + 1}")
    for number in range(10_000):
        announce(table, 1000 + number, remote="10.9.9.9", now=1.0)
    found = table.peers(OID, now=2.0, limit=PEERS_PER_OID_MAX)
    assert sum(peer.source != "10.9.9.9" for peer in found) == 8
    assert sum(peer.source == "10.9.9.9" for peer in found) == PEERS_PER_SOURCE_MAX


def test_a_full_table_takes_room_from_the_crowd(table: TrackerTable) -> None:
    announce(table, 1, remote="10.0.0.1")
    for number in range(PEERS_PER_OID_MAX + 200):
        announce(table, 1000 + number, remote=f"10.1.{number % 70}.1", now=1.0)
    found = table.peers(OID, now=2.0, limit=2 * PEERS_PER_OID_MAX)
    assert len(found) == PEERS_PER_OID_MAX
    assert "10.0.0.1" in {peer.source for peer in found}


def test_a_full_table_of_nodes_with_addresses_of_their_own_keeps_the_seeder(table: TrackerTable) -> None:
    announce(table, 0, remote="10.0.0.1")
    for number in range(1, PEERS_PER_OID_MAX + 200):
        blobs = [{"oid": str(OID), "complete": False}]
        announce(table, number, remote=f"10.{number >> 8}.{number & 255}.1", now=1.0, blobs=blobs)
    assert [peer.is_complete for peer in table.peers(OID, now=2.0, limit=2)] == [True, False]


def test_an_answer_is_bounded_and_mixes_whole_and_partial_holders(table: TrackerTable) -> None:
    for number in range(200):
        blobs = [{"oid": str(OID), "complete": number % 2 == 0}]
        announce(table, number, remote=f"10.0.{number}.1", blobs=blobs)
    found = table.peers(OID, now=0.0, limit=50)
    assert len(found) == 50
    assert sum(peer.is_complete for peer in found) == 25


def test_near_ones_come_first(table: TrackerTable) -> None:
    for number in range(60):
        labels = {"host": "", "rack": "r1" if number == 7 else "r2", "zone": "z"}
        announce(table, number, remote=f"10.0.{number}.1", labels=labels)
    assert table.peers(OID, now=0.0, labels=Labels("", "r1", "z"), limit=5)[0].host == "10.0.7.1"


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", 7427),
        ("169.254.169.254", 7427),
        ("224.0.0.1", 7427),
        ("localhost", 7427),
        ("10.0.0.2", 22),
    ],
)
def test_a_tracker_sends_nobody_to_places_that_are_nobodys_node(host: str, port: int) -> None:
    with pytest.raises(UsageError):
        Announcement.from_json(body(1, host=host, port=port), remote="10.0.0.1")


def test_loopback_may_name_loopback() -> None:
    assert Announcement.from_json(body(1, host="127.0.0.1"), remote="127.0.0.1").peer.host == "127.0.0.1"


@pytest.mark.parametrize(
    "changes",
    [
        {"instance": "x" * 32},
        {"port": "7427"},
        {"port": 70_000},
        {"labels": {"host": "a b", "rack": "", "zone": ""}},
        {"labels": None},
        {"blobs": [{"oid": "zz", "complete": True}]},
        {"blobs": [{"oid": str(OID)}]},
        {"blobs": [{"oid": str(OID), "complete": True}] * 10_001},
        {"leaving": "no"},
    ],
)
def test_what_is_no_announcement_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Announcement.from_json(body(1, **changes), remote="10.0.0.1")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        Announcement.from_json([], remote="10.0.0.1")
