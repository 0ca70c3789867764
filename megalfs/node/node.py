"""The node: one process with a store, an HTTP port, peers, and the swarms it takes part in.

It owns the event loop's long-lived parts and little else: peers are the hub's, one swarm is a driver's, one
pull is `pull.py`'s, what is announced is the announcer's. A seeding swarm is opened when a peer joins it and
closed when it has been idle; a pull brings its own driver and leaves it here to seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.config import Settings
from megalfs.core.bitfield import Bitfield
from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.manifest import Manifest
from megalfs.core.messages import Join, PeerAddress, Peers
from megalfs.core.names import SignedName
from megalfs.core.params import SwarmParams
from megalfs.core.topology import Labels
from megalfs.errors import (
    BusyError,
    ConfigError,
    MegalfsError,
    NotFoundError,
    StoreError,
)
from megalfs.formats.hostport import HostPort
from megalfs.net.http import HttpClient
from megalfs.net.session import Session
from megalfs.net.sockets import SocketOptions, cannot_listen
from megalfs.node.announcer import Announcer
from megalfs.node.driver import SwarmDriver
from megalfs.node.front_door import FrontDoor, HttpProtocol
from megalfs.node.http_guard import Guard, TokenSource
from megalfs.node.identity import LocalIdentity
from megalfs.node.limits import TierLimits
from megalfs.node.neighbours import Neighbours
from megalfs.node.peers import HubOptions, PeerHub
from megalfs.node.service import ServiceFactory
from megalfs.node.serving import PieceSource
from megalfs.store.blobs import Store
from megalfs.store.identity import ChangedError

if TYPE_CHECKING:
    from megalfs.node.http_server import HttpServer

__all__ = ["Node", "Totals"]

log = logging.getLogger(__name__)

IDLE_SWARM_S = 60.0
IDLE_CHECK_S = 15.0
BACKLOG = 512


class Totals(Struct):
    """Since the process started."""

    bytes_served_http: int = 0
    bulk_answers: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_origin: int = 0
    pieces_rejected: int = 0


class _Active(Struct, eq=False):
    driver: SwarmDriver
    source: PieceSource
    is_pull: bool
    idle_since: float | None = None


class Node:
    """A running node. Use `start` and `close`, or as an async context manager after `start`."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        identity: LocalIdentity,
        *,
        proxies: Mapping[str, str] | None = None,
        services: Sequence[ServiceFactory] = (),
        rng: Random | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.identity = identity
        self.totals = Totals()
        self.proxies: Mapping[str, str] = proxies or {}
        self._tokens = TokenSource(identity)
        self.peer_http = HttpClient(own_headers=self.peer_headers)
        self.labels = Labels(settings.host, settings.rack, settings.zone)
        self.is_ready = False
        self.is_draining = False
        self.host = ""
        self.port = 0
        self.tls_port = 0
        self.link_port = 0  # of the peer-to-peer layer, where a service brought one
        self._rng = rng or Random(secrets.randbits(64))  # noqa: S311 - schedules, not secrets
        self._active: dict[ManifestId, _Active] = {}
        self._loop = asyncio.get_running_loop()
        self.limits = TierLimits(settings)
        advertise = str(settings.advertise) if settings.advertise else ""
        self.guard = Guard(
            store.root.token(), settings.advertise.host if settings.advertise else "", settings.allow_keys
        )
        options = HubOptions(
            advertise, self.labels, settings.connections_max, SocketOptions(settings.congestion)
        )
        self.hub = PeerHub(
            identity,
            options,
            limits=self.limits,
            find_swarm=self.driver,
            open_swarm=self._open_swarm,
            exchange=self._exchanged,
            is_allowed=self.guard.is_allowed_key,
        )
        self.announcer = Announcer(self)
        self.neighbours = Neighbours(self.hub.instance.hex())
        self.services = [make(self) for make in services]
        self.peer_listeners: dict[ManifestId, Callable[[Sequence[PeerAddress]], None]] = {}
        self._sock: socket.socket | None = None
        self._door: FrontDoor | None = None
        self._http: HttpServer | None = None
        self._starting: asyncio.Task[HttpProtocol] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.started_at = self._loop.time()

    # --- life ----------------------------------------------------------------------------------------

    async def start(
        self, listen: HostPort, *, ports: range | None = None, answers_at_once: bool = True
    ) -> None:
        """Listens; with `ports`, on the first free one of them, else on any.

        Args:
            answers_at_once: False for a node that may end before anybody but peers calls: the HTTP server is then
                imported and started when the first such connection comes in, which waits for it.

        Raises:
            BusyError: the port is taken; others as `cannot_listen`.
        """
        self._sock = _listen(listen, ports)
        self.host, self.port = self._sock.getsockname()[:2]
        self.hub.port = self.port
        if answers_at_once or self.services or self.settings.tls_listen is not None:
            await self._http_protocol()
        self._door = FrontDoor(
            self._sock, is_ours=self._may_upgrade, upgraded=self.hub.accept, http=self._http_protocol
        )
        for service in self.services:
            await service.start()
        self._tasks.append(asyncio.create_task(self._close_idle_swarms()))
        self._tasks.append(asyncio.create_task(self.announcer.run()))

    def _may_upgrade(self, host: str) -> bool:
        return not self.is_draining and self.guard.is_our_name(host)

    async def _http_protocol(self) -> HttpProtocol:
        """What answers an HTTP connection; the server is started when it is first asked for."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start_http())
        return await asyncio.shield(self._starting)

    async def _start_http(self) -> HttpProtocol:
        self._http = (await asyncio.to_thread(_load_http_server))(self)
        protocol = await self._http.start()
        if self.settings.tls_listen is not None:
            secure, context = _listen(self.settings.tls_listen, None), _tls_context(self.settings)
            self.tls_port = secure.getsockname()[1]
            await self._http.listen_tls(secure, context)
        return protocol

    async def close(self) -> None:
        """Stops answering, ends every swarm and session; what is being sent right now is cut off."""
        self.is_draining = True
        self.is_ready = False
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for service in reversed(self.services):
            await service.close()
        await self.neighbours.close()
        await self.announcer.leave()
        for manifest_id in list(self._active):
            self.remove_swarm(manifest_id)
        await self.hub.close()
        if self._door is not None:
            await self._door.close()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
        if self._sock is not None:
            self._sock.close()

    @property
    def is_listening(self) -> bool:
        """Whether others can reach us."""
        return self._sock is not None

    # --- swarms --------------------------------------------------------------------------------------

    def driver(self, manifest_id: ManifestId) -> SwarmDriver | None:
        """The swarm that runs here under this manifest. Safe to call from lane threads."""
        active = self._active.get(manifest_id)
        return None if active is None else active.driver

    def drivers(self) -> list[SwarmDriver]:
        """Every swarm that runs here."""
        return [active.driver for active in self._active.values()]

    def drivers_of(self, oid: Oid) -> list[SwarmDriver]:
        """The swarms of one blob."""
        return [active.driver for active in self._active.values() if active.driver.manifest.oid == oid]

    def source(self, manifest_id: ManifestId) -> PieceSource | None:
        """Where the pieces of a running swarm are read from."""
        active = self._active.get(manifest_id)
        return None if active is None else active.source

    def add_pull(self, driver: SwarmDriver, source: PieceSource) -> None:
        """A pull's swarm takes part from now on."""
        self.remove_swarm(driver.manifest.id)
        self._active[driver.manifest.id] = _Active(driver, source, is_pull=True)
        self.announcer.wake()

    def keep_seeding(self, manifest_id: ManifestId) -> None:
        """A pull has ended well: its swarm becomes an ordinary one, closed when idle."""
        if (active := self._active.get(manifest_id)) is not None:
            active.is_pull = False

    def remove_swarm(self, manifest_id: ManifestId) -> None:
        """Ends our part in a swarm."""
        active = self._active.pop(manifest_id, None)
        if active is not None:
            gone = active.driver.totals
            self.totals.bytes_sent += gone.bytes_sent
            self.totals.bytes_received += gone.bytes_fetched
            self.totals.bytes_origin += gone.bytes_origin
            self.totals.pieces_rejected += sum(gone.rejected.values())
            active.driver.close()
            active.source.close()

    def _open_swarm(self, join: Join) -> SwarmDriver | None:
        """A peer wants a blob that may lie in the store under that manifest."""
        if self.is_draining or join.manifest not in self.store.manifests(join.oid):
            return None
        try:
            source = self.store.open(join.oid)
            manifest = self.store.load_manifest(join.manifest, join.oid)
        except MegalfsError as error:
            log.warning("cannot serve %s: %s", join.oid, error)
            return None
        driver = SwarmDriver(
            self.hub,
            manifest,
            have=Bitfield.full(manifest.parts.count),
            source=source,
            labels=self.labels,
            params=SwarmParams(upload_slots=self.settings.upload_slots),
            rng=self._rng,
            withdrawn=self.withdrawn,
            exchanges=self.settings.discover,
        )
        self._active[manifest.id] = _Active(driver, source, is_pull=False)
        return driver

    def withdrawn(self, manifest: Manifest) -> None:
        """The file behind a swarm changed: it is not served until it was hashed again."""
        log.warning("%s changed on disk and is not served any longer", manifest.oid)
        self.remove_swarm(manifest.id)
        task = asyncio.create_task(self._recheck(manifest.oid))
        self._tasks.append(task)

    async def _recheck(self, oid: Oid) -> None:
        with contextlib.suppress(StoreError):
            if await asyncio.to_thread(self.store.recheck, oid):
                log.info("%s is whole again and is served", oid)

    async def _close_idle_swarms(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            now = self._loop.time()
            for manifest_id, active in list(self._active.items()):
                if active.is_pull or active.driver.session_count:
                    active.idle_since = None
                elif active.idle_since is None:
                    active.idle_since = now
                elif now - active.idle_since > IDLE_SWARM_S:
                    self.remove_swarm(manifest_id)
            self._tasks = [task for task in self._tasks if not task.done()]

    # --- what is offered -------------------------------------------------------------------------------

    def offers(self, oid: Oid) -> list[dict[str, object]]:
        """The manifests under which this node has pieces of a blob, as `/v1/file/<oid>/manifests` lists them."""
        held: tuple[ManifestId, ...] = ()
        # Opened, since a file that somebody removed is known to be gone only then: a peer would wait for it.
        with contextlib.suppress(NotFoundError, ChangedError), self.store.open(oid) as opened:
            blob = self.store.find(opened.oid)
            held = blob.manifests if blob is not None else ()
        entries = [
            self._offer(self.store.load_manifest(manifest_id, oid), is_complete=True) for manifest_id in held
        ]
        return entries + [
            self._offer(driver.manifest, is_complete=driver.swarm.is_complete)
            for driver in self.drivers_of(oid)
            if driver.manifest.id not in held
        ]

    def _offer(self, manifest: Manifest, *, is_complete: bool) -> dict[str, object]:
        return {
            "manifest": str(manifest.id),
            "size": manifest.size,
            "has_states": manifest.has_states,
            "is_complete": is_complete,
            "signatures": self.signatures(manifest.id, manifest.oid),
        }

    def signatures(self, manifest_id: ManifestId, oid: Oid) -> list[str]:
        """Who signed a manifest, in the text form of a header."""
        return [str(signature) for signature in self.store.signatures(manifest_id, oid)]

    def name_records(self, name: str) -> list[bytes]:
        """The signed records of a name, whatever their keys."""
        return [signed.encode() for signed in self.store.names() if signed.record.name == name]

    def name_record(self, key: NodeKey, name: str) -> bytes | None:
        """The signed record of one key's name."""
        signed = self.store.name(key, name)
        return None if signed is None else signed.encode()

    def own_names(self) -> list[bytes]:
        """The records that this node's key signed."""
        return [signed.encode() for signed in self.store.names() if signed.key == self.identity.key]

    def learn_name(self, record: bytes) -> None:
        """Keeps a record from elsewhere; raises PolicyError, UsageError."""
        self.store.put_name(SignedName.parse(record))

    def own_addresses(self) -> tuple[HostPort, ...]:
        """Where others can dial us, as far as we know."""
        if self.settings.advertise is not None:
            return (self.settings.advertise,)
        return () if self.host in {"0.0.0.0", "::"} else (HostPort(self.host, self.port),)  # noqa: S104

    def peer_headers(self) -> dict[str, str]:
        """What shows other nodes who asks: those in allow-list mode answer only keys they know."""
        return {"Authorization": f"Bearer {self._tokens.token()}"}

    # --- figures -----------------------------------------------------------------------------------------

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def bytes_received(self) -> int:
        """Verified bytes from peers and origins since start."""
        return self.totals.bytes_received + sum(driver.totals.bytes_fetched for driver in self.drivers())

    def bytes_sent(self) -> int:
        """Bytes of pieces sent to peers since start."""
        return self.totals.bytes_sent + sum(driver.totals.bytes_sent for driver in self.drivers())

    # --- peers ---------------------------------------------------------------------------------------

    def _exchanged(self, _: Session, message: Peers) -> None:
        listener = self.peer_listeners.get(message.manifest)
        if listener is not None and self.settings.discover:
            listener([peer for peer in message.peers if peer.instance != self.hub.instance])

    def make_rng(self) -> Random:
        """A generator for one swarm, seeded from ours."""
        return Random(self._rng.getrandbits(64))  # noqa: S311 - schedules, not secrets


def _load_http_server() -> type[HttpServer]:
    """In a thread: the event loop goes on while aiohttp is imported."""
    from megalfs.node.http_server import HttpServer

    return HttpServer


def _tls_context(settings: Settings) -> ssl.SSLContext:
    """What the TLS port shows; raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot use the certificate {settings.tls_cert!r}: {error}",
            hint="tls_cert and tls_key are PEM files",
        ) from error
    return context


def _listen(listen: HostPort, ports: range | None) -> socket.socket:
    """A listening socket on a named port, or on the first free one of a range."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    for port in [*ports, 0] if ports is not None else [listen.port]:
        sock = socket.socket(family, socket.SOCK_STREAM)
        if port:
            # Not for port 0: two processes that ask at once may be given one port, and the second cannot listen.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and listen.host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind((listen.host, port))
            sock.listen(BACKLOG)
        except (OSError, UnicodeError) as error:  # the latter: a host name that IDNA cannot write
            sock.close()
            if ports is None or port == 0:
                raise cannot_listen(listen, error, flag="--listen") from error
            continue
        sock.setblocking(False)
        return sock
    raise BusyError(f"no free port on {listen.host}")
