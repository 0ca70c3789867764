"""Runs the gossip of the core over links: dials, accepts, ticks, and performs what the core decides.

Bootstrap nodes are dialled for ever, with back-off; beyond them a few of the nodes that gossip told of, so that
the graph holds when a bootstrap node leaves. Gossip goes over QUIC, over TLS where UDP does not pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import TYPE_CHECKING, assert_never

from megalfs.core.announcements import (
    PAYLOAD_BYTES_MAX,
    Announcement,
    FileBody,
    NodeBody,
    RepoBody,
    announce,
    announce_state,
)
from megalfs.core.gossip import Drop, Effect, Gossip, GossipParams, Learned, Send
from megalfs.core.identity import NodeKey
from megalfs.core.repo_state import SignedState
from megalfs.errors import BusyError, MegalfsError
from megalfs.net.link import Stream

if TYPE_CHECKING:
    from megalfs.net.dialling import PeerStream
    from megalfs.node.node import Node
    from megalfs.node.p2p import P2p

__all__ = ["SERVICE", "STALE_INTERVALS", "GossipDriver"]

log = logging.getLogger(__name__)

SERVICE = "gossip"
NEIGHBOURS_WANTED = 4
NEIGHBOURS_MAX = 64
RETRY_S_MIN, RETRY_S_MAX = 0.5, 60.0
SILENCE_INTERVALS, SILENCE_S_MIN = 4, 3.0  # neighbours compare digests every interval of theirs
STALE_INTERVALS = 6
QUEUE_FRAMES_MAX = 50_000
RENEW_S = 1200.0  # a third of how long liveness is remembered
RENEWED_MAX = 200  # of one interval
KEEPER_S = 0.5

Listener = Callable[[Learned], None]
WhoAmI = Callable[[bytes], NodeBody]


class _Neighbour:
    """One gossip stream, and the frames that wait for it."""

    def __init__(self, stream: Stream, *, is_dialled: bool) -> None:
        self.stream = stream
        self.is_dialled = is_dialled
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_FRAMES_MAX)
        self.is_dropped = False

    async def send_all(self) -> None:
        """Sends what is queued, until cancelled or the stream breaks."""
        while True:
            await self.stream.send(await self.queue.get())


class GossipDriver:
    """The gossip of one node over its links."""

    def __init__(self, node: Node, p2p: P2p, who_am_i: WhoAmI) -> None:
        settings = node.settings
        self.gossip = Gossip(
            p2p.key,
            GossipParams(
                ttl=settings.gossip_ttl,
                seen_s=settings.gossip_seen_s,
                interval_s=settings.gossip_interval_s,
            ),
        )
        self.interval_s = settings.gossip_interval_s
        self.listener: Listener = lambda _: None
        self._node = node
        self._p2p = p2p
        self._who_am_i = who_am_i
        self._neighbours: dict[NodeKey, _Neighbour] = {}
        self._own: dict[str, tuple[float, RepoBody | FileBody]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dialling: dict[NodeKey, asyncio.Task[None]] = {}
        self._failures: dict[NodeKey, tuple[int, float]] = {}
        self._rng: Random = node.make_rng()
        self._last_time_ms = 0

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to tick and to dial."""
        for work in (self._tick_for_ever, self._keep_neighbours):
            self._spawn(work())

    async def close(self) -> None:
        """Ends every stream."""
        tasks = [*self._tasks, *self._dialling.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what we say -----------------------------------------------------------------------------------------

    def announce(self, body: RepoBody | FileBody) -> None:
        """Says something of ours now, and again before it is forgotten."""
        self._own[_subject(body)] = (_now(), body)
        self._publish(announce(self._node.identity.private, self._time_ms(), body))

    def announce_state(self, signed: SignedState) -> None:
        """Passes a state on: our own, or one from our disk. One that is too long for gossip is asked for instead."""
        announcement = announce_state(signed)
        if len(announcement.payload) <= PAYLOAD_BYTES_MAX:
            self._publish(announcement)

    def _publish(self, announcement: Announcement) -> None:
        self._perform(self.gossip.publish(_now(), announcement))

    def _time_ms(self) -> int:
        """Strictly newer than the last one, whatever the clock does."""
        self._last_time_ms = max(int(_now() * 1000), self._last_time_ms + 1)
        return self._last_time_ms

    async def _tick_for_ever(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(self.interval_s)

    def tick(self) -> None:
        """Says that we are here, and compares with the neighbours."""
        now = _now()
        aged = [subject for subject, (at, _) in self._own.items() if now - at > RENEW_S][:RENEWED_MAX]
        for subject in aged:
            self.announce(self._own[subject][1])
        us = self._who_am_i(self.gossip.inventory(self._p2p.key))
        self._publish(announce(self._node.identity.private, self._time_ms(), us))
        self._perform(self.gossip.tick(now))

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, frame):
                    self._send(peer, frame)
                case Learned():
                    self.listener(effect)
                case Drop(peer, reason):
                    log.info("gossip with %s ended: %s", peer, reason)
                    self._drop(peer)
                case _:
                    assert_never(effect)

    def _send(self, peer: NodeKey, frame: bytes) -> None:
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            return
        try:
            neighbour.queue.put_nowait(frame)
        except asyncio.QueueFull:
            self._drop(peer)

    def _drop(self, peer: NodeKey) -> None:
        neighbour = self._neighbours.get(peer)
        if neighbour is not None and not neighbour.is_dropped:
            neighbour.is_dropped = True
            self._spawn(neighbour.stream.close())

    # --- neighbours ------------------------------------------------------------------------------------------

    async def handle(self, stream: Stream) -> None:
        """A neighbour that dialled us."""
        known = self._neighbours.get(stream.peer)
        # Two that dial each other keep what the lower key dialled; a second call of one caller means that the
        # first is dead: it was restarted.
        is_kept = known is not None and known.is_dialled and self._p2p.key < stream.peer
        if is_kept or stream.peer == self._p2p.key:
            await stream.refuse(BusyError("we gossip already"))
            return
        if known is not None:
            self._drop(stream.peer)
        if len(self._neighbours) >= NEIGHBOURS_MAX:
            await stream.refuse(BusyError(f"this node has {NEIGHBOURS_MAX} neighbours already"))
            return
        await stream.accept()
        await self._converse(stream, is_dialled=False)

    async def _converse(self, stream: Stream, *, is_dialled: bool) -> None:
        peer = stream.peer
        neighbour = _Neighbour(stream, is_dialled=is_dialled)
        self._neighbours[peer] = neighbour
        sender = asyncio.create_task(neighbour.send_all())
        try:
            self._perform(self.gossip.connected(_now(), peer))
            while True:
                silence_s = max(SILENCE_S_MIN, SILENCE_INTERVALS * self.gossip.interval_of(peer))
                async with asyncio.timeout(silence_s):
                    frame = await stream.receive()
                if not frame or self._neighbours.get(peer) is not neighbour:
                    return
                self._perform(self.gossip.receive(_now(), peer, frame))
                await asyncio.sleep(0)  # a thousand announcements are checked without holding up the loop
        except (MegalfsError, TimeoutError) as error:
            log.debug("gossip with %s ended: %s", peer, error)
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, MegalfsError):
                await sender
            if self._neighbours.get(peer) is neighbour:  # else another stream took its place
                self.gossip.disconnected(peer)
                del self._neighbours[peer]

    async def _keep_neighbours(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            for key in self._wanted():
                _, not_before = self._failures.get(key, (0, 0.0))
                if key not in self._dialling and now >= not_before:
                    self._dialling[key] = asyncio.create_task(self._dial(key))
            await asyncio.sleep(KEEPER_S)

    def _wanted(self) -> list[NodeKey]:
        """Bootstrap nodes, always; others while there are few neighbours."""
        named = [each.key for each in self._p2p.options.bootstrap]
        wanted = [key for key in named if key not in self._neighbours]
        few = NEIGHBOURS_WANTED - len(self._neighbours) - len(self._dialling)
        others = [each.key for each in self.gossip.known("node") if each.key not in self._neighbours]
        self._rng.shuffle(others)
        wanted += others[: max(0, few)] if self._node.settings.discover else []
        return [key for key in dict.fromkeys(wanted) if key != self._p2p.key]

    async def _dial(self, key: NodeKey) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        remote: PeerStream | None = None
        try:
            remote = await self._p2p.open(key, SERVICE, prefer="quic")
            if key not in self._neighbours:
                log.info("joined %s", key)
                await self._converse(remote.stream, is_dialled=True)
        except MegalfsError as error:
            log.debug("cannot join %s: %s", key, error)
        finally:
            if remote is not None:
                await remote.close()
            self._dialling.pop(key, None)
        count = self._failures.get(key, (0, 0.0))[0] + 1 if loop.time() - started < RETRY_S_MAX else 1
        pause = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(count - 1, 10)) * self._rng.uniform(0.75, 1.25)
        self._failures[key] = (count, loop.time() + pause)


def _subject(body: RepoBody | FileBody) -> str:
    return str(body.repo) if isinstance(body, RepoBody) else str(body.oid)


def _now() -> float:
    return time.time()  # noqa: TID251 - announcements carry dates that other hosts read
