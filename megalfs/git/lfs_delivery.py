"""Bringing an object to a repository's home, so that a push means that somebody else has it.

A home that is a node pulls what it lacks over a peer session that we dial: we hand it the manifest, it takes
from its own disk what it has, asks for the rest, verifies, and keeps what came when one of us goes away. So a
push resumes, costs only chunks that are new there, and works from behind NAT. Any other server gets a PUT of
the whole object: the Batch API has nothing better.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from megalfs.errors import MegalfsError, NotAuthorisedError, RemoteProtocolError, TemporaryError
from megalfs.git.lfs_incoming import CALLER_HEADER, SIGNATURES_HEADER
from megalfs.node.pull import SMALL_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from megalfs.core.ids import Oid
    from megalfs.git.lfs_client import LfsClient, Upload
    from megalfs.node.node import Node

__all__ = ["Delivery"]

log = logging.getLogger(__name__)

DEFAULT_HTTP_PORT = 80
# git-lfs never asks an agent twice, so a connection that breaks is ours to take up again.
RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0)


class Delivery:
    """One object on its way to one server."""

    def __init__(self, node: Node, client: LfsClient, *, reached: Callable[[int], None]) -> None:
        """
        Args:
            reached: told how many bytes the server has.
        """
        self._node = node
        self._client = client
        self._reached = reached
        self._bytes = 0

    async def run(self, upload: Upload, oid: Oid, size: int, path: Path) -> None:
        """Returns when the server has the object, verified.

        Raises:
            MegalfsError: it did not take it.
        """
        if upload.is_node and size > SMALL_BYTES and await self._is_pulled(upload, oid):
            return
        await self._client.put(upload, oid, size, path, reached=self._reached)

    async def _is_pulled(self, upload: Upload, oid: Oid) -> bool:
        """Whether the node pulled it; a node that got some and then went away is waited for."""
        tries = 0
        while True:
            before = self._bytes
            try:
                await self._offer(upload, oid)
            except NotAuthorisedError:
                raise
            except MegalfsError as error:
                log.info("%s cannot pull %s from us: %s", upload.put.href, oid, error)
                tries = 0 if self._bytes > before else tries + 1
                if not (isinstance(error, TemporaryError) and self._bytes and tries < len(RETRY_S)):
                    return False
                await asyncio.sleep(RETRY_S[tries])
            else:
                return True

    async def _offer(self, upload: Upload, oid: Oid) -> None:
        parts = urlsplit(upload.put.href)
        if parts.scheme != "http" or parts.hostname is None:
            raise RemoteProtocolError("the peer protocol runs on plain TCP")
        store, hub = self._node.store, self._node.hub
        manifest_id = store.manifests(oid)[0]
        # Kept open while the node pulls: it has nowhere to dial.
        await hub.connect(parts.hostname, parts.port or DEFAULT_HTTP_PORT)
        headers = {
            **upload.put.headers,
            CALLER_HEADER: hub.instance.hex(),
            SIGNATURES_HEADER: ", ".join(self._node.signatures(manifest_id, oid)),
        }
        body = await asyncio.to_thread(store.encoded_manifest, manifest_id, oid)
        async with aclosing(self._client.lines(f"{upload.put.href}/pull", body, headers)) as replies:
            async for reply in replies:
                if "error" in reply:
                    raise TemporaryError(str(reply["error"])[:500])
                if reply.get("done"):
                    return
                self._bytes = max(self._bytes, int(str(reply.get("bytes", 0))))
                self._reached(self._bytes)
        raise TemporaryError("the node ended in the middle of its answer")
