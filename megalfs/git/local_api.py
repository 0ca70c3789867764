"""What the remote helper asks the node of its own user, over a Unix socket in the root.

helper: {"url": "p2p://...", "service": "git-upload-pack", "bundles": true}
node:   {"busy": true}                                     every few seconds, while it fetches
        {"ok": true, "notes": [...], "bundles": [PATH...]}   then git's bytes, both ways
        {"error": "...", "hint": "..."}

`bundles`: the repository is new, so that history may come from the swarm first (first_clone.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.repoid import RepoUrl
from megalfs.errors import MegalfsError, NotFoundError, RemoteProtocolError, TemporaryError
from megalfs.git.pipes import LinkPipe, StreamPipe, busily, splice
from megalfs.git.remote_helper import SERVICES, SOCKET_NAME
from megalfs.git.serving import GitServing

if TYPE_CHECKING:
    from megalfs.git.repo_sync import RepoSync
    from megalfs.node.p2p import P2p
    from megalfs.store.repos import Repos
    from megalfs.store.root import Root

__all__ = ["LocalApi"]

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
REQUEST_S_MAX = 10.0


class LocalApi:
    """Listens for helpers of this user: the socket has mode 0600, in a directory of mode 0700."""

    def __init__(self, root: Root, repos: Repos, p2p: P2p, serving: GitServing, sync: RepoSync) -> None:
        self._path = root.local / SOCKET_NAME
        self._repos = repos
        self._p2p = p2p
        self._serving = serving
        self._sync = sync
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Takes the place of what a killed node left."""
        self._path.unlink(missing_ok=True)
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            # A socket's path may have 107 bytes, a directory's more: bind by way of its descriptor.
            self._server = await asyncio.start_unix_server(
                self._connected, f"/proc/self/fd/{directory}/{self._path.name}", limit=READ_BYTES
            )
        finally:
            os.close(directory)
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stops listening, ends what runs."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                request = json.loads(await reader.readline())
            url, service = RepoUrl.of_repository(str(request["url"])), str(request["service"])
            if service not in SERVICES:
                raise RemoteProtocolError(f"no service {service!r}")
            await self._serve(url, service, reader, writer, is_new=request.get("bundles") is True)
        except MegalfsError as error:
            _answer(writer, {"error": str(error), "hint": error.hint})
        except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
            log.debug("a helper was cut off: %s", error)
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                await writer.drain()
                writer.close()

    async def _serve(
        self,
        url: RepoUrl,
        service: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_new: bool,
    ) -> None:
        helper = StreamPipe(reader, writer)
        if url.me is not None and url.me != self._p2p.key:
            raise NotFoundError(
                f"the key {url.me.peer_id} is not the one of this root",
                hint="megalfs auth show",
            )
        if url.peer == self._p2p.key:
            repo = self._repos.served(url.repo)
            _answer(writer, {"ok": True})
            await self._serving.serve(repo, service, helper, peer=self._p2p.key)
            if service == "git-receive-pack":
                await self._sync.pushed(repo)
            return
        bundles = await self._bundles(url, writer) if is_new else []
        try:
            remote = await self._p2p.open(url.peer, service, url.repo, addresses=url.addresses, via=url.via)
        except TemporaryError as unreachable:
            await self._serve_copy(url, service, helper, writer, unreachable)
            return
        except NotFoundError as unknown:
            if self._p2p.addresses_of(url.peer) or url.addresses:
                raise
            await self._serve_copy(url, service, helper, writer, unknown)
            return
        try:
            notes = ["history comes from the swarm, what is newer from its owner"] if bundles else []
            _answer(writer, {"ok": True, "notes": notes, "bundles": [str(path) for path in bundles]})
            await splice(helper, LinkPipe(remote.stream))
            await remote.stream.finish()
        except TemporaryError as error:  # the helper cannot be told any more: its stream is git's by now
            log.warning("%s of %s from %s broke off: %s", service, url.repo, url.peer, error)
        finally:
            await remote.close()

    async def _bundles(self, url: RepoUrl, writer: asyncio.StreamWriter) -> list[Path]:
        """History as files; where that fails git's protocol brings all of it."""
        try:
            work = self._sync.bundles_of(url.peer, url.repo)
            return await busily(work, lambda: _say_busy(writer))
        except MegalfsError as error:
            log.warning("no bundles of %s: %s", url.repo, error)
            return []

    async def _serve_copy(
        self,
        url: RepoUrl,
        service: str,
        helper: StreamPipe,
        writer: asyncio.StreamWriter,
        reason: MegalfsError,
    ) -> None:
        """The owner is away: what others hold ends at exactly the refs that the owner signed.

        Raises:
            MegalfsError: `reason`, when nobody has a copy, or for a push.
        """
        if service != "git-upload-pack":
            raise reason
        copy = await busily(self._sync.copy_of(url.peer, url.repo), lambda: _say_busy(writer))
        if copy is None:
            raise reason
        repo, seq = copy
        note = f"{url.peer.peer_id} is away; this is its signed state {seq} from other nodes"
        _answer(writer, {"ok": True, "notes": [note]})
        await self._serving.serve(repo, service, helper, peer=self._p2p.key)


async def _say_busy(writer: asyncio.StreamWriter) -> None:
    _answer(writer, {"busy": True})
    await writer.drain()


def _answer(writer: asyncio.StreamWriter, fields: dict[str, object]) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        writer.write(json.dumps(fields).encode() + b"\n")
