"""A UDP proxy between a client and a server: it keeps what passes, and can change the client's address."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress

DATAGRAM_BYTES_MAX = 65536
POLL_S = 0.05


class UdpProxy:
    """Passes datagrams on; the server sees each client under a port of the proxy's. Use `close`."""

    def __init__(self, listen: tuple[str, int], server: tuple[str, int]) -> None:
        self.sent: list[bytes] = []  # by clients
        self.received: list[bytes] = []
        self.client_ports: set[int] = set()  # as the server saw them
        self._server = server
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._front.bind(listen)
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._front.getsockname()
        return str(host), int(port)

    def rebind(self) -> None:
        """From now on every client has another address, as after a change of network or a NAT that forgot."""
        with self._lock:
            for client, back in list(self._backs.items()):
                self._backs[client] = self._new_back()
                back.close()

    def close(self) -> None:
        self._is_closed = True
        self._thread.join()
        for sock in (self._front, *self._backs.values()):
            sock.close()

    def _new_back(self) -> socket.socket:
        back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        back.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        back.connect(self._server)
        self.client_ports.add(back.getsockname()[1])
        return back

    def _run(self) -> None:
        while not self._is_closed:
            with self._lock:
                backs = dict(self._backs)
            readable, _, _ = select.select([self._front, *backs.values()], [], [], POLL_S)
            with self._lock:
                for client, back in backs.items():
                    if back in readable and self._backs.get(client) is back:
                        self._backward(client, back)
                if self._front in readable:
                    self._forward()

    def _forward(self) -> None:
        octets, client = self._front.recvfrom(DATAGRAM_BYTES_MAX)
        self.sent.append(octets)
        if client not in self._backs:
            self._backs[client] = self._new_back()
        with suppress(OSError):  # nobody listens: on UDP that is silence
            self._backs[client].send(octets)

    def _backward(self, client: tuple[str, int], back: socket.socket) -> None:
        try:
            octets = back.recv(DATAGRAM_BYTES_MAX)
        except OSError:
            return
        self.received.append(octets)
        self._front.sendto(octets, client)
