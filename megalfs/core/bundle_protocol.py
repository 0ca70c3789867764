"""A bundle over one stream of a link, for peers whose swarm port cannot be reached.

    -> Request  u8 1, 32 bytes oid[, u32 index]      of the first chunk that is wanted; left out where it is 0
    <- Start    u8 2, u64 size, name                 of the whole bundle
    <- Chunk    u8 3, u32 index, at most 64 KiB      each full but the last, in their order
    <- Done     u8 4, 32 bytes SHA-256               of the whole bundle

Chunks come in order on one stream, so there is nothing to seek and nothing to leave out. What came before a
break is kept, and the next request names the chunk to go on with, to whichever peer it goes. The name is for
people; the oid that was asked for is what all of the bytes must hash to, whatever `Done` says.
"""

from __future__ import annotations

import hashlib
import struct
from typing import assert_never

from msgspec import Struct

from megalfs.core.ids import DIGEST_BYTES, Oid
from megalfs.errors import IntegrityError, RemoteProtocolError

__all__ = [
    "CHUNK_BYTES",
    "BundleReceiver",
    "Chunk",
    "Done",
    "Message",
    "Request",
    "Start",
    "decode",
    "encode",
]

CHUNK_BYTES = 64 << 10
NAME_BYTES_MAX = 255
_REQUEST, _START, _CHUNK, _DONE = range(1, 5)
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")


class Request(Struct, frozen=True, gc=False):
    """Asks for one bundle, or for what follows the chunks that are here."""

    oid: Oid
    first: int = 0


class Start(Struct, frozen=True, gc=False):
    """How long it is."""

    size: int
    name: str


class Chunk(Struct, frozen=True, gc=False):
    """The piece at index x 64 KiB."""

    index: int
    content: bytes


class Done(Struct, frozen=True, gc=False):
    """That was all."""

    sha256: Oid


Message = Request | Start | Chunk | Done


def encode(message: Message) -> bytes:
    """One frame."""
    match message:
        case Request(oid, first):
            return bytes((_REQUEST,)) + oid.raw + (_U32.pack(first) if first else b"")
        case Start(size, name):
            return bytes((_START,)) + _U64.pack(size) + name.encode()[:NAME_BYTES_MAX]
        case Chunk(index, content):
            return bytes((_CHUNK,)) + _U32.pack(index) + content
        case Done(sha256):
            return bytes((_DONE,)) + sha256.raw
        case _:
            assert_never(message)


def decode(frame: bytes) -> Message:
    """Reads `encode`.

    Raises:
        RemoteProtocolError: anything else.
    """
    kind, body = frame[0] if frame else 0, frame[1:]
    if kind == _REQUEST and len(body) in {DIGEST_BYTES, DIGEST_BYTES + _U32.size}:
        first = body[DIGEST_BYTES:]
        return Request(Oid(body[:DIGEST_BYTES]), _U32.unpack(first)[0] if first else 0)
    if kind == _START and _U64.size <= len(body) <= _U64.size + NAME_BYTES_MAX:
        return Start(_U64.unpack_from(body)[0], body[_U64.size :].decode(errors="replace"))
    if kind == _CHUNK and _U32.size < len(body) <= _U32.size + CHUNK_BYTES:
        return Chunk(_U32.unpack_from(body)[0], body[_U32.size :])
    if kind == _DONE and len(body) == DIGEST_BYTES:
        return Done(Oid(body))
    raise RemoteProtocolError(f"no message of a bundle transfer: {frame[:16].hex()}, {len(frame)} bytes")


class BundleReceiver:
    """Takes the answer to one request; whatever is out of order, too long or of other bytes ends it."""

    def __init__(self, oid: Oid, size: int) -> None:
        self.received = 0
        self._oid = oid
        self._size = size
        self._hash = hashlib.sha256()
        self._index: int | None = None  # of the chunk that must come next, once the answer has begun
        self.is_done = False

    def resume(self, kept: bytes) -> None:
        """Takes full chunks that an answer before this one brought; they are proven with all the others."""
        assert self._index is None
        assert len(kept) % CHUNK_BYTES == 0
        self._take(kept)

    @property
    def request(self) -> Request:
        """What to ask for."""
        return Request(self._oid, self.received // CHUNK_BYTES)

    def feed(self, message: Message) -> bytes:
        """The bytes to append; none with `Start` and `Done`.

        Raises:
            RemoteProtocolError: not what must come now.
            IntegrityError: the bundle is complete, and is another one.
        """
        match message:
            case Start(size) if self._index is None:
                if size != self._size:
                    raise RemoteProtocolError(f"a bundle of {size} bytes instead of {self._size}")
                self._index = self.request.first
                return b""
            case Chunk(index, content) if index == self._index and not self.is_done:
                full = min(CHUNK_BYTES, self._size - self.received)
                if len(content) != full:
                    raise RemoteProtocolError(f"chunk {index} has {len(content)} bytes instead of {full}")
                self._take(content)
                self._index += 1
                return content
            case Done() if self._index is not None and self.received == self._size and not self.is_done:
                if self._hash.digest() != self._oid.raw:
                    raise IntegrityError(f"the bundle that came is not {self._oid}")
                self.is_done = True
                return b""
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} does not come now")

    def _take(self, content: bytes) -> None:
        self._hash.update(content)
        self.received += len(content)
