"""One blob's swarm on one node: told what happened, it says what to fetch, serve and send.

Pure: `now` and `rng` are arguments, effects are values, bytes of pieces are never seen. So the scheduler
that a simulation runs ten thousand times is the one on a real node. Four parts share one `SwarmState`:
`fetching` asks, `serving` answers, `news` announces, and this file tells each of them what happened.

Calls about a peer that the swarm does not know (any more) are ignored: the driver's events race with ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import assert_never

import numpy as np
import numpy.typing as npt

from megalfs.core.availability import Availability
from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.effects import Ban, Completed, Effect, PeerId
from megalfs.core.fetching import Counters, Fetching
from megalfs.core.gateways import Gateways
from megalfs.core.ids import ManifestId
from megalfs.core.messages import (
    CancelRequest,
    Credit,
    Expecting,
    Granting,
    HaveAll,
    HaveRuns,
    Lost,
    Reject,
    RejectReason,
    Request,
    SwarmMessage,
)
from megalfs.core.meter import Meter
from megalfs.core.news import News
from megalfs.core.params import SwarmParams
from megalfs.core.pieces import Lengths, Pieces
from megalfs.core.promises import Promises
from megalfs.core.serving import Serving
from megalfs.core.session import ALL, GRANTS, NOTHING, SOME, PeerKind, Session, Shows
from megalfs.core.state import SwarmState
from megalfs.core.status import AvailabilitySummary, PeerStatus
from megalfs.core.topology import Tier
from megalfs.errors import RemoteProtocolError

__all__ = ["PeerKind", "Swarm"]

STALE_WEIGHT = 1  # strikes for haves that say nothing new


class Swarm:
    """A leecher, a seeder, or both, of the blob under one manifest."""

    def __init__(
        self,
        manifest: ManifestId,
        lengths: Lengths,
        *,
        instance: bytes,
        have: Bitfield,
        chunk_starts: npt.NDArray[np.int64] | None = None,
        params: SwarmParams,
        rng: Random,
        now: float,
    ) -> None:
        """
        Args:
            chunk_starts: the first piece of each chunk, where chunks have several: an origin, which has no proofs, is
                asked for whole ones.
        """
        pieces = Pieces(lengths, have, chunk_starts)
        self._state = SwarmState(
            manifest,
            pieces,
            Availability(pieces.count),
            Promises(pieces.count),
            Gateways(
                manifest, instance, pieces, block_bytes_max=params.run_bytes_max, delay_s=params.gateway_s
            ),
            params,
            rng,
        )
        self._fetching = Fetching(self._state, now)
        self._serving = Serving(self._state, now)
        self._news = News(self._state)

    # -- peers

    def connected(
        self, peer: PeerId, *, kind: PeerKind, tier: Tier, now: float, instance: bytes = b""
    ) -> None:
        """A session takes part in this swarm from now on; `instance` names the node behind it, to all alike."""
        assert peer not in self._state.sessions
        session = Session(peer, kind, tier, instance, down=Meter(now), up=Meter(now), touched_at=now)
        self._state.meet(session)
        if kind is PeerKind.ORIGIN:
            self._state.show(session, ALL)
            self._fetching.feed(session, now)
        elif not self._state.pieces.is_complete:
            self._news.introduce(session)
        elif not self._serving.can_grant:
            self._serving.reveal(session)
        # A seeder that may grant speaks second: what it says depends on what the other lacks.

    def disconnected(self, peer: PeerId, *, now: float) -> None:
        """The session is over; what it was asked for is wanted again."""
        session = self._state.sessions.get(peer)
        if session is not None:
            self._drop(session)
            self._go_on(now)

    def received(self, peer: PeerId, message: SwarmMessage, *, now: float) -> None:
        """A control message of this swarm came.

        Raises:
            RemoteProtocolError: it breaks the protocol; drop the peer.
        """
        session = self._state.sessions.get(peer)
        if session is None:
            return
        if session.kind is PeerKind.ORIGIN:
            raise RemoteProtocolError(f"an origin sent {type(message).__name__}")
        self._dispatch(session, message, now)
        self._ban_if_due(session, now)

    # -- data that comes

    def receiving(self, peer: PeerId, first: int, count: int, *, now: float) -> bool:
        """A data header arrived; False when its bytes are not wanted: read them and throw them away.

        Raises:
            RemoteProtocolError: the blob has no such pieces.
        """
        run = self._state.check(first, count)
        session = self._state.sessions.get(peer)
        if session is None:
            return False
        is_wanted = self._fetching.begun(session, run, now)
        self._ban_if_due(session, now)
        return is_wanted

    def progressed(self, peer: PeerId, size: int, *, now: float) -> None:
        """`size` bytes of a run came that cannot be verified yet; saves slow but living peers."""
        session = self._state.sessions.get(peer)
        if session is not None:
            self._fetching.progressed(session, size, now)

    def verified(self, peer: PeerId | None, first: int, count: int, *, now: float) -> None:
        """These pieces are verified and readable here: a run, or a part of one. None: found on this disk."""
        self.verified_many([(peer, first, count)], now=now)

    def verified_many(self, parts: Iterable[tuple[PeerId | None, int, int]], *, now: float) -> None:
        """As `verified`, of all that came lately: who is idle now is asked once, when all of it is known.

        Args:
            parts: by whom (None: found on this disk), first piece, and count, in the order in which they came.
        """
        pieces, sessions = self._state.pieces, self._state.sessions
        was_complete = pieces.is_complete
        senders: dict[PeerId, Session] = {}
        fresh: list[Run] = []
        awaited: list[Run] = []
        for peer, first, count in parts:
            run = Run(first, count)
            new = pieces.add(run)
            if peer is not None and (session := sessions.get(peer)) is not None:
                senders[peer] = session
                is_settled = self._fetching.delivered(
                    session, run, size=pieces.bytes_of(run), new=new, now=now
                )
            else:
                is_settled = not pieces.asked(run)
            if new:
                fresh.append(run)
                if not is_settled:
                    awaited.append(run)
        self._fetching.settle(awaited, now)
        self._news.add(fresh, rate=self._fetching.rate, fetch_s=self._fetching.expected_s(), now=now)
        if pieces.is_complete and not was_complete:
            self._complete(now)
            return
        for session in senders.values():
            self._fetching.feed_if_idle(session, now)

    def corrupt(self, peer: PeerId, pieces: Sequence[int], *, now: float) -> None:
        """These pieces came with wrong bytes: their sender is banned, nobody else."""
        session = self._state.sessions.get(peer)
        if session is None:
            return
        session.rejected += len(pieces)
        self._fetching.counters.corrupt_pieces += len(pieces)
        self._ban(session, f"{len(pieces)} pieces with wrong bytes", now)

    def failed(self, peer: PeerId, first: int, count: int, *, now: float) -> None:
        """The rest of this run will not come: reset, time-out or refusal. It is wanted again."""
        session = self._state.sessions.get(peer)
        if session is not None:
            self._fetching.failed(session, Run(first, count), now)
            self._go_on(now)

    # -- data that goes

    def served(self, peer: PeerId, first: int, count: int, *, ok: bool, now: float) -> None:
        """An upload that `Serve` asked for has ended."""
        session = self._state.sessions.get(peer)
        self._serving.ended(session, peer, Run(first, count), ok=ok, now=now)

    # -- pieces of this node

    def reserve(self, first: int, count: int) -> None:
        """A local source works on these pieces: peers are not asked for them."""
        self._state.pieces.reserve(Run(first, count))

    def release(self, first: int, count: int, *, now: float) -> None:
        """The local source could not produce them: peers are asked again."""
        self._state.pieces.release(Run(first, count))
        self._go_on(now)

    def withdraw(self, runs: Iterable[tuple[int, int]] | None, *, now: float) -> None:
        """These pieces, or all with None, are no longer here: the file changed under us."""
        held = self._state.pieces.have.runs()
        given = held if runs is None else [Run(first, count) for first, count in runs]
        for run in given:
            self._news.forget(run)
            self._state.pieces.lose(run)
            self._serving.withdraw(run)
        for session in self._state.nodes():
            if self._serving.is_granting:
                self._news.introduce(session)
            else:
                self._news.retract(session, given)
        self._serving.stop_granting()
        self._fetching.feed_all(now)

    # -- time and wishes

    def timeout(self, *, now: float) -> None:
        """Call when `next_timeout` has come; calling early or late does no harm."""
        self._news.flush(now=now)
        if self._fetching.due is not None and now >= self._fetching.due:
            self._fetching.check(now)
        self._serving.check(now)

    def next_timeout(self) -> float | None:
        """When `timeout` should be called, or None when only events matter."""
        earliest = self._news.due
        for due in (self._fetching.due, self._serving.due):
            if due is not None and (earliest is None or due < earliest):
                earliest = due
        return earliest

    def effects(self) -> list[Effect]:
        """What is to be done since the last call, in order."""
        drained = self._state.effects
        self._state.effects = []
        return drained

    # -- questions

    @property
    def manifest(self) -> ManifestId:
        """The manifest whose pieces this is about."""
        return self._state.manifest

    @property
    def is_complete(self) -> bool:
        """Whether every piece is here."""
        return self._state.pieces.is_complete

    @property
    def is_granting(self) -> bool:
        """Whether this seeder chooses itself what it sends."""
        return self._serving.is_granting

    @property
    def have(self) -> Bitfield:
        """The pieces here; to be read only."""
        return self._state.pieces.have

    @property
    def missing_bytes(self) -> int:
        """Bytes not yet here."""
        return self._state.pieces.missing_bytes

    @property
    def counters(self) -> Counters:
        """What happened to our fetches; to be read only."""
        return self._fetching.counters

    @property
    def leechers(self) -> int:
        """Connected nodes that lack something."""
        return self._state.leechers

    def rate_in(self, now: float) -> float:
        """Bytes per second arriving verified."""
        return self._fetching.rate.rate(now)

    def rate_out(self, now: float) -> float:
        """Bytes per second served."""
        return self._serving.rate.rate(now)

    def availability(self) -> AvailabilitySummary:
        """How many copies of the pieces are around."""
        counts = self._state.availability.counts(0, self._state.pieces.count)
        if not len(counts):
            return AvailabilitySummary(0, 0.0, None)
        full = self._state.availability.full + self._state.availability.granters
        rarest = int(counts.argmin())
        return AvailabilitySummary(int(counts[rarest]) + full, float(np.median(counts)) + full, rarest)

    def peers(self, now: float) -> list[PeerStatus]:
        """Every peer, as it is now."""
        return [self._status(session, now) for session in self._state.sessions.values()]

    # -- inside

    def _dispatch(self, session: Session, message: SwarmMessage, now: float) -> None:
        match message:
            case HaveRuns(runs=runs):
                self._heard_runs(session, runs, now)
            case Request(first=first, count=count):
                self._serving.requested(session, self._state.check(first, count), now)
            case CancelRequest(first=first, count=count):
                self._serving.cancelled(session, self._state.check(first, count))
            case Credit(count=count):
                self._serving.credited(session, count, now)
            case Reject(first=first, count=count, reason=reason):
                self._heard_reject(session, self._state.check(first, count), reason, now)
            case HaveAll():
                self._heard_state(session, ALL, now)
            case Granting():
                self._heard_state(session, GRANTS, now)
            case Expecting(runs=runs):
                for run in runs:
                    self._state.promise(session, self._state.check_run(run), now)
            case Lost(runs=runs):
                for run in runs:
                    self._state.lose(session, self._state.check_run(run))
                self._serving.introduced(now)
            case _:
                assert_never(message)

    def _heard_runs(self, session: Session, runs: tuple[Run, ...], now: float) -> None:
        for run in runs:
            self._state.check_run(run)
        was = session.shows
        if was is NOTHING or was is GRANTS:
            session.end_credit()
            self._state.show(session, SOME, Bitfield(self._state.pieces.count))
        pieces = self._state.pieces
        is_news, is_wanted = not runs, False
        for run in runs:
            if session.shows is SOME and self._state.gain(session, run):
                is_news = True
                is_wanted = is_wanted or pieces.wants(run)
                self._serving.announced(session, run, now)
        if session.shows is not was:
            self._serving.introduced(now, stranger=session if was is NOTHING else None)
        elif not is_news:
            self._state.strike(session, STALE_WEIGHT, "says nothing new")
        elif self._serving.is_granting:
            self._serving.go_on(now)
        if is_wanted or session.shows is not was:
            self._fetching.feed_if_idle(session, now)
        else:
            self._fetching.take_over_if_idle(session, now)

    def _heard_state(self, session: Session, shows: Shows, now: float) -> None:
        was = session.shows
        if was is shows:
            self._state.strike(session, STALE_WEIGHT, "says nothing new")
        self._news.flush(now=now, everything=True)
        session.end_credit()
        self._state.show(session, shows)
        self._serving.introduced(now, stranger=session if was is NOTHING else None)
        self._fetching.give_credit(session)
        self._fetching.feed(session, now)

    def _heard_reject(self, session: Session, run: Run, reason: RejectReason, now: float) -> None:
        if reason is RejectReason.RECALLED:
            self._fetching.recalled(session, run, now)
            return
        if session.flight_around(run) is None:
            return  # it crossed a cancel of ours
        if reason is not RejectReason.BUSY:
            self._state.lose(session, run)
        self._fetching.failed(session, run, now)
        self._go_on(now)

    def _complete(self, now: float) -> None:
        self._news.flush(now=now, everything=True)
        self._fetching.finish()
        for session in self._state.nodes():
            self._serving.reveal(session)
        self._state.effects.append(Completed())

    def _go_on(self, now: float) -> None:
        self._serving.introduced(now)
        self._fetching.feed_all(now)

    def _ban_if_due(self, session: Session, now: float) -> None:
        if session.ban_reason is not None:
            self._ban(session, session.ban_reason, now)

    def _ban(self, session: Session, reason: str, now: float) -> None:
        self._drop(session)
        self._state.effects.append(Ban(session.peer, reason))
        self._go_on(now)

    def _drop(self, session: Session) -> None:
        self._fetching.dropped(session)
        self._state.forget(session)
        self._serving.dropped(session)

    def _status(self, session: Session, now: float) -> PeerStatus:
        holds = session.holds
        count = self._state.pieces.count if session.shows in (ALL, GRANTS) else 0
        return PeerStatus(
            peer=session.peer,
            kind=session.kind,
            tier=session.tier,
            shows=session.shows.value,
            pieces=count if holds is None else holds.count,
            rate_in=session.down.rate(now),
            rate_out=session.up.rate(now),
            bytes_in=session.down.total,
            bytes_out=session.up.total,
            bytes_wasted=session.wasted_bytes,
            outstanding=len(session.flights),
            uploading=self._serving.active_for(session.peer),
            is_paused=session.is_paused,
            rejected=session.rejected,
        )
