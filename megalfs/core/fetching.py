"""The leecher's half: keeps each peer asked for as much as it can send, and gives up on those that do not.

One run is asked of one peer, so wrong bytes name the liar. Only in the endgame, when everything missing is
on its way, an idle peer is asked for an old run a second time; whichever comes first cancels the other.
"""

from __future__ import annotations

from megalfs.core.bitfield import Run
from megalfs.core.effects import Cancel, Fetch, PeerId
from megalfs.core.messages import Credit, Expecting
from megalfs.core.meter import Meter
from megalfs.core.picker import depth, pick, run_bytes, wanted_bytes
from megalfs.core.session import GRANTS, NODE, Flight, Session
from megalfs.core.state import SwarmState

__all__ = ["Counters", "Fetching"]

MEAN_WEIGHT = 0.1  # of the newest run in a running mean
COPIES_MAX = 2  # peers asked for one piece at a time, in the endgame
UNSOLICITED_WEIGHT = 50  # strikes for data nobody asked for: four of them ban


class Counters:
    """What happened to our fetches."""

    def __init__(self) -> None:
        self.fetched_bytes = 0
        self.duplicate_bytes = 0
        self.hedges = 0
        self.snubs = 0
        self.failures = 0
        self.corrupt_pieces = 0


class Fetching:
    """Decides what is asked of whom, and when to stop waiting."""

    def __init__(self, state: SwarmState, now: float) -> None:
        self._state = state
        self._mean_s: float | None = None
        self._due: float | None = None
        self._unbegun: dict[Flight, Session] = {}  # by peers that have queues, the oldest first
        self.rate = Meter(now)
        self.counters = Counters()

    @property
    def due(self) -> float | None:
        """When `check` has something to do."""
        return self._due

    # -- asking

    def feed(self, session: Session, now: float) -> None:
        """Asks the peer for as much as it should have outstanding."""
        if session.can_be_asked:
            self._fill(session, now)
            if not session.flights and not self._state.pieces.is_complete:
                self._use_idle(session, now)
            self._watch(session, now)

    def feed_if_idle(self, session: Session, now: float) -> None:
        """As `feed`, for events that leave the peer's queue as it is: most find it full, and cost nothing."""
        if len(session.flights) < session.room:
            self.feed(session, now)

    def take_over_if_idle(self, session: Session, now: float) -> None:
        """As `feed_if_idle`, when the peer has nothing new to be asked for: others' queues may still be long."""
        if not session.flights and session.can_be_asked:
            self._use_idle(session, now)
            self._watch(session, now)

    def feed_all(self, now: float) -> None:
        """Asks every peer, those with least outstanding first."""
        sessions = [session for session in self._state.sessions.values() if session.can_be_asked]
        self._state.rng.shuffle(sessions)
        for session in sorted(sessions, key=_tier_and_load):
            self.feed(session, now)

    def give_credit(self, session: Session) -> None:
        """Lets a granting seeder send more of its choice."""
        state = self._state
        granted = sum(flight.is_granted for flight in session.flights)
        count = state.params.credits - session.credit_given - granted
        if session.shows is GRANTS and count > 0 and not state.pieces.is_complete:
            session.credit_given += count
            state.send(session, Credit(state.manifest, count))

    # -- what happened

    def begun(self, session: Session, run: Run, now: float) -> bool:
        """Data of a run is arriving; returns whether it may."""
        session.touched_at = now
        session.recalls = 0
        flight = session.flight_around(run)
        if flight is not None:
            self._note_begin(session, flight, now)
            return True
        is_granted = not session.has_cancelled(run)
        if is_granted and not self._use_credit(session, run):
            self._state.strike(session, UNSOLICITED_WEIGHT, "sends what nobody asked for")
            return False
        if self._state.pieces.have.has_all(run.first, run.count):
            self.give_credit(session)
            return False
        self._state.pieces.ask(run)
        session.flights.append(Flight(run, now, is_granted=is_granted, remaining=[run], has_begun=True))
        self._promise(session, run)
        self._watch(session, now)
        return True

    def delivered(self, session: Session, run: Run, *, size: int, new: int, now: float) -> bool:
        """A run, or part of one, came from this peer and is verified; `new` bytes of it were missing.

        The caller feeds the peer once it has told everybody else. Returns whether the run is settled: nobody
        else was asked for it.
        """
        session.touched_at = now
        session.failures = 0
        if session.snubs:
            session.snubs -= 1
        session.down.add(size, now)
        self.rate.add(size, now)
        session.wasted_bytes += size - new
        self.counters.fetched_bytes += size
        self.counters.duplicate_bytes += size - new
        return self._land(session, run, now)

    def settle(self, runs: list[Run], now: float) -> None:
        """The runs are here: whoever was asked for them need not send them."""
        late: dict[PeerId, Session] = {}
        for run in runs:
            late |= self._cancel_all(run)
        for session in late.values():  # now that nobody is waited for in vain
            self.feed(session, now)

    def failed(self, session: Session, run: Run, now: float) -> None:
        """The rest of this run will not come."""
        params = self._state.params
        session.failures += 1
        self.counters.failures += 1
        self._give_up(session, run)
        pause = min(params.snub_s_max, params.retry_s_min * 2.0 ** (session.failures - 1))
        self._pause(session, now + pause)

    def recalled(self, session: Session, run: Run, now: float) -> None:
        """The peer has not begun this run and will not send it: the idle peer that it was taken back for may."""
        for flight in list(session.flights):
            if flight.recalled_for is None:
                continue  # what we cancelled for good
            parts = self._take_out(session, flight, run)
            session.recalls += bool(parts)
            taker = self._state.sessions.get(flight.recalled_for)
            if taker is not None:
                self._take_over(taker, parts, now)
        self.feed(session, now)

    def dropped(self, session: Session) -> None:
        """The peer is gone: all that it was asked for is wanted again."""
        for flight in list(session.flights):
            self._release(session, flight)

    def progressed(self, session: Session, size: int, now: float) -> None:
        """Bytes that cannot be verified yet arrive: a sign of life, if there are enough of them."""
        session.unsigned_bytes += size
        if session.unsigned_bytes >= self._state.params.progress_bytes_min:
            session.unsigned_bytes = 0
            session.touched_at = now

    def finish(self) -> None:
        """Nothing is missing: nothing is waited for."""
        for session in self._state.sessions.values():
            for flight in list(session.flights):
                self._cancel(session, flight.run)
        self._due = None

    # -- patience

    def check(self, now: float) -> None:
        """Resumes peers whose pause is over, snubs silent ones, and hedges in the endgame."""
        self._due = None
        self._state.promises.expire(now)
        sessions = list(self._state.sessions.values())
        for session in sessions:
            if session.paused_until is not None and now >= session.paused_until:
                self._state.resume(session)
                self.give_credit(session)
            if session.flights and now >= self._silent_at(session):
                self._snub(session, now)
            self._renew_credit(session, now)
        self.feed_all(now)
        for session in sessions:
            self._watch(session, now)

    def expected_s(self) -> float:
        """The mean time from asking to having, or a guess."""
        return self._mean_s if self._mean_s is not None else self._state.params.timeout_s_initial / 8

    # -- inside

    def _use_credit(self, session: Session, run: Run) -> bool:
        if run.count > 1 and self._state.pieces.bytes_of(run) > self._state.params.run_bytes_max:
            return False
        if session.credit_given:
            session.credit_given -= 1
        elif session.late_grants:
            session.late_grants -= 1
        else:
            return False
        return True

    def _renew_credit(self, session: Session, now: float) -> None:
        if session.credit_given and now >= session.touched_at + self._state.params.credit_stale_s:
            session.end_credit()
            session.touched_at = now
            self.give_credit(session)

    def _ask(self, session: Session, run: Run, now: float) -> None:
        if not session.flights and not session.recalls:
            session.touched_at = now
        self._state.pieces.ask(run)
        flight = Flight(run, now, is_granted=False, remaining=[run])
        session.flights.append(flight)
        if session.kind is NODE:  # an origin has no queue, and answers nothing
            self._unbegun[flight] = session
        session.last_end = run.end
        self._promise(session, run)
        self._state.effects.append(Fetch(session.peer, run.first, run.count))

    def _promise(self, source: Session, run: Run) -> None:
        """Leechers cheaper than this source to each other need not ask it for the same."""
        if not self._state.has_leecher_nearer(source.tier):
            return
        message = Expecting(self._state.manifest, (run,))
        for session in self._state.nodes():
            if session.tier < source.tier and session.is_leecher and not session.holds_all(run):
                self._state.send(session, message)

    def _await_others(self) -> None:
        """If a promise is broken, or a gateway does not ask, we ask all the same."""
        gateways = self._state.gateways
        for time in (self._state.promises.next_at, gateways.opens_at):
            if time is not None:
                self._due = time if self._due is None else min(self._due, time)
        gateways.opens_at = None

    def _note_begin(self, session: Session, flight: Flight, now: float) -> None:
        if flight.has_begun:
            return
        flight.has_begun = True
        self._unbegun.pop(flight, None)
        delay = now - flight.asked_at
        session.delay_s = delay if session.delay_s is None else min(session.delay_s, delay)
        session.delay_mean_s += MEAN_WEIGHT * (delay - session.delay_mean_s)

    def _land(self, session: Session, run: Run, now: float) -> bool:
        """The run is here, and no longer expected of this peer; returns whether of nobody else either."""
        first, count = run
        for flight in session.flights:
            head = flight.remaining[0]
            if head.first == first and head.count >= count and self._state.pieces.settle(run):
                # As lanes bring it, in order, and the only peer asked for it: 3,000 times a second at 3 GB/s.
                if head.count > count:
                    flight.remaining[0] = Run(first + count, head.count - count)
                    return True
                del flight.remaining[0]
                if not flight.remaining:
                    self._forget(session, flight)
                    self._note_end(session, flight, now)
                return True
        for flight in [one for one in session.flights if one.run.overlap(run)]:
            if self._take_out(session, flight, run) and not flight.remaining:
                self._note_end(session, flight, now)
        return self._state.pieces.asked(run) == 0

    def _take_out(self, session: Session, flight: Flight, run: Run) -> list[Run]:
        """What of the run this flight was to bring is no longer expected of it."""
        parts = [part for each in flight.remaining if (part := each.overlap(run)) is not None]
        for part in parts:
            self._state.pieces.unask(part)
        flight.remaining = [left for each in flight.remaining for left in each.minus(run)]
        if not flight.remaining:
            self._forget(session, flight)
        return parts

    def _note_end(self, session: Session, flight: Flight, now: float) -> None:
        took_s = now - flight.asked_at
        if not flight.is_granted:
            mean = took_s if self._mean_s is None else self._mean_s
            self._mean_s = mean + MEAN_WEIGHT * (took_s - mean)
        self.give_credit(session)

    def _release(self, session: Session, flight: Flight) -> None:
        for part in flight.remaining:
            self._state.pieces.unask(part)
        flight.remaining = []
        self._forget(session, flight)

    def _forget(self, session: Session, flight: Flight) -> None:
        session.flights.remove(flight)
        self._unbegun.pop(flight, None)

    def _give_up(self, session: Session, run: Run) -> None:
        for flight in list(session.flights):
            if flight.run.overlap(run):
                self._release(session, flight)
        self.give_credit(session)

    def _cancel_all(self, run: Run) -> dict[PeerId, Session]:
        late = {
            session.peer: session
            for session in self._state.sessions.values()
            if any(part.overlap(run) for flight in session.flights for part in flight.remaining)
        }
        for session in late.values():
            self._cancel(session, run)
        return late

    def _cancel(self, session: Session, run: Run) -> None:
        """Stops waiting for `run` from this peer, and tells it so."""
        for flight in list(session.flights):
            for part in self._take_out(session, flight, run):
                session.cancelled.append(flight.run)
                self._state.effects.append(Cancel(session.peer, part.first, part.count))
        self.give_credit(session)

    def _pause(self, session: Session, until: float) -> None:
        self._state.pause(session, until)
        self._due = until if self._due is None else min(self._due, until)

    def _timeout_s(self) -> float:
        params = self._state.params
        if self._mean_s is None:
            return params.timeout_s_initial
        return max(params.timeout_s_min, params.timeout_factor * self._mean_s)

    def _silent_at(self, session: Session) -> float:
        return session.touched_at + self._timeout_s()

    def _snub(self, session: Session, now: float) -> None:
        params = self._state.params
        self.counters.snubs += 1
        session.recalls = 0
        for flight in list(session.flights):
            self._cancel(session, flight.run)
        pause = min(params.snub_s_max, params.snub_s_min * 2.0**session.snubs)
        session.snubs += 1
        self._pause(session, now + pause)

    def _hedge_s(self) -> float:
        params = self._state.params
        return max(params.hedge_s_min, params.hedge_factor * self.expected_s())

    def _fill(self, session: Session, now: float) -> None:
        state = self._state
        if not state.pieces.unasked:
            return
        rate = session.down.rate(now)
        size = self._run_bytes(rate, now)
        params, rate_total = state.params, self.rate.rate(now)
        wanted = wanted_bytes(params, session, rate=rate, rate_total=rate_total, size=size)
        flights, bytes_of = session.flights, state.pieces.bytes_of
        outstanding = sum(bytes_of(part) for flight in flights for part in flight.remaining)
        runs = depth(params, session, rate=rate, size=size, is_alone=not state.leechers)
        session.room = max(runs, params.flights_max)
        while len(flights) < runs or (outstanding < wanted and len(flights) < params.flights_max):
            run = pick(state, session, size, now)
            if run is None:
                self._await_others()
                return
            self._ask(session, run, now)
            outstanding += bytes_of(run)
        session.room = len(flights)

    def _use_idle(self, session: Session, now: float) -> None:
        """A peer that has nothing new for us can still take over what waits elsewhere."""
        if not self._recall(session, now) and not self._state.pieces.unasked:
            self._hedge(session, now)

    def _recall(self, session: Session, now: float) -> bool:
        """Takes back the oldest run that another peer has not begun to send: it waits in a longer queue there.

        The other peer says whether the word came in time, and only then is this one asked: to ask it at once
        fetched 6 % of all bytes twice at N = 16. True while an answer is waited for.
        """
        before = now - self._state.params.recall_factor * self.expected_s()
        oldest: Flight | None = None
        for flight, other in self._unbegun.items():
            if flight.recalled_for == session.peer:
                return True
            if oldest is None and flight.recalled_for is None and flight.asked_at <= before:
                oldest = flight if other.tier >= session.tier and session.holds_all(flight.run) else None
        if oldest is None:
            return False
        oldest.recalled_for = session.peer
        self._state.effects.append(Cancel(self._unbegun[oldest].peer, *oldest.run))
        return True

    def _take_over(self, session: Session, parts: list[Run], now: float) -> None:
        """Asks an idle peer for what was taken back for it, if it is still idle and that still missing."""
        for run in parts:
            is_wanted = bool(self._state.pieces.wanted[run.first : run.end].all())
            if is_wanted and session.can_be_asked and not session.flights and session.holds_all(run):
                self._ask(session, run, now)
        self.feed(session, now)

    def _hedge(self, session: Session, now: float) -> None:
        """Asks an idle peer for the oldest run that has waited too long elsewhere."""
        hedge_s = self._hedge_s()
        flights = [flight for other in self._state.sessions.values() for flight in other.flights]
        late = sorted((flight for flight in flights if flight.asked_at + hedge_s <= now), key=_asked_at)
        run = self._hedge_run(session, late, now)
        if run is not None:
            self.counters.hedges += 1
            self._ask(session, run, now)

    def _hedge_run(self, session: Session, late: list[Flight], now: float) -> Run | None:
        pieces = self._state.pieces
        size = self._run_bytes(session.down.rate(now), now)
        for flight in late:
            last = flight.remaining[-1]  # the first peer works on the beginning
            count = min(last.count, pieces.fit_before(last.end, size))
            run = Run(last.end - count, count)
            if session.kind is not NODE:
                run = pieces.provable_run(run)
            if pieces.asked(run) < COPIES_MAX and session.holds_all(run) and self._may_hedge(session, run):
                return run
        return None

    def _run_bytes(self, rate: float, now: float) -> int:
        rate_total, sources = self.rate.rate(now), len(self._state.sessions)
        return run_bytes(self._state, rate=rate, rate_total=rate_total, sources=sources)

    def _may_hedge(self, session: Session, run: Run) -> bool:
        # Origins stay the last resort in the endgame too: only for what nobody else could send.
        if session.kind is NODE:
            return True
        sessions = self._state.sessions.values()
        return not any(one is not session and one.can_be_asked and one.holds_all(run) for one in sessions)

    def _watch(self, session: Session, now: float) -> None:
        """Moves the next check forward to what this peer needs."""
        times = []
        if session.paused_until is not None:
            times.append(session.paused_until)
        if session.flights:
            times.append(self._silent_at(session))
            if not self._state.pieces.unasked:
                hedge_at = session.flights[0].asked_at + self._hedge_s()
                times.append(hedge_at if hedge_at > now else now + self._hedge_s())
        elif session.credit_given:
            times.append(session.touched_at + self._state.params.credit_stale_s)
        for time in times:
            self._due = time if self._due is None else min(self._due, time)


def _asked_at(flight: Flight) -> float:
    return flight.asked_at


def _tier_and_load(session: Session) -> tuple[int, int]:
    return session.tier, len(session.flights)
