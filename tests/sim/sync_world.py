"""Nodes that keep repositories in step, on a virtual clock: gossip and decisions are the core of a real node.

What is simulated is what the core leaves to others: commits, disks, and peers that answer, or do not, after a while.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gossip_world import GossipWorld, SimNode, parse

from megalfs.core.announcements import FileBody, RepoBody, announce, announce_state
from megalfs.core.gossip import Gossip, GossipParams, Learned
from megalfs.core.identity import NodeKey
from megalfs.core.ids import Oid
from megalfs.core.repo_state import BundleRef, RepoState, SignedState
from megalfs.core.repoid import RepoId
from megalfs.core.sync import (
    Reaction,
    Rounds,
    Step,
    announced_seq,
    holders,
    is_joined,
    next_step,
    react,
    succession,
)

SYNC_S = 60.0
BUNDLE_S = 2.0  # what a bundle takes
SILENCE_S = 1.0  # what a peer costs that is away
ASKED_MAX = 3


@dataclass
class Copy:
    """What a node has of a repository; `refs` are its copy's, or those that its owner committed."""

    creator: NodeKey
    is_followed: bool = False
    states: list[SignedState] = field(default_factory=list)
    history: list[SignedState] = field(default_factory=list)
    refs: dict[str, str] | None = None
    is_busy: bool = False


@dataclass
class Sync:
    """The disk of a node, its rounds, and what it did."""

    follows: frozenset[NodeKey]
    rounds: Rounds = field(default_factory=lambda: Rounds(SYNC_S))
    repos: dict[RepoId, Copy] = field(default_factory=dict)
    held: set[Oid] = field(default_factory=set)
    looks: list[float] = field(default_factory=list)
    requests: list[tuple[float, Oid]] = field(default_factory=list)
    turn: int = 0
    last_ms: int = 0


