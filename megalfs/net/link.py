"""Streams between nodes that know each other by key, whatever carries them.

    carrier = TlsCarrier(...) or QuicCarrier(...)
    link = await carrier.dial(address, key)            the peer reached is `key`, or it fails
    stream = await link.open("git-upload-pack", repo)  our own key is proven here
    listener = await carrier.listen(address, handler)  handler(stream): accept, or refuse with a reason

A stream carries frames both ways: u32 big-endian length, then so many bytes. Three lengths mean something
else: 0, nothing more from this side; 0x8000_0000 + n, n bytes were consumed, send as many more; 0xffff_ffff,
given up. So an end can be said on TLS (which cannot half-close without losing what is under way), and a
sender waits for its reader on QUIC too (aioquic's writer never does).

The client proves its key in its first frame, by signing the server's key, the server's nonce, the service
and the subject; Python's ssl cannot ask for unknown self-signed client certificates. A carrier is a way to
reach a key and two asyncio streams; everything else is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn, Protocol

from megalfs.core import signing
from megalfs.core.identity import KEY_BYTES, NodeKey
from megalfs.core.signing import SIGNATURE_BYTES, SigningKey
from megalfs.errors import (
    BusyError,
    LocalProtocolError,
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    PolicyError,
    RemoteProtocolError,
    TemporaryError,
)
from megalfs.formats.hostport import HostPort

__all__ = [
    "ALPN",
    "FRAME_BYTES_MAX",
    "HANDSHAKE_S_MAX",
    "Carrier",
    "Handler",
    "IsAllowed",
    "Link",
    "Listener",
    "Stream",
    "accept_streams",
    "offer_stream",
    "shown",
    "spki",
    "unreachable",
]

ALPN = "megalfs-link/1"
FRAME_BYTES_MAX = 256 << 10
WINDOW_BYTES = 1 << 20  # what may be under way unread; one 10 ms round trip then carries 100 MB/s
CREDIT_BYTES = WINDOW_BYTES // 4
HANDSHAKE_S_MAX = 10.0
LINGER_S_MAX = 60.0  # a window takes 8 s at 1 Mbit/s
NONCE_BYTES = 32
SUBJECT_BYTES_MAX = 256
REASON_CHARS_MAX = 300
VERSION = 1

_LENGTH = struct.Struct(">I")
_END, _CREDIT, _ABORT = 0, 0x8000_0000, 0xFFFF_FFFF
_SERVICE = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_KIND = "link"
# SubjectPublicKeyInfo of an Ed25519 key is this and its 32 bytes (RFC 8410).
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
# What a server may say no with; another number is read as the first.
_REFUSALS: tuple[type[MegalfsError], ...] = (
    TemporaryError,
    NotFoundError,
    NotAuthorisedError,
    BusyError,
    PolicyError,
)


class Stream:
    """Frames to and from one peer, for one service and subject (a repository, or nothing)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = NodeKey(bytes(KEY_BYTES))
        self.service = ""
        self.subject = ""
        self._reader = reader
        self._writer = writer
        self._frames: deque[bytes] = deque()
        self._buffered = 0
        self._consumed = 0
        self._may_send = WINDOW_BYTES
        self._is_ended = False
        self._has_finished = False
        self._is_gone = False
        self._error: MegalfsError | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read_frames())

    async def receive(self) -> bytes:
        """The next frame; empty when the peer has no more to say.

        Raises:
            TemporaryError: the connection ended before that.
            RemoteProtocolError: the peer broke the protocol.
        """
        while not self._frames:
            if self._is_ended:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        frame = self._frames.popleft()
        self._buffered -= len(frame)
        self._consumed += len(frame)
        if self._consumed >= CREDIT_BYTES and not self._is_ended and self._error is None:
            self._write(_LENGTH.pack(_CREDIT | self._consumed))
            self._consumed = 0
        return frame

    async def send(self, frame: bytes) -> None:
        """Sends one frame, once the peer has room for it.

        Raises:
            TemporaryError: the connection ended.
        """
        if not 0 < len(frame) <= FRAME_BYTES_MAX or self._has_finished:
            raise LocalProtocolError(f"a frame of {len(frame)} bytes cannot be sent now")
        while self._may_send < len(frame):
            if self._error is not None:
                raise self._error
            await self._wait()
        if self._error is not None:
            raise self._error
        self._may_send -= len(frame)
        self._write(_LENGTH.pack(len(frame)) + frame)
        with _mapped():
            await self._writer.drain()

    async def finish(self) -> None:
        """Says that no frame follows; the other direction goes on."""
        if not self._has_finished and self._error is None:
            self._has_finished = True
            self._write(_LENGTH.pack(_END))
            with _mapped():
                await self._writer.drain()

    async def linger(self) -> None:
        """Waits a while until the peer closes, so that closing here does not destroy what it still has to read.

        That it has no more to say is not enough: a socket that is closed while credit comes in is reset, and what
        the kernel had not sent by then is lost.
        """
        with contextlib.suppress(TimeoutError, MegalfsError):
            async with asyncio.timeout(LINGER_S_MAX):
                while self._has_finished and await self.receive():
                    pass
                while self._has_finished and not self._is_gone and self._error is None:
                    await self._wait()

    async def close(self) -> None:
        """Lets go: at once after both sides have finished, else the peer is told that we gave up."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._error is None and not (self._is_ended and self._has_finished):
            self._write(_LENGTH.pack(_ABORT))
        self._error = self._error or TemporaryError("the stream is closed")
        self._changed.set()
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()

    # --- the answer of a server ------------------------------------------------------------------------

    async def accept(self) -> None:
        """Says yes to what was asked for."""
        await self.send(b"\0")

    async def refuse(self, error: MegalfsError) -> None:
        """Says no, and why; the peer raises the same kind of error."""
        kind = next((index for index, each in enumerate(_REFUSALS) if isinstance(error, each)), 0)
        await self.send(bytes((1, kind)) + shown(str(error)).encode()[:REASON_CHARS_MAX])
        await self.finish()

    # --- the inside --------------------------------------------------------------------------------------

    def _write(self, octets: bytes) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the reader's task says why it is gone
            self._writer.write(octets)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _read_frames(self) -> None:
        try:
            while True:
                await self._read_one()
                self._changed.set()
        except asyncio.IncompleteReadError:
            self._leave()
        except (OSError, RuntimeError) as error:
            self._fail(TemporaryError(f"the link broke: {error}"))
        except MegalfsError as error:
            self._fail(error)

    def _leave(self) -> None:
        """The connection ended: well, when both sides had said all."""
        if self._is_ended and self._has_finished:
            self._is_gone = True
            self._changed.set()
        else:
            self._fail(TemporaryError("the peer left"))

    def _fail(self, error: MegalfsError) -> None:
        self._error = error
        self._changed.set()

    async def _read_one(self) -> None:
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        if length == _ABORT:
            raise TemporaryError("the peer gave up")
        if length & _CREDIT:
            self._may_send += length & ~_CREDIT
            if self._may_send > WINDOW_BYTES:
                raise RemoteProtocolError("the peer consumed more than was sent")
        elif self._is_ended:
            raise RemoteProtocolError("a frame after the end")
        elif length == _END:
            self._is_ended = True
        elif length > FRAME_BYTES_MAX or self._buffered + length > WINDOW_BYTES:
            raise RemoteProtocolError(f"a frame of {length} bytes with {self._buffered} unread")
        else:
            frame = await self._reader.readexactly(length)
            self._frames.append(frame)
            self._buffered += length


Handler = Callable[[Stream], Awaitable[None]]
IsAllowed = Callable[[NodeKey], bool]


class Link(Protocol):
    """A connection to one peer, whose key was checked."""

    @property
    def peer(self) -> NodeKey:
        """Whom we reached."""

    async def open(self, service: str, subject: str = "") -> Stream:
        """A stream that the peer accepted; raises what it refused with."""

    async def close(self) -> None:
        """Ends the link and its streams."""


class Listener(Protocol):
    """Somebody who listens."""

    @property
    def address(self) -> HostPort:
        """Where."""

    async def close(self) -> None:
        """Stops listening and ends every stream."""


class Carrier(Protocol):
    """One way to reach nodes by key."""

    async def dial(self, address: HostPort, key: NodeKey) -> Link:
        """Reaches `key` at an address.

        Raises:
            TemporaryError: nobody answers there.
            NotAuthorisedError: somebody else does.
        """

    async def listen(self, address: HostPort, handler: Handler) -> Listener:
        """Hands every stream that a proven and allowed key opens to `handler`; raises BusyError."""


def unreachable(key: NodeKey, address: HostPort, error: Exception, *, protocol: str) -> TemporaryError:
    """Nobody answers at an address; asyncio's own words repeat the address."""
    number = getattr(error, "errno", None)
    reason = os.strerror(number).lower() if number else str(error) or "no answer in time"
    return TemporaryError(f"cannot reach {key.peer_id} at {address} ({protocol}): {reason}")


