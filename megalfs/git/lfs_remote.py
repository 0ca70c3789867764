"""The client's side of a p2p:// remote for large files: whom to ask for an object, and where a push brings it.

One stream to the remote answers for all objects of a clone, one question after another; it is opened when the
first one is wanted, and let go when none was for a while. lfs_links.py is the other side.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field

from megalfs.core.identity import NodeKey
from megalfs.core.repoid import RepoUrl
from megalfs.errors import MegalfsError, RemoteProtocolError, TemporaryError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.git.lfs_links import ADDRESSES_MAX, GET, PUT, decode, encode
from megalfs.git.pipes import BUSY_S
from megalfs.net.dialling import PeerStream, open_stream
from megalfs.net.link import FRAME_BYTES_MAX, shown
from megalfs.store.repos import Repos

if TYPE_CHECKING:
    from megalfs.core.ids import Oid
    from megalfs.core.signing import SigningKey
    from megalfs.git.lfs_shared import SharedLfs
    from megalfs.node.node import Node
    from megalfs.store.root import Root

__all__ = ["DirectLinks", "Links", "Remotes", "ask_holders", "parse_remote"]

log = logging.getLogger(__name__)

SCHEMES = ("p2p://", "mega://", "megalfs:")
IDLE_S_MAX = 20.0
SILENCE_S_MAX = 6 * BUSY_S
RETRY_S = 5.0  # a remote that could not be reached is not dialled again for each object


class Links(Protocol):
    """How this node reaches others by key."""

    async def open(
        self,
        key: NodeKey,
        service: str,
        subject: str = "",
        *,
        addresses: Iterable[HostPort] = (),
        via: str | None = None,
    ) -> PeerStream:
        """A stream to a key."""

    def http_addresses(self) -> Sequence[HostPort]:
        """Where others find this node's swarm."""

    def holders_of(self, creator: NodeKey, repo: str) -> Sequence[HostPort]:
        """Who says that he holds a repository, as far as this node has heard: swarm addresses."""


class DirectLinks:
    """Of a node without links of its own: dials addresses that a URL names, or that were written down."""

    def __init__(self, node: Node, repos: Repos) -> None:
        self._node = node
        self._repos = repos

    async def open(
        self,
        key: NodeKey,
        service: str,
        subject: str = "",
        *,
        addresses: Iterable[HostPort] = (),
        via: str | None = None,
    ) -> PeerStream:
        """As `Links.open`."""
        private = self._node.identity.private
        return await _open_directly(private, self._repos, key, service, subject, addresses, via)

    def http_addresses(self) -> Sequence[HostPort]:
        """As `Links.http_addresses`."""
        return self._node.own_addresses()

    def holders_of(self, creator: NodeKey, repo: str) -> Sequence[HostPort]:  # noqa: ARG002 - nobody tells us
        """Nobody."""
        return ()


def parse_remote(text: str) -> RepoUrl | None:
    """The URL of a git remote, when it is one of ours."""
    try:
        url = RepoUrl.parse(text) if text.startswith(SCHEMES) else None
    except UsageError:
        return None
    return url if url is not None and url.kind == "pack" else None


