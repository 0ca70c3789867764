"""Whole swarms of the real scheduler in virtual time, from a printed seed.

Each node knows a dozen or two random peers, as a tracker would hand them out, the seeder among them while
it has room. With faults a tenth of the nodes come late, one in fifty is slow, one in a hundred dies in the
middle, and some blocks are lost. In racks, 32 nodes share one trunk that carries an eighth of what they
could take; they know each other, and some outside. Printed per size: efficiency against the bound
(research/swarm.md 3: fluid, and with store-and-forward of pieces), copies sent by the seeder and across
trunks for each rack, tracker requests per second, and what a step, a message and a node cost. What
`tests/sim/world.py` holds every effect against (nothing unverified is announced or served, nothing held is
fetched) holds here too; its slower checks are left to the tests.

    python bench/sim.py [--seed 1] [--nodes 64,1000,10000]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

# In place of this directory, where this very file would hide the package `sim` of the tests.
sys.path[0] = str(Path(__file__).parent.parent / "tests")

import numpy as np  # noqa: E402 - the path comes first
from sim.network import Trunk  # noqa: E402
from sim.world import Node, World  # noqa: E402

from megalfs.core.params import SwarmParams  # noqa: E402
from megalfs.core.topology import Labels  # noqa: E402

RATE = 1e9 / 8 * 0.957  # 1 Gbit/s links
ANNOUNCE_S = 60.0  # each node asks the tracker when it joins and then this often
RACK_NODES = 32
TRUNK_RATE = RACK_NODES / 8 * RATE  # into a rack: 8 to 1, as thin as data centres have them


@dataclass(frozen=True, slots=True)
class Size:
    """How large a swarm is simulated, and how finely."""

    pieces: int
    piece_bytes: int
    degree: int
    block_bytes: int


# 1,000 nodes get the 500 pieces that `relay_parts` makes for twenty known peers; 10,000 get fewer, because a
# simulated piece costs what a real one does. Fewer pieces lower the efficiency, so figures compare only at
# equal sizes. Blocks are parts of a piece, or a flow would have all of one in its socket at once and the slots
# of an uplink would bound nothing; 10,000 nodes cannot afford that yet.
SIZES = {
    64: Size(pieces=800, piece_bytes=1 << 20, degree=30, block_bytes=128 << 10),
    1000: Size(pieces=500, piece_bytes=4 << 20, degree=20, block_bytes=1 << 20),
    10_000: Size(pieces=24, piece_bytes=16 << 20, degree=12, block_bytes=16 << 20),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What is not ideal in a swarm."""

    faults: bool = False
    racks: bool = False

    def __str__(self) -> str:
        return ", with faults" * self.faults + f", racks of {RACK_NODES}" * self.racks


