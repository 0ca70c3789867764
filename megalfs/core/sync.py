"""What a node decides to keep repositories in step; git/repo_sync.py asks, fetches and writes down.

    a state came            -> `react`: kept, refused, held as proof, or what lies before it is asked for first
    every interval          -> `Rounds`: which of the followed repositories are due, after failures ever later
    a repository is due     -> `next_step`: its state is asked for, its bundles are fetched, or nothing is to do
    several peers were asked-> `who_is_behind`: those that served an older state than another one

Told what is known, with `now` where time matters; the same code runs on a virtual clock in tests/sim.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

from megalfs.core.announcements import FileBody, RepoBody
from megalfs.core.gossip import Gossip
from megalfs.core.identity import NodeKey
from megalfs.core.repo_state import SignedState, Verdict, judge
from megalfs.core.repoid import RepoId

__all__ = [
    "Reaction",
    "Rounds",
    "Step",
    "announced_seq",
    "holders",
    "is_joined",
    "next_step",
    "react",
    "succession",
    "who_is_behind",
]

RETRY_S_MIN, RETRY_S_MAX = 2.0, 600.0


class Reaction(enum.Enum):
    """What is to be done with a state that came."""

    NONE = "it is here already"
    REFUSE = "a rollback: who sent it is written down"
    ASK = "newer, but what lies between is not known: it is asked for"
    KEEP = "the newest one from now on"
    PROVE = "kept beside the one that it contradicts; its creator is written down"
    ADOPT = "ours, and forgotten: kept beside what we signed since, and the next one names both"


_REACTIONS = {
    Verdict.SAME: Reaction.NONE,
    Verdict.OLDER: Reaction.REFUSE,
    Verdict.GAP: Reaction.ASK,
    Verdict.FOLLOWS: Reaction.KEEP,
    Verdict.FORK: Reaction.PROVE,
}


def react(known: Sequence[SignedState], new: SignedState, own: NodeKey) -> Reaction:
    """What to do with a state, by the newest that are known: one, or those that contradict each other."""
    if new.state.creator == own and new.state.seq > _top(known):
        # A higher state that we signed and no longer have: our table was lost.
        return Reaction.ADOPT if known else Reaction.KEEP
    return _REACTIONS[judge(known, new)]


def is_joined(known: SignedState, chain: Iterable[SignedState], new: SignedState) -> bool:
    """Whether the states of `chain`, the oldest first, lead from `known` to `new` without a break."""
    last = known
    for each in [*chain, new]:
        if each.state.seq <= last.state.seq:
            continue
        if judge([last], each) is not Verdict.FOLLOWS:
            break
        last = each
    return last.hash == new.hash


def succession(known: Sequence[SignedState]) -> tuple[int, str | None, tuple[str, ...]]:
    """Sequence number, previous hash and conflicts of the owner's next state."""
    if not known:
        return 1, None, ()
    return (
        known[0].state.seq + 1,
        known[0].hash,
        tuple(each.hash for each in known) if len(known) > 1 else (),
    )


def who_is_behind(top: int, heads: Mapping[NodeKey, SignedState]) -> list[NodeKey]:
    """Peers whose newest state is older than that of another one, though no older than ours, number `top`."""
    highest = _top(heads.values())
    return [peer for peer, head in heads.items() if top <= head.state.seq < highest]


# --- one repository ------------------------------------------------------------------------------------------


class Step(enum.Enum):
    """What a copy lacks."""

    ASK = "its owner announced a state that did not come: those who may have it are asked"
    WAIT = "no state of it is known"
    HOLD = "its creator contradicted himself: the copy stays as it is"
    FETCH = "bundles, and refs as its state says"
    NONE = "nothing"


def next_step(states: Sequence[SignedState], announced: int, copy: Mapping[str, str] | None) -> Step:
    """What to do for a copy of somebody's repository.

    Args:
        states: the newest that are known.
        announced: the number that its owner says he is at; 0 when he says nothing.
        copy: the refs that the copy is at; None when there is none.
    """
    if announced > _top(states):
        return Step.ASK
    if not states:
        return Step.WAIT
    if len(states) > 1:
        return Step.HOLD
    return Step.NONE if copy == states[0].state.refs else Step.FETCH


def announced_seq(gossip: Gossip, repo: RepoId) -> int:
    """The number of the state that a repository's owner announced last; 0 when he did not."""
    bodies = [each.body for each in gossip.about("repo", str(repo))]
    return max((body.seq for body in bodies if isinstance(body, RepoBody)), default=0)


def holders(gossip: Gossip, repo: RepoId, creator: NodeKey | None, own: NodeKey) -> list[NodeKey]:
    """Who says that he has a repository: its owner first, then those with the newest bundles; never us."""
    files = [
        (each.body.seq, each.key)
        for each in gossip.known("file")
        if isinstance(each.body, FileBody) and each.body.repo == repo
    ]
    owners = [each.key for each in gossip.about("repo", str(repo))]
    keys = [*owners, *filter(None, [creator]), *(key for _, key in sorted(files, reverse=True))]
    return [key for key in dict.fromkeys(keys) if key != own]


# --- all of them ---------------------------------------------------------------------------------------------


class Rounds:
    """When which repository is looked at: every interval, unless it is settled or was put off."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._settled: set[RepoId] = set()
        self._failures: dict[RepoId, tuple[int, float]] = {}  # in a row, and no other try before

    def is_due(self, now: float, repo: RepoId) -> bool:
        """Whether this round looks at it."""
        return repo not in self._settled and now >= self._failures.get(repo, (0, now))[1]

    def changed(self, repo: RepoId) -> None:
        """Something new is known of it: that it failed before says nothing any more."""
        self._settled.discard(repo)
        self._failures.pop(repo, None)

    def settled(self, repo: RepoId) -> None:
        """It is at its newest state."""
        self._settled.add(repo)
        self._failures.pop(repo, None)

    def failed(self, now: float, repo: RepoId) -> None:
        """It is tried again after 4 s, 8 s, ..., ten minutes."""
        count = self._failures.get(repo, (0, now))[0] + 1
        pause = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(count, 16))
        self._failures[repo] = (count, now + pause)

    def pause_s(self, now: float) -> float:
        """Until the next round, or until the first one that was put off may be tried again."""
        due = (max(RETRY_S_MIN, at - now) for _, at in self._failures.values())
        return min([self._interval_s, *due])


def _top(states: Iterable[SignedState]) -> int:
    return max((each.state.seq for each in states), default=0)
