"""The peers of this node: dialling, accepting, shaking hands, lanes, bans. One `PeerHub` a process.

It knows sessions and messages, not pieces: what belongs to a swarm is handed to that swarm's driver, and
what a driver wants sent or opened it asks for here. Everything runs on the event loop except the lanes
themselves and the blocking part of a dial.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

from msgspec import Struct, field

from megalfs.core.effects import PeerId
from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId
from megalfs.core.messages import (
    Data,
    Hello,
    Join,
    Leave,
    Message,
    OpenData,
    Peers,
    Ping,
    Pong,
    Role,
    SwarmMessage,
)
from megalfs.core.topology import Labels, Tier, tier_between
from megalfs.errors import MegalfsError, RemoteProtocolError, TemporaryError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.net.handshake import answer_upgrade, dial, receive_hello, send_hello
from megalfs.net.lanes import ReceiveLane, SendLane
from megalfs.net.session import Control, Session, open_control
from megalfs.net.sinks import Progress, Sink
from megalfs.net.sockets import SocketOptions, tune
from megalfs.node.identity import LocalIdentity
from megalfs.node.limits import TierLimits
from megalfs.node.reports import Part, Reports

__all__ = ["HubOptions", "PeerHub", "SwarmEnd"]

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
SESSIONS_MAX = 256
# A node that sent wrong bytes stays out for this long; after a restart of either side it may try again.
BAN_S = 600.0
LANES_PER_SESSION_MAX = 4
NONCE_BYTES = 32


class SwarmEnd(Protocol):
    """What the hub needs of a swarm's driver."""

    def joined(self, session: Session, piece_count: int) -> None: ...
    def left(self, session: Session) -> None: ...
    def received(self, session: Session, message: SwarmMessage) -> None: ...
    def sink(self) -> Sink | None: ...
    def arriving(self, session: Session, first: int, count: int) -> None: ...
    def verified_many(self, parts: Sequence[Part]) -> None: ...
    def corrupt(self, session: Session, pieces: list[int]) -> None: ...
    def progressed(self, session: Session, size: int) -> None: ...


class HubOptions(Struct, frozen=True):
    """Who we say we are, and our limits."""

    advertise: str = ""
    labels: Labels = field(default_factory=Labels)
    sessions_max: int = SESSIONS_MAX
    socket: SocketOptions = field(default_factory=SocketOptions)


