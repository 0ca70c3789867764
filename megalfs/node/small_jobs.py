"""The small files of one command: those that are here already found in one go, the others pulled together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from megalfs.errors import MegalfsError
from megalfs.node.bulk import BULK_BYTES_MAX, BulkPull, BulkTarget
from megalfs.node.pull_request import PullCounts
from megalfs.store.group_journal import remove_left_behind

if TYPE_CHECKING:
    from megalfs.core.ids import Oid
    from megalfs.formats.hostport import HostPort
    from megalfs.node.node import Node
    from megalfs.node.pull_job import Job
    from megalfs.node.pull_request import PullRequest

__all__ = ["SmallJobs", "is_small"]

log = logging.getLogger(__name__)

SETTLED_AT_ONCE = 256
# Whoever has some files of a directory, or the list of them, likely has them all: trackers are asked for these.
ORACLES = 4


def is_small(job: Job) -> bool:
    """Whether a file may come with many others in one answer."""
    return job.wanted.size is not None and job.wanted.size <= BULK_BYTES_MAX


class SmallJobs:
    """Pulls jobs together. `settle` says whether a job needs no network, `request_of` what is asked of whom."""

    def __init__(
        self, node: Node, settle: Callable[[Job], bool], request_of: Callable[[Job], PullRequest]
    ) -> None:
        self._node = node
        self._settle = settle
        self._request_of = request_of
        self._pulls: list[BulkPull] = []

    @property
    def rejected(self) -> dict[str, int]:
        """Blobs that came with wrong bytes, by peer."""
        found: dict[str, int] = {}
        for pull in self._pulls:
            for name, count in pull.rejected.items():
                found[name] = found.get(name, 0) + count
        return found

    async def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Returns the jobs that are left: nobody had them, or nobody is known to ask."""
        await asyncio.to_thread(remove_left_behind, self._node.store.root)
        wanted: list[Job] = []
        for start in range(0, len(jobs), SETTLED_AT_ONCE):
            wanted += await asyncio.to_thread(self._unsettled, jobs[start : start + SETTLED_AT_ONCE])
        groups: dict[tuple[object, ...], list[Job]] = {}
        for job in wanted:  # who is named for some files is told of no others
            request = self._request_of(job)
            key = (request.peers, request.trackers, request.uses_lan)
            groups.setdefault(key, []).append(job)
        for group in groups.values():
            await self._pull(group)
        return [job for job in wanted if not job.is_settled]

    def _unsettled(self, jobs: Sequence[Job]) -> list[Job]:
        """Looks what is here, all in one change of the index: a file that is linked is recorded."""
        with self._node.store.index.change():
            return [job for job in jobs if not self._settle(job)]

    async def _pull(self, jobs: Sequence[Job]) -> None:
        request = self._request_of(jobs[0])
        peers = await self._peers(request, jobs)
        if not peers:
            return
        wanted: dict[Oid, list[BulkTarget]] = {}
        for job in jobs:
            may_replace = self._request_of(job).may_replace
            target = BulkTarget(job.target, job.is_executable is True, may_replace, partial(_done, job))
            wanted.setdefault(job.wanted.oid, []).append(target)
        sizes = {job.wanted.oid: job.wanted.size for job in jobs if job.wanted.size is not None}
        order = list(sizes)
        self._node.make_rng().shuffle(order)  # those that pull the same have other files by then than we
        pull = BulkPull(self._node, peers, {oid: sizes[oid] for oid in order}, wanted, request.wait_peers_s)
        self._pulls.append(pull)
        await pull.run()
        if pull.desertion is not None and not request.origins and not request.located.origins:
            for job in jobs:  # each of 10,000 would wait anew for those who do not come
                _done(job, pull.desertion)

    async def _peers(self, request: PullRequest, jobs: Sequence[Job]) -> list[HostPort]:
        peers = dict.fromkeys(request.peers)
        if request.uses_lan:
            peers |= dict.fromkeys(await asyncio.to_thread(self._node.neighbours.wait))
        step = max(1, len(jobs) // ORACLES)
        asked = dict.fromkeys(job.tree or job.wanted.oid for job in jobs[::step])
        for tracker in request.trackers:
            for oid in asked:
                try:
                    peers |= dict.fromkeys(await self._node.announcer.ask(tracker, oid))
                except MegalfsError as error:
                    log.info("tracker %s: %s", tracker, error)
        return list(peers)


def _done(job: Job, result: str | MegalfsError) -> None:
    """A file is at its place, from this peer or from beside it, or cannot be."""
    if job.is_settled:
        return
    if isinstance(result, MegalfsError):
        job.error = result
        return
    job.size = job.wanted.size or 0
    counts = PullCounts("done", job.size, job.size)
    if result:
        counts.by_peer[result] = job.size
    else:
        counts.bytes_reused = job.size
    job.final = counts
