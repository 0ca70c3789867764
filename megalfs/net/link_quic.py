"""The carrier for gossip and control, and for packs where only UDP passes: QUIC version 1, by aioquic."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.identity import NodeKey
from megalfs.core.signing import SigningKey
from megalfs.errors import RemoteProtocolError
from megalfs.formats.hostport import HostPort
from megalfs.net.certificates import check_certificate
from megalfs.net.link import (
    ALPN,
    HANDSHAKE_S_MAX,
    Handler,
    IsAllowed,
    Stream,
    accept_streams,
    offer_stream,
    unreachable,
)
from megalfs.net.sockets import cannot_listen

if TYPE_CHECKING:
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.asyncio.server import QuicServer
    from aioquic.quic.configuration import QuicConfiguration

__all__ = ["QuicCarrier", "QuicLink", "QuicListener"]

# 1200 fits every path; what a tunnel of ours may need. Loopback and most Ethernets take it without fragments.
DATAGRAM_BYTES = 1350
WINDOW_BYTES = 4 << 20
IDLE_S_MAX = 60.0
DIAL_S_MAX = 3.0  # nobody refuses a datagram: silence is the only sign that nobody listens
STREAMS_MAX = 256
SOCKET_BYTES = 4 << 20  # the kernel's default of 208 KiB loses datagrams (research/p2pgit.md 5.1)
# A QUIC server hears of a stream by its first byte; the server speaks first on ours, so we open with this one.
_OPENING = b"\0"


class QuicCarrier:
    """Dials with `private`'s key; listens with the certificate that `write_certificate` made."""

    def __init__(
        self, private: SigningKey, *, certificate: Path | None = None, is_allowed: IsAllowed = lambda _: True
    ) -> None:
        self._private = private
        self._certificate = certificate
        self._is_allowed = is_allowed

    async def dial(self, address: HostPort, key: NodeKey) -> QuicLink:
        """Connects and checks the certificate."""
        import ssl

        from aioquic.asyncio.client import connect

        configuration = _configuration(is_client=True)
        configuration.verify_mode = ssl.CERT_NONE  # check_certificate knows which key it must be
        stack = AsyncExitStack()
        try:
            protocol = await stack.enter_async_context(
                connect(address.host, address.port, configuration=configuration, wait_connected=False)
            )
            await _connected(protocol)
        except (OSError, TimeoutError) as error:
            await stack.aclose()
            raise unreachable(key, address, error, protocol="UDP") from error
        except BaseException:
            await stack.aclose()
            raise
        try:
            check_certificate(_peer_certificate(protocol), key)
        except BaseException:
            await stack.aclose()
            raise
        return QuicLink(self._private, key, protocol, stack)

    async def listen(self, address: HostPort, handler: Handler) -> QuicListener:
        """Listens on UDP."""
        assert self._certificate is not None
        configuration = _configuration(is_client=False)
        configuration.load_cert_chain(self._certificate)
        listener = QuicListener(self._private.public, self._is_allowed, handler)
        await listener.start(address, configuration)
        return listener


class QuicLink:
    """One QUIC connection; any number of streams."""

    def __init__(
        self, private: SigningKey, peer: NodeKey, protocol: QuicConnectionProtocol, stack: AsyncExitStack
    ) -> None:
        self.peer = peer
        self._private = private
        self._protocol = protocol
        self._stack = stack
        self._streams: list[Stream] = []

    async def open(self, service: str, subject: str = "") -> Stream:
        """A stream of this connection."""
        reader, writer = await self._protocol.create_stream()
        writer.write(_OPENING)
        stream = Stream(reader, writer)
        try:
            await offer_stream(stream, self._private, self.peer, service=service, subject=subject)
        except BaseException:
            await stream.close()
            raise
        self._streams.append(stream)
        return stream

    async def close(self) -> None:
        """Ends the streams and the connection."""
        for stream in self._streams:
            await stream.close()
        self._streams.clear()
        await self._stack.aclose()


class QuicListener:
    """A UDP port on which connections and their streams are accepted."""

    def __init__(self, own: NodeKey, is_allowed: IsAllowed, handler: Handler) -> None:
        self._own = own
        self._is_allowed = is_allowed
        self._handler = handler
        self._server: QuicServer | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: HostPort, configuration: QuicConfiguration) -> None:
        """Raises BusyError when the port is taken, others as `cannot_listen`."""
        from aioquic.asyncio.server import QuicServer

        family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
        try:
            sock.bind((address.host, address.port))
        except (OSError, UnicodeError) as error:
            sock.close()
            raise cannot_listen(address, error, flag="--addr", kind=" (UDP)") from error
        sock.setblocking(False)
        self._transport, self._server = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: QuicServer(configuration=configuration, stream_handler=self._opened), sock=sock
        )

    @property
    def address(self) -> HostPort:
        """Where it listens."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
        return HostPort(host, port)

    def _opened(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= STREAMS_MAX:
            writer.close()
            return
        task = asyncio.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S_MAX):
                if await reader.readexactly(1) != _OPENING:
                    raise RemoteProtocolError("not a stream of ours")
        except (asyncio.IncompleteReadError, TimeoutError, RemoteProtocolError):
            writer.close()
            return
        await accept_streams(Stream(reader, writer), self._own, self._is_allowed, self._handler)

    async def close(self) -> None:
        """Stops listening, ends what runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.close()


async def _connected(protocol: QuicConnectionProtocol) -> None:
    """Waits for the handshake. Its own task, never cancelled: aioquic fails a future in it that must be heard."""
    protocol.transmit()  # it waits for early data otherwise
    waiter = asyncio.create_task(protocol.wait_connected())
    waiter.add_done_callback(lambda task: task.exception())
    done, _ = await asyncio.wait({waiter}, timeout=DIAL_S_MAX)
    if not done:
        raise TimeoutError(f"no answer within {DIAL_S_MAX:.0f} s")
    waiter.result()


def _configuration(*, is_client: bool) -> QuicConfiguration:
    from aioquic.quic.configuration import QuicConfiguration

    return QuicConfiguration(
        alpn_protocols=[ALPN],
        is_client=is_client,
        max_datagram_size=DATAGRAM_BYTES,
        max_data=WINDOW_BYTES,
        max_stream_data=WINDOW_BYTES,
        idle_timeout=IDLE_S_MAX,
    )


def _peer_certificate(protocol: QuicConnectionProtocol) -> bytes:
    """The certificate that the server proved; aioquic (1.7.2) has no public name for it."""
    from cryptography.hazmat.primitives.serialization import Encoding

    certificate = protocol._quic.tls._peer_certificate  # noqa: SLF001 - see above
    return certificate.public_bytes(Encoding.DER) if certificate is not None else b""