class PeerHub:
    """Sessions by peer, drivers by manifest."""

    def __init__(
        self,
        identity: LocalIdentity,
        options: HubOptions,
        *,
        limits: TierLimits,
        find_swarm: Callable[[ManifestId], SwarmEnd | None],
        open_swarm: Callable[[Join], SwarmEnd | None],
        exchange: Callable[[Session, Peers], None],
        is_allowed: Callable[[NodeKey], bool],
    ) -> None:
        self.identity = identity
        self.instance = secrets.token_bytes(16)
        self.port = 0
        self.sessions: dict[int, Session] = {}
        self.rejected: dict[str, int] = {}
        self.ban_count = 0
        self.dropped: list[tuple[str, str]] = []
        self._options = options
        self._limits = limits
        self._find_swarm = find_swarm
        self._open_swarm = open_swarm
        self._exchange = exchange
        self._is_allowed = is_allowed
        self._loop = asyncio.get_running_loop()
        self._ids = 0
        self._banned: dict[bytes, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dialling: dict[tuple[str, int], asyncio.Task[Session]] = {}
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="megalfs-start")
        self._reports = Reports(self._verified)
        self.is_closed = False

    # --- opening and closing -------------------------------------------------------------------------

    def next_peer_id(self) -> PeerId:
        """A number for a session, a web seed, or whatever else the core shall know as a peer."""
        self._ids += 1
        return PeerId(self._ids)

    async def connect(self, host: str, port: int) -> Session:
        """The session with a node, dialled when there is none; concurrent calls share one dial.

        Raises:
            TemporaryError: nobody answers.
            RemoteProtocolError: not a megalfs node, or it broke the protocol.
        """
        for session in self.sessions.values():
            if (host, port) in (session.dialled, session.source) and not session.is_closed:
                return session
        task = self._dialling.get((host, port))
        if task is None:
            task = asyncio.create_task(self._dial(host, port))
            self._dialling[host, port] = task
            task.add_done_callback(lambda _: self._dialling.pop((host, port), None))
        return await asyncio.shield(task)

    def expect(self, peers: Sequence[HostPort]) -> None:
        """Opens sessions and a data connection each, before it is known that they are needed: two round trips sooner.

        Who needs one calls `connect`, and hears what failed.
        """

        async def prepare(peer: HostPort) -> None:
            with contextlib.suppress(MegalfsError):
                self.want_lanes(await self.connect(peer.host, peer.port), 1)

        for peer in peers:
            self._go(prepare(peer))

    def _go(self, work: Coroutine[None, None, None]) -> None:
        """Runs `work` beside everything else; `close` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self, host: str, port: int) -> Session:
        nonce = secrets.token_bytes(NONCE_BYTES)
        session_key = secrets.token_bytes(16)
        upgraded = await dial(host, port, nonce=nonce, options=self._options.socket)
        sock = upgraded.sock
        try:
            await send_hello(sock, self._hello(Role.CONTROL, session_key, signed_nonce=upgraded.nonce))
            their_hello = await receive_hello(sock)
            self._check_hello(their_hello, nonce)
            control = await open_control(sock)
        except BaseException:
            sock.close()
            raise
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        session = self._register(
            their_hello, name, session_key, control, is_dialer=True, dialled=(host, port)
        )
        session.address = HostPort(host, port)
        return session

    def accept(self, sock: socket.socket, nonce: bytes) -> None:
        """Takes over a socket whose upgrade request carried `nonce`; answers 101 and goes on from there."""
        self._go(self._accept(sock, nonce))

    async def _accept(self, sock: socket.socket, nonce: bytes) -> None:
        our_nonce = secrets.token_bytes(NONCE_BYTES)
        try:
            sock.setblocking(False)
            tune(sock, self._options.socket)
            await answer_upgrade(sock, our_nonce)
            hello = await receive_hello(sock)
            if hello.role is Role.CONTROL:
                await self._accept_control(sock, hello, nonce, our_nonce)
            else:
                self._accept_lane(sock, hello)
        except (MegalfsError, OSError) as error:
            log.debug("a connection was refused: %s", error)
            sock.close()

    async def _accept_control(
        self, sock: socket.socket, hello: Hello, nonce: bytes, our_nonce: bytes
    ) -> None:
        self._check_hello(hello, our_nonce)
        if len(self.sessions) >= self._options.sessions_max:
            raise TemporaryError(f"{self._options.sessions_max} sessions are open already")
        host = str(sock.getpeername()[0])
        answer = self._hello(Role.CONTROL, hello.session, signed_nonce=nonce)
        await send_hello(sock, answer)
        control = await open_control(sock)
        shown = host.removeprefix("::ffff:")
        name = hello.advertise or (f"[{shown}]:{hello.port}" if ":" in shown else f"{shown}:{hello.port}")
        session = self._register(hello, name, hello.session, control, is_dialer=False, dialled=None)
        session.source = (shown, hello.port)
        session.address = session.address or _address_of(hello, shown)

    def _accept_lane(self, sock: socket.socket, hello: Hello) -> None:
        for session in self.sessions.values():
            if secrets.compare_digest(session.session_key, hello.session) and not session.is_dialer:
                lane_count = len(session.receive_lanes) + len(session.send_lanes)
                if lane_count >= 2 * LANES_PER_SESSION_MAX:
                    raise RemoteProtocolError("too many data connections")
                if hello.role is Role.FETCH:
                    self._start_sending(session, sock)
                else:
                    self._start_receiving(session, sock)
                return
        raise RemoteProtocolError("a data connection of no session")

    def _register(
        self,
        hello: Hello,
        name: str,
        session_key: bytes,
        control: Control,
        *,
        is_dialer: bool,
        dialled: tuple[str, int] | None,
    ) -> Session:
        session = Session(self.next_peer_id(), name, hello, session_key, is_dialer, control, dialled=dialled)
        for other in list(self.sessions.values()):
            if other.hello.instance == hello.instance:
                # Both sides dialled at once: both keep the one that the lower instance id dialled.
                ours_is_lower = self.instance < hello.instance
                if other.is_dialer == session.is_dialer or other.is_dialer == ours_is_lower:
                    control.transport.abort()
                    return other
                other.close("replaced by the session that the other side dialled")
        self.sessions[session.id] = session
        self._go(self._read(session))
        return session

    async def _read(self, session: Session) -> None:
        try:
            await session.read(self._received)
            session.close("closed the connection")
        except RemoteProtocolError as error:
            self.ban(session, f"broke the protocol: {error}")
        except MegalfsError as error:
            session.close(str(error))
        finally:
            session.close("ended")
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        log.info("peer %s: %s", session.name, session.closing_reason)
        for manifest_id in {*session.joined, *session.joins_sent}:
            if (swarm := self._find_swarm(manifest_id)) is not None:
                swarm.left(session)

    def ban(self, session: Session, reason: str) -> None:
        """Ends a session and refuses its node for a while."""
        self._banned[session.hello.instance] = self._loop.time() + BAN_S
        self.ban_count += 1
        self.dropped.append((session.name, reason))
        del self.dropped[:-100]
        log.warning("peer %s is dropped: %s", session.name, reason)
        session.close(reason)

    async def close(self) -> None:
        """Ends all sessions and waits for their readers."""
        self.is_closed = True
        for session in list(self.sessions.values()):
            session.close("this node is shutting down")
        for dialling in list(self._dialling.values()):
            dialling.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(task, CLOSE_TIMEOUT_S)
        self._starter.shutdown(wait=False)

    # --- handshake -----------------------------------------------------------------------------------

    def _hello(self, role: Role, session_key: bytes, *, signed_nonce: bytes = b"") -> Hello:
        signature = self.identity.sign("hello", signed_nonce + session_key) if signed_nonce else bytes(64)
        options = self._options
        return Hello(
            version=1,
            role=role,
            session=session_key,
            instance=self.instance,
            key=self.identity.key.raw,
            signature=signature,
            port=self.port,
            advertise=options.advertise,
            labels=options.labels,
            flags=0,
        )

    def _check_hello(self, hello: Hello, our_nonce: bytes) -> None:
        if hello.instance == self.instance:
            raise RemoteProtocolError("this is our own node")
        banned_until = self._banned.get(hello.instance)
        if banned_until is not None and banned_until > self._loop.time():
            raise TemporaryError("that node is banned for now")
        LocalIdentity.verify(hello.key, hello.signature, "hello", our_nonce + hello.session)
        if not self._is_allowed(NodeKey(hello.key)):
            raise TemporaryError("this node takes listed keys only")

    # --- lanes ---------------------------------------------------------------------------------------

    def want_lanes(self, session: Session, count: int) -> None:
        """Makes sure that `count` data connections towards us exist or are being opened."""
        missing = min(count, LANES_PER_SESSION_MAX) - session.lanes_wanted
        if missing <= 0 or session.is_closed:
            return
        session.lanes_wanted += missing
        if session.is_dialer:
            self._dial_lanes(session, Role.FETCH, missing)
        else:
            session.send(OpenData(missing))

    def _dial_lanes(self, session: Session, role: Role, count: int) -> None:
        for _ in range(count):
            self._go(self._dial_lane(session, role))

    async def _dial_lane(self, session: Session, role: Role) -> None:
        assert session.dialled is not None
        host, port = session.dialled
        hello = self._hello(role, session.session_key)
        try:
            upgraded = await dial(
                host, port, nonce=secrets.token_bytes(NONCE_BYTES), options=self._options.socket
            )
            await send_hello(upgraded.sock, hello)
        except MegalfsError as error:
            session.close(f"no data connection: {error}")
            return
        if session.is_closed:
            upgraded.sock.close()
        elif role is Role.FETCH:
            self._start_receiving(session, upgraded.sock)
        else:
            self._start_sending(session, upgraded.sock)

    def _tier(self, session: Session) -> Tier:
        return tier_between(self._options.labels, session.hello.labels)

    def _start_sending(self, session: Session, sock: socket.socket) -> None:
        def closed(lane: SendLane, error: MegalfsError | None) -> None:
            self.post(self._lane_ended, session, lane, error)

        lane = SendLane(sock, session.uploads, limiter=self._limits.up(self._tier(session)), closed=closed)
        session.send_lanes.add(lane)
        self._start(session, lane)

    def _start_receiving(self, session: Session, sock: socket.socket) -> None:
        reports = self._reports

        def closed(lane: ReceiveLane, error: MegalfsError | None) -> None:
            reports.put(partial(self._lane_ended, session, lane, error))

        def with_swarm(
            call: Callable[[SwarmEnd], Callable[..., None]], *, may_wait: bool = False
        ) -> Callable[..., None]:
            def report(manifest_id: ManifestId, *arguments: object) -> None:
                told = partial(self._to_swarm, manifest_id, call, session, *arguments)
                reports.put(told, may_wait=may_wait)

            return report

        lane = ReceiveLane(
            sock,
            sink_of=self._sink_of,
            arriving=with_swarm(lambda swarm: swarm.arriving, may_wait=True),
            progress=Progress(
                verified=lambda manifest_id, *run: reports.verified(manifest_id, session, *run),
                corrupt=with_swarm(lambda swarm: swarm.corrupt),
                progressed=with_swarm(lambda swarm: swarm.progressed),
            ),
            limiter=self._limits.down(self._tier(session)),
            closed=closed,
        )
        session.receive_lanes.add(lane)
        self._start(session, lane)

    def _start(self, session: Session, lane: ReceiveLane | SendLane) -> None:
        """Starts a lane from a thread: `Thread.start` waits until the new one runs, which takes 13 ms where 16
        nodes that meet share two cores, and the event loop waited for 30 of them."""

        def started(done: Future[None]) -> None:
            if (error := done.exception()) is not None:
                self.post(self._lane_ended, session, lane, TemporaryError(f"no thread for a lane: {error}"))

        if self.is_closed:
            lane.shut()
        else:
            self._starter.submit(lane.start).add_done_callback(started)

    def _sink_of(self, manifest_id: ManifestId) -> Sink | None:
        swarm = self._find_swarm(manifest_id)
        return None if swarm is None else swarm.sink()

    def _verified(self, manifest_id: ManifestId, parts: list[Part]) -> None:
        if (swarm := self._find_swarm(manifest_id)) is not None:
            swarm.verified_many(parts)

    def _to_swarm(
        self,
        manifest_id: ManifestId,
        call: Callable[[SwarmEnd], Callable[..., None]],
        session: Session,
        *arguments: object,
    ) -> None:
        if (swarm := self._find_swarm(manifest_id)) is not None:
            call(swarm)(session, *arguments)

    def _lane_ended(self, session: Session, lane: ReceiveLane | SendLane, error: MegalfsError | None) -> None:
        if isinstance(lane, ReceiveLane):
            session.receive_lanes.discard(lane)
        else:
            session.send_lanes.discard(lane)
        if not session.is_closed:
            # One connection of a session broke: so has the path. Whatever was on its way is asked elsewhere.
            session.close("closed a data connection" if error is None else str(error))

    def post(self, function: Callable[..., None], *arguments: object) -> None:
        """From a lane's thread to the event loop; after the loop has ended nobody is left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def report(self, function: Callable[..., None], *arguments: object) -> None:
        """As `post`, together with what lanes report."""
        self._reports.put(partial(function, *arguments))

    def catch_up(self) -> None:
        """Hears what lanes reported without waking the loop; whoever is awake now and then calls it."""
        self._reports.catch_up()

    # --- messages ------------------------------------------------------------------------------------

    def _received(self, session: Session, message: Message) -> None:
        self.catch_up()
        match message:
            case Ping(nonce=nonce):
                session.send(Pong(nonce))
            case Pong():
                pass
            case OpenData(count=count):
                require_dialer(session)
                room = LANES_PER_SESSION_MAX - len(session.send_lanes)
                self._dial_lanes(session, Role.SERVE, min(count, room))
            case Peers():
                self._exchange(session, message)
            case Join():
                swarm = self._find_swarm(message.manifest) or self._open_swarm(message)
                if swarm is None:
                    session.send(Leave(message.manifest))
                else:
                    session.joined.add(message.manifest)
                    swarm.joined(session, message.piece_count)
            case Leave():
                session.joined.discard(message.manifest)
                if (swarm := self._find_swarm(message.manifest)) is not None:
                    swarm.left(session)
            case Hello() | Data():
                raise RemoteProtocolError(f"{type(message).__name__} on a control connection")
            case _:
                if (swarm := self._find_swarm(message.manifest)) is not None:
                    swarm.received(session, message)


def _address_of(hello: Hello, host: str) -> HostPort | None:
    """Where a peer that dialled us may be dialled: where it says, else the address we see and its port."""
    if hello.advertise:
        try:
            return HostPort.parse(hello.advertise)
        except UsageError:
            return None
    return HostPort(host, hello.port) if hello.port else None


def require_dialer(session: Session) -> None:
    """Only the side that dialled can open more connections."""
    if not session.is_dialer:
        raise RemoteProtocolError("asked to open connections by the side that opens them")
