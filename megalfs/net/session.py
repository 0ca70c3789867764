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
from dataclasses import dataclass, field

from megalfs.core.codec import Decoder, encode
from megalfs.core.ids import ManifestId
from megalfs.core.messages import Hello, Message
from megalfs.errors import TemporaryError
from megalfs.formats.hostport import HostPort
from megalfs.net.lanes import ReceiveLane, SendLane, Upload

__all__ = ["CONTROL_QUEUE_BYTES_MAX", "Session", "SessionTotals", "open_control"]

# Haves of a large pull are some hundred bytes a second; a megabyte unread means that the peer is gone.
CONTROL_QUEUE_BYTES_MAX = 4 << 20
READ_BYTES = 256 * 1024


@dataclass(slots=True)
class SessionTotals:
    """Bytes of pieces, verified in and sent out, and pieces refused as wrong."""

    bytes_in: int = 0
    bytes_out: int = 0
    rejected_count: int = 0


@dataclass(eq=False)
class Session:
    """One peer. Created after the handshake; owned by the event loop.

    Attributes:
        id: the number by which the core knows this session.
        name: `host:port` as people know the peer: what was dialled, or where it says it listens.
        is_dialer: whether we opened the connections.
        dialled: what we dialled, when we did.
        address: where others may dial the peer, as far as we know; None for one that does not listen.
    """

    id: int
    name: str
    hello: Hello
    session_key: bytes
    is_dialer: bool
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    dialled: tuple[str, int] | None = None
    address: HostPort | None = None
    totals: SessionTotals = field(default_factory=SessionTotals)
    uploads: queue.SimpleQueue[Upload | None] = field(default_factory=queue.SimpleQueue)
    receive_lanes: set[ReceiveLane] = field(default_factory=set)
    send_lanes: set[SendLane] = field(default_factory=set)
    lanes_wanted: int = 0
    joins_sent: set[ManifestId] = field(default_factory=set)
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
        self.writer.write(frame)
        transport = self.writer.transport
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
        decoder = Decoder()
        while not self.is_closed:
            try:
                block = await self.reader.read(READ_BYTES)
            except OSError as error:
                raise TemporaryError(f"the connection broke: {error.strerror or error}") from error
            if not block:
                return
            for message in decoder.feed(block):
                received(self, message)

    def close(self, reason: str) -> None:
        """Ends the session and all its lanes at once."""
        if self.is_closed:
            return
        self.closed.set()
        self.closing_reason = reason
        self.writer.transport.abort()
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


async def open_control(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Hands a connected socket to the event loop."""
    sock.setblocking(False)
    return await asyncio.open_connection(sock=sock)
