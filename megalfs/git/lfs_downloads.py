"""Pulls for git-lfs: one per object, however many agents ask for it, and a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from megalfs.core.ids import Oid
from megalfs.errors import MegalfsError, StoreError
from megalfs.git.lfs_origins import ask_servers
from megalfs.git.lfs_unsynced import LATE_BYTES_MIN, Unsynced
from megalfs.node.pull import Pull, PullRequest

if TYPE_CHECKING:
    from megalfs.core.manifest import Manifest
    from megalfs.core.signing import ManifestSignature
    from megalfs.git.lfs_client import LfsClient
    from megalfs.git.lfs_objects import Objects
    from megalfs.git.lfs_remote import Remotes
    from megalfs.git.lfs_sources import Sources
    from megalfs.git.lfs_transfer import Transfer
    from megalfs.node.node import Node

__all__ = ["PROGRESS_S", "Downloads"]

log = logging.getLogger(__name__)

# Lines of progress: some seven a second; git-lfs draws at most ten.
PROGRESS_S = 0.15
# As many as one git-lfs asks for at once; more agents than that wait for each other.
PULLS_AT_ONCE = 8
WAIT_PEERS_S = 5.0  # for peers of a tracker that have just come up
WAIT_NOBODY_S = 0.5  # nobody is named, so nobody will come
# git-lfs hashes and copies a few GiB in that time, and wants the disk for it.
SYNC_AFTER_S = 20.0
COPIED_MAX = 3  # an object that leaves the store while it is handed over is pulled again


class _Running(Struct):
    """One pull, and how many agents wait for it."""

    task: asyncio.Task[None]
    pull: Pull
    waiters: int = 0


class Downloads:
    """All that agents of this user want."""

    def __init__(self, node: Node, objects: Objects, client: LfsClient, remotes: Remotes) -> None:
        self._client = client
        self._remotes = remotes
        self._node = node
        self._objects = objects
        self._is_browsing = False
        self._running: dict[Oid, _Running] = {}
        self._slots = asyncio.Semaphore(PULLS_AT_ONCE)
        self._unsynced = Unsynced(node.store, objects.directory)
        self._syncing: set[asyncio.Task[None]] = set()
        self._is_closing = asyncio.Event()

    async def run(self, transfer: Transfer) -> AsyncGenerator[dict[str, object], None]:
        """Progress, then the path of the object for git-lfs to take.

        Raises:
            MegalfsError: nobody has it, or this machine failed.
        """
        for _ in range(COPIED_MAX):
            out = await asyncio.to_thread(self._objects.hand_over, transfer.oid, transfer.storage)
            if out is not None:
                yield {"path": str(out)}
                return
            async for count in self._pull(transfer):
                yield {"bytes": count}
        raise StoreError(f"{transfer.oid} does not stay in the store")

    async def hold(self, transfer: Transfer) -> None:
        """Pulls an object for the node itself; returns at once when it is here. Raises as `run` does."""
        blob = self._node.store.find(transfer.oid)
        if blob is None or not blob.is_held:
            async for _ in self._pull(transfer):
                pass

    async def fetch(
        self, manifest: Manifest, signatures: Sequence[ManifestSignature], *, caller: bytes
    ) -> AsyncGenerator[dict[str, object], None]:
        """Progress of pulling an object for the node itself from a node that dialled us, then `{"done": true}`.

        Raises:
            MegalfsError: it left before everything was here, or what it offered is not the object.
        """
        oid = manifest.oid
        blob = self._node.store.find(oid)
        if blob is None or not blob.is_held:
            running = self._running.get(oid) or self._start(self._request(oid, manifest.size))
            running.pull.offer(manifest, signatures, caller=caller)
            async for count in self._wait(running):
                yield {"bytes": count}
        yield {"done": True}

    async def start(self) -> None:
        """Takes up what a node that was killed had not synced yet."""
        if left := await asyncio.to_thread(self._unsynced.withdraw):
            self._sync_later(self._recheck(left))

    async def close(self) -> None:
        """Stops every pull, and waits for the disk."""
        for running in list(self._running.values()):
            running.task.cancel()
        await asyncio.gather(*(each.task for each in self._running.values()), return_exceptions=True)
        self._is_closing.set()
        await asyncio.gather(*self._syncing, return_exceptions=True)

    async def _pull(self, transfer: Transfer) -> AsyncGenerator[int, None]:
        """Joins the pull of the object, or begins it; ends when it has ended."""
        running = self._running.get(transfer.oid) or await self._begin(transfer)
        async for count in self._wait(running):
            yield count

    @staticmethod
    async def _wait(running: _Running) -> AsyncGenerator[int, None]:
        running.waiters += 1
        try:
            while not running.task.done():
                await asyncio.wait({running.task}, timeout=PROGRESS_S)
                yield running.pull.counts().bytes_verified
            running.task.result()
        finally:
            running.waiters -= 1
            if not running.waiters:
                running.task.cancel()

    async def _begin(self, transfer: Transfer) -> _Running:
        told = await self._remotes.holders(transfer.remote_url(is_push=False), transfer.oid)
        sources = await asyncio.to_thread(transfer.sources, self._node.settings, told)
        located, troubles = await ask_servers(
            self._client, sources.servers, transfer.oid, transfer.size, action=transfer.action
        )
        uses_lan = sources.is_empty and self._node.settings.discover and not transfer.action
        if uses_lan and not self._is_browsing:
            self._is_browsing = True
            await self._node.neighbours.browse(self._node.host)
        if (other := self._running.get(transfer.oid)) is not None:
            return other
        self._node.peer_http.strangers.update(sources.strangers)
        request = replace(
            self._request(transfer.oid, transfer.size),
            target=self._objects.target(transfer.oid, transfer.storage),
            keys=sources.keys,
            peers=sources.peers,
            trackers=sources.trackers,
            origins=self._node.settings.origins,
            located=located,
            uses_lan=uses_lan,
            syncs=transfer.size < LATE_BYTES_MIN,
            wait_peers_s=WAIT_NOBODY_S if sources.is_empty and not uses_lan else WAIT_PEERS_S,
        )
        return self._start(request, sources, troubles)

    def _request(self, oid: Oid, size: int) -> PullRequest:
        """What every pull for git-lfs has in common."""
        return PullRequest(
            oid=oid,
            target=self._objects.directory / str(oid),
            name="the object",  # git-lfs tells no name; the agent puts the file's in front of an error
            size=size,
            may_replace=lambda: True,  # the directory is ours, and what lies there is named by its hash
            wait_peers_s=WAIT_PEERS_S,
            is_linked=True,
        )

    def _start(
        self, request: PullRequest, sources: Sources | None = None, troubles: Sequence[str] = ()
    ) -> _Running:
        pull = Pull(self._node, request)
        task = asyncio.create_task(self._run(pull, sources, troubles))
        running = self._running[request.oid] = _Running(task, pull)
        return running

    async def _run(self, pull: Pull, sources: Sources | None, troubles: Sequence[str]) -> None:
        oid = pull.request.oid
        try:
            async with self._slots:
                await self._pull_and_sync(pull)
            for tracker in sources.stranger_trackers if sources else ():
                self._node.announcer.scoped.setdefault(tracker, set()).add(oid)
            self._node.announcer.wake()
        except MegalfsError as error:
            raise (_explained(error, sources, troubles) if sources else error) from error
        finally:
            with contextlib.suppress(KeyError):
                del self._running[oid]

    async def _pull_and_sync(self, pull: Pull) -> None:
        """Returns when the object is here; it is synced while git-lfs hashes it."""
        request = pull.request
        if request.syncs or not self._node.settings.durable:
            await pull.run()
            return
        await asyncio.to_thread(self._unsynced.add, request.oid, request.target)
        try:
            await pull.run()
        finally:
            self._sync_later(self._sync(request.oid))

    def _sync_later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._syncing.add(task)
        task.add_done_callback(self._syncing.discard)

    async def _sync(self, oid: Oid) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_closing.wait(), SYNC_AFTER_S)
        try:
            await asyncio.to_thread(self._unsynced.settle, oid)
        except StoreError as error:
            log.warning("%s", error)  # it stays on the list

    async def _recheck(self, oids: list[Oid]) -> None:
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self._unsynced.recheck, oids)


def _explained(error: MegalfsError, sources: Sources, troubles: Sequence[str]) -> MegalfsError:
    """The error, who was asked by whose word, and what to do."""
    asked = sources.description or "at most this LAN, as no peer and no tracker is known"
    hint = "megalfs lfs init-repo --tracker URL, or: git config megalfs.peer HOST:PORT"
    if not sources.is_empty:
        hint = "push it from a clone that has it, whose node runs: git lfs push --all REMOTE"
    return type(error)("; ".join([str(error), *troubles, f"asked: {asked}"]), hint=hint)
