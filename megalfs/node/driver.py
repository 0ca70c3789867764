"""Drives one swarm: feeds the core what happened, performs the effects it returns, owns its clock.

Decisions are the core's and are synchronous; nothing is awaited between reading its state and changing it.
Everything here runs on the event loop. Lane threads report through the hub, which posts to the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Protocol, assert_never

from msgspec import Struct, field

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.chunk_proofs import ChunkProofs
from megalfs.core.codec import encode
from megalfs.core.effects import Ban, Cancel, Completed, Effect, Fetch, PeerId, Send, Serve
from megalfs.core.manifest import Manifest
from megalfs.core.messages import CancelRequest, Join, Leave, PeerAddress, Peers, Request, SwarmMessage
from megalfs.core.params import SwarmParams
from megalfs.core.swarm import PeerKind, Swarm
from megalfs.core.topology import Labels, Tier, tier_between
from megalfs.errors import MegalfsError, NotFoundError, OriginRefusedError, RemoteProtocolError, StoreError
from megalfs.net.http import shown_url
from megalfs.net.lanes import Upload, UploadSource
from megalfs.net.limiter import Limiter
from megalfs.net.proofs import proof_of_run
from megalfs.net.session import Session
from megalfs.net.sinks import Progress, Sink
from megalfs.net.webseed import WebSeed, WebSeedReports
from megalfs.node.peers import PeerHub
from megalfs.node.reports import Part

__all__ = ["Arrival", "SwarmDriver", "SwarmTotals"]

log = logging.getLogger(__name__)

PEERS_TOLD_MAX = 50
# Who is new is told together: sixteen nodes that begin together would each hear 200 messages of one address.
NEWCOMERS_S = 0.02


def _told(session: Session) -> PeerAddress | None:
    """How other peers hear of this one; None when it cannot be dialled."""
    address = session.address
    return None if address is None else PeerAddress(address.host, address.port, session.hello.instance)


class SwarmTotals(Struct):
    """Verified bytes by source, and refused pieces by source, since this swarm began."""

    by_peer: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    bytes_origin: int = 0
    bytes_local: int = 0
    bytes_sent: int = 0

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came over the network."""
        return sum(self.by_peer.values())


class Arrival(Protocol):
    """The pull that a leeching swarm belongs to."""

    def stored(self, first: int, count: int) -> None:
        """Pieces are verified and in the partial."""

    def completed(self) -> None:
        """Every piece is in the partial."""

    def source_lost(self) -> None:
        """A source went away; perhaps none is left."""


