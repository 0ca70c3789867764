"""A network in virtual time: hosts with an uplink and a downlink, thin trunks, latency, loss.

An uplink sends blocks of its flows in turn, so concurrent uploads share it equally; a flow has no more in
the network than a socket buffer, so a slow receiver holds back its own flow only, and an upload counts as
sent when the rest fits into that buffer, as with sendfile. Downlinks and trunks are first in, first out.
Rates are therefore never exceeded and uplinks never idle while a flow could send: what TCP does, without
its errors.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Protocol

RETRANSMIT_S = 0.2  # Linux' least time-out of TCP; a lost block or message comes this much later


class Clock:
    """Virtual time: calls what is due, in order of time, then of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()

    def at(self, time: float, call: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._heap, (time, next(self._order), call, args))

    def step(self) -> bool:
        """Makes one call; False when nothing is left to happen."""
        if not self._heap:
            return False
        time, _, call, args = heapq.heappop(self._heap)
        assert time >= self.now - 1e-9
        self.now = max(self.now, time)
        self.steps += 1
        call(*args)
        return True

    @property
    def next_at(self) -> float | None:
        return self._heap[0][0] if self._heap else None


@dataclass(slots=True, eq=False)
class Trunk:
    """A link that many hosts share, one direction."""

    rate: float
    free_at: float = 0.0
    carried: int = 0


@dataclass(slots=True, eq=False)
class Host:
    """A machine's connection: bytes per second up and down."""

    up: float
    down: float
    rack: str = ""
    is_stalled: bool = False
    """Sends nothing any more and does not say so."""
    down_free_at: float = 0.0
    is_sending: bool = False
    sent: int = 0
    flows: deque[Flow] = field(default_factory=deque)


class Sink(Protocol):
    """Who is told of a flow's fate."""

    def begun(self) -> None: ...
    def handed_over(self) -> None: ...
    def piece_came(self, number: int) -> None: ...
    def block_came(self, size: int) -> None: ...
    def ended(self) -> None: ...


@dataclass(slots=True, eq=False)
class Flow:
    """Pieces of the given sizes on their way from one host to another."""

    source: Host
    target: Host
    sizes: Sequence[int]
    sink: Sink
    total: int = 0
    sent: int = 0
    came: int = 0
    blocks_out: int = 0
    pieces_came: int = 0
    piece_end: int = 0
    is_dead: bool = False
    is_handed_over: bool = False

    def __post_init__(self) -> None:
        self.total = sum(self.sizes)
        self.piece_end = self.sizes[0]


class Network:
    """Moves blocks of flows, and messages, between hosts."""

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        *,
        latency: float = 0.001,
        loss: float = 0.0,
        block_bytes: int = 64 << 10,
        buffer_bytes: int = 256 << 10,
    ) -> None:
        self.clock = clock
        self.latency = latency
        self.loss = loss
        self.trunks: dict[tuple[str, str], Trunk] = {}
        self._rng = rng
        self._block_bytes = block_bytes
        self._buffer_bytes = buffer_bytes
        self._window_blocks = max(1, buffer_bytes // block_bytes)

    def delay(self) -> float:
        """One way, this time."""
        lost = self.loss > 0 and self._rng.random() < self.loss
        return self.latency + (RETRANSMIT_S if lost else 0.0)

    def start(self, flow: Flow) -> None:
        self.clock.at(self.clock.now + self.latency, self._begin, flow)
        flow.source.flows.append(flow)
        self._send_next(flow.source)

    def stop(self, flow: Flow) -> None:
        flow.is_dead = True
        if flow in flow.source.flows:
            flow.source.flows.remove(flow)

    def wake(self, host: Host) -> None:
        """The host may send again."""
        self._send_next(host)

    def _begin(self, flow: Flow) -> None:
        if not flow.is_dead:
            flow.sink.begun()
            self._hand_over(flow)

    def _hand_over(self, flow: Flow) -> None:
        if not flow.is_handed_over and flow.total - flow.came <= self._buffer_bytes:
            flow.is_handed_over = True
            flow.sink.handed_over()

    def _send_next(self, host: Host) -> None:
        if host.is_sending or host.is_stalled:
            return
        for _ in range(len(host.flows)):
            flow = host.flows[0]
            host.flows.rotate(-1)
            if flow.blocks_out < self._window_blocks:
                break
        else:
            return
        size = min(self._block_bytes, flow.total - flow.sent)
        flow.sent += size
        flow.blocks_out += 1
        if flow.sent == flow.total:
            host.flows.remove(flow)
        host.is_sending = True
        self.clock.at(self.clock.now + size / host.up, self._block_left, flow, size)

    def _block_left(self, flow: Flow, size: int) -> None:
        source, target = flow.source, flow.target
        source.is_sending = False
        source.sent += size
        at = self.clock.now + self.delay()
        trunk = self.trunks.get((source.rack, target.rack))
        if trunk is not None:
            at = trunk.free_at = max(at, trunk.free_at + size / trunk.rate)
            trunk.carried += size
        at = target.down_free_at = max(at, target.down_free_at + size / target.down)
        self.clock.at(at, self._block_came, flow, size)
        self._send_next(source)

    def _block_came(self, flow: Flow, size: int) -> None:
        flow.blocks_out -= 1
        if flow.is_dead:
            return
        flow.came += size
        self._hand_over(flow)
        flow.sink.block_came(size)
        while not flow.is_dead and flow.pieces_came < len(flow.sizes) and flow.came >= flow.piece_end:
            number = flow.pieces_came
            flow.pieces_came += 1
            if flow.pieces_came < len(flow.sizes):
                flow.piece_end += flow.sizes[flow.pieces_came]
            flow.sink.piece_came(number)
        if flow.came == flow.total and not flow.is_dead:
            flow.sink.ended()
        self._send_next(flow.source)
