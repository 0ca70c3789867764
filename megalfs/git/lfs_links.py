"""Large files of shared repositories over links: who has an object, and taking in what is pushed.

    lfs-get   subject: a repository. Any number of times:
              client  {"oid": "..."}
              server  {"http": ["HOST:PORT", ...]}          it holds the object by then, if its repository does
    lfs-put   subject: a repository that the client may push to
              client  {"oid": "...", "size": 5, "http": ["HOST:PORT", ...]}
              server  {"send": false}, after it has pulled the object from there; or {"send": true}
              client  the bytes, if it was told to; the end
              server  {"send": false}, once they are proven

While it hashes or pulls, the server says {"busy": true} every few seconds; {"error": "..."} says why it gave up.
Addresses lead into the swarm: the bytes of a clone never travel on links. Those of a push do where the server
cannot reach the client's port.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.errors import IntegrityError, MegalfsError, RemoteProtocolError, SpaceError
from megalfs.formats import strict_json
from megalfs.formats.hostport import HostPort
from megalfs.formats.limits import SIZE_MAX
from megalfs.formats.strict_json import JsonFault
from megalfs.git.lfs_incoming import receive
from megalfs.git.lfs_transfer import Transfer
from megalfs.git.pipes import busily

if TYPE_CHECKING:
    from megalfs.git.lfs_service import LfsService
    from megalfs.git.repo_sync import RepoSync
    from megalfs.git.serving import GitServing
    from megalfs.net.link import Stream
    from megalfs.node.p2p import P2p
    from megalfs.store.repos import Repos

__all__ = ["ADDRESSES_MAX", "GET", "PUT", "LfsLinks", "decode", "encode", "parse_offer"]

log = logging.getLogger(__name__)

GET, PUT = "lfs-get", "lfs-put"
ADDRESSES_MAX = 16
REQUEST_S_MAX = 60.0


def encode(document: dict[str, object]) -> bytes:
    """One frame."""
    return json.dumps(document).encode()


def decode(frame: bytes) -> dict[str, object]:
    """Reads a frame; raises RemoteProtocolError."""
    try:
        document = strict_json.parse(frame)
    except JsonFault as error:
        raise RemoteProtocolError(f"a frame that is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RemoteProtocolError("a frame that is no JSON object")
    return {**document}


class LfsLinks:
    """The server's side of both services."""

    def __init__(self, lfs: LfsService, repos: Repos, p2p: P2p, serving: GitServing, sync: RepoSync) -> None:
        self._lfs = lfs
        self._repos = repos
        self._p2p = p2p
        self._serving = serving
        self._sync = sync
        p2p.register(GET, self._get)
        p2p.register(PUT, self._put)

    async def _get(self, stream: Stream) -> None:
        try:
            repo = await asyncio.to_thread(self._repos.served, stream.subject)
        except MegalfsError as error:
            await stream.refuse(error)
            return
        await stream.accept()
        while frame := await _next(stream):
            oid = Oid.parse(str(decode(frame).get("oid")))
            try:
                await busily(
                    asyncio.to_thread(self._lfs.shared.take_in, stream.subject, oid),
                    lambda: _say_busy(stream),
                )
            except IntegrityError as error:
                log.warning("%s: %s", repo.name, error)  # others may have it
            known = (*self._p2p.http_addresses(), *self._sync.sources.swarm_of(repo.id))
            found = [str(each) for each in dict.fromkeys(known)]
            await stream.send(encode({"http": found[:ADDRESSES_MAX]}))
        await stream.finish()

    async def _put(self, stream: Stream) -> None:
        try:
            repo = await asyncio.to_thread(self._repos.served, stream.subject)
            self._serving.check_push(repo, stream.peer)
        except MegalfsError as error:
            await stream.refuse(error)
            return
        await stream.accept()
        oid, size, peers = parse_offer(await _next(stream))
        try:
            has_pulled = await busily(self._pull(oid, size, peers), lambda: _say_busy(stream))
            if not has_pulled:
                await stream.send(encode({"send": True}))
                await receive(_Body(stream), oid, self._lfs.objects, size=size)
        except (IntegrityError, SpaceError) as error:
            await stream.send(encode({"error": str(error)}))
        else:
            log.info("%s took %s (%d bytes) from %s", repo.name, oid, size, stream.peer)
            await stream.send(encode({"send": False}))
        await stream.finish()

    async def _pull(self, oid: Oid, size: int, peers: list[HostPort]) -> bool:
        """Whether the object came from the swarm, so that only chunks travelled that this node lacks."""
        try:
            await self._lfs.downloads.hold(Transfer.from_peers(oid, size, self._lfs.objects.directory, peers))
        except MegalfsError as error:
            log.info("%s does not come from %s: %s", oid, ", ".join(map(str, peers)) or "nowhere", error)
            return False
        return True


async def _next(stream: Stream) -> bytes:
    async with asyncio.timeout(REQUEST_S_MAX):
        return await stream.receive()


async def _say_busy(stream: Stream) -> None:
    await stream.send(encode({"busy": True}))


class _Body:
    """The bytes of a stream, as `receive` reads them."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self, _: int) -> bytes:
        return await self._stream.receive()


def parse_offer(frame: bytes) -> tuple[Oid, int, list[HostPort]]:
    """What a client would push: the object, its size, and where it can be pulled from.

    Raises:
        RemoteProtocolError, UsageError: anything else.
    """
    match decode(frame):
        case {"oid": str(oid), "size": int(size), "http": list(peers)} if (
            0 <= size <= SIZE_MAX and len(peers) <= ADDRESSES_MAX
        ):
            return Oid.parse(oid), size, [HostPort.parse(str(each)) for each in peers]
    raise RemoteProtocolError("not an offer of an object")
