"""A TCP proxy that is bad in chosen ways: it stalls after so many bytes, or swallows connections whole.

It stands in front of an honest node, so what a test sees is a bad path, not another program.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BLOCK_BYTES = 64 << 10
POLL_S = 0.1
TRICKLE_S = 1.0


class Proxy:
    """Forwards connections to `address`, both ways.

    Attributes:
        address: `127.0.0.1:PORT` to dial instead.
        passed: bytes that came from the server so far, over all connections.
        stall_after: bytes from the server after which one byte a second passes; None for never.
        cut_after: bytes from the server after which every connection ends at once; None for never.
    """

    def __init__(self, upstream: str, *, stall_after: int | None = None, is_closed: bool = False) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(POLL_S)
        self._is_open = threading.Event()
        if not is_closed:
            self._is_open.set()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = 0
        self.stall_after = stall_after
        self.cut_after: int | None = None
        self._start(self._accept)

    def open(self) -> None:
        """From now on connections that waited are forwarded."""
        self._is_open.set()

    def close(self) -> None:
        """Ends every connection."""
        self._stop.set()
        self._is_open.set()
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._start(self._forward, client)

    def _forward(self, client: socket.socket) -> None:
        with client:
            self._is_open.wait()
            if self._stop.is_set():
                return
            with contextlib.suppress(OSError), socket.create_connection(self._upstream) as server:
                self._pump(client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        while not self._stop.is_set() and not self._is_cut():
            readable, _, _ = select.select([client, server], [], [], POLL_S)
            for source in readable:
                block = source.recv(BLOCK_BYTES if source is client else self._allowance())
                if not block:
                    return
                (server if source is client else client).sendall(block)
                if source is server:
                    with self._lock:
                        self.passed += len(block)

    def _is_cut(self) -> bool:
        return self.cut_after is not None and self.passed >= self.cut_after

    def _allowance(self) -> int:
        """How many bytes of the server may pass now; waits where only one a second may."""
        if self.stall_after is None:
            return BLOCK_BYTES
        left = self.stall_after - self.passed
        if left <= 0:
            self._stop.wait(TRICKLE_S)
        return max(1, min(left, BLOCK_BYTES))


@contextmanager
def proxy(upstream: str, *, stall_after: int | None = None, is_closed: bool = False) -> Iterator[Proxy]:
    """A proxy for the length of a test."""
    made = Proxy(upstream, stall_after=stall_after, is_closed=is_closed)
    try:
        yield made
    finally:
        made.close()
