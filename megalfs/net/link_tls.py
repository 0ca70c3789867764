"""The carrier for packs and anything long: TLS 1.3 over TCP, one connection a stream.

843 MB per CPU second from Python, where QUIC has 13 (research/p2pgit.md 5.1).
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from megalfs.core.identity import NodeKey
from megalfs.core.signing import SigningKey
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

__all__ = ["TlsCarrier", "TlsLink", "TlsListener"]

READ_BYTES = 512 << 10
STREAMS_MAX = 256  # one file descriptor and one task each; more wait in the backlog of the kernel


class TlsCarrier:
    """Dials with `private`'s key; listens with the certificate that `write_certificate` made."""

    def __init__(
        self, private: SigningKey, *, certificate: Path | None = None, is_allowed: IsAllowed = lambda _: True
    ) -> None:
        self._private = private
        self._certificate = certificate
        self._is_allowed = is_allowed

    async def dial(self, address: HostPort, key: NodeKey) -> TlsLink:
        """Connects and checks the certificate; the connection becomes the first stream."""
        link = TlsLink(self._private, address, key)
        await link.connect()
        return link

    async def listen(self, address: HostPort, handler: Handler) -> TlsListener:
        """Listens on TCP."""
        assert self._certificate is not None
        listener = TlsListener(self._private.public, self._is_allowed, handler)
        await listener.start(address, _server_context(self._certificate))
        return listener


class TlsLink:
    """A peer that answered as the key it was named by."""

    def __init__(self, private: SigningKey, address: HostPort, peer: NodeKey) -> None:
        self.peer = peer
        self._private = private
        self._address = address
        self._ready: Stream | None = None
        self._streams: list[Stream] = []

    async def connect(self) -> None:
        """Makes the connection that the next stream takes."""
        try:
            async with asyncio.timeout(HANDSHAKE_S_MAX):
                reader, writer = await asyncio.open_connection(
                    self._address.host, self._address.port, ssl=_client_context(), limit=READ_BYTES
                )
        except (OSError, TimeoutError) as error:
            raise unreachable(self.peer, self._address, error, protocol="TCP") from error
        try:
            check_certificate(writer.get_extra_info("ssl_object").getpeercert(True), self.peer)
        except BaseException:
            writer.close()
            raise
        self._ready = Stream(reader, writer)

    async def open(self, service: str, subject: str = "") -> Stream:
        """A stream of its own connection."""
        if self._ready is None:
            await self.connect()
        stream, self._ready = self._ready, None
        assert stream is not None
        try:
            await offer_stream(stream, self._private, self.peer, service=service, subject=subject)
        except BaseException:
            await stream.close()
            raise
        self._streams.append(stream)
        return stream

    async def close(self) -> None:
        """Ends every stream of this link."""
        for stream in [*self._streams, *filter(None, [self._ready])]:
            await stream.close()
        self._streams.clear()
        self._ready = None


class TlsListener:
    """A TCP port on which streams are accepted."""

    def __init__(self, own: NodeKey, is_allowed: IsAllowed, handler: Handler) -> None:
        self._own = own
        self._is_allowed = is_allowed
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: HostPort, context: ssl.SSLContext) -> None:
        """Raises BusyError when the port is taken, others as `cannot_listen`."""
        try:
            self._server = await asyncio.start_server(
                self._connected,
                address.host,
                address.port,
                ssl=context,
                limit=READ_BYTES,
                ssl_handshake_timeout=HANDSHAKE_S_MAX,
            )
        except (OSError, UnicodeError) as error:
            raise cannot_listen(address, error, flag="--addr", kind=" (TCP)") from error

    @property
    def address(self) -> HostPort:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return HostPort(host, port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= STREAMS_MAX:
            writer.close()
            return
        task = asyncio.create_task(
            accept_streams(Stream(reader, writer), self._own, self._is_allowed, self._handler)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stops listening, ends what runs."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


def _client_context() -> ssl.SSLContext:
    """Any certificate passes here: `check_certificate` knows which key it must have, an authority does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    return context


def _server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate)
    context.set_alpn_protocols([ALPN])
    return context
