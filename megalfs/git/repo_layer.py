"""The service that `node start` adds to a node: links and gossip, git over them, and repositories kept in step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from megalfs.core.repoid import RepoId
from megalfs.errors import MegalfsError
from megalfs.git.copy_lfs import CopyLfs
from megalfs.git.lfs_links import LfsLinks
from megalfs.git.lfs_service import LfsService
from megalfs.git.local_api import LocalApi
from megalfs.git.objects import SharedObjects
from megalfs.git.repo_sync import RepoSync
from megalfs.git.serving import SERVICES, GitServing
from megalfs.git.smart_http import SmartHttp
from megalfs.node.gossip_driver import STALE_INTERVALS
from megalfs.node.p2p import P2p, P2pOptions
from megalfs.store.repos import Repos

if TYPE_CHECKING:
    from megalfs.node.node import Node
    from megalfs.node.service import ServiceFactory

__all__ = ["RepoLayer", "repo_layer"]


class _GossipLinks:
    """As `lfs_remote.Links`."""

    def __init__(self, p2p: P2p, sync: RepoSync) -> None:
        self.open = p2p.open
        self.http_addresses = p2p.http_addresses
        self.holders_of = sync.holders_of


class RepoLayer:
    """As `node.service.Service`; with that of git-lfs, whose objects the repositories' remotes lead to."""

    def __init__(self, node: Node, options: P2pOptions) -> None:
        self._node = node
        self.repos = Repos(node.store.root)
        self.p2p = P2p(node, self.repos, options)
        self.sync = RepoSync(node, self.repos, self.p2p)
        root = node.store.root
        self.serving = GitServing(root, self.repos, self.p2p.key, pushed=self.sync.pushed)
        self._local = LocalApi(root, self.repos, self.p2p, self.serving, self.sync)
        for service in SERVICES:
            self.p2p.register(service, self.serving.handle)
        self.lfs = LfsService(node, self.repos, _GossipLinks(self.p2p, self.sync))
        self.copies = CopyLfs(node, self.repos, self.lfs.downloads, self.lfs.objects)
        self.sync.copied = self.copies.copied
        LfsLinks(self.lfs, self.repos, self.p2p, self.serving, self.sync)
        self.objects = SharedObjects(self.repos)
        self.p2p.register("object", self.objects.handle)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        """Repositories for everybody; what is local needs the root's token."""
        return [
            *self.lfs.routes(),
            *SmartHttp(self.repos, self.serving, self.objects).routes(),
            web.get("/v1/local/p2p/nodes", self._nodes),
            web.post("/v1/local/p2p/wake", self._wake),
            web.post("/v1/local/p2p/sync/{repo}", self._sync),
        ]

    async def start(self) -> None:
        """Listens, then says what it has."""
        await self.lfs.start()
        await self.p2p.start()
        await self.copies.start()
        await self.sync.start()
        await self._local.start()

    async def close(self) -> None:
        """In the opposite order."""
        await self._local.close()
        await self.copies.close()
        await self.lfs.close()
        await self.sync.close()
        await self.p2p.close()
        self.repos.close()

    # --- routes ----------------------------------------------------------------------------------------------

    async def _nodes(self, request: web.Request) -> web.Response:
        """Who is known, who is a neighbour, what gossip dropped."""
        self._check(request)
        now = time.time()  # noqa: TID251 - compared with announcements of other hosts
        stale_s = STALE_INTERVALS * self.p2p.gossip.interval_s
        neighbours = set(self.p2p.gossip.gossip.peers)
        nodes = [
            {
                "key": str(node.key),
                "alias": node.alias,
                "addresses": [str(address) for address in node.addresses],
                "type": node.node_type,
                "neighbour": node.key in neighbours,
                "stale": now - node.updated_at > stale_s,
            }
            for node in self.p2p.nodes()
        ]
        counters = dict(self.p2p.gossip.gossip.counters)
        address = str(self.p2p.address) if self.p2p.address else ""
        return web.json_response(
            {"alias": self.p2p.options.alias, "addr": address, "nodes": nodes, "gossip": counters}
        )

    async def _wake(self, request: web.Request) -> web.Response:
        """A command changed the table: look now."""
        self._check(request)
        self.sync.wake()
        return web.json_response({})

    async def _sync(self, request: web.Request) -> web.Response:
        """Brings one repository to its newest state; with `?lfs=1` its large files too, from now on."""
        self._check(request)
        try:
            return web.json_response(
                await self._bring(RepoId.parse(request.match_info["repo"]), with_lfs="lfs" in request.query)
            )
        except MegalfsError as error:
            return web.json_response({"error": str(error), "hint": error.hint, "code": error.exit_code})

    async def _bring(self, repo: RepoId, *, with_lfs: bool) -> dict[str, object]:
        row, signed = await self.sync.bring(repo)
        answer: dict[str, object] = {
            "path": row.path,
            "name": row.name,
            "creator": str(row.creator),
            "seq": signed.state.seq,
        }
        if with_lfs:
            await asyncio.to_thread(self.repos.keep_lfs, repo)
            kept = await self.copies.keep(repo, is_asked=True)
            answer |= {"large_files": kept.count, "large_bytes": kept.size}
        return answer

    def _check(self, request: web.Request) -> None:
        if not self._node.guard.is_local(request):
            raise web.HTTPUnauthorized(text="megalfs: this needs the token of the root\n")


def repo_layer(options: P2pOptions) -> ServiceFactory:
    """For `node.api.run_node`."""
    return lambda node: RepoLayer(node, options)
