"""The worlds of issue 4 in simulated time, and what is measured in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
from sim.network import Host, Trunk
from sim.world import Node, World

from megalfs.core.parts import Parts
from megalfs.core.topology import Labels

MBIT = 1e6 / 8 * 0.957  # payload of a shaped link, as measured in research/swarm.md 4


def cdc_lengths(count: int, seed: int, average: int = 297 << 10) -> npt.NDArray[np.uint32]:
    """Lengths like those of FastCDC at 64/256/1024 KiB on weights: mean 297 KiB, deviation half of it."""
    rng = Random(seed)
    low, high = average // 4, int(average * 3.4)
    lengths = [min(high, max(low, int(rng.gammavariate(4.0, average / 4)))) for _ in range(count)]
    return np.array(lengths, dtype=np.uint32)


def cdc_world(chunks: int, seed: int) -> World:
    """An empty world whose blob has chunks of such lengths, cut into parts as a real one's are."""
    lengths = cdc_lengths(chunks, seed)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.uint64)))
    parts = Parts(lengths, offsets.astype(np.uint64))
    return World(parts.lengths, seed=seed, chunk_starts=parts.chunk_starts)


@dataclass(frozen=True, slots=True)
class Result:
    """One broadcast: times and bytes against what physics allows."""

    bound_s: float
    last_s: float
    seeder_copies: float
    redundant: float

    @property
    def efficiency(self) -> float:
        return self.bound_s / self.last_s

    def __str__(self) -> str:
        return (
            f"bound {self.bound_s:.2f} s, last {self.last_s:.2f} s, efficiency {self.efficiency:.3f}, "
            f"copies by the seeder {self.seeder_copies:.3f}, redundant {100 * self.redundant:.2f} %"
        )


def bound_s(world: World, seeder: Host, leechers: list[Node]) -> float:
    """Kumar and Ross, research/swarm.md 3 (A): the least time in which all can have it."""
    size, up = world.size, sum(node.host.up for node in leechers)
    slowest = min(node.host.down for node in leechers)
    return max(size / seeder.up, size / slowest, len(leechers) * size / (seeder.up + up))


def measure(world: World, seeder: Host, leechers: list[Node]) -> Result:
    """What a finished world shows; time counts from each node's start."""
    times = [node.finished_at - node.started_at for node in leechers if node.finished_at is not None]
    duplicate = sum(node.received for node in leechers) - world.size * len(leechers)
    return Result(
        bound_s=bound_s(world, seeder, leechers),
        last_s=max(times),
        seeder_copies=seeder.sent / world.size,
        redundant=duplicate / (world.size * len(leechers)),
    )


def broadcast(
    leechers: int, rate: float, *, chunks: int = 900, seed: int = 1, checks: bool = False
) -> tuple[World, Node, list[Node]]:
    """One seeder and equal leechers, all connected; not yet run."""
    world = cdc_world(chunks, seed)
    world.checked_one_in = int(checks)
    seeder = world.add_seeder(up=rate, down=rate)
    nodes = [world.add(up=rate, down=rate) for _ in range(leechers)]
    world.connect_all()
    return world, seeder, nodes


def two_racks(rate: float, thin: float, *, chunks: int, seed: int) -> tuple[World, float]:
    """Two racks of four behind a thin link; returns the world, run, and the copies across."""
    world, trunks = in_racks("aaaabbbb", rate, thin, chunks=chunks, seed=seed)
    world.run(limit=4 * world.size / thin)
    return world, sum(trunk.carried for trunk in trunks) / world.size


def in_racks(
    racks: Sequence[str], rate: float, trunk: float, *, chunks: int, seed: int
) -> tuple[World, list[Trunk]]:
    """A node in each of the racks, the first one a seeder, and a trunk into each rack; not yet run."""
    world = cdc_world(chunks, seed)
    world.checked_one_in = 0
    into = {rack: Trunk(trunk) for rack in racks}
    world.network.trunks = {(other, rack): into[rack] for rack in into for other in into if other != rack}
    world.add_seeder(up=rate, down=rate, labels=Labels(rack=racks[0]))
    for rack in racks[1:]:
        world.add(up=rate, down=rate, labels=Labels(rack=rack))
    world.connect_all()
    return world, list(into.values())


def origin_and_nodes(nodes: int, rate: float, *, chunks: int, seed: int) -> tuple[World, float]:
    """A plain HTTP origin and nodes that have nothing; returns the world, run, and the origin's copies."""
    world = cdc_world(chunks, seed)
    world.checked_one_in = 0
    origin = Host(rate, rate)
    for _ in range(nodes):
        world.add(up=rate, down=rate)
    world.connect_all()
    for node in world.nodes:
        world.connect_origin(node, origin)
    world.run(limit=8 * world.size / rate)
    return world, origin.sent / world.size
