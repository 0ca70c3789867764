"""Data connections: one blocking thread each, bulk in one direction only.

A data connection carries nothing but DATA headers and raw bytes, so control (on its own connection) never
queues behind bulk. The receiving lane is header -> `Receiver` -> disk; the sending lane is queue ->
`sendfile`. Both live until their socket is shut, which is also how the event loop ends a stalled one.
"""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from megalfs.core.codec import encode
from megalfs.core.ids import ManifestId
from megalfs.core.messages import Data
from megalfs.errors import MegalfsError, RemoteProtocolError, StoreError, TemporaryError
from megalfs.net.framing import read_frame
from megalfs.net.limiter import Limiter
from megalfs.net.sinks import GRANULE_BYTES, GranuleBuffer, Progress, Receiver, Sink
from megalfs.net.sockets import abort, receive_exactly, set_receive_timeout

__all__ = ["ReceiveLane", "SendLane", "Upload", "UploadSource"]

SEND_BLOCK_BYTES = 4 << 20


class UploadSource(Protocol):
    """An open file that pieces are served from."""

    def fileno(self) -> int:
        """The descriptor to send from."""

    def check(self) -> None:
        """Raises StoreError when the file is no longer the one whose chunks were verified."""

    def spoil(self) -> None:
        """The disk could not read it, or read other bytes: every later `check` raises."""


class Upload(Struct, frozen=True):
    """One run to send: where its bytes lie, what goes before them, and who wants to know when they are out."""

    manifest_id: ManifestId
    first: int
    count: int
    offset: int
    size: int
    source: UploadSource
    proof: Callable[[int], bytes]
    served: Callable[[bool], None]


class ReceiveLane(threading.Thread):
    """Receives runs from one peer over one data connection until the socket ends."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        sink_of: Callable[[ManifestId], Sink | None],
        arriving: Callable[[ManifestId, int, int], None],
        progress: Progress,
        limiter: Limiter,
        closed: Callable[[ReceiveLane, MegalfsError | None], None],
    ) -> None:
        super().__init__(name="megalfs-receive", daemon=True)
        self.sock = sock
        self._sink_of = sink_of
        self._arriving = arriving
        self._progress = progress
        self._limiter = limiter
        self._closed = closed
        self._stop = threading.Event()

    def run(self) -> None:
        self.sock.setblocking(True)
        set_receive_timeout(self.sock)
        buffer = GranuleBuffer()
        receiver = Receiver(buffer, self._progress)
        error: MegalfsError | None = None
        try:
            while self._receive_run(receiver, buffer):
                pass
        except MegalfsError as caught:
            error = caught
        finally:
            self.sock.close()
            buffer.close()
            self._closed(self, error)

    def shut(self) -> None:
        """Ends the lane from another thread."""
        self._stop.set()
        abort(self.sock)

    def _receive_run(self, receiver: Receiver, buffer: GranuleBuffer) -> bool:
        message = read_frame(self.sock)
        if not isinstance(message, Data):
            raise RemoteProtocolError("something that is not data came on a data connection")
        sink = self._sink_of(message.manifest)
        if sink is None or sink.is_closed():
            self._discard(message.size, buffer)
            return True
        parts = sink.manifest.parts
        if message.first + message.count > parts.count:
            raise RemoteProtocolError(f"data for piece {message.first + message.count} of {parts.count}")
        proof_bytes = parts.proof_bytes(message.first, message.count)
        if message.size != parts.extent(message.first, message.count)[1] + proof_bytes:
            raise RemoteProtocolError("data of another length than its pieces have")
        # At once, for small runs too: one that has not begun may be taken from its peer and asked elsewhere.
        self._arriving(message.manifest, message.first, message.count)
        return receiver.receive(self._fill, sink, message.first, message.count)

    def _fill(self, view: memoryview, progressed: Callable[[int], None]) -> None:
        self._limiter.wait(len(view), self._stop)
        receive_exactly(self.sock, view, progressed)

    def _discard(self, size: int, buffer: GranuleBuffer) -> None:
        while size:
            count = min(size, len(buffer.view))
            self._fill(buffer.view[:count], ignore)
            size -= count


class SendLane(threading.Thread):
    """Sends the runs of one session's queue over one data connection."""

    def __init__(
        self,
        sock: socket.socket,
        uploads: queue.SimpleQueue[Upload | None],
        *,
        limiter: Limiter,
        closed: Callable[[SendLane, MegalfsError | None], None],
    ) -> None:
        super().__init__(name="megalfs-send", daemon=True)
        self.sock = sock
        self._uploads = uploads
        self._limiter = limiter
        self._closed = closed
        self._stop = threading.Event()

    def run(self) -> None:
        self.sock.setblocking(True)
        error: MegalfsError | None = None
        try:
            while not self._stop.is_set() and (upload := self._uploads.get()) is not None:
                self._send(upload)
        except MegalfsError as caught:
            error = caught
        finally:
            self.sock.close()
            self._closed(self, error)

    def shut(self) -> None:
        """Ends the lane from another thread; the caller also queues one None for a lane that waits."""
        self._stop.set()
        abort(self.sock)

    def _send(self, upload: Upload) -> None:
        is_sent = False
        try:
            upload.source.check()
            proof = upload.proof(upload.source.fileno())
            header = encode(Data(upload.manifest_id, upload.first, upload.count, len(proof) + upload.size))
            self.sock.sendall(header + proof, getattr(socket, "MSG_MORE", 0))
            self._send_file(upload)
            upload.source.check()
            is_sent = True
        except StoreError:
            # The file changed while it was sent, or was not what it should be: no clean end, so that the other
            # side discards the run instead of blaming us for bytes that the user edited.
            upload.source.spoil()
            abort(self.sock)
            raise
        except OSError as error:
            if error.errno == errno.EIO:  # of the file: no socket says so
                upload.source.spoil()
            raise TemporaryError(f"the connection broke: {error.strerror or error}") from error
        finally:
            upload.served(is_sent)

    def _send_file(self, upload: Upload) -> None:
        offset, end = upload.offset, upload.offset + upload.size
        block_bytes = SEND_BLOCK_BYTES if self._limiter.rate is None else GRANULE_BYTES // 8
        while offset < end:
            wanted = min(block_bytes, end - offset)
            if offset + wanted == end:
                upload.source.check()  # while the last block is still ours to hold back
            self._limiter.wait(wanted, self._stop)
            sent = os.sendfile(self.sock.fileno(), upload.source.fileno(), offset, wanted)
            if sent == 0:
                raise StoreError("the file ended before its pieces did")
            offset += sent


def ignore(_: int) -> None:
    """Nobody waits for bytes that are thrown away."""
