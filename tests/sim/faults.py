"""Random small swarms with faults, from a seed: first anything may happen, then it stops and all must finish.

After TigerBeetle's VOPR: while faults last only safety is asked for (the invariants of `world`), afterwards
liveness too.
"""

from __future__ import annotations

from random import Random

import numpy as np
from sim.world import Node, World

from megalfs.core.bitfield import Bitfield
from megalfs.core.params import SwarmParams

FAULTS_S = 6.0
HEALED_LIMIT_S = 240.0  # a snub lasts 60 s at most


def random_world(seed: int) -> World:
    """3 to 8 nodes of any speed, a few dozen pieces of any size, and a schedule of faults."""
    rng = Random(seed)
    pieces = rng.randint(1, 60)
    lengths = np.array([rng.randint(1, 200_000) for _ in range(pieces)], dtype=np.uint32)
    world = World(
        lengths,
        seed=seed,
        params=SwarmParams(from_end=rng.random() < 0.3),
        latency=rng.choice([0.0002, 0.005, 0.08]),
        loss=rng.choice([0.0, 0.0, 0.02]),
        block_bytes=32 << 10,
    )
    world.report_s = 0.005 * (seed % 2)  # every other world reports as lanes do that share an interval
    rates = [200_000, 2_000_000, 20_000_000]
    seeders = rng.choice([1, 1, 2])
    for _ in range(seeders):
        world.add_seeder(up=rng.choice(rates), down=rng.choice(rates))
    for _ in range(rng.randint(2, 6)):
        have = Bitfield(pieces)
        if rng.random() < 0.3:
            first = rng.randrange(pieces)
            have.add(first, rng.randint(0, pieces - first))
        world.add(up=rng.choice(rates), down=rng.choice(rates), have=have)
    if rng.random() < 0.3:
        world.nodes[-1].is_liar = True
    world.connect_all()
    for _ in range(rng.randint(0, 6)):
        at = rng.random() * FAULTS_S
        world.clock.at(at, inflict, world, Random(rng.random()), seeders)
    return world


def inflict(world: World, rng: Random, seeders: int) -> None:
    """One fault now, healed some time later."""
    node = rng.choice(world.nodes[1:])  # the first seeder lives: what nobody holds can never be complete
    kind = rng.choice(["kill", "stall", "cut", "join", "withdraw"])
    heal_at = world.clock.now + rng.random() * FAULTS_S
    if kind == "kill" and node.is_alive:
        world.kill(node)
        world.clock.at(heal_at, revive, world, node)
    elif kind == "stall":
        node.host.is_stalled = True
        world.clock.at(heal_at, unstall, world, node)
    elif kind == "cut" and node.is_alive:
        other = rng.choice(world.nodes)
        if other is not node:
            world.disconnect(node, other)
            world.clock.at(heal_at, world.connect_all)
    elif kind == "join":
        world.add(up=2_000_000, down=2_000_000)
        world.connect_all()
    elif kind == "withdraw" and node.is_alive and node.number >= seeders:
        withdraw(world, node, rng)


def revive(world: World, node: Node) -> None:
    if not node.is_alive:
        world.restart(node)


def unstall(world: World, node: Node) -> None:
    """A stall ends as it does in life: the connections it hurt are made anew."""
    node.host.is_stalled = False
    if node.is_alive:
        for link in list(node.links.values()):
            world.disconnect(node, link.other)
        world.connect_all()
    world.network.wake(node.host)


def withdraw(world: World, node: Node, rng: Random) -> None:
    """Somebody edits the file of a node that had some of it."""
    runs = node.verified.runs()
    if runs:
        run = rng.choice(runs)
        for transfer in list(node.outgoing):
            transfer.abort()
        node.verified.remove(run.first, run.count)
        node.finished_at = None
        node.swarm.withdraw([run], now=world.clock.now)
        node.pump()


def check_ends_well(seed: int) -> World:
    """Runs a random world to the end.

    Raises:
        AssertionError: an invariant broke, or a live node did not finish after the faults.
    """
    world = random_world(seed)
    world.run_until(2 * FAULTS_S)
    world.run(limit=world.clock.now + HEALED_LIMIT_S)
    for node in world.nodes:
        if node.is_alive and not node.is_liar:
            assert node.swarm.is_complete
            honest = [number for number, _ in node.bans if not world.nodes[number].is_liar]
            assert not honest, f"{node.number} banned honest {honest}: {node.bans}"
    return world
