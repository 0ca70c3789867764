"""Many nodes that gossip over slow links, on a virtual clock: the core of a real node, unchanged."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from megalfs.core.announcements import NodeBody, RepoBody, announce, parse_announcement
from megalfs.core.gossip import Drop, Effect, Gossip, GossipParams, Learned, Send
from megalfs.core.identity import NodeKey
from megalfs.core.repoid import RepoId
from megalfs.core.signing import SigningKey

START_S = 1_790_000_000.0
INTERVAL_S = 10.0
# A frame is checked once for all simulated nodes: what is simulated is who hears what, not Ed25519.
parse = functools.lru_cache(maxsize=None)(parse_announcement)


@dataclass
class SimNode:
    private: SigningKey
    key: NodeKey
    gossip: Gossip
    links: set[int] = field(default_factory=set)
    is_up: bool = True
    received: int = 0
    octets: int = 0
    learned: list[Learned] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


class GossipWorld:
    """Nodes by number; every link has a latency, and loses what the caller says."""

    def __init__(self, count: int, *, seed: int, params: GossipParams | None = None) -> None:
        self.rng = Random(seed)
        self.now = START_S
        self.loss = 0.0
        self._events: list[tuple[float, int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ticks = [self.rng.uniform(0, INTERVAL_S) for _ in range(count)]
        self.nodes = []
        for _ in range(count):
            private = SigningKey(self.rng.randbytes(32))
            key = private.public
            self.nodes.append(SimNode(private, key, Gossip(key, params or GossipParams(), parse)))
        self._number = {node.key: number for number, node in enumerate(self.nodes)}
        for number, at in enumerate(self._ticks):
            self.at(START_S + at, number, functools.partial(self._tick, number))

    def key(self, number: int) -> NodeKey:
        return self.nodes[number].key

    # --- shape -----------------------------------------------------------------------------------------------

    def link(self, left: int, right: int) -> None:
        if right in self.nodes[left].links or left == right:
            return
        for one, other in ((left, right), (right, left)):
            self.nodes[one].links.add(other)
            self._perform(one, self.nodes[one].gossip.connected(self.now, self.key(other)))

    def unlink(self, left: int, right: int) -> None:
        for one, other in ((left, right), (right, left)):
            self.nodes[one].links.discard(other)
            self.nodes[one].gossip.disconnected(self.key(other))

    def line(self) -> None:
        for number in range(len(self.nodes) - 1):
            self.link(number, number + 1)

    def random_graph(self, degree: int) -> None:
        """A ring, so that it is one graph, and chords."""
        count = len(self.nodes)
        for number in range(count):
            self.link(number, (number + 1) % count)
            for _ in range((degree - 2 + 1) // 2):
                self.link(number, self.rng.randrange(count))

    def crash(self, number: int) -> None:
        for other in list(self.nodes[number].links):
            self.unlink(number, other)
        self.nodes[number].is_up = False

    # --- what happens ----------------------------------------------------------------------------------------

    def own_repo(self, number: int, name: str, *, seq: int = 1, is_removed: bool = False) -> RepoId:
        root = f"{number:040x}"
        repo = RepoId.of(root, self.key(number))
        body = RepoBody(repo, name, "", root, seq, f"{seq:064x}", is_removed)
        announcement = announce(self.nodes[number].private, int(self.now * 1000), body)
        self._perform(number, self.nodes[number].gossip.publish(self.now, announcement))
        return repo

    def inject(self, number: int, peer: int, frame: bytes) -> None:
        """A frame that `peer` sends to `number`, whatever it is."""
        self.at(self.now + 0.01, number, functools.partial(self._receive, number, peer, frame))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, number, event = heapq.heappop(self._events)
            if self.nodes[number].is_up:
                event()
        self.now = until

    def at(self, when: float, number: int, event: Callable[[], None]) -> None:
        """Lets something happen to a node, if it is up by then."""
        heapq.heappush(self._events, (when, next(self._order), number, event))

    def _receive(self, number: int, peer: int, frame: bytes) -> None:
        node = self.nodes[number]
        if peer in node.links:
            node.received += 1
            node.octets += len(frame)
            self._perform(number, node.gossip.receive(self.now, self.key(peer), frame))

    def _tick(self, number: int) -> None:
        node = self.nodes[number]
        digest = node.gossip.inventory(node.key).hex()
        body = NodeBody(f"node{number}", (), (), "full", "0.1", digest)
        announcement = announce(node.private, int(self.now * 1000), body)
        self._perform(number, node.gossip.publish(self.now, announcement))
        self._perform(number, node.gossip.tick(self.now))
        self.at(self.now + INTERVAL_S, number, functools.partial(self._tick, number))

    def _perform(self, number: int, effects: Iterable[Effect]) -> None:
        node = self.nodes[number]
        for effect in effects:
            match effect:
                case Send(peer, frame):
                    if self.rng.random() >= self.loss:
                        when, other = self.now + self.rng.uniform(0.01, 0.2), self._number[peer]
                        self.at(when, other, functools.partial(self._receive, other, number, frame))
                case Learned():
                    self._heard(number, node, effect)
                case Drop(peer):
                    node.drops.append(effect)
                    self.unlink(number, self._number[peer])

    def _heard(self, number: int, node: SimNode, news: Learned) -> None:
        node.learned.append(news)
