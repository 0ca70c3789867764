"""When peers hear of the pieces verified here: at once, but in batches; seeders later than leechers."""

from __future__ import annotations

from megalfs.core.bitfield import Run, runs_of
from megalfs.core.codec import HAVE_RUNS_MAX
from megalfs.core.effects import Send
from megalfs.core.messages import HaveRuns, Lost
from megalfs.core.meter import Meter
from megalfs.core.picker import relay_bytes_max
from megalfs.core.session import Session, Shows
from megalfs.core.state import SwarmState

__all__ = ["News"]

SUPPRESS_RUNS_MAX = 4  # longer news are rarely all known; looking would cost 2 us a run and peer


class News:
    """Runs verified since peers were last told."""

    def __init__(self, state: SwarmState) -> None:
        self._state = state
        self._fresh: list[Run] = []
        self._fresh_due: float | None = None
        self._stale: list[Run] = []  # told to leechers, not yet to seeders
        self._stale_due: float | None = None

    @property
    def due(self) -> float | None:
        """When `flush` has something to do."""
        if self._fresh_due is None or self._stale_due is None:
            return self._fresh_due if self._stale_due is None else self._stale_due
        return min(self._fresh_due, self._stale_due)

    def add(self, runs: list[Run], *, rate: Meter, now: float) -> None:
        """The runs are verified and may be asked of us; `rate` is of what arrives."""
        self._fresh += runs
        if runs and self._fresh_due is None:
            self._fresh_due = now + self._delay_s(rate.rate(now))

    def forget(self, run: Run) -> None:
        """The run is no longer here: whoever was not told of it need not be."""
        self._fresh = [part for known in self._fresh for part in known.minus(run)]
        self._stale = [part for known in self._stale for part in known.minus(run)]

    def flush(self, *, now: float, everything: bool = False) -> None:
        """Tells what is due, or all that is untold."""
        if self._fresh_due is not None and (everything or now >= self._fresh_due):
            told = _merged(self._fresh)
            self._tell(told, to_seeders=False)
            self._stale += told
            self._fresh, self._fresh_due = [], None
            if self._stale_due is None:
                self._stale_due = now + self._state.params.have_lazy_s
        if self._stale_due is not None and (everything or now >= self._stale_due):
            self._tell(_merged(self._stale), to_seeders=True)
            self._stale, self._stale_due = [], None

    def introduce(self, session: Session) -> None:
        """First words to a peer: what is held here, in as many frames as it takes."""
        runs = runs_of(self._state.pieces.have.bits)
        for message in self._batches(runs) or [HaveRuns(self._state.manifest, ())]:
            self._state.send(session, message)

    def retract(self, session: Session, runs: list[Run]) -> None:
        """Tells a peer what is no longer held here."""
        manifest = self._state.manifest
        for at in range(0, len(runs), HAVE_RUNS_MAX):
            self._state.send(session, Lost(manifest, tuple(runs[at : at + HAVE_RUNS_MAX])))

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
            if (session.shows is Shows.ALL) is to_seeders:
                may_know = is_short and session.shows is Shows.SOME
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
