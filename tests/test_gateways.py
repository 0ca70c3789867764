"""Far pieces: one member of a rack asks, the others wait for its word, and nothing is lost when it fails."""

from __future__ import annotations

import pytest
from sim.scenes import MBIT, in_racks
from sim.solo import MANIFEST, Solo

from megalfs.core.bitfield import Run
from megalfs.core.effects import Fetch, PeerId
from megalfs.core.messages import Expecting, HaveRuns
from megalfs.core.topology import Tier

RATE = 100 * MBIT
PIECES = 40
# Single pieces, as many at a time as there are, and all the patience in the world.
ONE = {"run_bytes_initial": 1, "queue_s": 10.0, "depth_max": PIECES, "timeout_s_initial": 1000.0}
GATEWAY_S = 0.1


def member(number: int, *, mates: int, **params: float) -> Solo:
    """One of `mates` members of a rack, all connected, and a far peer 99 that holds everything it may tell."""
    solo = Solo(" " * PIECES, instance=number, **{**ONE, "gateway_s": GATEWAY_S, **params})
    for other in range(mates):
        if other != number:
            solo.join(other, " " * PIECES, tier=Tier.RACK)
    solo.join(98, " " * PIECES, tier=Tier.ZONE)  # somebody far lacks something: the order is random
    solo.join(99, "x" * (PIECES - 1) + " ", tier=Tier.ZONE)
    return solo


def asked(solo: Solo, of: int = 99) -> set[int]:
    runs = [Run(fetch.first, fetch.count) for fetch in solo.effects(Fetch) if fetch.peer == of]
    return {piece for run in runs for piece in range(run.first, run.end)}


@pytest.mark.parametrize("mates", [2, 5, 32])
def test_each_far_piece_has_one_gateway(mates: int) -> None:
    first = [asked(member(number, mates=mates)) for number in range(mates)]
    assert sorted(piece for pieces in first for piece in pieces) == list(range(PIECES - 1))


def test_without_mates_nobody_waits() -> None:
    assert asked(member(0, mates=1)) == set(range(PIECES - 1))


def test_what_the_gateway_does_not_ask_for_others_ask_in_turn() -> None:
    solos = [member(number, mates=4) for number in range(4)]
    dead, alive = solos[0], solos[1:]
    lost = asked(dead)
    for solo in alive:
        asked(solo)
        solo.wait(1.001 * GATEWAY_S)
    second = [asked(solo) & lost for solo in alive]
    assert sorted(piece for pieces in second for piece in pieces) == sorted(lost)


def test_the_word_of_the_gateway_is_waited_for() -> None:
    solo = member(0, mates=2)
    others = set(range(PIECES - 1)) - asked(solo)
    mate = PeerId(1)
    for piece in others:
        solo.hear(mate, Expecting(MANIFEST, (Run(piece, 1),)))
    solo.wait(50 * GATEWAY_S)
    assert not asked(solo)
    for piece in others:
        solo.hear(mate, HaveRuns(MANIFEST, (Run(piece, 1),)))
    solo.wait(0.0)
    fetches = [fetch for fetch in solo.effects(Fetch) if fetch.first in others]
    assert fetches
    assert {fetch.peer for fetch in fetches} == {mate}


def test_a_broken_promise_is_asked_for_after_all() -> None:
    solo = member(0, mates=2, promise_s=2.0)
    others = set(range(PIECES - 1)) - asked(solo)
    for piece in others:
        solo.hear(PeerId(1), Expecting(MANIFEST, (Run(piece, 1),)))
    solo.wait(1.9)
    assert not asked(solo)
    solo.wait(0.2 + 2 * GATEWAY_S)
    assert asked(solo) == others


def test_a_gateway_that_leaves_makes_room_for_the_next() -> None:
    solo = member(0, mates=2)
    others = set(range(PIECES - 1)) - asked(solo)
    assert others
    solo.swarm.disconnected(PeerId(1), now=solo.now)
    assert asked(solo) == others


def test_the_word_of_a_peer_that_breaks_it_is_believed_no_longer() -> None:
    solo = member(0, mates=2, promise_s=0.5)
    for piece in range(PIECES - 1):
        solo.hear(PeerId(1), Expecting(MANIFEST, (Run(piece, 1),)))
    solo.wait(0.5 + 1.001 * GATEWAY_S)
    asked(solo)
    solo.hear(PeerId(1), Expecting(MANIFEST, (Run(PIECES - 1, 1),)))
    solo.hear(PeerId(99), HaveRuns(MANIFEST, (Run(PIECES - 1, 1),)))
    solo.wait(GATEWAY_S * 1.001)
    assert asked(solo, of=99) == {PIECES - 1}


@pytest.mark.parametrize("seed", [1, 2])
def test_two_racks_of_sixteen_fetch_far_pieces_about_once(seed: int) -> None:
    world, trunks = in_racks("a" * 16 + "b" * 16, RATE, RATE / 2, chunks=100, seed=seed)
    world.run(limit=60)
    assert sum(trunk.carried for trunk in trunks) <= 1.1 * world.size


def test_dead_gateways_cost_no_piece() -> None:
    world, trunks = in_racks("a" * 8 + "b" * 8, RATE, RATE / 2, chunks=100, seed=1)
    for killed, share in ((world.nodes[9], 0.3), (world.nodes[12], 0.5)):
        world.run_until(share * world.size / RATE)
        world.kill(killed)
    world.run(limit=60)
    assert sum(trunk.carried for trunk in trunks) <= 1.3 * world.size
