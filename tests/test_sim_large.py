"""What `make sim` runs at scale, small: it ends well, a seed gives one swarm, and racks fetch far pieces once."""

from __future__ import annotations

from dataclasses import replace

from sim.large import Large, LargeWorld

MIB = 1 << 20
SMALL = Large(nodes=100, pieces=12, piece_bytes=MIB, block_bytes=MIB // 4, peers=8, faults=True)


def run(large: Large, seed: int = 1) -> LargeWorld:
    world = LargeWorld(large, seed)
    world.world.checked_one_in = 20
    world.run()
    return world


def test_a_hundred_nodes_with_faults_all_finish() -> None:
    large = run(SMALL)
    assert sum(not node.is_alive for node in large.leechers) == 1
    assert all(node.finished_at is not None for node in large.leechers if node.is_alive)
    assert large.tracker_requests >= 2 * SMALL.nodes
    assert large.stopwatch.events > SMALL.nodes * SMALL.pieces
    assert large.stopwatch.seconds > 0


def test_a_seed_gives_the_same_swarm_again() -> None:
    one, same, other = run(SMALL), run(SMALL), run(SMALL, seed=2)
    ends = [[node.finished_at for node in large.leechers] for large in (one, same, other)]
    assert ends[0] == ends[1] != ends[2]


def test_two_racks_of_32_fetch_far_pieces_about_once() -> None:
    large = run(replace(SMALL, nodes=64, pieces=50, faults=False, racks=True))
    trunks = set(large.world.network.trunks.values())
    assert sum(trunk.carried for trunk in trunks) <= 1.15 * large.large.size
