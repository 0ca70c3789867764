"""Issue 4 in simulated time: near the physical limit, and mixed worlds do not change that."""

from __future__ import annotations

import pytest
from sim.scenes import MBIT, Result, broadcast, cdc_world, measure, origin_and_nodes, two_racks
from sim.world import Node, World

RATE = 100 * MBIT


def finish(world: World, seeder: Node, nodes: list[Node]) -> Result:
    world.run(limit=20 * world.size / RATE)
    result = measure(world, seeder.host, nodes)
    print(result)
    return result


def seconds(node: Node) -> float:
    assert node.finished_at is not None
    return node.finished_at - node.started_at


@pytest.mark.parametrize("seed", [1, 2])
def test_eight_equal_links_reach_the_limit(seed: int) -> None:
    result = finish(*broadcast(8, RATE, seed=seed))
    assert result.efficiency >= 0.95
    assert result.seeder_copies <= 1.06
    assert result.redundant <= 0.01


def test_sixteen_equal_links_reach_the_limit() -> None:
    result = finish(*broadcast(16, 50 * MBIT))
    assert result.efficiency >= 0.94
    assert result.seeder_copies <= 1.06
    assert result.redundant <= 0.01


@pytest.mark.parametrize("seed", [1, 2])
def test_reports_of_5_ms_cost_no_efficiency(seed: int) -> None:
    world, seeder, nodes = broadcast(8, RATE, seed=seed)
    world.report_s = 0.005
    print(f"seed {seed}")
    result = finish(world, seeder, nodes)
    assert result.efficiency >= 0.95
    assert result.seeder_copies <= 1.06
    assert result.redundant <= 0.01


def test_one_leecher_gets_the_whole_link() -> None:
    result = finish(*broadcast(1, RATE, chunks=200))
    assert result.efficiency >= 0.99
    assert result.seeder_copies == 1.0


def test_a_faster_seeder_is_used() -> None:
    world, seeder, nodes = broadcast(8, RATE, chunks=300)
    seeder.host.up *= 4
    assert finish(world, seeder, nodes).efficiency >= 0.93


@pytest.mark.parametrize(("faster", "latency_s"), [(1, 0.001), (5, 0.001), (5, 0.02)])
def test_thin_uplinks_leave_it_to_the_seeder(faster: int, latency_s: float) -> None:
    world, seeder, nodes = broadcast(8, RATE, chunks=600)
    world.network.latency = latency_s
    seeder.host.up *= faster
    for node in nodes:
        node.host.up *= 0.2
    assert finish(world, seeder, nodes).efficiency >= 0.93


@pytest.mark.parametrize(("leechers", "down"), [(2, RATE), (3, RATE), (3, 10 * RATE), (8, RATE)])
def test_leechers_that_never_meet_get_all_the_seeder_can_send(leechers: int, down: float) -> None:
    world = cdc_world(300, seed=1)
    world.checked_one_in = 0
    seeder = world.add_seeder(up=10 * RATE, down=RATE)
    nodes = [world.add(up=RATE, down=down) for _ in range(leechers)]
    for node in nodes:
        world.connect(seeder, node)
    bound_s = max(leechers * world.size / seeder.host.up, world.size / down)
    world.run(limit=20 * bound_s)
    assert max(map(seconds, nodes)) <= bound_s / 0.93


def test_three_seeders_serve_one_leecher_together() -> None:
    world, seeder, (leecher,) = broadcast(1, RATE, chunks=300)
    leecher.host.down = 10 * RATE
    others = [world.add_seeder(up=factor * RATE, down=RATE) for factor in (1, 2)]
    world.connect_all()
    world.run(limit=60)
    assert world.size / (4 * RATE) / seconds(leecher) >= 0.93
    shares = [node.host.sent / world.size for node in (seeder, *others)]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.05)


def test_two_seeders_share_the_first_copy() -> None:
    world, seeder, nodes = broadcast(8, RATE, chunks=300)
    other = world.add_seeder(up=RATE, down=RATE)
    world.connect_all()
    finish(world, seeder, nodes)
    assert (seeder.host.sent + other.host.sent) / world.size <= 2.0


def test_a_slow_peer_slows_nobody_else() -> None:
    plain = finish(*broadcast(8, RATE, chunks=400))
    world, seeder, nodes = broadcast(8, RATE, chunks=400)
    nodes[3].host.up = nodes[3].host.down = RATE / 5
    finish(world, seeder, nodes)
    others = [seconds(node) for node in nodes if node is not nodes[3]]
    assert max(others) <= 1.1 * plain.last_s
    assert seconds(nodes[3]) <= 1.15 * world.size / (RATE / 5)


def test_a_peer_killed_in_the_middle() -> None:
    world, seeder, nodes = broadcast(8, RATE, chunks=400)
    world.run_until(0.5 * world.size / RATE)
    world.kill(nodes[2])
    nodes.pop(2)
    assert finish(world, seeder, nodes).efficiency >= 0.88


def test_a_peer_that_goes_silent_in_the_middle() -> None:
    world, seeder, nodes = broadcast(8, RATE, chunks=400)
    world.run_until(0.5 * world.size / RATE)
    silent = nodes.pop(2)
    silent.host.is_stalled = True
    world.nodes.remove(silent)
    assert finish(world, seeder, nodes).efficiency >= 0.85


def test_a_late_joiner_catches_up() -> None:
    world, seeder, nodes = broadcast(8, RATE, chunks=400)
    world.run_until(0.5 * world.size / RATE)
    late = world.add(up=RATE, down=RATE)
    world.connect_all()
    finish(world, seeder, nodes)
    assert world.size / RATE / seconds(late) >= 0.8
    assert max(seconds(node) for node in nodes) <= 1.15 * world.size / RATE


def test_a_seeder_may_leave_once_one_copy_is_out() -> None:
    world, seeder, nodes = broadcast(8, RATE, chunks=400)
    copies = world.size
    while sum(node.verified.bits for node in nodes).min() < 1:  # type: ignore[union-attr]
        world.run_until(world.clock.now + 0.1)
    world.kill(seeder)
    assert seeder.host.sent < 1.2 * copies
    world.run(limit=2 * world.size / RATE)


def test_a_thin_link_between_racks_carries_about_one_copy() -> None:
    _, across = two_racks(RATE, RATE / 4, chunks=400, seed=1)
    print(f"copies across: {across:.3f}")
    assert across <= 1.3


def test_an_origin_serves_about_one_copy_to_eight_nodes() -> None:
    world, copies = origin_and_nodes(8, RATE, chunks=400, seed=1)
    print(f"copies by the origin: {copies:.3f}, after {world.clock.now / (world.size / RATE):.2f} x one copy")
    assert copies <= 1.1


def test_a_stalled_seeder_of_three_costs_seconds() -> None:
    world, seeder, (leecher,) = broadcast(1, RATE, chunks=400)
    leecher.host.down = 10 * RATE
    for _ in range(2):
        world.add_seeder(up=RATE, down=RATE)
    world.connect_all()
    world.run_until(1.0)
    seeder.host.is_stalled = True
    world.run(limit=60)
    assert seconds(leecher) <= world.size / (2 * RATE) + 2.5
