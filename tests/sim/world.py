"""Nodes that run the real `Swarm` on a simulated network; the driver's part, in a few lines.

After every step the invariants hold, or the run fails: nothing is served that was not verified, nothing is
asked that is here or already on its way (a hedge excepted), no queue outgrows its limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import assert_never

import numpy as np
from numpy.typing import NDArray
from sim.network import Clock, Flow, Host, Network

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.effects import Ban, Cancel, Completed, Effect, Fetch, PeerId, Send, Serve
from megalfs.core.ids import ManifestId
from megalfs.core.messages import CancelRequest, HaveRuns, Request, SwarmMessage
from megalfs.core.params import SwarmParams
from megalfs.core.pieces import Lengths
from megalfs.core.swarm import PeerKind, Swarm
from megalfs.core.topology import Labels, Tier, tier_between

MANIFEST = ManifestId(bytes(32))


@dataclass(slots=True, eq=False)
class Link:
    """One node's end of a session."""

    mine: PeerId
    other: Node
    theirs: PeerId
    clear_at: float = 0.0
    """Messages arrive in order: not before this."""
    back: Link | None = None
    """The other node's end."""


class Transfer:
    """A run on its way to `node` from a peer; tells both swarms what a driver would."""

    def __init__(self, node: Node, peer: PeerId, run: Run, *, is_lie: bool) -> None:
        self.node, self.peer, self.run = node, peer, run
        self.is_lie = is_lie
        self.is_wanted = True
        self.server: tuple[Node, PeerId] | None = None
        self.flow: Flow | None = None

    def begun(self) -> None:
        if self.peer in self.node.links or self.peer in self.node.origins:
            self.is_wanted = self.node.swarm.receiving(
                self.peer, self.run.first, self.run.count, now=self.node.now
            )
            self.node.pump()

    def block_came(self, size: int) -> None:
        self.node.received += size
        if self.is_wanted:
            self.node.swarm.progressed(self.peer, size, now=self.node.now)

    def piece_came(self, number: int) -> None:
        if not self.is_wanted:
            return
        index = self.run.first + number
        if self.is_lie:
            self.node.swarm.corrupt(self.peer, [index], now=self.node.now)
        else:
            self.node.verify(self.peer, index)
        self.node.pump()

    def ended(self) -> None:
        self.node.incoming.pop(self, None)

    def handed_over(self) -> None:
        if self.server is not None:
            server, peer = self.server
            self.server = None
            server.outgoing.pop(self, None)
            server.swarm.served(peer, self.run.first, self.run.count, ok=True, now=server.now)
            server.pump()

    def abort(self) -> None:
        """The connection broke."""
        assert self.flow is not None
        self.node.world.network.stop(self.flow)
        self.node.incoming.pop(self, None)
        if self.server is not None:
            server, peer = self.server
            server.outgoing.pop(self, None)
            if server.is_alive:
                server.swarm.served(peer, self.run.first, self.run.count, ok=False, now=server.now)
        if self.node.is_alive:
            self.node.swarm.failed(self.peer, self.run.first, self.run.count, now=self.node.now)


