"""Whole swarms of the real scheduler and tracker in virtual time, from a printed seed.

Links carry 1 Gbit/s each way, round trips take 1 ms; every node dials peers that the tracker names until it
has 20 (12 in the last table), and is dialled by others; parameters are those of a real node. With faults one
node in ten comes late, one in fifty has a fifth of the bandwidth, one in a hundred is killed, one block or
message in 2,000 is lost and comes 0.2 s later. In racks, 32 nodes share one trunk that carries an eighth of
what they could take.

Efficiency is the bound over the time of the last node with a whole link, from its own start: the fluid bound
(size over the seeder's link), and that with pieces stored before they are forwarded (research/swarm.md 3, A
and C). Seconds are CPU time of one process; the scheduler's are those of calls into megalfs/core, an event
being such a call. Checked are all effects (nothing unverified is announced or served, nothing held is
fetched), the books of a node after one step in 200, and at the end that every live node is complete.

    python bench/sim.py [--seed 1] [--only 1,4] [--processes 2]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

# In place of this directory, where this very file would hide the package `sim` of the tests.
sys.path[0] = str(Path(__file__).parent.parent / "tests")

from sim.large import RATE, Large, LargeWorld  # noqa: E402 - the path comes first

MIB = 1 << 20
SMALL = Large(nodes=64, pieces=800, piece_bytes=MIB, block_bytes=MIB // 4, peers=20)
THOUSAND = Large(nodes=1000, pieces=1200, piece_bytes=4 * MIB, block_bytes=MIB, peers=20)
# Equal but for N, so that the cost of one node can be compared. Ten thousand cannot afford more pieces; with
# so few of them the start and the end of a broadcast weigh much, and efficiency is low at every N.
SCALED = Large(nodes=64, pieces=24, piece_bytes=4 * MIB, block_bytes=MIB, peers=12, faults=True)
SWARMS = [
    *(SMALL, replace(SMALL, faults=True), replace(SMALL, racks=True)),
    *(THOUSAND, replace(THOUSAND, faults=True), replace(THOUSAND, pieces=200, racks=True)),
    *(replace(SCALED, nodes=nodes) for nodes in (64, 250, 1000, 10_000)),
]


@dataclass(frozen=True, slots=True)
class Result:
    """What one swarm showed; times in seconds, of virtual time unless CPU is said."""

    large: Large
    last_s: float
    median_s: float
    slow_factor: float | None
    copies: float
    redundant: float
    across: float | None
    peers: float
    tracker_rate: float
    messages: int
    events: int
    core_cpu_s: float
    cpu_s: float
    peak_mib: int

    @classmethod
    def of(cls, run: LargeWorld, *, cpu_s: float) -> Result:
        large, world = run.large, run.world
        alive = [node for node in run.leechers if node.is_alive]
        times = sorted(_seconds(node) for node in alive if node.host.up == RATE)
        slow = [_seconds(node) * node.host.down / large.size for node in alive if node.host.up < RATE]
        trunks = set(world.network.trunks.values())
        carried = sum(trunk.carried for trunk in trunks) / large.size
        return cls(
            large=large,
            last_s=times[-1],
            median_s=times[len(times) // 2],
            slow_factor=max(slow, default=None),
            copies=run.seeder.host.sent / large.size,
            redundant=sum(node.received for node in alive) / (large.size * len(alive)) - 1,
            across=carried / (len(trunks) - 1) if trunks else None,
            peers=sum(len(node.links) for node in world.nodes) / len(world.nodes),
            tracker_rate=run.tracker_requests / world.clock.now,
            messages=sum(node.messages for node in world.nodes),
            events=run.stopwatch.events,
            core_cpu_s=run.stopwatch.seconds,
            cpu_s=cpu_s,
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        )

    @property
    def node_pieces(self) -> int:
        return self.large.nodes * self.large.pieces

    def __str__(self) -> str:
        slow = f", slow nodes at most {self.slow_factor:.2f} x their own bound" if self.slow_factor else ""
        across = f", across trunks {self.across:.2f} for each other rack" if self.across is not None else ""
        return (
            f"{self.large}, {self.peers:.0f} peers each\n"
            f"   efficiency {self.large.fluid_s / self.last_s:.3f} of the fluid bound, "
            f"{self.large.stored_s / self.last_s:.3f} with store-and-forward; "
            f"median node {self.large.fluid_s / self.median_s:.3f}{slow}\n"
            f"   copies by the seeder {self.copies:.3f}, redundant {100 * self.redundant:.2f} %{across}\n"
            f"   tracker {self.tracker_rate:.1f} requests/s; {self.messages / self.node_pieces:.1f} messages a "
            f"node and piece\n"
            f"   scheduler {1e6 * self.core_cpu_s / self.events:.1f} us an event ({self.events:,} events), "
            f"{1e6 * self.core_cpu_s / self.node_pieces:.0f} us a node and piece; "
            f"simulator and scheduler {self.cpu_s:.0f} s, {self.peak_mib} MiB"
        )


def _seconds(node) -> float:
    return node.finished_at - node.started_at


def simulate(large: Large, seed: int) -> Result:
    started = time.process_time()
    run = LargeWorld(large, seed)
    run.run()
    return Result.of(run, cpu_s=time.process_time() - started)


def scaling(results: list[Result]) -> str:
    """Cost of a node against N: what grows no faster than log N stays below 1 in the last column."""
    first = results[0]
    lines = ["cost of a node against N, 64 nodes = 1", "     N  us a node and piece  messages   cost / log N"]
    for one in results:
        cost = one.core_cpu_s / one.node_pieces
        growth = cost / (first.core_cpu_s / first.node_pieces)
        logs = math.log2(one.large.nodes) / math.log2(first.large.nodes)
        lines.append(
            f"{one.large.nodes:6,}  {1e6 * cost:19.0f}  {one.messages / one.node_pieces:8.1f}  {growth / logs:12.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="numbers of swarms, as printed: 1,4")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    numbers = (
        [int(text) for text in arguments.only.split(",")] if arguments.only else range(1, len(SWARMS) + 1)
    )
    started = time.perf_counter()
    print(f"seed {arguments.seed}, links of {RATE * 8 / 1e9:.3f} Gbit/s payload", flush=True)
    # A process a swarm, the longest first: memory is given back, and its peak is the swarm's own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context, max_tasks_per_child=1) as pool:
        order = sorted(numbers, key=lambda number: -SWARMS[number - 1].nodes * SWARMS[number - 1].pieces)
        futures = {number: pool.submit(simulate, SWARMS[number - 1], arguments.seed) for number in order}
        results = []
        for number in numbers:
            results.append(futures[number].result())
            print(f"{number:2}. {results[-1]}", flush=True)
    scaled = [one for one in results if one.large.peers == SCALED.peers]
    if scaled:
        print(scaling(scaled))
    print(f"{time.perf_counter() - started:.0f} s in {arguments.processes} processes")


if __name__ == "__main__":
    main()
