"""When peers hear of the pieces verified here, in batches.

At once, when no other leecher is known to hold the piece: from here on it can spread. A little later, when one does:
who lacks the piece has asked there. Seeders, which only keep statistics with it, last.
"""

from __future__ import annotations

from megalfs.core.bitfield import Run
from megalfs.core.codec import HAVE_RUNS_MAX
from megalfs.core.effects import Send
from megalfs.core.messages import HaveRuns, Lost
from megalfs.core.meter import Meter
from megalfs.core.picker import relay_bytes_max
from megalfs.core.session import ALL, SOME, Session
from megalfs.core.state import SwarmState

__all__ = ["News"]

SUPPRESS_RUNS_MAX = 4  # longer news are rarely all known; looking would cost 2 us a run and peer


class _Batch:
    """Runs of which somebody is to hear, and when."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.due: float | None = None

    def add(self, runs: list[Run], due: float) -> None:
        """The batch is due when its oldest runs are."""
        self.runs += runs
        if runs and self.due is None:
            self.due = due

    def is_due(self, now: float) -> bool:
        """Whether its time has come."""
        return self.due is not None and now >= self.due

    def take(self) -> list[Run]:
        """Empties it."""
        runs, self.runs, self.due = self.runs, [], None
        return runs

    def forget(self, run: Run) -> None:
        """Nobody is to hear of this run."""
        self.runs = [part for known in self.runs for part in known.minus(run)]


class News:
    """Runs verified since peers were last told."""

    def __init__(self, state: SwarmState) -> None:
        self._state = state
        self._first = _Batch()  # of which ours is the first copy among leechers
        self._further = _Batch()
        self._statistics = _Batch()  # told to leechers, not yet to seeders

    @property
    def due(self) -> float | None:
        """When `flush` has something to do."""
        earliest: float | None = None
        for batch in (self._first, self._further, self._statistics):
            if batch.due is not None and (earliest is None or batch.due < earliest):
                earliest = batch.due
        return earliest

    def add(self, runs: list[Run], *, rate: Meter, fetch_s: float, now: float) -> None:
        """The runs are verified and may be asked of us.

        Args:
            rate: of what arrives.
            fetch_s: what a fetch takes lately.
        """
        first: list[Run] = []
        further: list[Run] = []
        for run in runs:
            (first if self._is_first(run) else further).append(run)
        params = self._state.params
        self._first.add(first, now + self._delay_s(rate.rate(now)))
        self._further.add(further, now + min(params.have_further_share * fetch_s, params.have_further_s_max))

    def forget(self, run: Run) -> None:
        """The run is no longer here: whoever was not told of it need not be."""
        for batch in (self._first, self._further, self._statistics):
            batch.forget(run)

    def flush(self, *, now: float, everything: bool = False) -> None:
        """Tells what is due, or all that is untold."""
        fresh: list[Run] = []
        if everything or self._first.is_due(now) or self._further.is_due(now):
            fresh = self._first.take() + self._further.take()  # one message costs less than two
        if fresh:
            told = _merged(fresh)
            self._tell(told, to_seeders=False)
            self._statistics.add(told, now + self._state.params.have_lazy_s)
        if everything or self._statistics.is_due(now):
            self._tell(_merged(self._statistics.take()), to_seeders=True)

    def introduce(self, session: Session) -> None:
        """First words to a peer: what is held here, in as many frames as it takes."""
        for message in self._batches(self._state.pieces.have.runs()) or [HaveRuns(self._state.manifest, ())]:
            self._state.send(session, message)

    def retract(self, session: Session, runs: list[Run]) -> None:
        """Tells a peer what is no longer held here."""
        manifest = self._state.manifest
        for at in range(0, len(runs), HAVE_RUNS_MAX):
            self._state.send(session, Lost(manifest, tuple(runs[at : at + HAVE_RUNS_MAX])))

    def _is_first(self, run: Run) -> bool:
        # Where some are dearer than others, all news is urgent: who hears late of a copy nearby asks for a distant one
        # (32 nodes in two racks fetched 1.7 copies across instead of 1.1).
        if sum(leechers > 0 for leechers in self._state.leechers_at.values()) != 1:
            return True
        return not self._state.availability.counts(run.first, run.end).all()

    def _delay_s(self, rate: float) -> float:
        # Many peers: fewer, larger batches, as long as their age is small against the time of one run; 30 ms
        # cost 64 nodes a quarter of a pull of 3 s.
        params = self._state.params
        many = params.have_delay_per_peer_s * len(self._state.sessions)
        patience = params.have_delay_share * relay_bytes_max(self._state) / rate if rate > 0 else many
        return max(params.have_delay_s, min(many, patience))

    def _tell(self, runs: list[Run], *, to_seeders: bool) -> None:
        if not runs:
            return
        messages, is_short = self._batches(runs), len(runs) <= SUPPRESS_RUNS_MAX
        for session in self._state.nodes():
            if (session.shows is ALL) is to_seeders:
                may_know = is_short and session.shows is SOME
                for message in self._needed(messages[0], session) if may_know else messages:
                    self._state.effects.append(Send(session.peer, message))

    def _needed(self, message: HaveRuns, session: Session) -> list[HaveRuns]:
        # A leecher that holds the pieces itself learns nothing it can use (libtorrent's have suppression).
        useful = tuple(run for run in message.runs if not session.holds_all(run))
        if len(useful) == len(message.runs):
            return [message]  # the very object that others get: it is encoded once
        return [HaveRuns(message.manifest, useful)] if useful else []

    def _batches(self, runs: list[Run]) -> list[HaveRuns]:
        manifest = self._state.manifest
        return [
            HaveRuns(manifest, tuple(runs[at : at + HAVE_RUNS_MAX]))
            for at in range(0, len(runs), HAVE_RUNS_MAX)
        ]


def _merged(runs: list[Run]) -> list[Run]:
    """The same pieces in ascending runs, neighbours joined."""
    merged: list[Run] = []
    first = end = -1
    for at, count in sorted(runs):
        if at > end:
            merged.append(Run(first, end - first))
            first, end = at, at + count
        else:
            end = max(end, at + count)
    return [*merged[1:], Run(first, end - first)] if runs else []