class Node:
    """One machine: its swarm, its sessions, what it has verified."""

    def __init__(self, world: World, number: int, host: Host, verified: Bitfield, labels: Labels) -> None:
        self.world, self.number, self.host, self.labels = world, number, host, labels
        self.verified = verified
        self.instance = number.to_bytes(16, "big")
        self.is_alive = True
        self.is_liar = False
        self.links: dict[PeerId, Link] = {}
        self.origins: dict[PeerId, Host] = {}
        self.incoming: dict[Transfer, None] = {}  # in order: a seed must always give the same swarm
        self.outgoing: dict[Transfer, None] = {}
        self.banned: set[int] = set()
        self.bans: list[tuple[int, str]] = []
        self.started_at = world.clock.now
        self.finished_at: float | None = None
        self.received = 0
        self.messages = 0
        self._parts: list[tuple[PeerId | None, int, int]] = []  # verified, and not reported yet
        self._timer_at: float | None = None
        self._said: SwarmMessage | None = None
        self.swarm = self._new_swarm()

    @property
    def now(self) -> float:
        return self.world.clock.now

    def _new_swarm(self) -> Swarm:
        world = self.world
        if self.verified.is_full:
            self.finished_at = self.now
        return world.swarm_type(
            MANIFEST,
            world.lengths,
            instance=self.instance,
            have=self.verified.copy(),
            chunk_starts=world.chunk_starts,
            params=world.params,
            rng=Random(world.rng.random()),
            now=self.now,
        )

    def restart(self) -> None:
        self.is_alive = True
        self._parts = []
        self.swarm = self._new_swarm()

    def verify(self, peer: PeerId, index: int) -> None:
        """A piece came; the swarm hears of it at once, or with others."""
        self._parts.append((peer, index, 1))
        if not self.world.report_s:
            self._report()
        elif len(self._parts) == 1:
            self.world.clock.at(self.now + self.world.report_s, self._report)

    def _report(self) -> None:
        if self._parts and self.is_alive:
            for _, first, count_ in self._parts:
                self.verified.add(first, count_)
            self.swarm.verified_many(self._parts, now=self.now)
            self._parts = []
            self.pump()

    def receive(self, link: Link, message: SwarmMessage) -> None:
        if self.is_alive and self.links.get(link.mine) is link:
            self.messages += 1
            self.swarm.received(link.mine, message, now=self.now)
            self.pump()

    def pump(self) -> None:
        """Performs what the swarm wants and sets its timer."""
        world = self.world
        world.touched.add(self)
        if not self.is_alive:
            return
        while effects := self.swarm.effects():
            for effect in effects:
                self._perform(effect)
        due = self.swarm.next_timeout()
        if due is not None and (self._timer_at is None or due < self._timer_at):
            self._timer_at = due
            world.clock.at(max(due, self.now), self._tick, self.swarm, due)

    def _tick(self, swarm: Swarm, due: float) -> None:
        if self._timer_at == due:
            self._timer_at = None
        if self.is_alive and swarm is self.swarm:
            if (next_ := swarm.next_timeout()) is not None and self.now >= next_:
                swarm.timeout(now=self.now)
            self.pump()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                self._say(peer, message)
            case Fetch(peer, first, count_):
                self._fetch(peer, Run(first, count_))
            case Cancel(peer, first, count_):
                if peer in self.origins:
                    self._drop_range(peer, Run(first, count_))
                else:
                    self._say(peer, CancelRequest(MANIFEST, first, count_))
            case Serve(peer, first, count_):
                self._serve(peer, Run(first, count_))
            case Ban(peer, reason):
                link = self.links[peer]
                self.bans.append((link.other.number, reason))
                self.banned.add(link.other.number)
                self.world.disconnect(self, link.other)
            case Completed():
                assert self.verified.is_full
                self.finished_at = self.now
                self.world.may_be_done = True
            case _:
                assert_never(effect)

    def _say(self, peer: PeerId, message: SwarmMessage) -> None:
        link = self.links.get(peer)
        if link is None:
            return
        if message is not self._said and isinstance(message, HaveRuns):
            assert all(self.verified.has_all(*run) for run in message.runs)
        self._said = message  # the same news for many peers is one object
        back = link.back
        assert back is not None
        at = max(back.clear_at, self.now + self.world.network.delay())
        back.clear_at = at
        if not self.host.is_stalled:
            self.world.clock.at(at, link.other.receive, back, message)

    def _fetch(self, peer: PeerId, run: Run) -> None:
        # No piece is fetched that is here, nor more than twice at a time.
        assert not self.swarm.have.bits[run.first : run.end].any()
        origin = self.origins.get(peer)
        if origin is None:
            self._say(peer, Request(MANIFEST, *run))
        else:
            self._check_provable(run)
            transfer = Transfer(self, peer, run, is_lie=False)
            self.world.start(transfer, origin)

    def _check_provable(self, run: Run) -> None:
        """An origin sends no proofs: of a chunk of which nothing is here it is asked for all."""
        starts = self.world.chunk_starts
        if starts is None:
            return
        limits = {*starts.tolist(), self.verified.size}
        for limit in (run.first, run.end):
            first, end = max(at for at in limits if at <= limit), min(at for at in limits if at >= limit)
            assert first == end or self.swarm.have.has_any(first, end - first), (
                f"part of a chunk without a proof: {run}"
            )

    def _drop_range(self, peer: PeerId, run: Run) -> None:
        for transfer in [one for one in self.incoming if one.peer == peer and run.covers(one.run)]:
            assert transfer.flow is not None
            self.world.network.stop(transfer.flow)
            self.incoming.pop(transfer, None)

    def _serve(self, peer: PeerId, run: Run) -> None:
        assert self.verified.has_all(*run), "served what was not verified"
        link = self.links.get(peer)
        if link is None:
            self.swarm.served(peer, run.first, run.count, ok=False, now=self.now)
            return
        transfer = Transfer(link.other, link.theirs, run, is_lie=self.is_liar)
        transfer.server = (self, peer)
        self.outgoing[transfer] = None
        self.world.start(transfer, self.host)