class SwarmDriver:
    """One blob under one manifest on this node: leeching into a sink, serving from a source, or both."""

    def __init__(
        self,
        hub: PeerHub,
        manifest: Manifest,
        *,
        have: Bitfield,
        source: UploadSource,
        labels: Labels,
        params: SwarmParams,
        rng: Random,
        sink: Sink | None = None,
        arrival: Arrival | None = None,
        withdrawn: Callable[[Manifest], None] | None = None,
        exchanges: bool = True,
    ) -> None:
        self.manifest = manifest
        self.parts = manifest.parts
        """What this swarm calls pieces."""
        self.totals = SwarmTotals()
        self.names: dict[PeerId, str] = {}
        self._origin_names: set[str] = set()
        self._hub = hub
        self._source = source
        self._labels = labels
        self._sink = sink
        self._proofs = ChunkProofs(manifest) if sink is None else sink.proofs
        self._arrival = arrival
        self._withdrawn = withdrawn
        self._exchanges = exchanges
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[PeerId, Session] = {}
        self._newcomers: list[Session] = []  # of whom the others have not heard yet
        self._web_seeds: dict[PeerId, WebSeed] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._expected_count = 0
        self._is_closed = False
        self._is_draining = False
        self._encoded_message: SwarmMessage | None = None
        self._encoded = b""
        self.swarm = Swarm(
            manifest.id,
            self.parts.lengths,
            instance=hub.instance,
            have=have,
            chunk_starts=self.parts.chunk_starts,
            params=params,
            rng=rng,
            now=self._loop.time(),
        )
        self._step()

    # --- sessions ------------------------------------------------------------------------------------

    @property
    def source_count(self) -> int:
        """Sessions and web seeds that take part."""
        return len(self._sessions) + len(self._web_seeds)

    @property
    def session_count(self) -> int:
        """Nodes that take part."""
        return len(self._sessions)

    def sessions(self) -> list[Session]:
        """The nodes that take part."""
        return list(self._sessions.values())

    def join(self, session: Session) -> asyncio.Event:
        """Tells a node that we take part; it answers with its own Join when it does too.

        Returns:
            What is set once it takes part no longer, or has said that it does not.
        """
        if session.is_closed:
            return session.closed
        manifest = self.manifest
        end = session.joins_sent.get(manifest.id)
        if end is None:
            end = session.joins_sent[manifest.id] = asyncio.Event()
            session.send(Join(manifest.id, manifest.oid, self.parts.count, self.swarm.is_complete))
        return end

    def joined(self, session: Session, piece_count: int) -> None:
        """The other side takes part: from here on the core knows it.

        Raises:
            RemoteProtocolError: it cuts the blob into another number of pieces, so none of its words would fit.
        """
        if piece_count != self.parts.count:
            raise RemoteProtocolError(
                f"{piece_count} pieces of {self.manifest.oid}, which has {self.parts.count} here; "
                "one of the two nodes is of an older version"
            )
        self.join(session)
        peer = PeerId(session.id)
        if peer in self._sessions:
            return
        self._introduce(session)
        self._sessions[peer] = session
        self.names[peer] = session.name
        if self._sink is not None and not self.swarm.is_complete:
            self._hub.want_lanes(session, self._lanes_per_session())
        tier = tier_between(self._labels, session.hello.labels)
        self.swarm.connected(
            peer, kind=PeerKind.NODE, tier=tier, instance=session.hello.instance, now=self._loop.time()
        )
        self._step()

    def _introduce(self, session: Session) -> None:
        """Peer exchange: the newcomer hears of the others, and they of the newcomer."""
        if not self._exchanges:
            return
        self._tell(session, self._sessions.values())
        if not self._newcomers:
            self._loop.call_later(NEWCOMERS_S, self._tell_newcomers)
        self._newcomers.append(session)

    def _tell_newcomers(self) -> None:
        newcomers, self._newcomers = self._newcomers, []
        for session in self._sessions.values():
            # Itself a newcomer, it has heard of those before it.
            later = newcomers[newcomers.index(session) + 1 :] if session in newcomers else newcomers
            here = [other for other in later if PeerId(other.id) in self._sessions]
            for at in range(0, len(here), PEERS_TOLD_MAX):
                self._tell(session, here[at : at + PEERS_TOLD_MAX])

    def _tell(self, session: Session, others: Iterable[Session]) -> None:
        """Names others to a node, those that can be dialled, as many as one message may."""
        told = [_told(other) for other in others]
        addresses = tuple(address for address in told if address is not None)
        if addresses:
            session.send(Peers(self.manifest.id, addresses[:PEERS_TOLD_MAX]))

    def expect(self, count: int) -> None:
        """So many nodes are in the swarm or on their way into it: when it is one, it gets a second lane."""
        self._expected_count = count
        for session in self._sessions.values():
            self._hub.want_lanes(session, self._lanes_per_session())

    def _lanes_per_session(self) -> int:
        # Two threads fill two cores (pull prototype); with several peers one lane each does, and a fourth lane
        # from three of them costs 8 %.
        return 2 if max(self._expected_count, len(self._sessions)) <= 1 else 1

    def left(self, session: Session) -> None:
        """The session ended, or the node takes part no longer."""
        peer = PeerId(session.id)
        if (end := session.joins_sent.pop(self.manifest.id, None)) is not None:
            end.set()
        if self._sessions.pop(peer, None) is None:
            return
        self.swarm.disconnected(peer, now=self._loop.time())
        self._step()
        if self._arrival is not None and not self._is_closed:
            self._arrival.source_lost()

    def received(self, session: Session, message: SwarmMessage) -> None:
        """A control message of this swarm; raises RemoteProtocolError."""
        peer = PeerId(session.id)
        if peer not in self._sessions:
            return
        self.swarm.received(peer, message, now=self._loop.time())
        self._step()

    def add_origin(
        self, url: str, *, proxies: Mapping[str, str], limiter: Limiter, headers: Mapping[str, str]
    ) -> None:
        """Adds a plain HTTP server that has the whole blob; `headers` are sent to it and to nobody else."""
        assert self._sink is not None
        peer = self._hub.next_peer_id()
        self.names[peer] = name = shown_url(url)
        self._origin_names.add(name)

        def of_swarm(call: Callable[..., None]) -> Callable[..., None]:
            return lambda _, *arguments: self._post(call, peer, *arguments)

        progress = Progress(of_swarm(self._verified), of_swarm(self._corrupt), of_swarm(self._progressed))
        reports = WebSeedReports(
            progress,
            arriving=partial(self._post, self._arriving, peer),
            failed=partial(self._post, self._origin_failed, peer),
        )
        self._web_seeds[peer] = WebSeed(
            url, proxies=proxies, headers=headers, sink=self._sink, reports=reports, limiter=limiter
        )
        self.swarm.connected(peer, kind=PeerKind.ORIGIN, tier=Tier.ORIGIN, now=self._loop.time())
        self._step()

    def _origin_failed(self, peer: PeerId, first: int, count: int, error: MegalfsError) -> None:
        if peer not in self._web_seeds:
            return
        log.warning("origin: %s", error)
        self.swarm.failed(peer, first, count, now=self._loop.time())
        if (
            isinstance(error, NotFoundError | OriginRefusedError)
            or error.exit_code == 7
            or not error.is_retryable
        ):
            self._drop_origin(peer)
        self._step()

    def _drop_origin(self, peer: PeerId) -> None:
        seed = self._web_seeds.pop(peer, None)
        if seed is None:
            return
        seed.close()
        self.swarm.disconnected(peer, now=self._loop.time())
        if self._arrival is not None and not self._is_closed:
            self._arrival.source_lost()

    # --- what lanes and local sources report -----------------------------------------------------------

    def sink(self) -> Sink | None:
        """Where lanes put pieces; None for a swarm that only serves."""
        return self._sink

    def arriving(self, session: Session, first: int, count: int) -> None:
        """A DATA header came."""
        self._arriving(PeerId(session.id), first, count)

    def verified_many(self, parts: Sequence[Part]) -> None:
        """Pieces from nodes are verified and in the partial."""
        for session, first, count in parts:
            session.totals.bytes_in += self.parts.extent(first, count)[1]
        self._verified_many([(PeerId(session.id), first, count) for session, first, count in parts])

    def corrupt(self, session: Session, pieces: list[int]) -> None:
        """Wrong bytes from a node."""
        session.totals.rejected_count += len(pieces)
        self._corrupt(PeerId(session.id), pieces)

    def progressed(self, session: Session, size: int) -> None:
        """Bytes of a granule came from a node that is too slow to fill it soon."""
        self._progressed(PeerId(session.id), size)

    def _progressed(self, peer: PeerId, size: int) -> None:
        if not self._is_closed:
            self.swarm.progressed(peer, size, now=self._loop.time())  # wants nothing: it only buys time

    def have_chunks(self) -> Bitfield:
        """The chunks of which all is here."""
        return self.parts.whole_chunks(self.swarm.have)

    def found(self, first: int, count: int) -> None:
        """Pieces were found on this disk and are in the partial."""
        if self._is_closed:  # the partial may count under another manifest by now
            return
        self.totals.bytes_local += self.parts.extent(first, count)[1]
        self.swarm.verified(None, first, count, now=self._loop.time())
        self._stored(first, count)
        self._step()

    def not_found(self, first: int, count: int) -> None:
        """Pieces that a local source was to bring could not be had there."""
        if self._is_closed:
            return
        self.swarm.release(first, count, now=self._loop.time())
        self._step()

    def _arriving(self, peer: PeerId, first: int, count: int) -> None:
        if peer in self.names and not self._is_closed:
            self.swarm.receiving(peer, first, count, now=self._loop.time())
            self._step()

    def _verified(self, peer: PeerId, first: int, count: int) -> None:
        self._verified_many([(peer, first, count)])

    def _verified_many(self, parts: Sequence[tuple[PeerId, int, int]]) -> None:
        if self._is_closed:
            return
        for peer, first, count in parts:
            size = self.parts.extent(first, count)[1]
            name = self.names[peer]
            self.totals.by_peer[name] = self.totals.by_peer.get(name, 0) + size
            if name in self._origin_names:
                self.totals.bytes_origin += size
        self.swarm.verified_many(parts, now=self._loop.time())
        for _, first, count in parts:
            self._stored(first, count)
        self._step()

    def _corrupt(self, peer: PeerId, pieces: list[int]) -> None:
        name = self.names[peer]
        self.totals.rejected[name] = self.totals.rejected.get(name, 0) + len(pieces)
        log.warning("%s sent wrong bytes for piece %d", name, pieces[0])
        self.swarm.corrupt(peer, pieces, now=self._loop.time())
        self._step()

    def _stored(self, first: int, count: int) -> None:
        if self._arrival is not None:
            self._arrival.stored(first, count)

    # --- effects -----------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Performs everything the core wants, then sleeps until its next deadline."""
        if self._is_draining or self._is_closed:
            return
        self._is_draining = True
        try:
            while effects := self.swarm.effects():
                for effect in effects:
                    self._perform(effect)
        finally:
            self._is_draining = False
        deadline = self.swarm.next_timeout()
        if deadline is not None and not self._is_closed:
            self._wake_at(deadline)

    def _wake_at(self, deadline: float) -> None:
        # Most deadlines only move away, and waking early does no harm: the timer is set anew when it goes off.
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        if not self._is_closed:
            self.swarm.timeout(now=self._loop.time())
            self._step()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                if (session := self._sessions.get(peer)) is not None:
                    if message is not self._encoded_message:
                        self._encoded_message, self._encoded = message, encode(message)
                    session.send_encoded(self._encoded)
            case Fetch(peer, first, count):
                self._fetch(peer, first, count)
            case Cancel(peer, first, count):
                if (session := self._sessions.get(peer)) is not None:
                    session.send(CancelRequest(self.manifest.id, first, count))
            case Serve(peer, first, count):
                self._serve(peer, first, count)
            case Ban(peer, reason):
                self._ban(peer, reason)
            case Completed():
                if self._arrival is not None:
                    self._arrival.completed()
            case _:
                assert_never(effect)

    def _fetch(self, peer: PeerId, first: int, count: int) -> None:
        if (session := self._sessions.get(peer)) is not None:
            session.send(Request(self.manifest.id, first, count))
        elif (seed := self._web_seeds.get(peer)) is not None:
            seed.fetch(Run(first, count))

    def _serve(self, peer: PeerId, first: int, count: int) -> None:
        session = self._sessions.get(peer)
        if session is None:
            return
        offset, size = self.parts.extent(first, count)
        proof = partial(proof_of_run, self.manifest, self._proofs, first, count)

        def served(is_sent: bool) -> None:
            if not self._is_closed:
                self._hub.report(self._served, peer, first, count, size, is_sent)

        session.upload(Upload(self.manifest.id, first, count, offset, size, self._source, proof, served))

    def _served(self, peer: PeerId, first: int, count: int, size: int, is_sent: bool) -> None:
        if self._is_closed:
            return
        if is_sent:
            self.totals.bytes_sent += size
            if (session := self._sessions.get(peer)) is not None:
                session.totals.bytes_out += size
        elif self._has_changed():
            return
        self.swarm.served(peer, first, count, ok=is_sent, now=self._loop.time())
        self._step()

    def _has_changed(self) -> bool:
        """Whether the file that we serve from is another one by now; then this swarm ends."""
        try:
            self._source.check()
        except StoreError:
            if self._withdrawn is not None:
                self._withdrawn(self.manifest)
            return True
        return False

    def _ban(self, peer: PeerId, reason: str) -> None:
        session = self._sessions.pop(peer, None)
        if session is not None:
            self._hub.ban(session, reason)
        elif peer in self._web_seeds:
            log.warning("origin %s is dropped: %s", self.names[peer], reason)
            self._drop_origin(peer)
            return
        if self._arrival is not None:
            self._arrival.source_lost()

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._is_closed:
            self._hub.post(function, *arguments)

    def close(self) -> None:
        """Takes no part any longer: tells the peers, ends the web seeds, keeps the sessions."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for session in self._hub.sessions.values():  # also those that have not answered yet
            if session.joins_sent.pop(self.manifest.id, None) is not None:
                session.send(Leave(self.manifest.id))
        for seed in self._web_seeds.values():
            seed.close()
        self._sessions.clear()
        self._web_seeds.clear()
