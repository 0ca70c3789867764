"""Our state about one connected peer: its control connection, and the data lanes that belong to it.

The dialling side opens every connection of a session, in both data directions, so a peer behind NAT serves as
well as any: it is asked by OpenData to dial the lanes on which it sends. Control frames are written by the
event loop only and are small; a peer that does not read them is dropped when its queue is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
from collections.abc import Callable
from functools import partial

from msgspec import Struct, field

from megalfs.core.codec import Decoder, encode
from megalfs.core.ids import ManifestId
from megalfs.core.messages import Hello, Message
from megalfs.errors import MegalfsError, TemporaryError
from megalfs.formats.hostport import HostPort
from megalfs.net.lanes import ReceiveLane, SendLane, Upload

__all__ = ["CONTROL_QUEUE_BYTES_MAX", "Control", "Session", "SessionTotals", "open_control"]

# Haves of a large pull are some hundred bytes a second; a megabyte unread means that the peer is gone.
CONTROL_QUEUE_BYTES_MAX = 4 << 20


class SessionTotals(Struct):
    """Bytes of pieces, verified in and sent out, and pieces refused as wrong."""

    bytes_in: int = 0
    bytes_out: int = 0
    rejected_count: int = 0


class Control(asyncio.Protocol):
    """The control connection: what comes is taken where the loop reads it, with no task and no stream reader
    between the two, since a node with fifteen peers hears hundreds of small frames a second.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._received: Callable[[Message], None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def read(self, received: Callable[[Message], None]) -> None:
        """Feeds every message to `received` until the connection ends.

        Raises:
            OSError: the connection broke.
            MegalfsError: of the decoder, or of `received`; then nothing more is read.
        """
        self._received = received
        self.transport.resume_reading()
        await self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.pause_reading()  # until somebody reads

    def data_received(self, data: bytes) -> None:
        assert self._received is not None
        try:
            for message in self._decoder.feed(data):
                if self.transport.is_closing():
                    return
                self._received(message)
        except MegalfsError as error:
            self._end(error)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc if self._received is not None else None)  # nobody waits for the end of an unread one

    def _end(self, error: Exception | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


class Session(Struct, eq=False):
    """One peer. Created after the handshake; owned by the event loop.

    Attributes:
        id: the number by which the core knows this session.
        name: `host:port` as people know the peer: what was dialled, or where it says it listens.
        is_dialer: whether we opened the connections.
        dialled: what we dialled, when we did.
        source: where the peer came from, when it dialled us, with the port that it says it listens on.
        joins_sent: what we take part in, as far as the peer knows; each is set once the peer does not.
        address: where others may dial the peer, as far as we know; None for one that does not listen.
    """

    id: int
    name: str
    hello: Hello
    session_key: bytes
    is_dialer: bool
    control: Control
    dialled: tuple[str, int] | None = None
    source: tuple[str, int] | None = None
    address: HostPort | None = None
    totals: SessionTotals = field(default_factory=SessionTotals)
    uploads: queue.SimpleQueue[Upload | None] = field(default_factory=queue.SimpleQueue)
    receive_lanes: set[ReceiveLane] = field(default_factory=set)
    send_lanes: set[SendLane] = field(default_factory=set)
    lanes_wanted: int = 0
    joins_sent: dict[ManifestId, asyncio.Event] = field(default_factory=dict)
    joined: set[ManifestId] = field(default_factory=set)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    closing_reason: str = ""

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended."""
        return self.closed.is_set()

    def send(self, message: Message) -> None:
        """Queues one control message; a peer that reads nothing is closed."""
        self.send_encoded(encode(message))

    def send_encoded(self, frame: bytes) -> None:
        """As `send`, for news that many peers get: encoded once."""
        if self.is_closed:
            return
        transport = self.control.transport
        transport.write(frame)
        if transport.get_write_buffer_size() > CONTROL_QUEUE_BYTES_MAX:
            self.close("does not read what it is sent")

    def upload(self, upload: Upload) -> None:
        """Queues one run for the sending lanes."""
        if self.is_closed:
            upload.served(False)
        else:
            self.uploads.put(upload)

    async def read(self, received: Callable[[Session, Message], None]) -> None:
        """Feeds every control message to `received` until the connection ends.

        Raises:
            RemoteProtocolError: the peer broke the protocol.
            TemporaryError: the connection broke.
        """
        try:
            await self.control.read(partial(received, self))
        except OSError as error:
            raise TemporaryError(f"the connection broke: {error.strerror or error}") from error

    def close(self, reason: str) -> None:
        """Ends the session and all its lanes at once."""
        if self.is_closed:
            return
        self.closed.set()
        self.closing_reason = reason
        self.control.transport.abort()
        for lane in self.receive_lanes:
            lane.shut()
        for sender in self.send_lanes:
            sender.shut()
        self._drop_uploads()
        for _ in self.send_lanes:
            self.uploads.put(None)

    def _drop_uploads(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                upload = self.uploads.get_nowait()
                if upload is not None:
                    upload.served(False)


async def open_control(sock: socket.socket) -> Control:
    """Hands a connected socket to the event loop."""
    _, control = await asyncio.get_running_loop().create_connection(Control, sock=sock)
    return control
