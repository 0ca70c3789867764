"""Shared repositories over plain HTTP: `git clone http://node/<repo>.git` (read only), object lists, objects, packs.

For whoever has no link: the same repositories, the same settings, the same refs as over links.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from megalfs.core.refs import format_refs, parse_commit
from megalfs.core.repoid import RepoId, parse_repo_name
from megalfs.errors import BusyError, UsageError
from megalfs.git.gitcmd import start_git
from megalfs.git.objects import SharedObjects
from megalfs.git.repos import shared_refs
from megalfs.git.serving import SHARED_REFS, GitServing

if TYPE_CHECKING:
    from megalfs.store.repos import Repo, Repos

__all__ = ["SmartHttp"]

PAGE_MAX = 50_000
PAGE_DEFAULT = 10_000
BLOCK_BYTES = 128 << 10
REQUEST_BYTES_MAX = 64 << 20  # wants and haves: 50 bytes each
CLIENTS_MAX = 16
PACK_TYPE = "application/x-git-pack"
_SERVICE = "git-upload-pack"
_NO_CACHE = {"Cache-Control": "no-cache, max-age=0, must-revalidate"}


class SmartHttp:
    """Routes of the repositories."""

    def __init__(self, repos: Repos, serving: GitServing, objects: SharedObjects) -> None:
        self._repos = repos
        self._serving = serving
        self._objects = objects
        self._slots = asyncio.Semaphore(CLIENTS_MAX)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        """Beside the node's own; `file`, `object`, `peers`, `names` are no names of repositories."""
        return [
            web.get("/v1/object/{name}", self._object),
            web.get("/v1/{repo}/objects", self._list),
            web.get("/{repo}.git/info/refs", self._refs),
            web.post("/{repo}.git/git-upload-pack", self._upload_pack),
            web.post("/{repo}.git/git-receive-pack", self._receive_pack),
        ]

    def _repo(self, request: web.Request) -> Repo:
        text = request.match_info["repo"].removesuffix(".git")
        name = str(RepoId.parse(text)) if text.startswith("did:repo:") else parse_repo_name(text)
        return self._repos.served(name)

    # --- objects ---------------------------------------------------------------------------------------------

    async def _object(self, request: web.Request) -> web.Response:
        """One object as git stores it."""
        name = parse_commit(request.match_info["name"].lower())
        content = await asyncio.to_thread(self._objects.read, name)
        headers = {"ETag": f'"{name}"', "Cache-Control": "public, max-age=31536000, immutable"}
        return web.Response(body=content, content_type="application/octet-stream", headers=headers)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        """The names of all objects that shared refs reach, a page at a time; or a pack of them."""
        repo = await asyncio.to_thread(self._repo, request)
        self._serving.check_place(repo)
        if PACK_TYPE in request.headers.get("Accept", ""):
            return await self._pack(request, repo)
        after = request.query.get("after", "")
        if after:
            parse_commit(after)
        limit = _limit(request.query.get("limit", str(PAGE_DEFAULT)))
        names = await asyncio.to_thread(self._objects.list_of, repo)
        page = names.after(after, limit)
        more = page[-1] if len(page) == limit and names.after(page[-1], 1) else None
        return web.json_response(
            {"repo": str(repo.id), "name": repo.name, "count": len(names), "objects": page, "next": more},
            headers={"Vary": "Accept"},
        )

    async def _pack(self, request: web.Request, repo: Repo) -> web.StreamResponse:
        refs = await asyncio.to_thread(shared_refs, self._serving.check_place(repo))
        stdin = "".join(f"{line.split()[0]}\n" for line in format_refs(refs).splitlines()).encode()
        words = ("pack-objects", "--quiet", "--revs", "--stdout", "--delta-base-offset")
        return await self._run(request, repo, words, _once(stdin), kind=PACK_TYPE)

    # --- git's own protocol ----------------------------------------------------------------------------------

    async def _refs(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("service") != _SERVICE:
            raise web.HTTPForbidden(text="megalfs: read only over http; push over p2p://\n")
        repo = await asyncio.to_thread(self._repo, request)
        words = ("upload-pack", "--strict", "--stateless-rpc", "--http-backend-info-refs", ".")
        kind = f"application/x-{_SERVICE}-advertisement"
        version = request.headers.get("Git-Protocol", "")
        head = b"" if "version=2" in version else b"001e# service=git-upload-pack\n0000"
        return await self._run(request, repo, words, _once(b""), kind=kind, head=head)

    async def _upload_pack(self, request: web.Request) -> web.StreamResponse:
        repo = await asyncio.to_thread(self._repo, request)
        words = ("upload-pack", "--strict", "--stateless-rpc", ".")
        body = _limited(request.content.iter_chunked(BLOCK_BYTES))
        return await self._run(request, repo, words, body, kind=f"application/x-{_SERVICE}-result")

    async def _receive_pack(self, _: web.Request) -> web.StreamResponse:
        raise web.HTTPForbidden(text="megalfs: read only over http; push over p2p://\n")

    async def _run(
        self,
        request: web.Request,
        repo: Repo,
        words: Sequence[str],
        stdin: AsyncIterator[bytes],
        *,
        kind: str,
        head: bytes = b"",
    ) -> web.StreamResponse:
        """git's answer as it comes; when git fails, the connection ends before the answer does."""
        if self._slots.locked():
            raise BusyError(f"this node serves {CLIENTS_MAX} git clients over HTTP already")
        version = "version=2" if "version=2" in request.headers.get("Git-Protocol", "") else ""
        async with self._slots:
            directory = self._serving.check_place(repo)
            more = {"GIT_PROTOCOL": version} if version else {}
            process = await start_git(directory, *words, settings=SHARED_REFS, more=more)
            assert process.stdout is not None
            assert process.stderr is not None
            response = web.StreamResponse(headers={"Content-Type": kind, **_NO_CACHE})
            tasks = [
                asyncio.create_task(_feed(process, stdin)),
                asyncio.create_task(process.stderr.read()),
            ]
            try:
                await response.prepare(request)
                if head:
                    await response.write(head)
                while block := await process.stdout.read(BLOCK_BYTES):
                    await response.write(block)
                if await process.wait() and request.transport is not None:
                    request.transport.abort()
                await response.write_eof()
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return response


async def _feed(process: asyncio.subprocess.Process, blocks: AsyncIterator[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, UsageError):
        async for block in blocks:
            process.stdin.write(block)
            await process.stdin.drain()
    process.stdin.close()


async def _once(block: bytes) -> AsyncIterator[bytes]:
    yield block


async def _limited(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for block in blocks:
        size += len(block)
        if size > REQUEST_BYTES_MAX:
            raise UsageError("a request that is too long")
        yield block


def _limit(text: str) -> int:
    if (
        not text.isascii()
        or not text.isdecimal()
        or not 1 <= len(text) <= 6
        or not 1 <= int(text) <= PAGE_MAX
    ):
        raise UsageError(f"limit is 1 to {PAGE_MAX}, not {text[:32]!r}")
    return int(text)
