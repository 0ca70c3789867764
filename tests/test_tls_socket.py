"""The TLS connection of our HTTP client: what it reads is what was sent, however it comes and however it ends."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_tls import write_certificate

from megalfs.errors import TemporaryError
from megalfs.net.http import Connection, parse_url
from megalfs.net.webseed import fill_from

BODY = np.random.default_rng(3).bytes((3 << 20) + 17)

Answer = Callable[[ssl.SSLSocket], None]


def head(size: int, *more: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Length: %d" % size, *more, b"", b""))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Connection]]:
    """Starts a server that gives one answer to each request of one connection; returns a connection to it."""
    cert, key = write_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    threads = []
    opened: list[Connection] = []

    def start(answers: list[Answer], *, host: str = "127.0.0.1") -> Connection:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with listener, listener.accept()[0] as plain:
                try:
                    with context.wrap_socket(plain, server_side=True) as secure:
                        for answer in answers:
                            request = b""
                            while b"\r\n\r\n" not in request:
                                request += secure.recv(4096)
                            answer(secure)
                except OSError:
                    return  # the client refused the certificate, or has gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        threads.append(thread)
        port = listener.getsockname()[1]
        opened.append(Connection(parse_url(f"https://{host}:{port}/"), proxies={}))
        return opened[-1]

    yield start
    for connection in opened:
        connection.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def get(connection: Connection) -> http.client.HTTPResponse:
    return connection.request("GET", connection.parts.geturl(), headers={})


@pytest.mark.parametrize("record", [1000, 16_384, 16_385, len(BODY)])
def test_a_body_comes_whole_in_any_records(server: Callable[..., Connection], record: int) -> None:
    def answer(secure: ssl.SSLSocket) -> None:
        secure.sendall(head(len(BODY)))
        for at in range(0, len(BODY), record):
            secure.sendall(BODY[at : at + record])

    view = memoryview(bytearray(len(BODY)))
    fill_from(get(server([answer])), "it")(view, lambda _count: None)
    assert hashlib.sha256(view).digest() == hashlib.sha256(BODY).digest()


def test_a_connection_is_kept_for_the_next_request(server: Callable[..., Connection]) -> None:
    connection = server(
        [lambda secure, word=word: secure.sendall(head(3) + word) for word in (b"one", b"two")]
    )
    assert [get(connection).read() for _ in range(2)] == [b"one", b"two"]


def test_an_answer_may_end_with_its_connection(server: Callable[..., Connection]) -> None:
    """http.client closes its socket before such a body is read."""
    closing = head(len(BODY), b"Connection: close")
    response = get(server([lambda secure: secure.sendall(closing + BODY)]))
    assert response.read() == BODY


@pytest.mark.parametrize("is_clean", [True, False])
def test_an_answer_that_ends_early_is_told(server: Callable[..., Connection], *, is_clean: bool) -> None:
    def answer(secure: ssl.SSLSocket) -> None:
        secure.sendall(head(len(BODY)) + BODY[: 1 << 20])
        if is_clean:
            secure.unwrap()
        else:
            os.close(secure.detach())

    response = get(server([answer]))
    with pytest.raises(TemporaryError, match="in the middle"):
        fill_from(response, "it")(memoryview(bytearray(len(BODY))), lambda _count: None)


def test_a_certificate_for_another_name_is_refused(server: Callable[..., Connection]) -> None:
    with pytest.raises(TemporaryError, match=r"(?i)certificate"):
        get(server([], host="localhost"))
