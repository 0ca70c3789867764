"""One frame at a time from a blocking socket; the codec itself is pure and lives in the core."""

from __future__ import annotations

import socket

from megalfs.core.codec import FRAME_BYTES_MAX, Decoder
from megalfs.core.messages import Message
from megalfs.errors import RemoteProtocolError
from megalfs.net.sockets import receive_exactly

__all__ = ["read_frame"]


def read_frame(sock: socket.socket) -> Message:
    """Reads exactly one message, and nothing after it.

    Raises:
        TemporaryError: the connection ended.
        RemoteProtocolError: the frame is too long, empty, or of an unknown type.
    """
    head = bytearray(4)
    receive_exactly(sock, memoryview(head))
    size = int.from_bytes(head, "big")
    if not 0 < size <= FRAME_BYTES_MAX:
        raise RemoteProtocolError(f"a frame of {size} bytes")
    body = bytearray(size)
    receive_exactly(sock, memoryview(body))
    messages = Decoder().feed(bytes(head + body))
    if len(messages) != 1:
        raise RemoteProtocolError("a frame of unknown type where one was expected")
    return messages[0]
