"""Keeps repositories in step: ours are announced when they change, followed ones are brought to their newest state.

    a state is heard of -> checked against what we saw -> its bundles come from the swarm, or over a link
    -> a bare copy of ours goes to exactly its refs -> we announce that we hold the bundles, and seed them

What a peer is caught at (a state that is forged, or older than one we have seen) is written down under its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.announcements import FileBody, NodeBody, RepoBody
from megalfs.core.gossip import Learned
from megalfs.core.identity import NodeKey
from megalfs.core.refs import object_format
from megalfs.core.repo_state import RepoState, SignedState, Verdict, judge
from megalfs.core.repoid import RepoId
from megalfs.errors import (
    MegalfsError,
    NotFoundError,
    PolicyError,
    RemoteProtocolError,
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
from megalfs.store.repos import Repo

if TYPE_CHECKING:
    from megalfs.node.node import Node
    from megalfs.node.p2p import P2p
    from megalfs.store.repos import Repos

__all__ = ["RepoSync"]

log = logging.getLogger(__name__)

ASKED_MAX = 3  # peers whose newest state a newcomer compares
# A bundle of 100 MB takes half a second more than `connect` from an owner who is near, and half as long as from one
# whose uplink is thin as soon as one other node has it: worth it for what takes seconds.
BUNDLES_BYTES_MIN = 16 << 20
LOOK_ANYWAY_S = 86400.0
REPOS_MAX = 20_000  # what strangers can make us list
RETRY_S_MIN, RETRY_S_MAX = 2.0, 600.0


class RepoSync:
    """The repositories of one node."""

    def __init__(self, node: Node, repos: Repos, p2p: P2p) -> None:
        self._node = node
        self._repos = repos
        self._p2p = p2p
        self._transfer = BundleTransfer(node.store, repos, p2p)
        self.sources = BundleSources(node, repos, p2p, self._transfer, self._blame)
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: dict[RepoId, asyncio.Lock] = {}
        self._retries: dict[RepoId, tuple[int, float]] = {}
        self._announced: dict[RepoId, RepoBody] = {}
        self._stamps: dict[RepoId, object] = {}  # of ours, when they were published last
        self._settled: set[RepoId] = set()  # of others, at their newest state
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
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _pause_s(self) -> float:
        """Until the next round, or until the first one that was put off may be tried again."""
        now = self._node.now()
        due = (max(RETRY_S_MIN, at - now) for _, at in self._retries.values())
        return min([self._node.settings.sync_interval_s, *due])

    async def look(self) -> None:
        """One round over all repositories; one that fails does not hold up the others."""
        repos = await asyncio.to_thread(self._repos.all)
        self._withdraw_removed(repos)
        for repo in repos:
            try:
                if not repo.is_external:
                    await self._publish_if_changed(repo)
                elif repo.is_followed and repo.id not in self._settled and self._may_try(repo.id):
                    await self._bring(repo.id, is_asked=False)
            except MegalfsError as error:
                log.warning("%s: %s", repo.name, error)

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
            self._spawn(self._take(body, news.peer))
        elif isinstance(body, RepoBody):
            self._spawn(self._heard_of(body, news.announcement.key))

    async def _heard_of(self, body: RepoBody, creator: NodeKey) -> None:
        """An owner's announcement: what we did not know is shown; what we follow and is newer is fetched."""
        async with self._lock(body.repo):
            await self._heard_of_locked(body, creator)

    async def _heard_of_locked(self, body: RepoBody, creator: NodeKey) -> None:
        known = await asyncio.to_thread(self._repos.find, body.repo)
        if body.is_removed:
            if known is not None and known.is_external and not known.path:
                await asyncio.to_thread(self._repos.remove, body.repo)
            return
        if known is None:
            if await asyncio.to_thread(self._repos.count) >= REPOS_MAX:
                return
            found = Repo(
                id=body.repo,
                name=body.name,
                creator=creator,
                description=body.description,
                is_external=True,
                root=body.root,
                is_followed=self._is_followed(creator),
            )
            await asyncio.to_thread(self._repos.add, found)
            log.info("heard of %s: %s of %s", body.repo, body.name, creator)
        if known is not None and known.is_followed:
            self._wake.set()

    def _is_followed(self, key: NodeKey) -> bool:
        named = {each.key for each in self._p2p.options.bootstrap}
        return key in named | self._node.settings.trusted_keys

    async def _take(self, signed: SignedState, source: NodeKey) -> Verdict:
        """Puts a state where it belongs; says what it was."""
        repo = signed.state.repo
        async with self._lock(repo):
            return await self._take_locked(signed, source)

    async def _take_locked(self, signed: SignedState, source: NodeKey) -> Verdict:
        repo = signed.state.repo
        known = await asyncio.to_thread(self._repos.states, repo)
        verdict = judge(known, signed)
        if verdict not in {Verdict.SAME, Verdict.OLDER}:
            self._settled.discard(repo)
            self._stamps.pop(repo, None)
        is_forgotten = self._is_our_forgotten(known, signed)
        if is_forgotten:
            # What we signed before we heard of it contradicts it: the next one names both, for all who saw both.
            verdict = Verdict.FORK if known else Verdict.FOLLOWS
        match verdict:
            case Verdict.SAME:
                return verdict
            case Verdict.OLDER:
                await self._blame(source, repo, "served an older state")
            case Verdict.GAP:
                if not await self._fill_gap(known[0], signed, source):
                    return verdict
                verdict = Verdict.FOLLOWS
            case Verdict.FORK:
                await asyncio.to_thread(self._repos.put_fork, known[0], signed)
                if is_forgotten:
                    self._wake.set()
                else:
                    await self._denounce(known[0], signed)
            case Verdict.FOLLOWS:
                pass
        if verdict is Verdict.FOLLOWS:
            await asyncio.to_thread(self._repos.put_state, signed)
            row = await asyncio.to_thread(self._repos.find, repo)
            if row is None:
                log.info("heard of %s: %s of %s", repo, signed.state.name, signed.state.creator)
            if row is None or row.is_external:
                await asyncio.to_thread(self._repos.learn, signed)
                if self._is_followed(signed.state.creator):
                    await asyncio.to_thread(self._repos.follow, repo)
            self._retries.pop(repo, None)
            self._p2p.gossip.announce_state(signed)
            self._wake.set()
        return verdict

    def _is_our_forgotten(self, known: Sequence[SignedState], signed: SignedState) -> bool:
        """A higher state that we signed and no longer have: our table was lost; the next one must follow it."""
        top = max((each.state.seq for each in known), default=0)
        return signed.state.creator == self._p2p.key and signed.state.seq > top

    async def _fill_gap(self, known: SignedState, new: SignedState, source: NodeKey) -> bool:
        """Whether the states in between, from the one who told us or from the owner, join the two."""
        for peer in dict.fromkeys([source, new.state.creator]):
            try:
                chain = await self._transfer.ask_states(peer, new.state.repo, known.state.seq)
            except MegalfsError as error:
                log.debug("no chain from %s: %s", peer, error)
                continue
            last = known
            for each in [*chain, new]:
                if each.state.seq <= last.state.seq:
                    continue
                if judge([last], each) is not Verdict.FOLLOWS:
                    break
                last = each
            if last.hash == new.hash:
                return True
        return False

    async def _denounce(self, known: SignedState, new: SignedState) -> None:
        state = new.state
        await self._blame(state.creator, state.repo, "signed two states that contradict each other")
        log.warning(
            "%s: its creator signed two states that contradict each other (%s, %s); neither is followed",
            state.name, known.hash[:12], new.hash[:12],
        )  # fmt: skip

    async def _blame(self, peer: NodeKey, repo: RepoId, reason: str) -> None:
        log.warning("%s %s (%s)", peer, reason, repo)
        await asyncio.to_thread(self._repos.put_fault, str(peer), str(repo), reason)

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
        await self._ask_around(repo)
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

    async def _ask_around(self, repo: RepoId) -> None:
        """Asks a few peers for their newest state and takes the highest; writes down who has an older one."""
        states = await asyncio.to_thread(self._repos.states, repo)
        top = max((each.state.seq for each in states), default=0)
        heads: dict[NodeKey, SignedState] = {}
        for peer in self.sources.holders(repo)[:ASKED_MAX]:
            try:
                answer = await self._transfer.ask_states(peer, repo, top)
            except (PolicyError, RemoteProtocolError) as error:
                await self._blame(peer, repo, f"served a forged state: {error}"[:200])
            except MegalfsError as error:
                log.debug("no state from %s: %s", peer, error)
            else:
                heads[peer] = answer[-1]
                for signed in answer:
                    if signed.state.seq >= top or signed is answer[-1]:
                        await self._take(signed, peer)
        highest = max((each.state.seq for each in heads.values()), default=0)
        for peer, head in heads.items():
            if top <= head.state.seq < highest:
                await self._blame(peer, repo, "served an older state")

    async def _bring(self, repo: RepoId, *, is_asked: bool) -> tuple[Repo, SignedState]:
        async with self._lock(repo):
            states = await asyncio.to_thread(self._repos.states, repo)
            row = await asyncio.to_thread(self._repos.find, repo)
            if not states or row is None:
                if is_asked:
                    raise NotFoundError(f"no state of {repo} is known here", hint="megalfs repo list")
                raise TemporaryError("its state has not come yet")
            if len(states) > 1:
                if row.path:
                    return row, states[0]
                raise PolicyError(f"the creator of {row.name!r} signed two states that contradict each other")
            signed = states[0]
            is_here = bool(row.path) and (Path(row.path) / "HEAD").is_file()
            if not is_here or await asyncio.to_thread(self._repos.refs, repo) != signed.state.refs:
                try:
                    await self._fetch_and_apply(row, signed.state, is_asked=is_asked)
                except MegalfsError:
                    self._put_off(repo)
                    raise
                row = await asyncio.to_thread(self._repos.find, repo)
                assert row is not None
            self._retries.pop(repo, None)
            self._announce(row, states)
            self._settled.add(repo)
            return row, signed

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

    def _may_try(self, repo: RepoId) -> bool:
        return self._node.now() >= self._retries.get(repo, (0, 0.0))[1]

    def _put_off(self, repo: RepoId) -> None:
        count = self._retries.get(repo, (0, 0.0))[0] + 1
        pause = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(count, 16))
        self._retries[repo] = (count, self._node.now() + pause)
