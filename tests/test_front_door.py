"""Who goes where at the port of a node: peers to the hub, everybody else, with every byte, to the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import pytest

from megalfs.errors import TemporaryError
from megalfs.net.handshake import REQUEST_BYTES_MAX, answer_upgrade, dial, upgrade_of
from megalfs.net.sockets import SocketOptions
from megalfs.node.front_door import FrontDoor, HttpProtocol

NONCE, OUR_NONCE = bytes(range(32)), bytes(range(32, 64))
REQUEST = (
    b"GET /v1/peer HTTP/1.1\r\nHost: 127.0.0.1:7427\r\nConnection: Upgrade\r\n"
    b"Upgrade: megalfs/1\r\nMegalfs-Nonce: " + NONCE.hex().encode() + b"\r\n\r\n"
)


class Echo(asyncio.Protocol):
    """In the HTTP server's place: says back what it heard."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class House:
    """A front door on loopback, and who came through it."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.peers: list[tuple[socket.socket, bytes]] = []
        self.called = asyncio.Event()
        self.http_count = 0
        self.door = FrontDoor(
            self.sock,
            is_ours=lambda host: host.startswith("127.0.0.1"),
            upgraded=self._upgraded,
            http=self._http,
        )

    def _upgraded(self, sock: socket.socket, nonce: bytes) -> None:
        self.peers.append((sock, nonce))
        self.called.set()

    async def _http(self) -> HttpProtocol:
        self.http_count += 1
        return Echo

    async def call(self, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects and sends, with a pause between parts."""
        reader, writer = await asyncio.open_connection(*self.sock.getsockname()[:2])
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        return reader, writer

    async def close(self) -> None:
        await self.door.close()
        for sock, _ in self.peers:
            sock.close()
        self.sock.close()


def in_house(scene: Callable[[House], Awaitable[None]]) -> None:
    async def run() -> None:
        house = House()
        try:
            async with asyncio.timeout(30):
                await scene(house)
        finally:
            await house.close()

    asyncio.run(run())


def test_a_peer_is_the_hubs_at_once() -> None:
    async def scene(house: House) -> None:
        async def answer() -> None:
            await house.called.wait()
            await answer_upgrade(house.peers[0][0], OUR_NONCE)

        answering = asyncio.create_task(answer())
        host, port = house.sock.getsockname()[:2]
        upgraded = await dial(host, port, nonce=NONCE, options=SocketOptions())
        await answering
        upgraded.sock.close()
        assert upgraded.nonce == OUR_NONCE
        assert [nonce for _, nonce in house.peers] == [NONCE]
        assert house.peers[0][0].recv(1) == b""  # nothing of the request is left for whoever reads frames
        assert house.http_count == 0

    in_house(scene)


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",),
        (REQUEST[:30], REQUEST[30:]),  # slow, and whole in the end
        (REQUEST + b"\0",),  # speaks before it is spoken to
        (REQUEST.replace(b"Host: 127.0.0.1:7427", b"Host: evil.example"),),
        (REQUEST.replace(b"Connection", b"Origin: http://evil.example\r\nConnection"),),
        (REQUEST.replace(NONCE.hex().encode(), b"abc"),),
        (REQUEST.replace(NONCE.hex().encode(), NONCE[:15].hex().encode()),),
        (REQUEST.replace(b"GET", b"POST"),),
        (b"\x16\x03\x01" + bytes(200),),
        (REQUEST * 20,),
    ],
    ids=["http", "slow", "more", "host", "origin", "no-hex", "short-nonce", "post", "tls", "many"],
)
def test_all_else_is_the_http_servers_with_every_byte(parts: tuple[bytes, ...]) -> None:
    async def scene(house: House) -> None:
        reader, writer = await house.call(*parts)
        assert await reader.readexactly(len(b"".join(parts))) == b"".join(parts)
        assert house.http_count == 1
        assert not house.peers
        writer.close()

    in_house(scene)


def test_who_says_nothing_holds_up_nobody_and_is_hung_up_on_at_the_end() -> None:
    async def scene(house: House) -> None:
        silent, silent_writer = await house.call()
        _, gone = await house.call()
        gone.close()
        reader, writer = await house.call(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        assert house.http_count == 1
        await house.door.close()
        assert await silent.read() == b""
        silent_writer.close()

    in_house(scene)


def test_an_http_server_that_cannot_start_closes_the_connection() -> None:
    async def scene(house: House) -> None:
        async def fails() -> HttpProtocol:
            raise TemporaryError("no server")

        house.door._http = fails
        reader, writer = await house.call(b"hello")
        with contextlib.suppress(ConnectionResetError):  # as the kernel ends one with bytes that nobody read
            assert await reader.read() == b""
        writer.close()
        _, writer = await house.call(REQUEST)
        assert len(house.peers) == 1  # peers need none
        writer.close()

    in_house(scene)


def test_a_request_is_read_only_as_dial_writes_it() -> None:
    upgrade = upgrade_of(REQUEST)
    assert upgrade is not None
    assert (upgrade.host, upgrade.nonce) == ("127.0.0.1:7427", NONCE)
    assert len(REQUEST) < REQUEST_BYTES_MAX
    for at in range(len(REQUEST)):
        assert upgrade_of(REQUEST[:at]) is None
    assert upgrade_of(REQUEST.lower()) is None
