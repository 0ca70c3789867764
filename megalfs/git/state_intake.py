"""What others say of repositories: states and announcements, each put where it belongs.

What a peer is caught at (a state that is forged, or older than one we have seen) is written down under its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from megalfs.core.announcements import RepoBody
from megalfs.core.identity import NodeKey
from megalfs.core.repo_state import SignedState
from megalfs.core.repoid import RepoId
from megalfs.core.sync import Reaction, is_joined, react, who_is_behind
from megalfs.errors import MegalfsError, PolicyError, RemoteProtocolError
from megalfs.store.repos import Repo

if TYPE_CHECKING:
    from megalfs.git.bundle_transfer import BundleTransfer
    from megalfs.node.p2p import P2p
    from megalfs.store.repos import Repos

__all__ = ["StateIntake"]

log = logging.getLogger(__name__)

ASKED_MAX = 3  # peers whose newest state a newcomer compares
REPOS_MAX = 20_000  # what strangers can make us list


class StateIntake:
    """The states of one node's repositories, as they come in."""

    def __init__(
        self,
        repos: Repos,
        p2p: P2p,
        transfer: BundleTransfer,
        *,
        trusted: frozenset[NodeKey],
        lock: Callable[[RepoId], asyncio.Lock],
        changed: Callable[[RepoId], None],
    ) -> None:
        """
        Args:
            trusted: whose repositories are followed, beside those of bootstrap nodes.
            changed: told that something new is known of a repository.
        """
        self._repos = repos
        self._p2p = p2p
        self._transfer = transfer
        self._followed = trusted | {each.key for each in p2p.options.bootstrap}
        self._lock = lock
        self._changed = changed

    async def announced(self, body: RepoBody, creator: NodeKey) -> None:
        """An owner's announcement: what we did not know is shown; what we follow is looked at soon."""
        async with self._lock(body.repo):
            known = await asyncio.to_thread(self._repos.find, body.repo)
            if body.is_removed:
                if known is not None and known.is_external and not known.path:
                    await asyncio.to_thread(self._repos.remove, body.repo)
            elif known is None:
                await self._list(body, creator)
            elif known.is_followed:
                self._changed(body.repo)

    async def _list(self, body: RepoBody, creator: NodeKey) -> None:
        if await asyncio.to_thread(self._repos.count) >= REPOS_MAX:
            return
        found = Repo(
            id=body.repo,
            name=body.name,
            creator=creator,
            description=body.description,
            is_external=True,
            root=body.root,
            is_followed=creator in self._followed,
        )
        await asyncio.to_thread(self._repos.add, found)
        self._changed(body.repo)
        log.info("heard of %s: %s of %s", body.repo, body.name, creator)

    async def take(self, signed: SignedState, source: NodeKey) -> None:
        """Puts a state where it belongs."""
        async with self._lock(signed.state.repo):
            await self._take(signed, source)

    async def _take(self, signed: SignedState, source: NodeKey) -> None:
        repo = signed.state.repo
        known = await asyncio.to_thread(self._repos.states, repo)
        reaction = react(known, signed, self._p2p.key)
        if reaction is Reaction.ASK and await self._has_chain(known[0], signed, source):
            reaction = Reaction.KEEP
        match reaction:
            case Reaction.REFUSE:
                await self.blame(source, repo, "served an older state")
            case Reaction.KEEP:
                await self._keep(signed)
            case Reaction.PROVE:
                await asyncio.to_thread(self._repos.put_fork, known[0], signed)
                await self._denounce(known[0], signed)
            case Reaction.ADOPT:
                await asyncio.to_thread(self._repos.put_fork, known[0], signed)
            case Reaction.NONE | Reaction.ASK:
                pass
        if reaction not in {Reaction.NONE, Reaction.REFUSE}:
            self._changed(repo)

    async def _keep(self, signed: SignedState) -> None:
        repo, creator = signed.state.repo, signed.state.creator
        await asyncio.to_thread(self._repos.put_state, signed)
        row = await asyncio.to_thread(self._repos.find, repo)
        if row is None:
            log.info("heard of %s: %s of %s", repo, signed.state.name, creator)
        if row is None or row.is_external:
            await asyncio.to_thread(self._repos.learn, signed)
            if creator in self._followed:
                await asyncio.to_thread(self._repos.follow, repo)
        self._p2p.gossip.announce_state(signed)

    async def _has_chain(self, known: SignedState, new: SignedState, source: NodeKey) -> bool:
        """Whether the states in between, from the one who told us or from the owner, join the two."""
        for peer in dict.fromkeys([source, new.state.creator]):
            try:
                chain = await self._transfer.ask_states(peer, new.state.repo, known.state.seq)
            except MegalfsError as error:
                log.debug("no chain from %s: %s", peer, error)
                continue
            if is_joined(known, chain, new):
                return True
        return False

    async def ask_around(self, repo: RepoId, peers: list[NodeKey]) -> None:
        """Asks a few peers for their newest state and takes the highest; writes down who has an older one."""
        states = await asyncio.to_thread(self._repos.states, repo)
        top = max((each.state.seq for each in states), default=0)
        heads: dict[NodeKey, SignedState] = {}
        for peer in peers[:ASKED_MAX]:
            try:
                answer = await self._transfer.ask_states(peer, repo, top)
            except (PolicyError, RemoteProtocolError) as error:
                await self.blame(peer, repo, f"served a forged state: {error}"[:200])
            except MegalfsError as error:
                log.debug("no state from %s: %s", peer, error)
            else:
                heads[peer] = answer[-1]
                for signed in answer:
                    if signed.state.seq >= top or signed is answer[-1]:
                        await self.take(signed, peer)
        for peer in who_is_behind(top, heads):
            await self.blame(peer, repo, "served an older state")

    async def blame(self, peer: NodeKey, repo: RepoId, reason: str) -> None:
        """Writes down what a peer was caught at."""
        log.warning("%s %s (%s)", peer, reason, repo)
        await asyncio.to_thread(self._repos.put_fault, str(peer), str(repo), reason)

    async def _denounce(self, known: SignedState, new: SignedState) -> None:
        state = new.state
        await self.blame(state.creator, state.repo, "signed two states that contradict each other")
        log.warning(
            "%s: its creator signed two states that contradict each other (%s, %s); neither is followed",
            state.name, known.hash[:12], new.hash[:12],
        )  # fmt: skip
