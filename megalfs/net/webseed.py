"""Web seeds: a plain HTTP server with Range as a source of pieces (the idea of BEP 19), or of the whole blob.

An origin is asked for runs like a peer, by threads of its own with one kept-alive connection each. Everything
it sends passes the same verification. Its oddities are told apart because the reactions differ: it has no
such file, it refuses, it ignores Range (usable as a whole only), it changed in the middle, it is unwell.
"""

from __future__ import annotations

import http.client
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote

from msgspec import Struct

from megalfs.core.bitfield import Run
from megalfs.core.ids import Oid
from megalfs.errors import MegalfsError, RemoteProtocolError, TemporaryError
from megalfs.net.http import (
    REDIRECTS_MAX,
    RETRY_AFTER_S_MAX,
    Connection,
    check_status,
    follow,
    parse_url,
    retry_after_s,
    shown_url,
)
from megalfs.net.limiter import Limiter
from megalfs.net.sinks import Fill, GranuleBuffer, Progress, Receiver, Sink

__all__ = ["Origin", "WebSeed", "WebSeedReports", "origin_url"]

# A slow origin gives a sign of life every so many bytes.
READ_BYTES = 512 * 1024
LANES = 2
BUSY_MAX = 3  # times that a server may send us away with Retry-After, for one request
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")


def origin_url(template: str, *, oid: Oid, name: str | None) -> str:
    """The URL of a blob at an origin: `{oid}` and `{name}` are filled in; a base (ends in `/`) gets name or oid."""
    if "{oid}" in template or "{name}" in template:
        url = template.replace("{oid}", str(oid)).replace("{name}", quote(name or str(oid)))
    elif template.endswith("/"):
        url = template + quote(name or str(oid))
    else:
        url = template
    parse_url(url)
    return url


