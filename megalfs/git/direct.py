"""The remote helper where no node runs: it dials the peer by itself, and splices git to the stream."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.signing import SigningKey
from megalfs.errors import NotFoundError
from megalfs.git.pipes import LinkPipe, StreamPipe, splice
from megalfs.net.dialling import open_stream
from megalfs.store.repos import Repos
from megalfs.store.root import Root

if TYPE_CHECKING:
    from megalfs.core.repoid import RepoUrl
    from megalfs.formats.hostport import HostPort

__all__ = ["connect_directly"]

READ_BYTES = 1 << 20


def connect_directly(home: Path, url: RepoUrl, service: str) -> None:
    """Dials with this root's key, or with one for this once: a public clone needs no identity.

    Raises:
        NotFoundError: the URL asks for another key, a push has none, or nobody knows where the peer is.
        MegalfsError: the peer cannot be reached, or refused.
    """
    root = None
    with suppress(NotFoundError):
        root = Root.open(home, create=False)
    private = root.load_key() if root else None
    if private is None and service == "git-receive-pack":
        raise NotFoundError(
            "a push needs a key, which the owner of the repository can list", hint="megalfs auth init"
        )
    private = private or SigningKey(secrets.token_bytes(32))
    if url.me is not None and url.me != private.public:
        raise NotFoundError(
            f"the key {url.me.peer_id} is not the one of {str(home)!r}", hint="megalfs auth show"
        )
    addresses = [*url.addresses, *(_known_addresses(root, url) if root else ())]
    if not addresses:
        raise NotFoundError(
            f"no node runs on {str(home)!r} that could know where {url.peer.peer_id} is",
            hint="megalfs node start, or ?addr=HOST:PORT in the URL",
        )
    asyncio.run(_dial_and_splice(private, url, service, addresses))


def _known_addresses(root: Root, url: RepoUrl) -> Sequence[HostPort]:
    """Where the peer was when a node of this root last heard of it."""
    with closing(Repos(root)) as repos:
        node = repos.node(url.peer)
    return node.addresses if node is not None else ()


async def _dial_and_splice(
    private: SigningKey, url: RepoUrl, service: str, addresses: Sequence[HostPort]
) -> None:
    remote = await open_stream(private, url.peer, service, url.repo, addresses=addresses, via=url.via)
    try:
        os.write(1, b"\n")
        await splice(await _standard_streams(), LinkPipe(remote.stream))
        await remote.stream.finish()
    finally:
        await remote.close()


async def _standard_streams() -> StreamPipe:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb", 0))
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(1, "wb", 0)
    )
    return StreamPipe(reader, asyncio.StreamWriter(transport, protocol, None, loop))