# --- the handshake -----------------------------------------------------------------------------------------


def spki(key: NodeKey) -> bytes:
    """The SubjectPublicKeyInfo of a node's key: what stands in its certificate."""
    return _SPKI_PREFIX + key.raw


async def offer_stream(
    stream: Stream, private: SigningKey, server: NodeKey, *, service: str, subject: str
) -> None:
    """The client's half: proves our key, names what we want, and waits for the answer.

    Raises:
        MegalfsError: the kind of the server's refusal.
        TemporaryError: the link broke or took too long.
    """
    try:
        async with asyncio.timeout(HANDSHAKE_S_MAX):
            nonce = await stream.receive()
            if len(nonce) != NONCE_BYTES:
                raise RemoteProtocolError("the server sent no nonce")
            stream.peer, stream.service, stream.subject = server, service, subject
            payload = _signed_payload(server, nonce, service, subject)
            public, signature = private.public.raw, signing.sign(private, _KIND, payload)
            await stream.send(bytes((VERSION,)) + public + signature + _named(service, subject))
            answer = await stream.receive()
    except TimeoutError as error:
        raise TemporaryError(f"{server.peer_id} did not answer within {HANDSHAKE_S_MAX:.0f} s") from error
    if answer != b"\0":
        _raise_refusal(answer)


