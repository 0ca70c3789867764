"""A blocking TLS client connection that `http.client` can use, made for bulk.

A record holds 16 KiB, and `ssl.SSLSocket` takes two system calls and five Python frames for each: a pull
of 1 GiB over it spent more time in the interpreter than in the cipher. Here the socket is read in large blocks
into a memory BIO, and one call of the file that `http.client` reads takes all records that fit its buffer.
"""

from __future__ import annotations

import io
import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["TlsSocket"]

RECEIVE_BYTES = 256 << 10  # sixteen records a system call


class TlsSocket:
    """What `http.client` wants of a socket, over a connected one. For one thread, but `shutdown`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, hostname: str) -> None:
        """Shakes hands; the socket is closed when that fails.

        Raises:
            OSError: the peer went away, or ssl.SSLError: its certificate is not for `hostname`.
        """
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self._block = memoryview(bytearray(RECEIVE_BYTES))
        try:
            self._shake_hands()
        except OSError:
            sock.close()
            raise

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_pending()
                self._receive()
            else:
                return self._send_pending()

    def _send_pending(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())

    def _receive(self) -> None:
        count = self._sock.recv_into(self._block)
        if count:
            self._incoming.write(self._block[:count])
        else:
            self._incoming.write_eof()

    def read_into(self, view: memoryview) -> int:
        """Fills the view as far as bytes come without waiting for more; at least one, or 0 at the end."""
        got = 0
        try:
            while got < len(view):
                try:
                    # typeshed says bytes, which come where no buffer is given.
                    count: int = self._tls.read(len(view) - got, view[got:])  # type: ignore[assignment]
                except ssl.SSLWantReadError:
                    self._send_pending()  # the answer to a KeyUpdate
                    if got:
                        break
                    self._receive()
                else:
                    if not count:
                        break
                    got += count
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass  # HTTP says itself whether all has come
        return got

    def sendall(self, block: ReadableBuffer) -> None:
        """Sends all of it."""
        self._tls.write(block)
        self._send_pending()

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """The file that a response is read from; the connection stays open until it is closed as well."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self, self._sock.makefile("rb", buffering=0)))

    def shutdown(self, how: int) -> None:
        """Ends the connection under whoever waits for it."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Closes the connection, once no file of it is open."""
        self._sock.close()


class _Reader(io.RawIOBase):
    """The decrypted bytes; keeps the socket open by a file of its own."""

    def __init__(self, tls: TlsSocket, hold: socket.SocketIO) -> None:
        self._tls, self._hold = tls, hold

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._tls.read_into(memoryview(buffer).cast("B"))

    def close(self) -> None:
        self._hold.close()
        super().close()