class Origin:
    """One blob at one plain HTTP server, over one kept-alive connection. Not shared between threads."""

    def __init__(
        self,
        url: str,
        *,
        proxies: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        may_redirect: bool = True,
    ) -> None:
        self.url = url
        self._may_redirect = may_redirect
        self._proxies = proxies
        self._headers = dict(headers or {})
        self._connection: Connection | None = None
        self._etag: str | None = None
        self._is_cut = threading.Event()

    @property
    def name(self) -> str:
        """How people know it."""
        return shown_url(self.url)

    def fetch_range(self, offset: int, size: int, total: int) -> http.client.HTTPResponse:
        """Asks for exactly `size` bytes at `offset` of a blob of `total` bytes; the body is unread.

        Raises:
            RemoteProtocolError: the server ignores Range, sends another range, or the file there changed.
            MegalfsError: as `check_status` maps refusals.
        """
        response = self._open({"Range": f"bytes={offset}-{offset + size - 1}"})
        if response.status == 200 and offset == 0 and size == total:
            return self._same_file(response, total, response.headers.get("Content-Length"))
        if response.status == 200:
            self.close()
            raise RemoteProtocolError(f"{self.name} ignores Range")
        if response.status == 416:
            self.close()
            raise RemoteProtocolError(f"{self.name} has another size than {total} bytes")
        check_status(response.status, self.name)
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or (int(match[1]), int(match[2])) != (offset, offset + size - 1):
            self.close()
            raise RemoteProtocolError(f"{self.name} sent another range than asked")
        return self._same_file(response, total, match[3])

    def fetch_from(self, offset: int) -> tuple[http.client.HTTPResponse, int]:
        """Asks for the rest of a blob whose size may be unknown; returns the answer and where it starts."""
        response = self._open({"Range": f"bytes={offset}-"} if offset else {})
        if response.status == 416:  # what is kept is no beginning of what is there
            self.close()
            response = self._open({})
        check_status(response.status, self.name)
        self._check_encoding(response)
        if response.status != 206:
            return response, 0
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            self.close()
            raise RemoteProtocolError(f"{self.name} sent another range than asked")
        return response, offset

    def cut(self) -> None:
        """Ends the connection under a thread that waits for it, or for a busy server."""
        self._is_cut.set()
        if (connection := self._connection) is not None:
            connection.cut()

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The answer; a server that is busy and says until when is asked again then."""
        for _ in range(BUSY_MAX):
            response = self._follow(headers)
            if response.status not in {429, 503}:
                return response
            pause_s = retry_after_s(response.headers.get("Retry-After"))
            if pause_s is None or pause_s > RETRY_AFTER_S_MAX:
                return response
            self.close()
            if self._is_cut.wait(pause_s):
                raise TemporaryError("the pull has ended")
        return self._follow(headers)

    def _follow(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        for _ in range(REDIRECTS_MAX + 1):
            if self._connection is None:
                self._connection = Connection(parse_url(self.url), proxies=self._proxies)
            response = self._connection.request("GET", self.url, headers={**self._headers, **headers})
            if response.status not in {301, 302, 303, 307, 308} or not self._may_redirect:
                return response
            self.url, self._headers = follow(self.url, response.headers.get("Location", ""), self._headers)
            self.close()
        raise RemoteProtocolError(f"{self.name} redirects more than {REDIRECTS_MAX} times")

    def _check_encoding(self, response: http.client.HTTPResponse) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            self.close()
            raise RemoteProtocolError(f"{self.name} compresses what must come as it is")

    def _same_file(
        self, response: http.client.HTTPResponse, total: int, told: str | None
    ) -> http.client.HTTPResponse:
        self._check_encoding(response)
        etag = response.headers.get("ETag")
        if told not in {None, "*"} and told != str(total):
            self.close()
            raise RemoteProtocolError(f"{self.name} has {told} bytes instead of {total}")
        if self._etag is not None and etag != self._etag:
            self.close()
            raise RemoteProtocolError(f"{self.name} changed while it was read")
        self._etag = etag
        return response


def fill_from(response: http.client.HTTPResponse, url: str) -> Fill:
    """Reads a body into views; raises TemporaryError when it ends early."""

    def fill(view: memoryview, progressed: Callable[[int], None]) -> None:
        got = 0
        try:
            while got < len(view):
                count = response.readinto(view[got : got + READ_BYTES])
                if not count:
                    raise TemporaryError(f"{url} closed the connection in the middle of an answer")
                got += count
                if got < len(view):
                    progressed(count)
        except (OSError, http.client.HTTPException) as error:
            raise TemporaryError(f"{url} stopped in the middle of an answer") from error

    return fill


def blocks(response: http.client.HTTPResponse, url: str, size: int) -> Iterator[bytes]:
    """The body as it comes, in blocks of at most `size` bytes; raises TemporaryError when it ends early."""
    try:
        while block := response.read1(size):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise TemporaryError(f"{url} stopped in the middle of an answer") from error
    if response.length:  # read1 does not say so itself
        raise TemporaryError(f"{url} ended early")


class WebSeedReports(Struct, frozen=True):
    """Where a web seed reports, from its threads: as `Progress`, and a run that begins, and one that failed."""

    progress: Progress
    arriving: Callable[[int, int], None]
    failed: Callable[[int, int, MegalfsError], None]


class WebSeed:
    """A plain HTTP server that has the whole blob of a pull, asked over a few connections."""

    def __init__(
        self,
        url: str,
        *,
        proxies: Mapping[str, str],
        headers: Mapping[str, str],
        sink: Sink,
        reports: WebSeedReports,
        limiter: Limiter,
    ) -> None:
        """
        Args:
            headers: are sent to this server and to nobody else.
        """
        self._wanted: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._lanes = [
            _Lane(Origin(url, proxies=proxies, headers=headers), self._wanted, sink, reports, limiter)
            for _ in range(LANES)
        ]
        for lane in self._lanes:
            lane.start()

    def fetch(self, run: Run) -> None:
        """Queues a run."""
        self._wanted.put(run)

    def close(self) -> None:
        """Cuts the connections; what is queued or on its way fails or is never heard of."""
        for lane in self._lanes:
            lane.shut()
            self._wanted.put(None)


class _Lane(threading.Thread):
    """Fetches the runs of the queue over one connection, in order, into the sink of the pull."""

    def __init__(
        self,
        origin: Origin,
        wanted: queue.SimpleQueue[Run | None],
        sink: Sink,
        reports: WebSeedReports,
        limiter: Limiter,
    ) -> None:
        super().__init__(name="megalfs-origin", daemon=True)
        self._origin = origin
        self._wanted = wanted
        self._sink = sink
        self._reports = reports
        self._limiter = limiter
        self._stop = threading.Event()

    def run(self) -> None:
        buffer = GranuleBuffer()
        receiver = Receiver(buffer, self._reports.progress)
        try:
            while not self._stop.is_set() and (run := self._wanted.get()) is not None:
                try:
                    self._fetch(receiver, run)
                except MegalfsError as error:
                    self._origin.close()
                    self._reports.failed(*run, error)
        finally:
            self._origin.close()
            buffer.close()

    def shut(self) -> None:
        """Ends the lane from another thread; the caller also queues a None, for a lane that waits."""
        self._stop.set()
        self._origin.cut()

    def _fetch(self, receiver: Receiver, run: Run) -> None:
        manifest = self._sink.manifest
        offset, size = manifest.parts.extent(*run)
        self._reports.arriving(*run)
        response = self._origin.fetch_range(offset, size, manifest.size)
        read = fill_from(response, self._origin.name)

        def fill(view: memoryview, progressed: Callable[[int], None]) -> None:
            if self._stop.is_set():
                raise TemporaryError("the pull has ended")
            self._limiter.wait(len(view), self._stop)
            read(view, progressed)

        if not receiver.receive(fill, self._sink, *run, has_proofs=False):
            self._origin.close()
