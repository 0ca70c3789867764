"""A small blocking HTTP client on the standard library: bounded answers, safe redirects, ranges into buffers.

Runs in threads. Peers and trackers are asked directly; origins may go through the user's proxy. `http.client`
reads a body straight into the caller's buffer, which is what a web seed needs, and costs no import time that
the command line would notice.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urljoin, urlsplit

from msgspec import Struct, field

from megalfs.errors import (
    NotAuthorisedError,
    NotFoundError,
    OriginRefusedError,
    RemoteProtocolError,
    TemporaryError,
    UsageError,
)
from megalfs.net.tls_socket import TlsSocket

__all__ = [
    "RETRY_AFTER_S_MAX",
    "Connection",
    "HttpClient",
    "Reply",
    "check_status",
    "parse_url",
    "retry_after_s",
]

REDIRECTS_MAX = 5
TIMEOUT_S = 10.0
# Slower than this on average, after the first TIMEOUT_S, is no answer: a byte a second would never time out.
BYTES_PER_S_MIN = 16 << 10
READ_BYTES = 256 << 10
USER_AGENT = "megalfs/0.1"
JSON_BYTES_MAX = 4 << 20
RETRY_AFTER_S_MAX = 30.0  # a pull looks for other sources when nothing came for so long (manifest_switch_s)
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


class Reply(Struct, frozen=True):
    """A whole, bounded answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    def json(self) -> object:
        """The body as JSON; raises RemoteProtocolError."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise RemoteProtocolError(f"{self.url} answers with something that is not JSON") from error


def parse_url(url: str) -> SplitResult:
    """Splits an http or https URL.

    Raises:
        UsageError: another scheme, no host, user info, or control characters (header injection).
    """
    if any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url):
        raise UsageError(f"a URL with white space or control characters: {url[:80]!r}")
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise UsageError(f"not a URL: {url[:80]!r} ({error})") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_valid:
        raise UsageError(f"not an http or https URL: {url[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "a URL must not carry a user name or password", hint="credentials do not belong in links"
        )
    return parts


def shown_url(url: str) -> str:
    """A URL without its query, which may be as good as a password: servers sign URLs."""
    return url.partition("?")[0]


def check_status(status: int, url: str) -> None:
    """Maps a refusal to the error tree; returns for 2xx."""
    if 200 <= status < 300:
        return
    if status in {404, 410}:
        raise NotFoundError(f"{url} does not exist ({status})")
    if status in {401, 407}:
        raise NotAuthorisedError(f"{url} wants a login ({status})")
    if status in {403, 429, 451}:
        raise OriginRefusedError(f"{url} refused ({status})")
    if status >= 500 or status == 408:
        raise TemporaryError(f"{url} is not well ({status})")
    raise RemoteProtocolError(f"{url} answers with status {status}")


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for; None without one: RFC 9110 section 10.2.3."""
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:10])
    with contextlib.suppress(ValueError):
        when = parsedate_to_datetime(text)
        return max(0.0, when.timestamp() - time.time())  # noqa: TID251 - compared with another host's clock
    return None


class _TlsConnection(http.client.HTTPConnection):
    """HTTP over TLS, the certificate checked for `name`."""

    default_port = http.client.HTTPS_PORT

    def __init__(
        self, host: str, port: int | None, *, timeout: float, context: ssl.SSLContext, name: str
    ) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls_context, self._tls_name = context, name

    def connect(self) -> None:
        super().connect()
        # As much of a socket as http.client uses.
        self.sock = TlsSocket(self.sock, self._tls_context, self._tls_name)


