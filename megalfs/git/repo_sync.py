"""Keeps repositories in step: ours are announced when they change, followed ones are brought to their newest state.

    a state is heard of -> checked against what we saw -> its bundles come from the swarm, or over a link
    -> a bare copy of ours goes to exactly its refs -> we announce that we hold the bundles, and seed them

What is decided is decided in core/sync.py; here it is done, one repository at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.announcements import FileBody, NodeBody, RepoBody
from megalfs.core.gossip import Learned
from megalfs.core.identity import NodeKey
from megalfs.core.refs import object_format
from megalfs.core.repo_state import RepoState, SignedState
from megalfs.core.repoid import RepoId
from megalfs.core.sync import Rounds, Step, announced_seq, next_step
from megalfs.errors import (
    MegalfsError,
    NotFoundError,
    PolicyError,
    SpaceError,
    TemporaryError,
)
from megalfs.formats.hostport import HostPort
from megalfs.git.bundle_partial import forget_partials
from megalfs.git.bundle_sources import BundleSources
from megalfs.git.bundle_transfer import BundleTransfer
from megalfs.git.bundles import apply_bundles, make_mirror
from megalfs.git.publishing import publish_repository
from megalfs.git.repos import refs_stamp
from megalfs.git.state_intake import StateIntake
from megalfs.store.repos import Repo

if TYPE_CHECKING:
    from megalfs.node.node import Node
    from megalfs.node.p2p import P2p
    from megalfs.store.repos import Repos

__all__ = ["RepoSync"]

log = logging.getLogger(__name__)

# A bundle of 100 MB takes half a second more than `connect` from an owner who is near, and half as long as from one
# whose uplink is thin as soon as one other node has it: worth it for what takes seconds.
BUNDLES_BYTES_MIN = 16 << 20
LOOK_ANYWAY_S = 86400.0


class RepoSync:
    """The repositories of one node."""

    def __init__(self, node: Node, repos: Repos, p2p: P2p) -> None:
        self._node = node
        self._repos = repos
        self._p2p = p2p
        self._transfer = BundleTransfer(node.store, repos, p2p)
        self._rounds = Rounds(node.settings.sync_interval_s)
        self._intake = StateIntake(
            repos, p2p, self._transfer,
            trusted=node.settings.trusted_keys, lock=self._lock, changed=self._changed,
        )  # fmt: skip
        self.sources = BundleSources(node, repos, p2p, self._transfer, self._intake.blame)
        self.copied: Callable[[RepoId], None] = lambda _: None  # told once for each state that a copy is at
        self._copied: dict[RepoId, str] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: dict[RepoId, asyncio.Lock] = {}
        self._announced: dict[RepoId, RepoBody] = {}
        self._stamps: dict[RepoId, object] = {}  # of ours, when they were published last
        p2p.gossip.listener = self._learned

    # --- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Says again what is on disk, then looks after all of it."""
        for repo in await asyncio.to_thread(self._repos.all):
            for signed in await asyncio.to_thread(self._repos.states, repo.id):
                self._p2p.gossip.announce_state(signed)
            if repo.path:
                self._announce(repo, await asyncio.to_thread(self._repos.states, repo.id))
        self._spawn(self._look_for_ever())

    async def close(self) -> None:
        """Ends what runs; what was not finished is found again."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Looks at all repositories soon, instead of at the end of the interval."""
        self._wake.set()

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]  # coroutines of ours
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.look()
            except MegalfsError as error:
                log.warning("repositories: %s", error)
            try:
                async with asyncio.timeout(self._rounds.pause_s(self._node.now())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """One round over all repositories; one that fails does not hold up the others."""
        repos = await asyncio.to_thread(self._repos.all)
        self._withdraw_removed(repos)
        for repo in repos:
            try:
                if not repo.is_external:
                    await self._publish_if_changed(repo)
                elif repo.is_followed and self._rounds.is_due(self._node.now(), repo.id):
                    await self._keep_in_step(repo)
            except MegalfsError as error:
                log.warning("%s: %s", repo.name, error)

    async def _keep_in_step(self, repo: Repo) -> None:
        states = await asyncio.to_thread(self._repos.states, repo.id)
        announced = announced_seq(self._p2p.gossip.gossip, repo.id)
        if next_step(states, announced, None) is Step.ASK:  # too large for gossip, or lost on the way
            await self._intake.ask_around(repo.id, self.sources.holders(repo.id))
        await self._bring(repo.id, is_asked=False)

    # --- ours ------------------------------------------------------------------------------------------------

    async def pushed(self, repo: Repo) -> None:
        """Somebody pushed: what changed is signed and announced at once."""
        try:
            await self._publish(repo)
        except MegalfsError as error:
            log.warning("%s: %s", repo.name, error)

    async def _publish_if_changed(self, repo: Repo) -> None:
        """As `_publish`, unless nothing was touched since; once a day all the same, so that states are renewed."""
        files = await asyncio.to_thread(refs_stamp, Path(repo.path))
        writers = await asyncio.to_thread(self._repos.writers, repo.id)
        stamp = (repo.name, repo.description, writers, files, self._node.now() // LOOK_ANYWAY_S)
        if self._stamps.get(repo.id) != stamp or repo.id not in self._announced:
            await self._publish(repo)
            self._stamps[repo.id] = stamp

    async def _publish(self, repo: Repo) -> None:
        if not (Path(repo.path) / "HEAD").is_file():
            raise NotFoundError(f"the repository is no longer at {repo.path!r}")
        async with self._lock(repo.id):
            signed = await asyncio.to_thread(publish_repository, self._node.store, self._repos, repo)
            if signed is not None:
                log.info("%s is at state %d", repo.name, signed.state.seq)
                self._p2p.gossip.announce_state(signed)
                self._node.announcer.wake()
            self._announce(repo, await asyncio.to_thread(self._repos.states, repo.id))

    def _announce(self, repo: Repo, states: Sequence[SignedState]) -> None:
        """That we own it, if we do, and that we hold its bundles; only what was not said before is said."""
        if not states:
            return
        newest = states[0]
        body = RepoBody(repo.id, repo.name, repo.description, repo.root, newest.state.seq, newest.hash)
        if self._announced.get(repo.id) == body:
            return
        self._announced[repo.id] = body
        if not repo.is_external:
            self._p2p.gossip.announce(body)
        for bundle in newest.state.bundles:
            self._p2p.gossip.announce(FileBody(bundle.oid, bundle.size, repo.id, newest.state.seq))

    def _withdraw_removed(self, repos: Sequence[Repo]) -> None:
        """A repository that is no longer shared is said to be gone."""
        present = {repo.id for repo in repos}
        for repo_id, body in list(self._announced.items()):
            if repo_id not in present:
                del self._announced[repo_id]
                if RepoId.of(body.root, self._p2p.key) == repo_id:
                    gone = RepoBody(repo_id, body.name, "", body.root, body.seq, body.state, is_removed=True)
                    self._p2p.gossip.announce(gone)

    # --- what others say ---------------------------------------------------------------------------------------

    def _learned(self, news: Learned) -> None:
        body = news.announcement.body
        if isinstance(body, NodeBody):
            self._p2p.note_node(news.announcement)
        elif isinstance(body, SignedState):
            self._spawn(self._intake.take(body, news.peer))
        elif isinstance(body, RepoBody):
            self._spawn(self._intake.announced(body, news.announcement.key))

    # --- followed repositories ---------------------------------------------------------------------------------

    async def bring(self, repo: RepoId) -> tuple[Repo, SignedState]:
        """Brings a repository to the newest state that several peers know, and follows it from now on.

        Raises:
            NotFoundError: nobody told us of it.
            PolicyError: its creator contradicted himself.
            MegalfsError: nobody has what its state names.
        """
        row = await asyncio.to_thread(self._repos.find, repo)
        if row is not None and not row.is_external:
            await self._publish(row)
            return row, (await asyncio.to_thread(self._repos.states, repo))[0]
        await self._intake.ask_around(repo, self.sources.holders(repo))
        await asyncio.to_thread(self._repos.follow, repo)
        return await self._bring(repo, is_asked=True)

    async def copy_of(self, creator: NodeKey, name: str) -> tuple[Repo, int] | None:
        """Our copy of somebody's repository, brought up to date from others; None when nobody knows of it."""
        repo = self._repos.copy_named(creator, name)
        if repo is None:
            return None
        row, signed = await self.bring(repo.id)
        return row, signed.state.seq

    def holders_of(self, creator: NodeKey, name: str) -> tuple[HostPort, ...]:
        """Swarm addresses of who has somebody's repository; of himself when we know nobody else."""
        repo = self._repos.copy_named(creator, name)
        return self.sources.swarm_of(repo.id) if repo else self.sources.addresses([creator])

    async def bundles_of(self, creator: NodeKey, name: str) -> list[Path]:
        """The bundles of somebody's repository, from the swarm; none where `connect` alone is as good.

        Raises:
            MegalfsError: those who said that they have them did not give them.
        """
        repo = self._repos.copy_named(creator, name)
        states = await asyncio.to_thread(self._repos.states, repo.id) if repo else []
        if repo is None or len(states) != 1:
            return []
        bundles = states[0].state.bundles
        is_big = sum(bundle.size for bundle in bundles) >= BUNDLES_BYTES_MIN
        missing = [bundle for bundle in bundles if not self.sources.is_held(bundle)]
        if not is_big or (missing and not set(self.sources.holders(repo.id)) - {creator}):
            return []
        async with self._lock(repo.id):
            for bundle in missing:
                await self.sources.fetch(repo.id, bundle)
        self._announce(repo, states)
        return [self.sources.place_of(bundle) for bundle in bundles]

    async def _bring(self, repo: RepoId, *, is_asked: bool) -> tuple[Repo, SignedState]:
        try:
            async with self._lock(repo):
                return await self._bring_locked(repo, is_asked=is_asked)
        except MegalfsError:
            self._rounds.failed(self._node.now(), repo)
            raise

    async def _bring_locked(self, repo: RepoId, *, is_asked: bool) -> tuple[Repo, SignedState]:
        states = await asyncio.to_thread(self._repos.states, repo)
        row = await asyncio.to_thread(self._repos.find, repo)
        if row is None:
            raise NotFoundError(f"{repo} is not known here", hint="megalfs repo list")
        match next_step(states, 0, await asyncio.to_thread(self._copy, row)):
            case Step.WAIT | Step.ASK:
                raise TemporaryError("its state has not come yet")
            case Step.HOLD:
                if row.path:
                    return row, states[0]
                raise PolicyError(f"the creator of {row.name!r} signed two states that contradict each other")
            case Step.FETCH:
                await self._fetch_and_apply(row, states[0].state, is_asked=is_asked)
                row = await asyncio.to_thread(self._repos.find, repo)
                assert row is not None
            case Step.NONE:
                pass
        self._announce(row, states)
        if self._copied.get(repo) != states[0].hash:
            self._copied[repo] = states[0].hash
            self.copied(repo)
        if announced_seq(self._p2p.gossip.gossip, repo) <= states[0].state.seq:
            self._rounds.settled(repo)
        else:
            self._rounds.failed(self._node.now(), repo)
        return row, states[0]

    def _copy(self, row: Repo) -> dict[str, str] | None:
        """The refs that our copy is at; None when there is none. Blocks."""
        is_here = bool(row.path) and (Path(row.path) / "HEAD").is_file()
        return self._repos.refs(row.id) if is_here else None

    async def _fetch_and_apply(self, row: Repo, state: RepoState, *, is_asked: bool) -> None:
        wanted = [bundle for bundle in state.bundles if not self.sources.is_held(bundle)]
        size = sum(bundle.size for bundle in wanted)
        if size > self._node.settings.sync_bytes_max and not is_asked:
            raise SpaceError(f"its bundles have {size} bytes, more than sync_bytes_max allows unasked")
        for bundle in wanted:
            await self.sources.fetch(row.id, bundle)
        mirror = self._repos.mirror(row.id)
        paths = [self.sources.place_of(bundle) for bundle in state.bundles]
        await asyncio.to_thread(make_mirror, mirror, object_format(state.root))
        await asyncio.to_thread(apply_bundles, mirror, paths, state)
        await asyncio.to_thread(self._repos.set_copy, row.id, mirror, state.refs)
        await asyncio.to_thread(forget_partials, self._repos.bundles, row.id)
        log.info("%s is at state %d of %s", row.name, state.seq, row.creator)

    # --- one at a time, and not too often ----------------------------------------------------------------------

    def _lock(self, repo: RepoId) -> asyncio.Lock:
        return self._locks.setdefault(repo, asyncio.Lock())

    def _changed(self, repo: RepoId) -> None:
        self._rounds.changed(repo)
        self._stamps.pop(repo, None)
        self._wake.set()
