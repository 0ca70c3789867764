"""The opening of peer connections, on the event loop: no thread waits for a stranger.

A connection starts as HTTP/1.1 so that one port serves browsers, curl and peers: `GET /v1/peer` with
`Upgrade: megalfs/1` is answered by 101, and from the next byte on both sides speak length-prefixed frames
(RFC 9110 section 7.8). Sixteen nodes that dial each other at once fill any small pool of threads with calls
that wait for one another: that way a swarm of 16 reached half of its bound, and sessions were given up.

Sockets are non-blocking here; what goes on in a thread makes its own blocking.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket

from msgspec import Struct

from megalfs.core.codec import FRAME_BYTES_MAX, Decoder, encode
from megalfs.core.messages import Hello
from megalfs.errors import RemoteProtocolError, TemporaryError
from megalfs.net.sockets import SocketOptions, tune

__all__ = [
    "NONCE_BYTES_MAX",
    "NONCE_BYTES_MIN",
    "NONCE_HEADER",
    "PROTOCOL",
    "REQUEST_BYTES_MAX",
    "UPGRADE_PATH",
    "Upgrade",
    "Upgraded",
    "answer_upgrade",
    "dial",
    "receive_hello",
    "send_hello",
    "upgrade_of",
]

PROTOCOL = "megalfs/1"
UPGRADE_PATH = "/v1/peer"
NONCE_HEADER = "Megalfs-Nonce"
NONCE_BYTES_MIN, NONCE_BYTES_MAX = 16, 64
REQUEST_BYTES_MAX = 1024
_REQUEST = (
    f"GET {UPGRADE_PATH} HTTP/1.1\r\nHost: {{where}}\r\nConnection: Upgrade\r\n"
    f"Upgrade: {PROTOCOL}\r\n{NONCE_HEADER}: {{nonce}}\r\n\r\n"
)
_OUR_REQUEST = re.compile(
    _REQUEST.replace(".", r"\.")
    .replace("{where}", r"(\S{1,300})")
    .replace("{nonce}", f"((?:[0-9a-f]{{2}}){{{NONCE_BYTES_MIN},{NONCE_BYTES_MAX}}})")
    .encode("ascii")
)
# Three SYN retransmissions (1 + 2 + 4 s) is what a lossy but living path needs; more is a dead host.
CONNECT_TIMEOUT_S = 7.0
HANDSHAKE_TIMEOUT_S = 10.0
RESPONSE_BYTES_MAX = 8192


class Upgrade(Struct, frozen=True):
    """What a peer's request says: the Host header, and the nonce that it wants signed."""

    host: str
    nonce: bytes


class Upgraded(Struct, frozen=True):
    """A raw connection after the 101, and the nonce that the other side wants signed."""

    sock: socket.socket
    nonce: bytes


