"""The base peer-to-peer layer of a node: listens on both carriers, finds peers by key, hands streams to services.

It knows no git. A layer above registers what it serves (`git-upload-pack`, `state`, ...) and asks for streams
to a key; where that key can be found is told by the caller, by gossip, or by who bootstrapped us.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs import __version__
from megalfs.core.announcements import Announcement, NodeAddress, NodeBody
from megalfs.core.identity import NodeKey
from megalfs.errors import BusyError, MegalfsError, NotFoundError, TemporaryError
from megalfs.formats.hostport import HostPort
from megalfs.net.certificates import write_certificate
from megalfs.net.dialling import PeerStream
from megalfs.net.link import Carrier, Handler, Listener, Stream
from megalfs.net.link_quic import QuicCarrier
from megalfs.net.link_tls import TlsCarrier
from megalfs.node import gossip_driver
from megalfs.node.gossip_driver import GossipDriver
from megalfs.store.repos import KnownNode

if TYPE_CHECKING:
    from megalfs.node.node import Node
    from megalfs.store.repos import Repos

__all__ = ["DEFAULT_ADDR", "P2p", "P2pOptions"]

log = logging.getLogger(__name__)

DEFAULT_ADDR = HostPort("0.0.0.0", 9000)  # noqa: S104 - the system we come from; any port when it is taken
PORT_TRIES = 16  # TCP and UDP must have the same number; another program may hold one of them
ADDRESSES_TRIED_MAX = 8
REACHED_MAX = 1000
NOTE_S = 300.0
SILENT_S = 30.0
_ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_ELSEWHERE = "192.0.2.1"  # TEST-NET-1: whatever the default route is


class P2pOptions(Struct, frozen=True, kw_only=True):
    """What the user asked for; `addr` None is the default port, or any when that is taken."""

    alias: str = ""
    addr: HostPort | None = None
    bootstrap: tuple[NodeAddress, ...] = ()
    certificates: Path | None = None


class P2p:
    """Streams from and to other nodes."""

    def __init__(self, node: Node, repos: Repos, options: P2pOptions) -> None:
        self.options = options
        self.address: HostPort | None = None
        self._node = node
        self._repos = repos
        self._handlers: dict[str, Handler] = {}
        self._listeners: list[Listener] = []
        self._silent: dict[HostPort, float] = {}
        self._reached: dict[NodeKey, HostPort] = {}
        self._noted: dict[NodeKey, float] = {}
        self._writes: set[asyncio.Task[None]] = set()
        directory = options.certificates or node.store.root.host
        certificate = write_certificate(node.identity.private, directory)
        private, is_allowed = node.identity.private, node.guard.is_allowed_key
        self._carriers: dict[str, Carrier] = {
            "tls": TlsCarrier(private, certificate=certificate, is_allowed=is_allowed),
            "quic": QuicCarrier(private, certificate=certificate, is_allowed=is_allowed),
        }

        self.gossip = GossipDriver(node, self, self._who_am_i)
        self.register(gossip_driver.SERVICE, self.gossip.handle)

    @property
    def key(self) -> NodeKey:
        """This node."""
        return self._node.identity.key

    def register(self, service: str, handler: Handler) -> None:
        """Who answers streams that ask for a service."""
        self._handlers[service] = handler

    # --- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens with TLS on TCP and with QUIC on UDP, on one port.

        Raises:
            BusyError: the port that was asked for is taken.
        """
        if self.options.addr is not None:
            await self._listen(self.options.addr)
        else:
            try:
                await self._listen(DEFAULT_ADDR)
            except BusyError:
                await self._listen(HostPort(DEFAULT_ADDR.host, 0))
        self.gossip.start()

    async def _listen(self, address: HostPort) -> None:
        for left in reversed(range(PORT_TRIES)):
            tls = await self._carriers["tls"].listen(address, self._accepted)
            try:
                quic = await self._carriers["quic"].listen(tls.address, self._accepted)
            except BusyError:
                await tls.close()
                if address.port or not left:
                    raise
                continue
            self._listeners = [tls, quic]
            self.address = HostPort(address.host, tls.address.port)
            self._node.link_port = tls.address.port
            return

    async def close(self) -> None:
        """Stops listening and ends every stream."""
        await self.gossip.close()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                await listener.close()
        self._listeners.clear()

    async def _accepted(self, stream: Stream) -> None:
        handler = self._handlers.get(stream.service)
        if handler is None:
            await stream.refuse(NotFoundError(f"no service {stream.service!r} here"))
            return
        try:
            await handler(stream)
        except MegalfsError as error:
            log.debug("%s for %s: %s", stream.service, stream.peer, error)
            raise

    # --- whom we know --------------------------------------------------------------------------------------

    def own_addresses(self) -> tuple[HostPort, ...]:
        """Where others can dial us, as far as we know."""
        if self.address is None:
            return ()
        return (HostPort(self._reachable_host(self.address.host), self.address.port),)

    def http_addresses(self) -> tuple[HostPort, ...]:
        """Where others find our swarm and HTTP, as far as we know."""
        if not self._node.port:
            return ()
        return self._node.own_addresses() or (
            HostPort(self._reachable_host(self._node.host), self._node.port),
        )

    def _reachable_host(self, host: str) -> str:
        """Where others find a socket bound to `host`: what the user says, else the address that routes have."""
        if self._node.settings.advertise is not None:
            return self._node.settings.advertise.host
        if host not in _ANY:
            return host
        towards = [each.address.host for each in self.options.bootstrap] or [_ELSEWHERE]
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((towards[0], 9))  # on UDP this sends nothing: it asks the routing table
            return str(probe.getsockname()[0])
        return "127.0.0.1"

    def _who_am_i(self, digest: bytes) -> NodeBody:
        alias, addresses = self.options.alias, self.own_addresses()
        return NodeBody(alias, addresses, self.http_addresses(), "full", __version__, digest.hex())

    def note_node(self, announcement: Announcement) -> None:
        """Writes down what a node says about itself: at once when it is new, else now and then."""
        body = announcement.body
        assert isinstance(body, NodeBody)
        now = asyncio.get_running_loop().time()
        if now - self._noted.get(announcement.key, -NOTE_S) < NOTE_S:
            return
        self._noted[announcement.key] = now
        node = KnownNode(
            announcement.key,
            body.alias,
            body.addresses,
            body.http,
            body.node_type,
            body.version,
            announcement.time // 1000,
        )
        task = asyncio.create_task(asyncio.to_thread(self._repos.put_node, node))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    def nodes(self) -> list[KnownNode]:
        """Every node we know of: from gossip where it is there, else as it was last written down."""
        heard = {
            each.key: KnownNode(
                each.key,
                each.body.alias,
                each.body.addresses,
                each.body.http,
                each.body.node_type,
                each.body.version,
                each.time // 1000,
            )
            for each in self.gossip.gossip.known("node")
            if isinstance(each.body, NodeBody)
        }
        heard.pop(self.key, None)
        return [*heard.values(), *(node for node in self._repos.nodes() if node.key not in heard)]

    def addresses_of(self, key: NodeKey) -> tuple[HostPort, ...]:
        """Where a key was last seen: as the user said, then as gossip says, then where it answered last."""
        named = [each.address for each in self.options.bootstrap if each.key == key]
        known = next((node.addresses for node in self.nodes() if node.key == key), ())
        reached = filter(None, [self._reached.get(key)])
        return tuple(dict.fromkeys([*named, *known, *reached]))

    async def open(
        self,
        key: NodeKey,
        service: str,
        subject: str = "",
        *,
        addresses: Iterable[HostPort] = (),
        via: str | None = None,
        prefer: str = "tls",
    ) -> PeerStream:
        """A stream to a key: `addresses` first, then what we know; the preferred carrier first.

        Args:
            via: the only carrier to use.

        Raises:
            NotFoundError: nobody told us where the key is.
            TemporaryError: nobody answers there.
            MegalfsError: the peer refused.
        """
        tried = tuple(dict.fromkeys([*addresses, *self.addresses_of(key)]))[:ADDRESSES_TRIED_MAX]
        if not tried:
            raise NotFoundError(
                f"no address of {key.peer_id} is known",
                hint="?addr=HOST:PORT in the URL, or --bootstrap-node",
            )
        failure: MegalfsError | None = None
        for address in tried:
            for name in self._carriers_for(address, via=via, prefer=prefer):
                try:
                    link = await self._carriers[name].dial(address, key)
                except MegalfsError as error:
                    if name == "quic":
                        self._silent[address] = asyncio.get_running_loop().time()
                    # On UDP silence has no reason to tell: TLS says more.
                    failure = failure if name == "quic" and failure else error
                    continue
                self._remember(key, address)
                return await PeerStream.on(link, service, subject)
        raise failure or TemporaryError(f"cannot reach {key.peer_id}")

    def _remember(self, key: NodeKey, address: HostPort) -> None:
        """A URL's `?addr=` gets lost in what git derives from it, such as a submodule's `../lib.git`."""
        self._reached.pop(key, None)
        self._reached[key] = address
        if len(self._reached) > REACHED_MAX:
            del self._reached[next(iter(self._reached))]

    def _carriers_for(self, address: HostPort, *, via: str | None, prefer: str) -> list[str]:
        """The preferred one first; silence on UDP costs seconds, so an address that was silent is spared a while."""
        now = asyncio.get_running_loop().time()
        self._silent = {each: at for each, at in self._silent.items() if now - at < SILENT_S}
        if via is not None:
            return [via]
        names = sorted(self._carriers, key=lambda each: each != prefer)
        return [name for name in names if name != "quic" or address not in self._silent]
