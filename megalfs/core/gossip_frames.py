"""What neighbours say to each other, one message a frame of a link: u8 type, then

    1 announce  u8 times that it may still be relayed, 64 bytes signature, payload
    2 digest    32 bytes: everything that this node knows, but for who is there; u32 milliseconds to the next one
    3 have      (32 bytes key, 32 bytes digest of what is known of that key), at least one
    4 want      (32 bytes key), at least one

Whatever else a neighbour sends is a `RemoteProtocolError`; unknown types are None, so that more may come.
"""

from __future__ import annotations

from typing import assert_never

from msgspec import Struct

from megalfs.core.announcements import PAYLOAD_BYTES_MAX
from megalfs.core.identity import KEY_BYTES, NodeKey
from megalfs.core.signing import SIGNATURE_BYTES
from megalfs.errors import RemoteProtocolError

__all__ = ["KEYS_MAX", "TTL_MAX", "Announce", "Digest", "Frame", "Have", "Want", "decode", "encode"]

TTL_MAX = 64
KEYS_MAX = 512  # of one frame: 32 KiB
DIGEST_BYTES = 32
_ANNOUNCE, _DIGEST, _HAVE, _WANT = range(1, 5)
_ANNOUNCE_HEAD = 2 + SIGNATURE_BYTES


class Announce(Struct, frozen=True, gc=False):
    """An announcement, not yet believed."""

    ttl: int
    signature: bytes
    payload: bytes


class Digest(Struct, frozen=True, gc=False):
    """All that a node knows, in one number; a neighbour that misses several in a row is gone."""

    digest: bytes
    interval_ms: int


class Have(Struct, frozen=True, gc=False):
    """What a node knows of some keys, a number each."""

    digests: tuple[tuple[NodeKey, bytes], ...]


class Want(Struct, frozen=True, gc=False):
    """Asks for everything that is known of some keys."""

    keys: tuple[NodeKey, ...]


Frame = Announce | Digest | Have | Want


def encode(frame: Frame) -> bytes:
    """One frame."""
    match frame:
        case Announce(ttl, signature, payload):
            return bytes((_ANNOUNCE, ttl)) + signature + payload
        case Digest(digest, interval_ms):
            return bytes((_DIGEST,)) + digest + interval_ms.to_bytes(4, "big")
        case Have(digests):
            return bytes((_HAVE,)) + b"".join(key.raw + digest for key, digest in digests)
        case Want(keys):
            return bytes((_WANT,)) + b"".join(key.raw for key in keys)
        case _:
            assert_never(frame)


def decode(frame: bytes) -> Frame | None:
    """Reads `encode`; None for a type that a later version may know.

    Raises:
        RemoteProtocolError: anything else.
    """
    kind, body = frame[:1], frame[1:]
    if kind == bytes((_ANNOUNCE,)):
        if not _ANNOUNCE_HEAD < len(frame) <= _ANNOUNCE_HEAD + PAYLOAD_BYTES_MAX or frame[1] > TTL_MAX:
            raise RemoteProtocolError(f"an announcement of {len(frame)} bytes")
        return Announce(frame[1], frame[2:_ANNOUNCE_HEAD], frame[_ANNOUNCE_HEAD:])
    if kind == bytes((_DIGEST,)):
        if len(body) != DIGEST_BYTES + 4:
            raise RemoteProtocolError(f"a digest of {len(body)} bytes")
        return Digest(body[:DIGEST_BYTES], int.from_bytes(body[DIGEST_BYTES:], "big"))
    if kind == bytes((_HAVE,)):
        return Have(tuple((NodeKey(each[:KEY_BYTES]), each[KEY_BYTES:]) for each in _parts(body, 64)))
    if kind == bytes((_WANT,)):
        return Want(tuple(NodeKey(each) for each in _parts(body, KEY_BYTES)))
    if not kind:
        raise RemoteProtocolError("an empty frame")
    return None


def _parts(body: bytes, size: int) -> list[bytes]:
    count = len(body) // size
    if len(body) % size or not 1 <= count <= KEYS_MAX:
        raise RemoteProtocolError(f"a list of {len(body)} bytes")
    return [body[start : start + size] for start in range(0, len(body), size)]
