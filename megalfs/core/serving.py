"""The uploader's half: answers requests, and while it is a lone seeder of several leechers, grants."""

from __future__ import annotations

from megalfs.core.bitfield import Run
from megalfs.core.effects import PeerId, Serve
from megalfs.core.grants import Grants
from megalfs.core.messages import Granting, HaveAll, Reject, RejectReason
from megalfs.core.meter import Meter
from megalfs.core.picker import relay_bytes_max
from megalfs.core.session import NODE, NOTHING, Session
from megalfs.core.state import SwarmState
from megalfs.core.uploads import Uploads

__all__ = ["Serving"]

GRANT_LEECHERS_MIN = 2  # one leecher alone is best served by what it asks for


class Serving:
    """Decides what is sent to whom, and when."""

    def __init__(self, state: SwarmState, now: float) -> None:
        self._state = state
        self._uploads = Uploads(state.params)
        # Only a node that began complete grants: one that became complete has shown its pieces already.
        is_seeder = state.pieces.is_complete and state.pieces.count > 0
        self._grants = Grants(state.pieces, state.availability, state.rng) if is_seeder else None
        self._granted = 0
        self.is_granting = False
        self.rate = Meter(now)
        self.due: float | None = None
        """When `check` has something to do."""

    def active_for(self, peer: PeerId) -> int:
        """Runs being sent to a peer now."""
        return self._uploads.active_for(peer)

    @property
    def can_grant(self) -> bool:
        """Whether this node may still turn to granting."""
        return self._grants is not None and self._state.pieces.is_complete

    # -- what happened

    def introduced(self, now: float, *, stranger: Session | None = None) -> None:
        """A peer told what it holds, came or left: grants begin or end, and a stranger is answered."""
        grants = self._grants
        if grants is not None and self._state.pieces.is_complete:
            wanted = self._state.leechers >= GRANT_LEECHERS_MIN
            if wanted and not self.is_granting:
                grants.refill()
            if (wanted and grants.has_pool) != self.is_granting:
                self._turn_granting()
            elif stranger is not None:
                self.reveal(stranger)
        self.go_on(now)

    def reveal(self, session: Session) -> None:
        """Tells a peer whether it may ask or must wait to be given."""
        manifest = self._state.manifest
        session.credit = 0
        self._state.send(session, Granting(manifest) if self.is_granting else HaveAll(manifest))

    def stop_granting(self) -> None:
        """We no longer hold everything; the caller tells the peers what is left."""
        self.is_granting = False

    def announced(self, session: Session, run: Run, now: float) -> None:
        """A leecher holds a run now."""
        if self._grants is not None:
            self._grants.announced(session, run, now)

    def requested(self, session: Session, run: Run, now: float) -> None:
        """A peer asks for a run."""
        if not self._state.pieces.have.has_all(run.first, run.count):
            self._reject(session, run, RejectReason.NOT_HELD)
        elif not self._uploads.request(session.peer, run):
            self._reject(session, run, RejectReason.BUSY)
        else:
            self.go_on(now)

    def cancelled(self, session: Session, run: Run) -> None:
        """A peer no longer wants a run; it hears what of it had not begun, so that it may ask elsewhere."""
        for part in self._uploads.cancel(session.peer, run):
            self._state.send(session, Reject(self._state.manifest, *part, RejectReason.RECALLED))

    def credited(self, session: Session, count: int, now: float) -> None:
        """A leecher takes more runs of our choice."""
        session.credit = min(session.credit + count, self._state.params.credits_max)
        self.go_on(now)

    def ended(self, session: Session | None, peer: PeerId, run: Run, *, ok: bool, now: float) -> None:
        """Sending a run has ended."""
        known = self._uploads.end(peer, run, now=now, ok=ok)
        if session is not None and known:
            if ok:
                size = self._state.pieces.bytes_of(run)
                session.up.add(size, now)
                self.rate.add(size, now)
            elif self._grants is not None and self._grants.failed(session, run):
                session.credit += 1
        self.go_on(now)

    def dropped(self, session: Session) -> None:
        """The peer is gone."""
        self._uploads.forget(session.peer)
        if self._grants is not None:
            self._grants.left(session)

    def withdraw(self, run: Run) -> None:
        """We no longer hold a run."""
        for peer, queued in self._uploads.withdraw(run):
            session = self._state.sessions.get(peer)
            if session is not None:
                self._reject(session, queued, RejectReason.WITHDRAWN, weight=0)

    def check(self, now: float) -> None:
        """Runs that have not arrived return to the pool; a slot may have stopped counting."""
        if self._grants is not None:
            self._grants.expire(now, self._patience_s())
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Fills free slots: what was asked for first, then grants."""
        while self._uploads.has_room(now):
            chosen = self._uploads.next(per_peer=self._per_peer()) or self._grant(now)
            if chosen is None:
                break
            peer, run = chosen
            self._uploads.start(peer, run, now=now)
            self._state.effects.append(Serve(peer, run.first, run.count))
        self.due = self._next_due(now)

    # -- inside

    def _next_due(self, now: float) -> float | None:
        slow_at = self._uploads.next_slow_at(now)
        oldest = self._grants.oldest_at() if self._grants is not None else None
        if oldest is None:
            return slow_at
        expires_at = max(now, oldest + self._patience_s())
        return expires_at if slow_at is None else min(slow_at, expires_at)

    def _turn_granting(self) -> None:
        self.is_granting = not self.is_granting
        for session in self._state.nodes():
            if session.shows is not NOTHING:  # strangers are answered when they have spoken
                self.reveal(session)

    def _per_peer(self) -> int:
        """Runs on the way to one peer: all slots for a lone leecher, one each when there are enough."""
        params = self._state.params
        shared = -(-params.upload_slots // max(1, self._state.leechers))
        return max(1, min(shared, 2 * params.lanes))

    def _grant(self, now: float) -> tuple[PeerId, Run] | None:
        grants = self._grants
        if grants is None or not self.is_granting:
            return None
        if not grants.has_pool:
            # Everything is out once: from here on peers ask.
            self._turn_granting()
            return None
        since = now - self._slow_s()
        leechers = [session for session in self._state.sessions.values() if session.is_leecher]
        # All that take anything hold runs that nobody else gets: thin uplinks, or leechers that never met.
        all_stuck = all(_is_stuck(one, since) for one in leechers if one.credit or one.unspread)
        # Then a late choice is worth nothing, and what a socket has taken is done.
        receivers = self._uploads.receivers() if all_stuck else grants.travelling(since)
        grantee = self._grantee(grants, leechers, receivers, all_stuck=all_stuck)
        if grantee is None:
            return None
        run = grants.take(grantee, self._grant_bytes(grantee, now, all_stuck=all_stuck), now)
        grantee.credit -= 1
        # By bytes, not by runs: one chunk of 1 MiB is as much to relay as four others, and who has nothing left to
        # relay leaves an uplink idle. Start tags (Goyal et al., SFQ, 1996), so that nobody saves up turns.
        self._granted = max(self._granted, grantee.granted)
        grantee.granted = self._granted + self._state.pieces.bytes_of(run)
        return grantee.peer, run

    def _grantee(
        self, grants: Grants, leechers: list[Session], receivers: list[PeerId], *, all_stuck: bool
    ) -> Session | None:
        """The nearest leecher with credit that is not busy, does spread, and was given least.

        Args:
            receivers: whom runs are on their way to, each as often as it has some.
        """
        params, per_peer = self._state.params, self._per_peer()
        newcomers = sum(receivers.count(session.peer) for session in leechers if _is_new(session))
        ready = [
            session
            for session in leechers
            if session.credit > 0
            and receivers.count(session.peer) < (1 if _is_new(session) else per_peer)
            and not (_is_new(session) and newcomers >= params.newcomers_max)
        ]
        spreading = [one for one in ready if len(one.unspread) < params.unspread_max]
        if not spreading and (all_stuck or not receivers):
            spreading = ready  # an idle uplink helps nobody
        return next(filter(grants.has_for, sorted(spreading, key=_turn)), None)

    def _grant_bytes(self, session: Session, now: float, *, all_stuck: bool) -> int:
        params = self._state.params
        rate = session.up.rate(now)
        size = rate * params.run_s if rate > 0 else float(params.run_bytes_initial)
        if all_stuck:
            size = float(params.run_bytes_max)
        return int(max(1.0, min(size, params.run_bytes_max, relay_bytes_max(self._state))))

    def _slow_s(self) -> float:
        params = self._state.params
        assert self._grants is not None
        return max(params.slow_slot_s_min, params.slow_slot_factor * self._grants.mean_s)

    def _patience_s(self) -> float:
        params = self._state.params
        return max(params.arrive_s_min, 2 * self._state.leechers * self._uploads.mean_s)

    def _reject(self, session: Session, run: Run, reason: RejectReason, *, weight: int = 1) -> None:
        if session.kind is NODE:
            self._state.send(session, Reject(self._state.manifest, run.first, run.count, reason))
            self._state.strike(session, weight, "asks for what it cannot have")


def _turn(session: Session) -> tuple[int, int, PeerId]:
    return session.tier, session.granted, session.peer


def _is_stuck(session: Session, since: float) -> bool:
    """Whether it holds a run that was sent before `since` and that nobody else has."""
    return bool(session.unspread) and next(iter(session.unspread.values())) < since


def _is_new(session: Session) -> bool:
    """Whether it holds nothing yet, so that it can relay nothing."""
    return session.holds is not None and session.holds.count == 0
