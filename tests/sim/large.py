"""Swarms of thousands: who joins when, whom the tracker names, and what goes wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from sim.network import Trunk
from sim.stopwatch import Stopwatch
from sim.world import Node, World

from megalfs.core.ids import Oid
from megalfs.core.topology import Labels
from megalfs.core.tracker import INTERVAL_S, Announcement, TrackedPeer, TrackerTable

RATE = 1e9 / 8 * 0.957  # payload of a link of 1 Gbit/s
LATENCY_S = 0.0005  # one way: a round trip of 1 ms
OID = Oid(bytes(32))

SLOW_ONE_IN = 50
LATE_ONE_IN = 10
KILLED_ONE_IN = 100
LOSS = 0.0005  # of blocks and messages, each 0.2 s late then
RACK_NODES = 32
TRUNK_RATE = RACK_NODES / 8 * RATE  # into a rack: 8 to 1, as thin as data centres have them
PEERS_NAMED = 50  # by a tracker in one answer, as real nodes ask (node/announcer.py)
CHECKED_ONE_IN = 200  # steps after which the invariants of a node are looked at; a check costs ten steps


@dataclass(frozen=True, slots=True)
class Large:
    """One swarm to simulate. A node dials until it has `peers`; others dial it, up to twice as many in all."""

    nodes: int
    pieces: int
    piece_bytes: int
    block_bytes: int
    peers: int
    faults: bool = False
    racks: bool = False

    @property
    def size(self) -> int:
        return self.pieces * self.piece_bytes

    @property
    def fluid_s(self) -> float:
        """Kumar and Ross with equal links, research/swarm.md 3 (A): once through the seeder's link."""
        return self.size / RATE

    @property
    def stored_s(self) -> float:
        """The same when each piece is stored before it is forwarded, research/swarm.md 3 (C)."""
        return self.fluid_s + (math.ceil(math.log2(self.nodes + 1)) - 1) * self.piece_bytes / RATE

    def __str__(self) -> str:
        faults = ", with faults" * self.faults + f", racks of {RACK_NODES}" * self.racks
        return f"{self.nodes:,} nodes, {self.pieces} pieces of {self.piece_bytes >> 20} MiB{faults}"


class LargeWorld:
    """A swarm, its tracker (the real table), and what is counted."""

    def __init__(self, large: Large, seed: int) -> None:
        self.large = large
        self.rng = Random(seed)
        self.stopwatch = Stopwatch()
        self.tracker = TrackerTable(rng=Random(seed))
        self.tracker_requests = 0
        self.world = World(
            np.full(large.pieces, large.piece_bytes, dtype=np.uint32),
            seed=seed,
            swarm_type=self.stopwatch.watched(),
            latency=LATENCY_S,
            loss=LOSS if large.faults else 0.0,
            block_bytes=large.block_bytes,
            buffer_bytes=large.block_bytes,
        )
        self.world.checked_one_in = CHECKED_ONE_IN
        racks = [f"r{at}" for at in range(-(-large.nodes // RACK_NODES))] if large.racks else [""]
        self._lay_trunks(racks)
        self.seeder = self.world.add_seeder(up=RATE, down=RATE, labels=Labels(rack=racks[0]))
        self.leechers = [self._add(number, racks) for number in range(1, large.nodes + 1)]
        late = set(self._drawn(LATE_ONE_IN))
        for node in [self.seeder, *self.leechers]:
            if node in late:
                self.world.clock.at(self.rng.random() * 0.3 * large.fluid_s, self._join, node)
            else:
                self._announce(node)
        for node in self.leechers:
            if node not in late:
                self._dial(node)
        for node in self._drawn(KILLED_ONE_IN):
            self.world.clock.at(self.rng.random() * large.fluid_s, self.world.kill, node)

    def run(self) -> None:
        """Until every live node is complete; a node with a fifth of the bandwidth takes five times as long."""
        self.world.run(limit=20 * self.large.fluid_s + 60)

    def _drawn(self, one_in: int) -> list[Node]:
        return self.rng.sample(self.leechers, len(self.leechers) // one_in) if self.large.faults else []

    def _add(self, number: int, racks: list[str]) -> Node:
        rate = RATE / 5 if self.large.faults and number % SLOW_ONE_IN == 0 else RATE
        labels = Labels(rack=racks[(number - 1) // RACK_NODES % len(racks)])
        return self.world.add(up=rate, down=rate, labels=labels)

    def _lay_trunks(self, racks: list[str]) -> None:
        """One trunk into each rack, for all that comes from other racks."""
        for rack in racks if len(racks) > 1 else ():
            trunk = Trunk(TRUNK_RATE)
            self.world.network.trunks |= {(other, rack): trunk for other in racks if other != rack}

    def _join(self, node: Node) -> None:
        node.started_at = self.world.clock.now
        self._announce(node)
        self._dial(node)

    def _dial(self, node: Node) -> None:
        """Asks the tracker, and dials whom it names while they have room."""
        self.tracker_requests += 1
        rack = RACK_NODES - 1 if self.large.racks else 0
        limit = self.large.peers + rack
        named = self.tracker.peers(
            OID, now=self.world.clock.now, labels=node.labels, limit=PEERS_NAMED + rack
        )
        for peer in named:
            other = self.world.nodes[int(peer.instance, 16)]
            is_near = rack > 0 and other.labels == node.labels
            has_room = len(node.links) < limit and len(other.links) < 2 * limit
            if other.is_alive and (is_near or has_room):
                self.world.connect(node, other)

    def _announce(self, node: Node) -> None:
        if not node.is_alive:
            return
        self.tracker_requests += 1
        instance = f"{node.number:032x}"
        peer = TrackedPeer("", 7000, instance, node.labels, instance, is_complete=False, expires=0.0)
        announcement = Announcement(peer, ((OID, node.finished_at is not None),), is_leaving=False)
        self.tracker.announce(announcement, now=self.world.clock.now)
        self.world.clock.at(self.world.clock.now + INTERVAL_S, self._announce, node)