class SyncWorld(GossipWorld):
    """As GossipWorld; node `number` follows the repositories of the nodes `follows[number]`."""

    def __init__(self, count: int, *, seed: int, follows: Mapping[int, Sequence[int]]) -> None:
        super().__init__(count, seed=seed)
        self.syncs = [
            Sync(frozenset(self.key(other) for other in follows.get(number, ()))) for number in range(count)
        ]
        for number in range(count):
            self._look_at(number, self.now + self.rng.uniform(0, SYNC_S))

    # --- what people do ----------------------------------------------------------------------------------------

    def commit(self, number: int, ref: str = "refs/heads/main") -> RepoId:
        """Another commit of a node's own repository; its node sees it at its next look."""
        root = f"{number:040x}"
        repo = RepoId.of(root, self.key(number))
        copy = self.syncs[number].repos.setdefault(repo, Copy(self.key(number), refs={}))
        copy.refs = {**(copy.refs or {}), ref: hashlib.sha1(self.rng.randbytes(8)).hexdigest()}
        return repo

    def clone(self, number: int, repo: RepoId) -> None:
        """`repo clone`: asked for, and followed from now on."""
        self.syncs[number].repos[repo].is_followed = True
        self._ask_around(number, repo)

    def restart(self, number: int) -> None:
        """A node comes back: it says again what is on its disk, and remembers nothing else."""
        node, sync = self.nodes[number], self.syncs[number]
        node.gossip, node.is_up = Gossip(node.key, GossipParams(), parse), True
        sync.rounds = Rounds(SYNC_S)
        for repo, copy in sync.repos.items():
            copy.is_busy = False
            for signed in copy.states:
                self._perform(number, node.gossip.publish(self.now, announce_state(signed)))
            self._say_held(number, repo)
        self._tick(number)
        self._look(number)

    def seq(self, number: int, repo: RepoId) -> int:
        """The state that a node's copy is at; 0 when it has none."""
        copy = self.syncs[number].repos.get(repo)
        at = [each.state.seq for each in copy.history if each.state.refs == copy.refs] if copy else []
        return max(at, default=0)

    # --- rounds ------------------------------------------------------------------------------------------------

    def _look_at(self, number: int, when: float) -> None:
        sync = self.syncs[number]
        sync.turn += 1
        turn = sync.turn
        self.at(when, number, lambda: self._look(number) if sync.turn == turn else None)

    def _look(self, number: int) -> None:
        sync = self.syncs[number]
        sync.looks.append(self.now)
        for repo, copy in list(sync.repos.items()):
            if copy.creator == self.key(number):
                self._publish(number, repo, copy)
            elif copy.is_followed and not copy.is_busy and sync.rounds.is_due(self.now, repo):
                announced = announced_seq(self.nodes[number].gossip, repo)
                if next_step(copy.states, announced, copy.refs) is Step.ASK:
                    self._ask_around(number, repo)
                else:
                    self._bring(number, repo)
        self._look_at(number, self.now + sync.rounds.pause_s(self.now))

    def _publish(self, number: int, repo: RepoId, copy: Copy) -> None:
        known = copy.states
        assert copy.refs is not None
        if len(known) == 1 and known[0].state.refs == copy.refs:
            return
        seq, previous, conflicts = succession(known)
        bundle = BundleRef(Oid(hashlib.sha256(f"{repo} {seq}".encode()).digest()), 1000)
        private = self.nodes[number].private
        state = RepoState(
            name=f"repo{number}", root=f"{number:040x}", creator=private.public, seq=seq, previous=previous,
            conflicts=conflicts, created=int(self.now), expires=int(self.now) + 86400 * 366,
            branch="refs/heads/main", refs=dict(copy.refs),
            bundles=(*(known[0].state.bundles if known else ()), bundle)[-16:],
        )  # fmt: skip
        signed = SignedState.sign(private, state)
        self.syncs[number].held.add(bundle.oid)
        copy.states = [signed]
        copy.history.append(signed)
        self._perform(number, self.nodes[number].gossip.publish(self.now, announce_state(signed)))
        self._say_held(number, repo)

    def _say_held(self, number: int, repo: RepoId) -> None:
        """That it owns the repository, if it does, and that it holds the bundles."""
        copy = self.syncs[number].repos[repo]
        if not copy.states or copy.refs is None:
            return
        state = copy.states[0].state
        bodies: list[RepoBody | FileBody] = [
            FileBody(each.oid, each.size, repo, state.seq) for each in state.bundles
        ]
        if copy.creator == self.key(number):
            bodies.append(RepoBody(repo, state.name, "", state.root, state.seq, copy.states[0].hash))
        for body in bodies:
            sync = self.syncs[number]
            sync.last_ms = max(int(self.now * 1000), sync.last_ms + 1)
            announcement = announce(self.nodes[number].private, sync.last_ms, body)
            self._perform(number, self.nodes[number].gossip.publish(self.now, announcement))

    # --- what others say ---------------------------------------------------------------------------------------

    def _heard(self, number: int, node: SimNode, news: Learned) -> None:
        super()._heard(number, node, news)
        sync, body = self.syncs[number], news.announcement.body
        if isinstance(body, SignedState):
            self._take(number, body, self._number[news.peer])
        elif isinstance(body, RepoBody):
            creator = news.announcement.key
            sync.repos.setdefault(body.repo, Copy(creator, is_followed=creator in sync.follows))
            self._changed(number, body.repo)

    def _changed(self, number: int, repo: RepoId) -> None:
        self.syncs[number].rounds.changed(repo)
        self._look_at(number, self.now)

    def _take(self, number: int, signed: SignedState, source: int) -> None:
        sync, state = self.syncs[number], signed.state
        copy = sync.repos.setdefault(
            state.repo, Copy(state.creator, is_followed=state.creator in sync.follows)
        )
        reaction = react(copy.states, signed, self.key(number))
        if reaction is Reaction.ASK:
            chains = [self._states(peer, state.repo) for peer in (source, self._number[state.creator])]
            if any(is_joined(copy.states[0], chain, signed) for chain in chains):
                reaction = Reaction.KEEP
        if reaction is Reaction.KEEP:
            copy.states = [signed]
            copy.history.append(signed)
            self._perform(number, self.nodes[number].gossip.publish(self.now, announce_state(signed)))
        elif reaction in {Reaction.PROVE, Reaction.ADOPT}:
            copy.states = sorted([copy.states[0], signed], key=lambda each: (-each.state.seq, each.hash))
        if reaction not in {Reaction.NONE, Reaction.REFUSE}:
            self._changed(number, state.repo)

    def _states(self, number: int, repo: RepoId) -> list[SignedState]:
        """What a peer answers; nothing when it is away."""
        copy = self.syncs[number].repos.get(repo)
        return list(copy.history) if copy is not None and self.nodes[number].is_up else []

    # --- copies ------------------------------------------------------------------------------------------------

    def _peers(self, number: int, repo: RepoId) -> list[int]:
        gossip, creator = self.nodes[number].gossip, self.syncs[number].repos[repo].creator
        return [self._number[key] for key in holders(gossip, repo, creator, self.key(number))]

    def _ask_around(self, number: int, repo: RepoId) -> None:
        copy, peers = self.syncs[number].repos[repo], self._peers(number, repo)[:ASKED_MAX]
        copy.is_busy = True

        def answered() -> None:
            for peer in peers:
                for signed in self._states(peer, repo):
                    self._take(number, signed, peer)
            self._bring(number, repo)

        self.at(self.now + SILENCE_S, number, answered)

    def _bring(self, number: int, repo: RepoId) -> None:
        sync = self.syncs[number]
        copy = sync.repos[repo]
        copy.is_busy = False
        match next_step(copy.states, 0, copy.refs):
            case Step.WAIT | Step.ASK:
                sync.rounds.failed(self.now, repo)
            case Step.NONE:
                sync.rounds.settled(repo)
            case Step.HOLD:
                pass
            case Step.FETCH:
                copy.is_busy = True
                self._fetch(number, repo, copy.states[0])

    def _fetch(self, number: int, repo: RepoId, signed: SignedState) -> None:
        """The next bundle that is missing; at the end the copy goes to the refs of the state."""
        sync, copy = self.syncs[number], self.syncs[number].repos[repo]
        missing = [each.oid for each in signed.state.bundles if each.oid not in sync.held]
        if missing:
            sync.requests.append((self.now, missing[0]))
            self._ask(number, repo, signed, missing[0], self._peers(number, repo))
            return
        copy.is_busy = False
        copy.refs = dict(signed.state.refs)
        self._say_held(number, repo)
        self._bring(number, repo)  # another state may have come meanwhile

    def _ask(self, number: int, repo: RepoId, signed: SignedState, oid: Oid, peers: list[int]) -> None:
        """One peer after another, until one gives the bundle to its end."""
        sync = self.syncs[number]
        if not peers:
            sync.repos[repo].is_busy = False
            sync.rounds.failed(self.now, repo)
            self._look_at(number, self.now + sync.rounds.pause_s(self.now))
            return
        first, rest = peers[0], peers[1:]
        has_it = oid in self.syncs[first].held and self.nodes[first].is_up

        def ended() -> None:
            if has_it and self.nodes[first].is_up:
                sync.held.add(oid)
                self._fetch(number, repo, signed)
            else:
                self._ask(number, repo, signed, oid, rest)

        self.at(self.now + (BUNDLE_S if has_it else SILENCE_S), number, ended)
