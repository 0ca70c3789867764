"""Which run is asked of whom, drawn: x is held, a space is not."""

from __future__ import annotations

import pytest
from sim.solo import MANIFEST, PIECE_BYTES, Solo

from megalfs.core.bitfield import Run
from megalfs.core.effects import Cancel, Fetch, PeerId
from megalfs.core.messages import HaveRuns, Reject, RejectReason
from megalfs.core.topology import Labels, Tier, tier_between

ONE = {"run_bytes_initial": 1}  # runs of one piece


def fetched(solo: Solo) -> list[tuple[int, int, int]]:
    return [(fetch.peer, fetch.first, fetch.count) for fetch in solo.effects(Fetch)]


def test_alone_with_a_seeder_the_file_is_read_in_order_and_deep() -> None:
    solo = Solo(" " * 100, run_bytes_initial=3 * PIECE_BYTES)
    seeder = solo.join(1, "all")
    assert fetched(solo) == [(seeder, at, 3) for at in (0, 3, 6, 9)]


def test_from_the_end_when_the_manifest_is_not_trusted() -> None:
    solo = Solo(" " * 100, run_bytes_initial=3 * PIECE_BYTES, from_end=True)
    solo.join(1, "all")
    assert [first for _, first, _ in fetched(solo)] == [97, 94, 91, 88]


def test_runs_shrink_towards_the_end() -> None:
    solo = Solo("x" * 92 + " " * 8, run_bytes_initial=100 * PIECE_BYTES)
    solo.join(1, "all")
    counts = [count for _, _, count in fetched(solo)]
    assert counts == [2, 2, 2, 2]


def test_several_seeders_share_the_work() -> None:
    solo = Solo(" " * 400, **ONE)
    for number in (1, 2, 3):
        solo.join(number, "all")
    asked = fetched(solo)
    assert {peer for peer, _, _ in asked} == {1, 2, 3}
    pieces = [first for _, first, _ in asked]
    assert len(pieces) == len(set(pieces))


@pytest.mark.parametrize("seed", range(5))
def test_the_rarest_piece_comes_first(seed: int) -> None:
    solo = Solo("     ", seed=seed, **ONE)
    solo.join(1, "     ")
    solo.join(2, "xx xx")
    solo.join(3, "xxx x")
    solo.effects(Fetch)
    assert fetched_from_new_peer(solo, "xxxxx") in ({2}, {3})


def fetched_from_new_peer(solo: Solo, holds: str) -> set[int]:
    peer = solo.join(9, holds)
    return {first for who, first, _ in fetched(solo) if who == peer}


def test_ties_are_broken_at_random() -> None:
    firsts = set()
    for seed in range(40):
        solo = Solo(" " * 8, seed=seed, **ONE)
        solo.join(1, " " * 8)
        firsts |= fetched_from_new_peer(solo, "x" * 8)
    assert len(firsts) >= 6


def test_one_run_per_peer_while_others_fetch_too() -> None:
    solo = Solo(" " * 50, **ONE)
    solo.join(1, "x" * 25 + " " * 25)
    solo.join(2, " " * 25 + "x" * 25)
    assert [peer for peer, _, _ in fetched(solo)] == [1, 2]


def test_nothing_here_or_asked_is_asked_again() -> None:
    solo = Solo("x x ")
    solo.join(1, "all")
    solo.join(2, "all")
    assert sorted(first for _, first, _ in fetched(solo)) == [1, 3]


def test_reserved_pieces_are_left_to_the_local_source() -> None:
    solo = Solo("    ")
    solo.swarm.reserve(0, 3)
    solo.join(1, "all")
    assert fetched(solo) == [(1, 3, 1)]
    solo.swarm.release(0, 2, now=0.0)
    assert {first for _, first, _ in fetched(solo)} == {0, 1}


def test_a_dearer_tier_is_asked_only_for_what_no_cheaper_one_holds() -> None:
    solo = Solo("    ", **ONE)
    solo.join(1, "xx  ", tier=Tier.RACK)
    solo.join(2, "xxx ", tier=Tier.ZONE)
    asked = fetched(solo)
    assert {first for peer, first, _ in asked if peer == 2} == {2}


