"""Messages as frames: u32 length of what follows, u8 type, payload; all numbers big-endian.

A `Decoder` takes bytes in any split and gives messages. Every length is checked before it is used, every
payload must be consumed exactly, and whatever a hostile peer sends ends in `RemoteProtocolError` and
nothing else; after that the decoder stays in error. Types that we do not know are skipped, so a later
version may add some.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import assert_never

from megalfs.core.bitfield import Run
from megalfs.core.ids import DIGEST_BYTES, ManifestId, Oid
from megalfs.core.messages import (
    CancelRequest,
    Credit,
    Data,
    Expecting,
    Granting,
    HaveAll,
    HaveRuns,
    Hello,
    Join,
    Leave,
    Lost,
    Message,
    OpenData,
    PeerAddress,
    Peers,
    Ping,
    Pong,
    Reject,
    RejectReason,
    Request,
    Role,
)
from megalfs.core.topology import Labels
from megalfs.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "DATA_FRAME_BYTES",
    "FRAME_BYTES_MAX",
    "HAVE_RUNS_MAX",
    "OPEN_DATA_MAX",
    "PEERS_MAX",
    "PROTOCOL_VERSION",
    "TEXT_BYTES_MAX",
    "Decoder",
    "encode",
]

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 1 << 20  # the largest of ours is 64 KiB; the rest is room for unknown types
HAVE_RUNS_MAX = 8192  # 64 KiB; 140 GB in runs of 16 MiB are 8,400
PEERS_MAX = 50  # as many as one tracker answer
OPEN_DATA_MAX = 16
TEXT_BYTES_MAX = 253  # the longest DNS name
CREDIT_MAX = 1024
SESSION_BYTES = 16
INSTANCE_BYTES = 16
KEY_BYTES = 32
SIGNATURE_BYTES = 64
PIECES_MAX = (1 << 32) - 1

_HEAD = struct.Struct(">IB")
_RUN = struct.Struct(">II")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_DATA = struct.Struct(">IIQ")
_REJECT = struct.Struct(">IIB")

DATA_FRAME_BYTES = _HEAD.size + DIGEST_BYTES + _DATA.size
"""Length of a whole `Data` frame: a data connection may read exactly this much, then the raw bytes."""

_HELLO, _JOIN, _LEAVE, _HAVE_RUNS, _HAVE_ALL, _GRANTING, _LOST = range(1, 8)
_REQUEST, _CANCEL, _REJECT_TYPE, _CREDIT, _OPEN_DATA, _PEERS, _PING, _PONG, _DATA_TYPE, _EXPECTING = range(
    8, 18
)


def encode(message: Message) -> bytes:
    """One whole frame.

    Raises:
        LocalProtocolError: the message is longer than the protocol allows.
    """
    kind, payload = _payload(message)
    if 1 + len(payload) > FRAME_BYTES_MAX:
        raise LocalProtocolError(f"frame of {len(payload)} bytes: {type(message).__name__}")
    return _HEAD.pack(1 + len(payload), kind) + payload


def _payload(message: Message) -> tuple[int, bytes]:  # noqa: PLR0911, PLR0912 - one arm a message reads best
    match message:
        case HaveRuns(manifest, runs):
            return _HAVE_RUNS, manifest.raw + _pack_runs(runs)
        case Request(manifest, first, count):
            return _REQUEST, manifest.raw + _RUN.pack(first, count)
        case Data(manifest, first, count, size):
            return _DATA_TYPE, manifest.raw + _DATA.pack(first, count, size)
        case Credit(manifest, count):
            return _CREDIT, manifest.raw + _U32.pack(count)
        case CancelRequest(manifest, first, count):
            return _CANCEL, manifest.raw + _RUN.pack(first, count)
        case Reject(manifest, first, count, reason):
            return _REJECT_TYPE, manifest.raw + _REJECT.pack(first, count, reason)
        case HaveAll(manifest):
            return _HAVE_ALL, manifest.raw
        case Granting(manifest):
            return _GRANTING, manifest.raw
        case Expecting(manifest, runs):
            return _EXPECTING, manifest.raw + _pack_runs(runs)
        case Lost(manifest, runs):
            return _LOST, manifest.raw + _pack_runs(runs)
        case Join(manifest, oid, piece_count, is_seeder):
            return _JOIN, manifest.raw + oid.raw + _U32.pack(piece_count) + bytes([is_seeder])
        case Leave(manifest):
            return _LEAVE, manifest.raw
        case Hello():
            return _HELLO, _pack_hello(message)
        case OpenData(count):
            return _OPEN_DATA, bytes([count])
        case Peers(manifest, peers):
            return _PEERS, manifest.raw + _pack_peers(peers)
        case Ping(nonce):
            return _PING, _U64.pack(nonce)
        case Pong(nonce):
            return _PONG, _U64.pack(nonce)
        case _:
            assert_never(message)


def _pack_runs(runs: tuple[Run, ...]) -> bytes:
    if len(runs) > HAVE_RUNS_MAX:
        raise LocalProtocolError(f"{len(runs)} runs in one frame")
    return b"".join([_RUN.pack(first, count) for first, count in runs])


def _pack_text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > TEXT_BYTES_MAX or not (text.isprintable() or not text):
        raise LocalProtocolError(f"text cannot be sent: {text[:80]!r}")
    return bytes([len(raw)]) + raw


def _pack_hello(hello: Hello) -> bytes:
    fixed = (
        (hello.session, SESSION_BYTES),
        (hello.instance, INSTANCE_BYTES),
        (hello.key, KEY_BYTES),
        (hello.signature, SIGNATURE_BYTES),
    )
    if any(len(raw) != size for raw, size in fixed):
        raise LocalProtocolError("a field of hello has the wrong length")
    labels = hello.labels
    texts = [_pack_text(text) for text in (hello.advertise, labels.host, labels.rack, labels.zone)]
    return b"".join(
        [
            _U16.pack(hello.version),
            bytes([hello.role]),
            *[raw for raw, _ in fixed],
            _U16.pack(hello.port),
            *texts,
            _U32.pack(hello.flags),
        ]
    )


def _pack_peers(peers: tuple[PeerAddress, ...]) -> bytes:
    if len(peers) > PEERS_MAX:
        raise LocalProtocolError(f"{len(peers)} peers in one frame")
    return b"".join([_pack_text(peer.host) + _U16.pack(peer.port) + peer.instance for peer in peers])


class _Payload:
    """The bytes of one frame, taken from the front; asking for more than there is names the peer's fault."""

    __slots__ = ("_at", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise RemoteProtocolError(f"frame ends early: {size} bytes wanted, {self.left} there")
        part = self._raw[self._at : self._at + size]
        self._at += size
        return part

    def end(self) -> None:
        if self.left:
            raise RemoteProtocolError(f"{self.left} bytes too many in a frame")

    def u8(self) -> int:
        return self.take(1)[0]

    def number(self, form: struct.Struct) -> int:
        value: int = form.unpack(self.take(form.size))[0]
        return value

    def manifest(self) -> ManifestId:
        return _manifest_id(self.take(DIGEST_BYTES))

    def run(self) -> Run:
        first, count = _RUN.unpack(self.take(_RUN.size))
        return _checked_run(first, count)

    def runs(self) -> tuple[Run, ...]:
        size = self.left
        if size % _RUN.size or size > HAVE_RUNS_MAX * _RUN.size:
            raise RemoteProtocolError(f"{size} bytes of runs")
        return tuple(_checked_run(first, count) for first, count in _RUN.iter_unpack(self.take(size)))

    def text(self) -> str:
        size = self.u8()
        if size > TEXT_BYTES_MAX:
            raise RemoteProtocolError(f"text of {size} bytes")
        raw = self.take(size)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(f"text is not UTF-8: {raw[:80]!r}") from error
        if text and not text.isprintable():
            raise RemoteProtocolError(f"text is not printable: {text[:80]!r}")
        return text

    def boolean(self) -> bool:
        value = self.u8()
        if value > 1:
            raise RemoteProtocolError(f"neither true nor false: {value}")
        return value == 1


# Nearly every frame of a session names the same manifest.
_manifest_id = lru_cache(maxsize=64)(ManifestId)


def _checked_run(first: int, count: int) -> Run:
    if count < 1 or first > PIECES_MAX - count:
        raise RemoteProtocolError(f"no run: {count} pieces from {first}")
    return Run(first, count)


def _read_hello(payload: _Payload) -> Hello:
    version, role = payload.number(_U16), payload.u8()
    if role not in (Role.CONTROL, Role.FETCH, Role.SERVE):
        raise RemoteProtocolError(f"unknown role {role}")
    return Hello(
        version,
        Role(role),
        session=payload.take(SESSION_BYTES),
        instance=payload.take(INSTANCE_BYTES),
        key=payload.take(KEY_BYTES),
        signature=payload.take(SIGNATURE_BYTES),
        port=payload.number(_U16),
        advertise=payload.text(),
        labels=Labels(host=payload.text(), rack=payload.text(), zone=payload.text()),
        flags=payload.number(_U32),
    )


def _read_join(payload: _Payload) -> Join:
    manifest, oid = payload.manifest(), Oid(payload.take(DIGEST_BYTES))
    return Join(manifest, oid, payload.number(_U32), payload.boolean())


def _read_reject(payload: _Payload) -> Reject:
    manifest, run, reason = payload.manifest(), payload.run(), payload.u8()
    if reason not in set(RejectReason):
        raise RemoteProtocolError(f"unknown reason to reject: {reason}")
    return Reject(manifest, run.first, run.count, RejectReason(reason))


def _read_credit(payload: _Payload) -> Credit:
    manifest, count = payload.manifest(), payload.number(_U32)
    return Credit(manifest, _within(count, 1, CREDIT_MAX, "credit"))


def _read_peers(payload: _Payload) -> Peers:
    manifest = payload.manifest()
    peers: list[PeerAddress] = []
    while payload.left:
        _within(len(peers) + 1, 1, PEERS_MAX, "number of peers")
        peers.append(PeerAddress(payload.text(), payload.number(_U16), payload.take(INSTANCE_BYTES)))
    return Peers(manifest, tuple(peers))


def _read_data(payload: _Payload) -> Data:
    manifest, run, size = payload.manifest(), payload.run(), payload.number(_U64)
    return Data(manifest, run.first, run.count, size)


def _within(value: int, low: int, high: int, what: str) -> int:
    if not low <= value <= high:
        raise RemoteProtocolError(f"{what} out of range: {value}")
    return value


_READERS: dict[int, Callable[[_Payload], Message]] = {
    _HELLO: _read_hello,
    _JOIN: _read_join,
    _LEAVE: lambda payload: Leave(payload.manifest()),
    _HAVE_RUNS: lambda payload: HaveRuns(payload.manifest(), payload.runs()),
    _HAVE_ALL: lambda payload: HaveAll(payload.manifest()),
    _GRANTING: lambda payload: Granting(payload.manifest()),
    _EXPECTING: lambda payload: Expecting(payload.manifest(), payload.runs()),
    _LOST: lambda payload: Lost(payload.manifest(), payload.runs()),
    _REQUEST: lambda payload: Request(payload.manifest(), *payload.run()),
    _CANCEL: lambda payload: CancelRequest(payload.manifest(), *payload.run()),
    _REJECT_TYPE: _read_reject,
    _CREDIT: _read_credit,
    _OPEN_DATA: lambda payload: OpenData(_within(payload.u8(), 1, OPEN_DATA_MAX, "data connections")),
    _PEERS: _read_peers,
    _PING: lambda payload: Ping(payload.number(_U64)),
    _PONG: lambda payload: Pong(payload.number(_U64)),
    _DATA_TYPE: _read_data,
}


class Decoder:
    """Turns bytes, in whatever pieces they come, into messages.

    It stops after a `Data` header, because what follows is not a frame; `take_trailing` gives that rest.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._error: RemoteProtocolError | None = None

    def feed(self, received: bytes | bytearray | memoryview) -> list[Message]:
        """Takes bytes and returns the messages that are complete.

        Raises:
            RemoteProtocolError: the bytes break the protocol, now or in an earlier call.
        """
        if self._error is not None:
            raise self._error
        self._buffer += received
        try:
            return self._messages()
        except RemoteProtocolError as error:
            self._error = error
            self._buffer.clear()
            raise

    def take_trailing(self) -> bytes:
        """What came after the last frame read, removed from here."""
        trailing = bytes(self._buffer)
        self._buffer.clear()
        return trailing

    def _messages(self) -> list[Message]:
        messages: list[Message] = []
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._buffer, at)
            if not 1 <= length <= FRAME_BYTES_MAX:
                raise RemoteProtocolError(f"frame of {length} bytes")
            end = at + _U32.size + length
            if len(self._buffer) < end:
                break
            message = _decode(kind, bytes(self._buffer[at + _HEAD.size : end]))
            at = end
            if message is not None:
                messages.append(message)
            if isinstance(message, Data):
                break
        del self._buffer[:at]
        return messages


def _decode(kind: int, raw: bytes) -> Message | None:
    reader = _READERS.get(kind)
    if reader is None:
        return None
    payload = _Payload(raw)
    message = reader(payload)
    payload.end()
    return message
