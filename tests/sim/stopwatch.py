"""What the scheduler costs, apart from its simulation: CPU time of the calls into the core, by event."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from megalfs.core.swarm import Swarm

EVENTS = [
    *("connected", "disconnected", "received", "receiving", "progressed"),
    *("verified_many", "corrupt", "failed", "served", "timeout"),
]
AFTER = ["effects", "next_timeout"]  # what a driver asks after each of them: their time is the event's too
SAMPLED = 32  # one call in so many is timed: reading the clock of the thread costs half a microsecond


class Around:
    """A swarm inside another object: a compiled class cannot be derived from."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.swarm = Swarm(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.swarm, name)


class Stopwatch:
    """Counts calls of swarms and times some of them; other processes on the machine do not count."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._timed: Counter[str] = Counter()
        self._spent: defaultdict[str, float] = defaultdict(float)

    def watched(self) -> Callable[..., Any]:
        """Makes real swarms, their calls counted here."""
        return type("WatchedSwarm", (Around,), {name: self._watch(name) for name in EVENTS + AFTER})

    @property
    def events(self) -> int:
        return sum(self.calls[name] for name in EVENTS)

    @property
    def seconds(self) -> float:
        """CPU time of all calls, from the mean of those that were timed."""
        return sum(self._spent[name] / self._timed[name] * self.calls[name] for name in self._timed)

    def _watch(self, name: str) -> Callable[..., Any]:
        method, calls = getattr(Swarm, name), self.calls

        def call(around: Around, *args: Any, **named: Any) -> Any:
            calls[name] += 1
            if calls[name] % SAMPLED:
                return method(around.swarm, *args, **named)
            started = time.thread_time()
            result = method(around.swarm, *args, **named)
            self._spent[name] += time.thread_time() - started
            self._timed[name] += 1
            return result

        return call