def test_the_origin_is_asked_only_for_what_no_peer_holds() -> None:
    solo = Solo("    ", **ONE)
    solo.join(1, "xxx ")
    solo.join(2, origin=True)
    assert {first for peer, first, _ in fetched(solo) if peer == 2} == {3}


def test_no_origin_while_a_seeder_is_connected_but_once_it_is_gone() -> None:
    solo = Solo("    ")
    seeder = solo.join(1, "all")
    solo.join(2, origin=True)
    assert {peer for peer, _, _ in fetched(solo)} == {1}
    solo.swarm.disconnected(seeder, now=0.0)
    assert {peer for peer, _, _ in fetched(solo)} == {2}


def test_leechers_read_the_origin_at_different_places() -> None:
    firsts = set()
    for seed in range(10):
        solo = Solo(" " * 1000, seed=seed, **ONE)
        solo.join(1, " " * 1000)
        solo.join(2, origin=True)
        firsts.add(fetched(solo)[0][1])
    assert len(firsts) >= 8


def test_a_stretch_of_the_origin_is_read_on() -> None:
    solo = Solo(" " * 1000, **ONE)
    solo.join(1, " " * 1000)
    origin = solo.join(2, origin=True)
    first = solo.effects(Fetch)[0].first
    solo.now = 1.0
    solo.deliver(origin, Run(first, 1))
    assert solo.effects(Fetch)[0].first == first + 1


def test_a_big_blob_is_sampled_but_its_last_piece_is_found() -> None:
    size = 20_000
    solo = Solo("x" * (size - 1) + " ", **ONE)
    solo.join(1, " " * size)
    assert fetched_from_new_peer(solo, "x" * size) == {size - 1}


def test_hedge_only_in_the_endgame_at_most_twice_and_cancelled_on_receipt() -> None:
    solo = Solo("x ", **ONE)
    for number in (1, 2, 3):
        solo.join(number, "all")
    (first,) = solo.effects(Fetch)
    assert solo.swarm.receiving(first.peer, 1, 1, now=0.0)
    solo.wait(1.4)
    (second,) = solo.effects(Fetch)
    assert second.peer != first.peer
    solo.deliver(second.peer, Run(1, 1))
    assert [cancel.peer for cancel in solo.effects(Cancel)] == [first.peer]
    assert solo.swarm.is_complete


def test_what_waits_in_a_long_queue_moves_to_an_idle_holder() -> None:
    solo = Solo("xxx ", **ONE)
    solo.join(1, "   x")
    solo.join(2, "    ")
    assert solo.effects(Fetch) == [Fetch(PeerId(1), 3, 1)]
    solo.now = 0.1
    solo.hear(PeerId(2), HaveRuns(MANIFEST, (Run(3, 1),)))
    assert solo.swarm.effects() == []
    solo.now = 0.3
    solo.hear(PeerId(2), HaveRuns(MANIFEST, (Run(0, 1),)))
    assert solo.swarm.effects() == [Cancel(PeerId(1), 3, 1)]
    solo.hear(PeerId(1), Reject(MANIFEST, 3, 1, RejectReason.RECALLED))
    assert solo.effects(Fetch) == [Fetch(PeerId(2), 3, 1)]


def test_rates_make_runs_larger() -> None:
    solo = Solo(" " * 3000, **ONE)
    seeder = solo.join(1, "all")
    counts = []
    while fetches := solo.effects(Fetch):
        for fetch in fetches:
            counts.append(fetch.count)
            solo.now += fetch.count * PIECE_BYTES / 1e9
            solo.deliver(seeder, Run(fetch.first, fetch.count))
    assert counts[0] == 1
    assert max(counts) == 167  # 16 MiB
    assert solo.swarm.is_complete


def test_tiers_follow_from_labels() -> None:
    ours = Labels(host="h", rack="r", zone="z")
    assert tier_between(ours, ours) is Tier.HOST
    assert tier_between(ours, Labels(host="i", rack="r", zone="z")) is Tier.RACK
    assert tier_between(ours, Labels(host="i", rack="s", zone="z")) is Tier.ZONE
    assert tier_between(ours, Labels(host="h", rack="r", zone="y")) is Tier.FAR
    assert tier_between(Labels(), Labels()) is Tier.ZONE
