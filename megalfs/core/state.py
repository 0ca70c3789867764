"""What the parts of a swarm share: the pieces, the peers, and the list of effects they write to."""

from __future__ import annotations

from random import Random

from megalfs.core.availability import Availability
from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.effects import Effect, PeerId, Send
from megalfs.core.gateways import Gateways
from megalfs.core.ids import ManifestId
from megalfs.core.messages import SwarmMessage
from megalfs.core.params import SwarmParams
from megalfs.core.pieces import Pieces
from megalfs.core.promises import Promises
from megalfs.core.session import ALL, GRANTS, NODE, SOME, Session, Shows
from megalfs.core.topology import Tier
from megalfs.errors import RemoteProtocolError

__all__ = ["SwarmState"]


class SwarmState:
    """One swarm's state on this node; it keeps itself consistent and decides nothing."""

    def __init__(
        self,
        manifest: ManifestId,
        pieces: Pieces,
        availability: Availability,
        promises: Promises,
        gateways: Gateways,
        params: SwarmParams,
        rng: Random,
    ) -> None:
        self.manifest = manifest
        self.pieces = pieces
        self.availability = availability
        self.promises = promises
        self.gateways = gateways
        self.params = params
        self.rng = rng
        self.sessions: dict[PeerId, Session] = {}
        self.effects: list[Effect] = []
        self.leechers = 0
        """Connected nodes known to lack something; this node does not count."""
        self.leechers_at = dict.fromkeys(Tier, 0)
        """The same by tier."""

    def send(self, session: Session, message: SwarmMessage) -> None:
        """Says something to a node; origins hear nothing."""
        if session.kind is NODE:
            self.effects.append(Send(session.peer, message))

    def nodes(self) -> list[Session]:
        """The sessions that hear messages."""
        return [session for session in self.sessions.values() if session.kind is NODE]

    def has_leecher_nearer(self, tier: Tier) -> bool:
        """Whether a leecher is cheaper to us than that."""
        return any(count and nearer < tier for nearer, count in self.leechers_at.items())

    def check(self, first: int, count: int) -> Run:
        """The run, if the blob has those pieces.

        Raises:
            RemoteProtocolError: it has not.
        """
        return self.check_run(Run(first, count))

    def check_run(self, run: Run) -> Run:
        """As `check`, of a run as it stands in a message."""
        first, count = run
        if count < 1 or first < 0 or first > self.pieces.count - count:
            raise RemoteProtocolError(f"{count} pieces from {first}, of {self.pieces.count}")
        return run

    def show(self, session: Session, shows: Shows, holds: Bitfield | None = None) -> None:
        """The peer let us know what it holds."""
        self._count_out(session)
        session.shows, session.holds = shows, holds
        self._count_in(session)

    def pause(self, session: Session, until: float) -> None:
        """The peer is not asked, and what it holds is not counted on, until then."""
        if session.is_paused:
            session.paused_until = until
            return
        self._count_out(session)
        session.paused_until = until
        self._count_in(session)

    def resume(self, session: Session) -> None:
        """The pause is over."""
        if session.is_paused:
            self._count_out(session)
            session.paused_until = None
            self._count_in(session)

    def meet(self, session: Session) -> None:
        """A peer takes part from now on."""
        self.sessions[session.peer] = session
        if session.kind is NODE:
            self.gateways.joined(session.tier, session.instance)

    def forget(self, session: Session) -> None:
        """The peer is gone."""
        self._count_out(session)
        self.promises.forget(session)
        if session.kind is NODE:
            self.gateways.left(session.tier, session.instance)
        del self.sessions[session.peer]

    def gain(self, session: Session, run: Run) -> bool:
        """A partial holder announces a run; returns whether it is news."""
        holds = session.holds
        assert holds is not None
        if session.promises:
            self.promises.keep(session, run)
        if run.count == 1:  # most of what a node hears on slow links
            if not holds.add_one(run.first):
                return False
            if not session.is_paused:
                self.availability.gain_one(session.tier, run.first)
        elif not holds.has_any(*run):
            holds.fill(*run)
            if not session.is_paused:
                self.availability.gain_all(session.tier, *run)
        else:
            new = ~holds.bits[run.first : run.end]
            if not holds.add(*run):
                return False
            if not session.is_paused:
                self.availability.gain(session.tier, run.first, new)
        if holds.is_full:
            self.show(session, ALL)
        return True

    def lose(self, session: Session, run: Run) -> None:
        """A peer no longer holds a run."""
        if session.shows is ALL:
            self.show(session, SOME, Bitfield.full(self.pieces.count))
        holds = session.holds
        if holds is None:
            return
        gone = holds.bits[run.first : run.end].copy()
        if holds.remove(run.first, run.count) and not session.is_paused:
            self.availability.lose(session.tier, run.first, gone)

    def promise(self, session: Session, run: Run, now: float) -> None:
        """A leecher says that it will soon hold a run, from a source dearer than it is."""
        if run.count == 1 or self.pieces.bytes_of(run) <= self.params.run_bytes_max:
            self.promises.add(session, run, until=now + self.params.promise_s)

    def strike(self, session: Session, weight: int, reason: str) -> None:
        """Counts a senseless act; too many are a reason to ban."""
        session.strikes += weight
        if session.strikes > self.params.strikes_max and session.ban_reason is None:
            session.ban_reason = reason

    def _count_in(self, session: Session) -> None:
        if session.is_leecher:
            self.leechers += 1
            self.leechers_at[session.tier] += 1
        if session.is_paused:
            return
        if session.holds is not None:
            self.availability.add_holder(session.tier, session.holds.bits)
        elif session.shows is ALL:
            self.availability.add_full(session.tier)
        elif session.shows is GRANTS:
            self.availability.add_granter(session.tier)

    def _count_out(self, session: Session) -> None:
        if session.is_leecher:
            self.leechers -= 1
            self.leechers_at[session.tier] -= 1
        if session.is_paused:
            return
        if session.holds is not None:
            self.availability.remove_holder(session.tier, session.holds.bits)
        elif session.shows is ALL:
            self.availability.remove_full(session.tier)
        elif session.shows is GRANTS:
            self.availability.remove_granter(session.tier)