async def dial(host: str, port: int, *, nonce: bytes, options: SocketOptions) -> Upgraded:
    """Connects to a node and upgrades to the peer protocol.

    Raises:
        TemporaryError: nobody answers there.
        RemoteProtocolError: something answers that is not a megalfs node.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    sock = await _connect(host, port, where)
    request = _REQUEST.format(where=where, nonce=nonce.hex())
    try:
        tune(sock, options)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await asyncio.get_running_loop().sock_sendall(sock, request.encode("ascii"))
            return Upgraded(sock, await _read_switching(sock, where))
    except OSError as error:  # a TimeoutError is one
        sock.close()
        raise TemporaryError(f"peer {where} did not answer: {error.strerror or 'timed out'}") from error
    except BaseException:
        sock.close()
        raise


def upgrade_of(head: bytes) -> Upgrade | None:
    """Reads the request that `dial` sends; None when it is anything else, or less, or more."""
    match = _OUR_REQUEST.fullmatch(head)
    if match is None:
        return None
    host, nonce = (group.decode("latin-1") for group in match.groups())
    return Upgrade(host, bytes.fromhex(nonce))


async def answer_upgrade(sock: socket.socket, nonce: bytes) -> None:
    """Sends the 101 of the listening side, after which it reads frames. Raises TemporaryError."""
    head = (
        f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
        f"Upgrade: {PROTOCOL}\r\n{NONCE_HEADER}: {nonce.hex()}\r\n\r\n"
    )
    await _send(sock, head.encode("ascii"))


async def send_hello(sock: socket.socket, hello: Hello) -> None:
    """Sends our first frame. Raises TemporaryError."""
    await _send(sock, encode(hello))


async def receive_hello(sock: socket.socket) -> Hello:
    """Reads exactly the other side's first frame, and nothing after it.

    Raises:
        TemporaryError: the connection ended, or nothing comes.
        RemoteProtocolError: the frame is something else.
    """
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            head = await _receive_exactly(sock, 4)
            size = int.from_bytes(head, "big")
            if not 0 < size <= FRAME_BYTES_MAX:
                raise RemoteProtocolError(f"a frame of {size} bytes")
            messages = Decoder().feed(head + await _receive_exactly(sock, size))
    except OSError as error:
        raise TemporaryError(f"the peer said no hello: {error.strerror or 'timed out'}") from error
    if len(messages) != 1 or not isinstance(messages[0], Hello):
        raise RemoteProtocolError("the first message is not a hello")
    if messages[0].version != 1:
        raise RemoteProtocolError(f"peer protocol version {messages[0].version}; this node speaks 1")
    return messages[0]


async def _connect(host: str, port: int, where: str) -> socket.socket:
    """A connected non-blocking socket: of the addresses of a name, the first that answers."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, address in await _resolve(host, port, where):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    reason = (failure.strerror if failure else "no address") or "timed out"
    raise TemporaryError(f"peer {where} cannot be reached: {reason}") from failure


async def _resolve(host: str, port: int, where: str) -> list[tuple[int, tuple[object, ...]]]:
    """Families and addresses of a name; an address needs no resolver, and no thread for one."""
    try:
        numeric = ipaddress.ip_address(host)
    except ValueError:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise TemporaryError(f"peer {where} cannot be reached: {error.strerror or error}") from error
        return [(family, address) for family, _, _, _, address in found]
    return [(socket.AF_INET6 if numeric.version == 6 else socket.AF_INET, (host, port))]


async def _read_switching(sock: socket.socket, where: str) -> bytes:
    """Reads the response head. Nothing may follow it: the other side waits for our hello."""
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) >= RESPONSE_BYTES_MAX:
            raise RemoteProtocolError(f"peer {where} answers with an endless header")
        block = await asyncio.get_running_loop().sock_recv(sock, RESPONSE_BYTES_MAX)
        if not block:
            raise TemporaryError(f"peer {where} closed the connection")
        head += block
    status, *fields = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    if status.split(" ")[1:2] != ["101"] or headers.get("upgrade", "").lower() != PROTOCOL:
        raise RemoteProtocolError(f"{where} is not a megalfs node ({status[:60]!r})")
    if not head.endswith(b"\r\n\r\n"):
        raise RemoteProtocolError(f"{where} speaks before it was spoken to")
    try:
        return bytes.fromhex(headers.get(NONCE_HEADER.lower(), ""))
    except ValueError as error:
        raise RemoteProtocolError(f"{where} sent a nonce that is not hex") from error


async def _send(sock: socket.socket, octets: bytes) -> None:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await asyncio.get_running_loop().sock_sendall(sock, octets)
    except OSError as error:
        with contextlib.suppress(OSError):
            sock.close()
        raise TemporaryError(f"the connection broke: {error.strerror or 'timed out'}") from error


async def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < size:
        block = await loop.sock_recv(sock, size - len(received))
        if not block:
            raise TemporaryError("the connection was closed in the middle of a message")
        received += block
    return bytes(received)
