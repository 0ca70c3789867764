"""What a node does for git-lfs: for its user's agents, with one scheduler for all of them, and as an LFS server.

An agent posts one object and reads lines of JSON until one says how it ended; when it goes away (Ctrl-C,
`kill -9`) the connection breaks and, with nobody left who wants it, so does the pull; its partial stays.

    root/lfs/<oid>                the node's own name of every object: git-lfs has a hard link of it, or a reflink
    <lfs storage>/megalfs/        partials and objects where the storage is on another file system than the root;
                                  hand-overs, `<oid>.<random>.out`, which git-lfs renames to their place

Nobody edits files of either store, so hard links between them are safe; `store/identity.py` says how such a
file is watched. Files a person published are never hard-linked into a git store.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from megalfs.core.ids import Oid
from megalfs.errors import UsageError
from megalfs.git.lfs_client import LfsClient
from megalfs.git.lfs_downloads import Downloads
from megalfs.git.lfs_lines import line_of, respond
from megalfs.git.lfs_objects import Objects
from megalfs.git.lfs_prune import Prune, PruneRequest
from megalfs.git.lfs_remote import DirectLinks, Remotes
from megalfs.git.lfs_server import LfsServer
from megalfs.git.lfs_shared import SharedLfs
from megalfs.git.lfs_transfer import Transfer
from megalfs.git.lfs_uploads import Uploads
from megalfs.store.repos import Repos

if TYPE_CHECKING:
    from megalfs.git.lfs_remote import Links
    from megalfs.node.node import Node

__all__ = ["LfsService"]


class LfsService:
    """Routes below `/v1/local/lfs/`, for who holds the root's token; those of `LfsServer` for everybody."""

    def __init__(self, node: Node, repos: Repos | None = None, links: Links | None = None) -> None:
        self._node = node
        self._own_repos = Repos(node.store.root) if repos is None else None
        repos = repos or self._own_repos
        assert repos is not None
        self.objects = Objects(node.store)
        self.shared = SharedLfs(node.store, repos, self.objects)
        self._client = LfsClient()
        self._remotes = Remotes(node, links or DirectLinks(node, repos), self.shared)
        self.downloads = Downloads(node, self.objects, self._client, self._remotes)
        self._uploads = Uploads(node, self.objects, self._client, self._remotes)
        self._server = LfsServer(node, self.downloads, self.objects, self.shared)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        """As `node.service.Service`."""
        return [
            web.post("/v1/local/lfs/download", self._download),
            web.post("/v1/local/lfs/upload", self._upload),
            web.post("/v1/local/lfs/finish", self._finish),
            web.post("/v1/local/lfs/prune", self._prune),
            web.post("/v1/local/lfs/holders", self._holders),
            *self._server.routes(),
        ]

    async def start(self) -> None:
        """As `node.service.Service`."""
        self._uploads.restore()
        await self.downloads.start()

    async def close(self) -> None:
        """Ends what runs; partials stay."""
        await self.downloads.close()
        await self._remotes.close()
        await self._client.close()
        await asyncio.to_thread(self._uploads.save)
        if self._own_repos is not None:
            self._own_repos.close()

    async def _download(self, request: web.Request) -> web.StreamResponse:
        transfer = Transfer.parse(await self._body(request))
        return await respond(request, self.downloads.run(transfer))

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        transfer = Transfer.parse(await self._body(request))
        return await respond(request, self._uploads.run(transfer))

    async def _finish(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        await asyncio.to_thread(self._uploads.save)
        return web.json_response({"notes": self._uploads.notes(str(body.get("session")))}, dumps=line_of)

    async def _prune(self, request: web.Request) -> web.StreamResponse:
        prune = Prune(self._node, self.objects, PruneRequest.parse(await self._body(request)))
        return web.json_response({"objects": await prune.run()})

    async def _holders(self, request: web.Request) -> web.Response:
        """For a command: who has objects of a p2p:// remote's repository."""
        match await self._body(request):
            case {"remote": str(remote), "oids": list(oids)}:
                found = [await self._remotes.holders(remote, Oid.parse(str(oid))) for oid in oids]
                peers = dict.fromkeys(str(peer) for each in found for peer in each)
                return web.json_response({"peers": list(peers)})
            case _:
                raise UsageError("not a question for holders")

    async def _body(self, request: web.Request) -> dict[str, object]:
        if not self._node.guard.is_local(request):
            raise web.HTTPUnauthorized(text="megalfs: only for this user's programs\n")
        body = json.loads(await request.text())
        if not isinstance(body, dict):
            raise UsageError("a JSON object is expected")
        return body