async def accept_streams(stream: Stream, own: NodeKey, is_allowed: IsAllowed, handler: Handler) -> None:
    """The server's half: a nonce, the proof, then the handler; the stream is closed at its end."""
    try:
        async with asyncio.timeout(HANDSHAKE_S_MAX):
            nonce = secrets.token_bytes(NONCE_BYTES)
            await stream.send(nonce)
            _read_offer(stream, await stream.receive(), own, nonce)
        if not is_allowed(stream.peer):
            refusal = NotAuthorisedError(f"this node answers only keys it lists, and not {stream.peer}")
            await stream.refuse(refusal)
            await stream.linger()
            return
        await handler(stream)
        await stream.linger()
    except (MegalfsError, TimeoutError):
        pass  # the peer's doing: it hears of it by the end of the stream
    finally:
        await stream.close()


def _read_offer(stream: Stream, frame: bytes, own: NodeKey, nonce: bytes) -> None:
    """Takes the client's key, service and subject once its signature fits."""
    head = 1 + KEY_BYTES + SIGNATURE_BYTES
    names = frame[head:]
    if len(frame) < head + 3 or frame[0] != VERSION:
        raise RemoteProtocolError("no offer in the first frame")
    service_size = names[0]
    subject_size = int.from_bytes(names[1 + service_size : 3 + service_size], "big")
    if len(names) != 3 + service_size + subject_size or subject_size > SUBJECT_BYTES_MAX:
        raise RemoteProtocolError("an offer of another length than it says")
    try:
        service = names[1 : 1 + service_size].decode("ascii")
        subject = names[3 + service_size :].decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("an offer that is no text") from error
    if not _SERVICE.match(service) or not (subject.isprintable() or not subject):
        raise RemoteProtocolError("an offer with control characters")
    key = NodeKey(frame[1 : 1 + KEY_BYTES])
    payload = _signed_payload(own, nonce, service, subject)
    try:
        signing.verify(key, _KIND, payload, frame[1 + KEY_BYTES : head])
    except PolicyError as error:
        raise RemoteProtocolError("the client does not hold the key it claims") from error
    stream.peer, stream.service, stream.subject = key, service, subject


def _named(service: str, subject: str) -> bytes:
    """Service and subject, each with its length: two pairs never sign the same bytes."""
    raw = subject.encode()
    if not _SERVICE.match(service) or len(raw) > SUBJECT_BYTES_MAX:
        raise LocalProtocolError(f"cannot be asked for: {service!r} {subject[:80]!r}")
    return bytes((len(service),)) + service.encode("ascii") + len(raw).to_bytes(2, "big") + raw


def _signed_payload(server: NodeKey, nonce: bytes, service: str, subject: str) -> bytes:
    return hashlib.sha256(spki(server)).digest() + nonce + _named(service, subject)


def _raise_refusal(answer: bytes) -> NoReturn:
    if len(answer) < 2 or answer[0] != 1:
        raise RemoteProtocolError("the server neither accepted nor refused")
    kind = _REFUSALS[answer[1]] if answer[1] < len(_REFUSALS) else _REFUSALS[0]
    raise kind(shown(answer[2:].decode(errors="replace")))


def shown(text: str) -> str:
    """A stranger's sentence, short and without what a terminal could obey."""
    return "".join(char if char.isprintable() else "?" for char in text[:REASON_CHARS_MAX])


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise TemporaryError(f"the link broke: {error}") from error
