"""What scheduling costs: a 140 GB blob of 560,000 pieces, 64 peers, 3 GB/s of virtual time.

Prints the share of one core that the core's Python takes (issue: under 5 %), the time of one event of each
kind, and the memory of one swarm. No bytes move: the harness plays the driver and the 64 lanes, which share
the link evenly. A lane finishes granules of 1 MiB; what all of them finished is reported together every 5 ms, as
in megalfs/node/reports.py.

    python bench/bench_scheduler.py [--seconds 5]
"""

from __future__ import annotations

import argparse
import heapq
import time
import timeit
import tracemalloc
from collections import Counter, deque
from random import Random

import numpy as np

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.effects import Cancel, Fetch, PeerId
from megalfs.core.ids import ManifestId
from megalfs.core.messages import HaveAll, HaveRuns
from megalfs.core.params import SwarmParams
from megalfs.core.swarm import PeerKind, Swarm
from megalfs.core.topology import Tier
from megalfs.net.sinks import GRANULE_BYTES, REPORT_INTERVAL_S

PIECES = 560_000
PIECE_BYTES = 250_000
PEERS = 64
RATE = 3e9
GRANULE = GRANULE_BYTES // PIECE_BYTES  # pieces
LANE_RATE = RATE / PEERS
HAVE_S = 0.03  # each leecher announces a run about as often as it gets one
MANIFEST = ManifestId(bytes(32))


def clock_s() -> float:
    """What reading the clock adds to each call that is timed."""
    rounds = 20_000
    return min(timeit.repeat(time.thread_time, number=rounds, repeat=5)) / rounds


CLOCK_S = clock_s()


class Bench:
    """Plays the driver of one leecher among seeders and other leechers."""

    def __init__(self, seeders: int, seed: int) -> None:
        self.rng = Random(seed)
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.now = 0.0
        self.moved = 0
        self.granules: list[tuple[float, PeerId, Run]] = []  # on their way: a heap by when they have come
        self.lanes: dict[PeerId, deque[Run]] = {}
        self.report: list[tuple[PeerId, int, int]] = []
        self.report_due = 0.0
        self.next_have = 0.0
        lengths = np.full(PIECES, PIECE_BYTES, dtype=np.uint32)
        params = SwarmParams()
        self.swarm = Swarm(
            MANIFEST,
            lengths,
            instance=bytes(16),
            have=Bitfield(PIECES),
            params=params,
            rng=self.rng,
            now=0.0,
        )
        self.leechers: list[PeerId] = []
        for number in range(PEERS):
            peer = PeerId(number)
            self.lanes[peer] = deque()
            self.swarm.connected(
                peer, kind=PeerKind.NODE, tier=Tier.ZONE, instance=number.to_bytes(16, "big"), now=0.0
            )
            if number < seeders:
                self.swarm.received(peer, HaveAll(MANIFEST), now=0.0)
            else:
                self.leechers.append(peer)
                runs = tuple(Run(self.rng.randrange(PIECES - 40), 40) for _ in range(2000))
                self.swarm.received(peer, HaveRuns(MANIFEST, runs), now=0.0)
        self.perform()

    def timed(self, name: str, call, *args, **named) -> None:
        started = time.thread_time()
        call(*args, **named)
        self.spent[name] += time.thread_time() - started - CLOCK_S
        self.calls[name] += 1
        self.perform()

    def perform(self) -> None:
        started = time.thread_time()
        effects = self.swarm.effects()
        self.spent["effects"] += time.thread_time() - started - CLOCK_S
        self.calls["effects"] += 1
        for effect in effects:
            self.calls[type(effect).__name__] += 1
            assert not isinstance(effect, Cancel)
            if isinstance(effect, Fetch):
                lane = self.lanes[effect.peer]
                lane.append(Run(effect.first, effect.count))
                if len(lane) == 1:
                    self.begin(effect.peer)

    def begin(self, peer: PeerId) -> None:
        """The lane's next run begins to arrive."""
        if self.lanes[peer]:
            run = self.lanes[peer][0]
            self.timed("receiving", self.swarm.receiving, peer, *run, now=self.now)
            self.send(peer, run.first)

    def send(self, peer: PeerId, first: int) -> None:
        part = Run(first, min(GRANULE, self.lanes[peer][0].end - first))
        heapq.heappush(self.granules, (self.now + part.count * PIECE_BYTES / LANE_RATE, peer, part))

    def run(self, seconds: float) -> None:
        while self.now < seconds and self.granules:
            if self.report and self.report_due <= self.granules[0][0]:
                self.now = self.report_due
            else:
                self.arrive(*heapq.heappop(self.granules))
            if self.report_due <= self.now:
                self.tell()
            while self.leechers and self.next_have < self.now:
                self.next_have += HAVE_S / len(self.leechers)
                self.hear()
            due = self.swarm.next_timeout()
            if due is not None and due <= self.now:
                self.timed("timeout", self.swarm.timeout, now=self.now)

    def arrive(self, at: float, peer: PeerId, part: Run) -> None:
        """A lane has a granule more, and goes on."""
        self.now = at
        self.report.append((peer, *part))
        self.moved += part.count * PIECE_BYTES
        if part.end < self.lanes[peer][0].end:
            self.send(peer, part.end)
        else:
            self.lanes[peer].popleft()
            self.begin(peer)

    def tell(self) -> None:
        """What all lanes finished since the last report."""
        self.timed("verified", self.swarm.verified_many, self.report, now=self.now)
        self.calls["granules"] += len(self.report)
        self.report, self.report_due = [], self.now + REPORT_INTERVAL_S

    def hear(self) -> None:
        peer = self.rng.choice(self.leechers)
        message = HaveRuns(MANIFEST, (Run(self.rng.randrange(PIECES - 64), 64),))
        self.timed("received", self.swarm.received, peer, message, now=self.now)


def report(seeders: int, seconds: float) -> None:
    tracemalloc.start()
    bench = Bench(seeders, seed=1)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    bench.spent.clear()
    bench.calls.clear()
    bench.run(seconds)
    total = sum(bench.spent.values())
    print(f"{seeders} seeders, {PEERS - seeders} leechers, {PIECES:,} pieces: ", end="")
    print(
        f"{bench.moved / bench.now / 1e9:.2f} GB/s, {100 * total * RATE / bench.moved:.2f} % of a core at 3, ",
        end="",
    )
    print(f"{memory / 1e6:.0f} MB a swarm")
    for name, spent in bench.spent.most_common():
        calls = bench.calls[name] or 1
        print(f"  {name:10} {calls:8,} calls  {1e6 * spent / calls:8.1f} us each")
    print(
        f"  runs {bench.calls['Fetch'] / bench.now:.0f}/s, granules {bench.calls['granules'] / bench.now:.0f}/s, "
        f"messages {bench.calls['Send'] / bench.now:.0f}/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of virtual time (default 5)")
    seconds = parser.parse_args().seconds
    for seeders in (64, 8, 1):
        report(seeders, seconds)


if __name__ == "__main__":
    main()
