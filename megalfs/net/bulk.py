"""One kept-alive connection to a node that is asked for many small blobs at a time. Blocks; for a thread of its own."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from msgspec import Struct, field

from megalfs.core.bulk import SIZE_BYTES, encode_oids, read_size
from megalfs.core.ids import Oid
from megalfs.errors import IntegrityError, RemoteProtocolError, TemporaryError
from megalfs.net.http import BYTES_PER_S_MIN, TIMEOUT_S, Connection, check_status
from megalfs.net.limiter import Limiter
from megalfs.net.webseed import blocks

__all__ = ["BULK_PATH", "BulkConnection"]

BULK_PATH = "/v1/files"
BLOCK_BYTES = 256 << 10


class BulkConnection(Struct, eq=False):
    """Asks `url` (that of the route) with `headers` of ours, no faster than `limiter` lets it."""

    url: str
    headers: Mapping[str, str]
    limiter: Limiter
    stop: threading.Event = field(default_factory=threading.Event)
    _connection: Connection | None = None

    def ask(self, oids: Sequence[Oid]) -> Iterator[tuple[Oid, bytes | None]]:
        """The blobs in the order asked, each proven; None for one that is not there. The last ones may be left out.

        Raises:
            IntegrityError: other bytes came; the connection is closed.
            MegalfsError: no answer, or a refusal, as `check_status` maps it.
        """
        try:
            response = self._send(oids)
            body = _Body(blocks(response, self._host, BLOCK_BYTES), self._waited)
            for oid in oids:
                head = body.read(SIZE_BYTES)
                if head is None:
                    break
                size = read_size(head)
                content = None if size is None else body.read(size)
                if size is not None and content is None:
                    raise RemoteProtocolError(f"{self._host} ends its answer within a blob")
                if content is not None and hashlib.sha256(content).digest() != oid.raw:
                    raise IntegrityError(f"{self._host} has other bytes than {oid}")
                yield oid, content
            body.end()
            response.close()  # read1 of nothing does not; then the next request can be sent
        except BaseException:
            self.close()
            raise

    @property
    def _host(self) -> str:
        return urlsplit(self.url).netloc

    def _send(self, oids: Sequence[Oid]) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = Connection(urlsplit(self.url), proxies={})
        headers = {"Content-Type": "application/octet-stream", **self.headers}
        response = self._connection.request("POST", self.url, headers=headers, body=encode_oids(oids))
        check_status(response.status, self.url)
        return response

    def _waited(self, count: int) -> float:
        """Waits until so many bytes may have come; the seconds that took."""
        started_s = time.monotonic()
        self.limiter.wait(count, self.stop)
        if self.stop.is_set():
            raise TemporaryError("the pull has ended")
        return time.monotonic() - started_s

    def cut(self) -> None:
        """Ends it under the thread that waits for it."""
        self.stop.set()
        if (connection := self._connection) is not None:
            connection.cut()

    def close(self) -> None:
        """Drops the connection; the next question opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Body:
    """An answer, read by length; one that trickles in is given up."""

    def __init__(self, parts: Iterator[bytes], waited: Callable[[int], float]) -> None:
        self._parts = parts
        self._waited = waited
        self._buffer = b""
        self._at = 0
        self._started_s = time.monotonic()
        self._bytes = 0

    def read(self, size: int) -> bytes | None:
        """So many bytes; None where the answer has ended.

        Raises:
            RemoteProtocolError: it ends within them.
            TemporaryError: it comes too slowly.
        """
        while len(self._buffer) - self._at < size:
            part = next(self._parts, b"")
            if not part and self._at == len(self._buffer):
                return None
            if not part:
                raise RemoteProtocolError("an answer that ends within a blob")
            self._bytes += len(part)
            self._started_s += self._waited(len(part))  # our own limit is not the peer's fault
            if time.monotonic() - self._started_s > TIMEOUT_S + self._bytes / BYTES_PER_S_MIN:
                raise TemporaryError("small files come too slowly")
            self._buffer, self._at = self._buffer[self._at :] + part, 0
        self._at += size
        return self._buffer[self._at - size : self._at]

    def end(self) -> None:
        """That nothing follows; also takes the end of the body off the connection."""
        if self._at < len(self._buffer) or next(self._parts, b""):
            raise RemoteProtocolError("an answer that goes on behind its last blob")
