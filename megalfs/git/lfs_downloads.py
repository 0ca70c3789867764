"""Pulls for git-lfs: one per object, however many agents ask for it, and a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.errors import MegalfsError, StoreError
from megalfs.node.pull import Pull, PullRequest

if TYPE_CHECKING:
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
COPIED_MAX = 3  # an object that leaves the store while it is handed over is pulled again


@dataclass(slots=True)
class _Running:
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

    async def close(self) -> None:
        """Stops every pull."""
        for running in list(self._running.values()):
            running.task.cancel()
        await asyncio.gather(*(each.task for each in self._running.values()), return_exceptions=True)

    async def _pull(self, transfer: Transfer) -> AsyncGenerator[int, None]:
        """Joins the pull of the object, or begins it; ends when it has ended."""
        running = self._running.get(transfer.oid) or await self._begin(transfer)
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
        origins = await self._origins(transfer, sources)
        uses_lan = sources.is_empty and self._node.settings.discover and not transfer.action
        if uses_lan and not self._is_browsing:
            self._is_browsing = True
            await self._node.neighbours.browse(self._node.host)
        if (other := self._running.get(transfer.oid)) is not None:
            return other
        self._node.peer_http.strangers.update(sources.strangers)
        target = self._objects.target(transfer.oid, transfer.storage)
        pull = Pull(
            self._node,
            PullRequest(
                oid=transfer.oid,
                target=target,
                name="the object",  # git-lfs tells no name; the agent puts the file's in front of an error
                size=transfer.size,
                keys=self._node.settings.trusted_keys,
                peers=sources.peers,
                trackers=sources.trackers,
                origins=(*origins, *self._node.settings.origins),
                origin_headers=origins,
                may_replace=lambda: True,  # the directory is ours, and what lies there is named by its hash
                uses_lan=uses_lan,
                wait_peers_s=WAIT_NOBODY_S if sources.is_empty and not uses_lan else WAIT_PEERS_S,
                is_linked=True,
            ),
        )
        task = asyncio.create_task(self._run(transfer, pull, sources))
        running = self._running[transfer.oid] = _Running(task, pull)
        return running

    async def _origins(self, transfer: Transfer, sources: Sources) -> dict[str, Mapping[str, str]]:
        """Where LFS servers have the object, and the headers to send there."""
        found: dict[str, Mapping[str, str]] = {}
        if transfer.action is not None and transfer.action.href and not transfer.action.hints:
            found[transfer.action.href] = transfer.action.headers
        for server in sources.servers:
            try:
                action = await self._client.find(server, transfer.oid, transfer.size)
                found[action.href] = action.headers
            except MegalfsError as error:
                log.warning("%s: %s", server, error)
        return found

    async def _run(self, transfer: Transfer, pull: Pull, sources: Sources) -> None:
        try:
            async with self._slots:
                await pull.run()
            for tracker in sources.stranger_trackers:
                self._node.announcer.scoped.setdefault(tracker, set()).add(transfer.oid)
            self._node.announcer.wake()
        except MegalfsError as error:
            raise _explained(error, sources) from error
        finally:
            with contextlib.suppress(KeyError):
                del self._running[transfer.oid]


def _explained(error: MegalfsError, sources: Sources) -> MegalfsError:
    """The error, who was asked by whose word, and what to do."""
    asked = sources.description or "at most this LAN, as no peer and no tracker is known"
    hint = "megalfs lfs init-repo --tracker URL, or: git config megalfs.peer HOST:PORT"
    if not sources.is_empty:
        hint = "push it from a clone that has it, whose node runs: git lfs push --all REMOTE"
    return type(error)(f"{error}; asked: {asked}", hint=hint)