class _Asking(Struct):
    """The stream to one remote, and who waits for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    remote: PeerStream | None = None
    not_before: float = 0.0
    closing: asyncio.TimerHandle | None = None


class Remotes:
    """All p2p:// remotes that agents of this user name."""

    def __init__(self, node: Node, links: Links, shared: SharedLfs) -> None:
        self._node = node
        self._links = links
        self._shared = shared
        self._asking: dict[RepoUrl, _Asking] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends every stream."""
        for asking in list(self._asking.values()):
            if asking.closing is not None:
                asking.closing.cancel()
            if asking.remote is not None:
                await asking.remote.close()

    async def holders(self, text: str, oid: Oid) -> tuple[HostPort, ...]:
        """Swarm addresses where an object of a remote's repository is; none when it is no remote of ours."""
        url = parse_remote(text)
        if url is None:
            return ()
        if url.peer == self._node.identity.key:
            await asyncio.to_thread(self._shared.take_in, url.repo, oid)
            return ()
        heard = self._links.holders_of(url.peer, url.repo)
        try:
            told = await self._ask(url, oid)
        except MegalfsError as error:
            log.info("%s does not say who has %s: %s", url.peer.peer_id, oid, error)
            told = ()
        return tuple(dict.fromkeys((*told, *heard)))

    async def push(self, text: str, oid: Oid, size: int, path: Path) -> bool:
        """Brings an object to the remote's node; False when it is no remote of ours.

        Raises:
            MegalfsError: it did not take it.
        """
        url = parse_remote(text)
        if url is None:
            return False
        if url.peer == self._node.identity.key:
            return True
        remote = await self._links.open(url.peer, PUT, url.repo, addresses=url.addresses, via=url.via)
        try:
            own = [str(each) for each in self._links.http_addresses()]
            await remote.stream.send(encode({"oid": str(oid), "size": size, "http": own[:ADDRESSES_MAX]}))
            if (await _answer(remote)).get("send"):
                await _send(remote, path)
                await remote.stream.finish()
                await _answer(remote)
            await remote.stream.finish()
        finally:
            await remote.close()
        return True

    async def _ask(self, url: RepoUrl, oid: Oid) -> tuple[HostPort, ...]:
        asking = self._asking.setdefault(url, _Asking())
        async with asking.lock:
            if asking.closing is not None:
                asking.closing.cancel()
            try:
                if asking.remote is not None:
                    with suppress(TemporaryError):  # the one that stood open may have been closed meanwhile
                        return await self._question(asking, oid)
                await self._connect(asking, url)
                return await self._question(asking, oid)
            finally:
                loop = asyncio.get_running_loop()
                asking.closing = loop.call_later(IDLE_S_MAX, self._close_soon, url, asking)

    async def _question(self, asking: _Asking, oid: Oid) -> tuple[HostPort, ...]:
        """Whoever stops waiting ends the stream: what comes next on it would be another question's answer."""
        try:
            return await _holders(asking.remote, oid)
        except BaseException:
            await self._let_go(asking)
            raise

    async def _connect(self, asking: _Asking, url: RepoUrl) -> None:
        now = asyncio.get_running_loop().time()
        if now < asking.not_before:
            raise TemporaryError("it could not be reached a moment ago")
        try:
            asking.remote = await self._links.open(
                url.peer, GET, url.repo, addresses=url.addresses, via=url.via
            )
        except MegalfsError:
            asking.not_before = now + RETRY_S
            raise

    def _close_soon(self, url: RepoUrl, asking: _Asking) -> None:
        async def close() -> None:
            async with asking.lock:
                await self._let_go(asking)
            self._asking.pop(url, None)

        task = asyncio.create_task(close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_go(self, asking: _Asking) -> None:
        remote, asking.remote = asking.remote, None
        if remote is not None:
            await remote.close()


async def ask_holders(root: Root, text: str, oids: Iterable[Oid]) -> tuple[HostPort, ...]:
    """Swarm addresses where objects of a remote's repository are, for a command that runs no node.

    Raises:
        MegalfsError: the remote's node cannot be reached, or does not know.
    """
    url = parse_remote(text)
    if url is None:
        return ()
    private = root.load_or_create_key()
    with closing(Repos(root)) as repos:
        remote = await _open_directly(private, repos, url.peer, GET, url.repo, url.addresses, url.via)
    try:
        found = [each for oid in oids for each in await _holders(remote, oid)]
        await remote.stream.finish()
    finally:
        await remote.close()
    return tuple(dict.fromkeys(found))


async def _open_directly(
    private: SigningKey,
    repos: Repos,
    key: NodeKey,
    service: str,
    subject: str,
    addresses: Iterable[HostPort],
    via: str | None,
) -> PeerStream:
    """At addresses that a URL names, then at those that were written down."""
    known = await asyncio.to_thread(repos.node, key)
    tried = [*addresses, *(known.addresses if known else ())]
    return await open_stream(private, key, service, subject, addresses=tried, via=via)


async def _holders(remote: PeerStream | None, oid: Oid) -> tuple[HostPort, ...]:
    assert remote is not None
    await remote.stream.send(encode({"oid": str(oid)}))
    found = (await _answer(remote)).get("http")
    if not isinstance(found, list) or len(found) > ADDRESSES_MAX:
        raise RemoteProtocolError("an answer without addresses")
    return tuple(HostPort.parse(str(each)) for each in found)


async def _answer(remote: PeerStream) -> dict[str, object]:
    """The next answer; the other side says every few seconds that it is still at work.

    Raises:
        TemporaryError: it says nothing, or hung up.
        MegalfsError: it failed.
    """
    while True:
        try:
            async with asyncio.timeout(SILENCE_S_MAX):
                frame = await remote.stream.receive()
        except TimeoutError as error:
            raise TemporaryError(f"{remote.link.peer.peer_id} took too long") from error
        if not frame:
            raise TemporaryError(f"{remote.link.peer.peer_id} hung up")
        answer = decode(frame)
        if "error" in answer:
            raise TemporaryError(f"{remote.link.peer.peer_id}: {shown(str(answer['error']))}")
        if not answer.get("busy"):
            return answer


async def _send(remote: PeerStream, path: Path) -> None:
    with path.open("rb") as file:
        while block := await asyncio.to_thread(file.read, FRAME_BYTES_MAX):
            await remote.stream.send(block)