class World:
    """All nodes, the clock and the network; faults are methods."""

    def __init__(
        self,
        lengths: Lengths,
        *,
        seed: int,
        params: SwarmParams | None = None,
        chunk_starts: NDArray[np.int64] | None = None,
        swarm_type: Callable[..., Swarm] = Swarm,
        **network: float,
    ) -> None:
        self.rng = Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, self.rng, **network)  # type: ignore[arg-type]
        self.lengths = lengths
        self.chunk_starts = chunk_starts
        self.sizes: list[int] = lengths.tolist()
        self.params = params or SwarmParams()
        self.nodes: list[Node] = []
        self.swarm_type = swarm_type
        self.report_s = 0.0
        """How long a node gathers pieces that came before its swarm hears of them, all at once."""
        self.checked_one_in = 1
        """After one step in so many the nodes that it touched are checked; 0: never."""
        self.touched: set[Node] = set()
        """Nodes whose swarm has changed in this step."""
        self.may_be_done = True
        """Whether a node has finished or died since `run` last looked."""
        self._numbers = count(1)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def add(
        self,
        *,
        up: float,
        down: float,
        have: Bitfield | None = None,
        labels: Labels = Labels(),  # noqa: B008 - frozen
    ) -> Node:
        host = Host(up, down, rack=labels.rack)
        verified = have if have is not None else Bitfield(len(self.sizes))
        node = Node(self, len(self.nodes), host, verified, labels)
        self.nodes.append(node)
        return node

    def add_seeder(self, *, up: float, down: float, labels: Labels = Labels()) -> Node:  # noqa: B008 - frozen
        return self.add(up=up, down=down, have=Bitfield.full(len(self.sizes)), labels=labels)

    def connect(self, one: Node, two: Node) -> None:
        if one is two or two.number in one.banned or one.number in two.banned:
            return
        if any(link.other is two for link in one.links.values()):
            return
        mine, theirs = PeerId(next(self._numbers)), PeerId(next(self._numbers))
        near, far = Link(mine, two, theirs), Link(theirs, one, mine)
        near.back, far.back = far, near
        one.links[mine], two.links[theirs] = near, far
        tier = tier_between(one.labels, two.labels)
        for node, other, peer in ((one, two, mine), (two, one, theirs)):
            node.swarm.connected(
                peer, kind=PeerKind.NODE, tier=tier, instance=other.instance, now=self.clock.now
            )
        one.pump()
        two.pump()

    def connect_all(self) -> None:
        alive = [node for node in self.nodes if node.is_alive]
        for at, one in enumerate(alive):
            for two in alive[at + 1 :]:
                self.connect(one, two)

    def connect_origin(self, node: Node, origin: Host) -> None:
        peer = PeerId(next(self._numbers))
        node.origins[peer] = origin
        node.swarm.connected(peer, kind=PeerKind.ORIGIN, tier=Tier.ORIGIN, now=self.clock.now)
        node.pump()

    def disconnect(self, one: Node, two: Node) -> None:
        for node, other in ((one, two), (two, one)):
            peer = next((peer for peer, link in node.links.items() if link.other is other), None)
            if peer is None:
                continue
            del node.links[peer]
            for transfer in [one for one in node.incoming if one.peer == peer]:
                transfer.abort()
            if node.is_alive:
                node.swarm.disconnected(peer, now=self.clock.now)
        for node in (one, two):
            node.pump()

    def kill(self, node: Node) -> None:
        """The process is gone; its peers see their connections reset."""
        node.is_alive = False
        self.may_be_done = True
        for link in list(node.links.values()):
            self.disconnect(node, link.other)
        node.origins.clear()
        for transfer in list(node.incoming):
            transfer.abort()

    def restart(self, node: Node) -> None:
        """The process is back, with what it had verified."""
        node.restart()
        self.connect_all()

    def start(self, transfer: Transfer, source: Host) -> None:
        sizes = self.sizes[transfer.run.first : transfer.run.end]
        transfer.flow = Flow(source, transfer.node.host, sizes, transfer)
        transfer.node.incoming[transfer] = None
        self.network.start(transfer.flow)

    def run_until(self, time: float) -> None:
        while (at := self.clock.next_at) is not None and at <= time:
            self._step()
        self.clock.now = max(self.clock.now, time)

    def run(self, *, limit: float) -> None:
        """Goes on until every live node is complete."""
        self.may_be_done = True
        while True:
            if self.may_be_done and self.is_done:
                return
            self.may_be_done = False
            assert self.clock.now <= limit, f"not done after {limit} s: {self.describe()}"
            assert self._step(), f"nothing happens any more: {self.describe()}"

    @property
    def is_done(self) -> bool:
        return all(node.finished_at is not None for node in self.nodes if node.is_alive)

    def describe(self) -> str:
        missing = [node for node in self.nodes if node.is_alive and not node.verified.is_full]
        first = ", ".join(
            f"{node.number}: {node.verified.count}/{node.verified.size}" for node in missing[:20]
        )
        return f"{len(missing)} nodes lack something: {first}"

    def _step(self) -> bool:
        more = self.clock.step()
        if self.checked_one_in and self.clock.steps % self.checked_one_in == 0:
            for node in self.touched:
                if node.is_alive:
                    check_node(node)
        self.touched.clear()
        return more


def check_node(node: Node) -> None:
    """What is true of every node after every step."""
    state = node.swarm._state
    pieces, params = state.pieces, state.params
    assert pieces.have == node.verified
    assert pieces.unasked == int(np.count_nonzero(pieces.wanted))
    assert not (pieces.wanted & pieces.have.bits).any()
    leechers = Counter(session.tier for session in state.sessions.values() if session.is_leecher)
    assert {tier: count_ for tier, count_ in state.leechers_at.items() if count_} == leechers
    assert state.leechers == leechers.total()
    asked = np.zeros(pieces.count, dtype=np.int64)
    for session in state.sessions.values():
        assert len(session.flights) <= params.flights_max + 2 * params.credits
        for flight in session.flights:
            assert flight.remaining
            for part in flight.remaining:
                asked[part.first : part.end] += 1
    assert np.array_equal(asked, pieces._asked)
    assert not (pieces.wanted & (asked > 0)).any()