class _PlainConnection(http.client.HTTPConnection):
    """Asks for the address of an ASCII name as bytes: for a str, Python loads IDNA's tables first, even for an IP
    address. They took a fifth of the time in which sixteen nodes on two cores meet.
    """

    def connect(self) -> None:
        host = self.host.encode("ascii") if self.host.isascii() else self.host
        self.sock = socket.create_connection((host, self.port), self.timeout)  # type: ignore[arg-type]
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Connection:
    """One kept-alive connection to one host, through a proxy where `proxies` says so."""

    def __init__(
        self, parts: SplitResult, *, proxies: Mapping[str, str], timeout_s: float = TIMEOUT_S
    ) -> None:
        assert parts.hostname is not None
        self.parts = parts
        proxy = proxies.get(parts.scheme)
        if proxy and _is_exempt(parts.hostname, proxies):
            proxy = None
        through = parse_url(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
        self._is_absolute = through is not None and parts.scheme == "http"
        host, port = parts.hostname, parts.port
        if parts.scheme == "https":
            context = ssl.create_default_context()
            if through:
                self.http: http.client.HTTPConnection = _TlsConnection(
                    through.hostname or "", through.port, timeout=timeout_s, context=context, name=host
                )
                self.http.set_tunnel(host, port or 443)
            else:
                self.http = _TlsConnection(host, port, timeout=timeout_s, context=context, name=host)
        elif through:
            self.http = _PlainConnection(through.hostname or "", through.port, timeout=timeout_s)
        else:
            self.http = _PlainConnection(host, port, timeout=timeout_s)

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> http.client.HTTPResponse:
        """Sends one request and returns the answer with its body unread; raises TemporaryError."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self._is_absolute:
            target = f"{parts.scheme}://{parts.netloc}{target}"
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        try:
            self.http.request(method, target, body=body, headers=sent)
            return self.http.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise TemporaryError(f"{parts.netloc} did not answer: {why}") from error

    def cut(self) -> None:
        """Ends the connection under whoever waits for it in another thread."""
        sock = self.http.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket; the next request opens a new one."""
        self.http.close()


def _is_exempt(host: str, proxies: Mapping[str, str]) -> bool:
    # Few have a proxy; its import is 5 ms.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed

    return bool(proxy_bypass_environment(host, dict(proxies)))


class HttpClient(Struct, frozen=True):
    """Short requests with bounded answers.

    Attributes:
        proxies: scheme to proxy URL, and "no" to the exceptions.
        own_headers: asked for before each request; what identifies us to peers.
        strangers: `host:port` of those that only a repository named: asked without our headers, and not
            followed when they redirect.
    """

    proxies: Mapping[str, str] = field(default_factory=dict)
    own_headers: Callable[[], Mapping[str, str]] = dict
    timeout_s: float = TIMEOUT_S
    strangers: set[str] = field(default_factory=set)

    def get(
        self, url: str, *, bytes_max: int = JSON_BYTES_MAX, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Gets a whole body of at most `bytes_max` bytes, whatever the status; follows safe redirects."""
        return self._exchange("GET", url, bytes_max=bytes_max, headers=headers or {}, body=None)

    def post_json(self, url: str, value: object, *, headers: Mapping[str, str] | None = None) -> Reply:
        """Posts JSON; the answer is bounded like `get`'s."""
        body = json.dumps(value, separators=(",", ":")).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        return self._exchange("POST", url, bytes_max=JSON_BYTES_MAX, headers=sent, body=body)

    def _exchange(
        self, method: str, url: str, *, bytes_max: int, headers: Mapping[str, str], body: bytes | None
    ) -> Reply:
        is_stranger = parse_url(url).netloc in self.strangers
        sent = dict(headers) if is_stranger else {**self.own_headers(), **headers}
        for _ in range(REDIRECTS_MAX + 1):
            connection = Connection(parse_url(url), proxies=self.proxies, timeout_s=self.timeout_s)
            deadline = threading.Timer(self.timeout_s, connection.cut)
            deadline.daemon = True
            deadline.start()
            try:
                response = connection.request(method, url, headers=sent, body=body)
                deadline.cancel()
                is_redirect = response.status in {301, 302, 303, 307, 308}
                if is_redirect and method == "GET" and not is_stranger:
                    url, sent = follow(url, response.headers.get("Location", ""), sent)
                    continue
                content = _read(response, bytes_max, url, timeout_s=self.timeout_s)
                return Reply(response.status, dict(response.headers), content, url)
            finally:
                deadline.cancel()
                connection.close()
        raise RemoteProtocolError(f"{url} redirects more than {REDIRECTS_MAX} times")


def follow(url: str, location: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Where a redirect leads; secrets stay with the host they were meant for, and https stays https."""
    target = urljoin(url, location)
    try:
        old, new = parse_url(url), parse_url(target)
    except UsageError as error:
        raise RemoteProtocolError(f"{url} redirects to an unusable place: {error}") from error
    if old.scheme == "https" and new.scheme == "http":
        raise RemoteProtocolError(f"{url} redirects from https to http")
    kept = dict(headers)
    if (old.hostname, old.port) != (new.hostname, new.port):
        kept = {name: value for name, value in kept.items() if name.lower() not in _SECRET_HEADERS}
    return target, kept


def _read(response: http.client.HTTPResponse, bytes_max: int, url: str, *, timeout_s: float) -> bytes:
    body = bytearray()
    started_s = time.monotonic()
    try:
        while block := response.read1(READ_BYTES):
            body += block
            if len(body) > bytes_max:
                raise RemoteProtocolError(f"{url} answers with more than {bytes_max} bytes")
            if time.monotonic() - started_s > timeout_s + len(body) / BYTES_PER_S_MIN:
                raise TemporaryError(f"{url} answers too slowly")
    except (OSError, http.client.HTTPException) as error:
        raise TemporaryError(f"{url} stopped in the middle of its answer") from error
    if response.length:  # read1 does not say so itself
        raise TemporaryError(f"{url} stopped in the middle of its answer")
    return bytes(body)