def build(nodes: int, size: Size, seed: int, scene: Scene) -> tuple[World, Node, list[Node]]:
    rng, faults = Random(seed), scene.faults
    lengths = np.full(size.pieces, size.piece_bytes, dtype=np.uint32)
    # Thousands of haves a second in one process: batches as old as a twentieth of a piece's journey do.
    params = SwarmParams(have_delay_s=0.05 * size.piece_bytes / RATE * 4, have_lazy_s=5.0)
    world = World(
        lengths,
        seed=seed,
        params=params,
        latency=0.0005,
        loss=0.0005 if faults else 0.0,
        block_bytes=size.block_bytes,
        buffer_bytes=size.block_bytes,
    )
    world.does_check = False
    racks = [f"r{at}" for at in range(-(-nodes // RACK_NODES))] if scene.racks else [""]
    lay_trunks(world, racks)
    seeder = world.add_seeder(up=RATE, down=RATE, labels=Labels(rack=racks[0]))
    leechers = []
    for number in range(1, nodes + 1):
        slow = faults and number % 50 == 0
        rate = RATE / 5 if slow else RATE
        rack = racks[(number - 1) // RACK_NODES % len(racks)]
        leechers.append(world.add(up=rate, down=rate, labels=Labels(rack=rack)))
    late = set(rng.sample(range(nodes), nodes // 10)) if faults else set()
    for at, node in enumerate(leechers):
        if at in late:
            when = rng.random() * 0.3 * world.size / RATE
            world.clock.at(when, join, world, node, size.degree, rng)
        else:
            join(world, node, size.degree, rng)
    if faults:
        for node in rng.sample(leechers, nodes // 100):
            world.clock.at(rng.random() * world.size / RATE, world.kill, node)
    return world, seeder, leechers


def lay_trunks(world: World, racks: list[str]) -> None:
    """One trunk into each rack, for all that comes from other racks."""
    for rack in racks if len(racks) > 1 else ():
        trunk = Trunk(TRUNK_RATE)
        world.network.trunks |= {(other, rack): trunk for other in racks if other != rack}


def join(world: World, node: Node, degree: int, rng: Random) -> None:
    """What a tracker's answer leads to: some random peers, the seeder among them while it has room."""
    node.started_at = world.clock.now
    seeder = world.nodes[0]
    if len(seeder.links) < 2 * degree:
        world.connect(node, seeder)
    if node.labels.rack:  # a tracker names near ones first (core/tracker.py)
        for other in world.nodes[1:]:
            if other.labels == node.labels and other.is_alive:
                world.connect(node, other)
        degree = len(node.links) + degree // 2
    meet(world, node, rng.sample(world.nodes[1:], min(degree, len(world.nodes) - 1)), degree)


def meet(world: World, node: Node, others: Iterable[Node], degree: int) -> None:
    for other in others:
        if other.is_alive and len(node.links) < degree and len(other.links) < 2 * degree:
            world.connect(node, other)


def simulate(nodes: int, size: Size, seed: int, scene: Scene) -> None:
    started = time.perf_counter()
    world, seeder, leechers = build(nodes, size, seed, scene)
    built_s = time.perf_counter() - started
    world.run(limit=100 * world.size / RATE)
    wall_s = time.perf_counter() - started - built_s
    report(nodes, size, world, seeder, leechers, wall_s=wall_s, scene=scene)


def report(
    nodes: int, size: Size, world: World, seeder: Node, leechers: list[Node], *, wall_s: float, scene: Scene
) -> None:
    alive = [node for node in leechers if node.is_alive and node.host.up == RATE]
    times = sorted(node.finished_at - node.started_at for node in alive if node.finished_at is not None)
    fluid = world.size / RATE
    stored = fluid * (1 + math.floor(math.log2(nodes)) / size.pieces)
    received = sum(node.received for node in leechers if node.is_alive)
    complete = world.size * sum(node.is_alive for node in leechers)
    messages = sum(node.messages for node in world.nodes)
    trunks = set(world.network.trunks.values())
    across = sum(trunk.carried for trunk in trunks) / world.size / max(1, len(trunks) - 1)
    across_text = f", across trunks {across:.2f} for each other rack" if trunks else ""
    print(
        f"{nodes:6,} nodes, degree {size.degree}, {size.pieces} pieces of {size.piece_bytes >> 20} MiB{scene}\n"
        f"   efficiency {fluid / times[-1]:.3f} (store-and-forward bound {stored / times[-1]:.3f}), "
        f"median node {fluid / times[len(times) // 2]:.3f}\n"
        f"   copies by the seeder {seeder.host.sent / world.size:.3f}, "
        f"redundant {100 * (received / complete - 1):.2f} %{across_text}\n"
        f"   tracker {nodes / ANNOUNCE_S:.1f} requests/s, "
        f"messages {messages / nodes / size.pieces:.1f} a node and piece\n"
        f"   {world.clock.steps:,} steps in {wall_s:.0f} s: {1e6 * wall_s / world.clock.steps:.0f} us each, "
        f"{1e6 * wall_s / messages:.0f} us a message, {1e6 * wall_s / nodes / size.pieces:.0f} us a node and piece",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", default="64,1000,10000")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, links of {RATE * 8 / 1e9:.3f} Gbit/s payload")
    for nodes in map(int, arguments.nodes.split(",")):
        for scene in (Scene(), Scene(faults=True), Scene(racks=True)):
            if nodes <= 64 or scene.faults or (scene.racks and nodes <= 1000):
                simulate(nodes, SIZES[nodes], arguments.seed, scene)


if __name__ == "__main__":
    main()
