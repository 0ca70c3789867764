"""The port of a node: peers go to the hub, everybody else to the HTTP server.

What a connection begins with is looked at where it lies in the socket (MSG_PEEK). When it is the request that our own
`dial` sends, all of it and nothing more, no HTTP server is needed: aiohttp takes a millisecond for one and 0.15 s to be
imported, and a leecher that only peers dial needs it for nothing else. Sixteen nodes that begin together open 360
connections in their first second. Whatever differs in the least is the HTTP server's to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from megalfs.errors import MegalfsError
from megalfs.net.handshake import REQUEST_BYTES_MAX, upgrade_of

__all__ = ["FrontDoor", "HttpProtocol"]

log = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 64
# As asyncio's own server: no descriptor is free for another connection, perhaps one is by then.
RETRY_S = 1.0

HttpProtocol = Callable[[], asyncio.Protocol]


class FrontDoor:
    """Accepts the connections of one listening socket, on the event loop."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        is_ours: Callable[[str], bool],
        upgraded: Callable[[socket.socket, bytes], None],
        http: Callable[[], Awaitable[HttpProtocol]],
    ) -> None:
        """
        Args:
            sock: listens, and does not block; it is closed by who made it.
            is_ours: whether a Host header names this node.
            upgraded: takes over the connection of a peer, which awaits the 101, and the nonce it sent.
            http: what makes the protocol of one HTTP connection.
        """
        self._sock = sock
        self._is_ours = is_ours
        self._upgraded = upgraded
        self._http = http
        self._loop = asyncio.get_running_loop()
        self._silent: set[socket.socket] = set()  # that have said nothing yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._open()

    def _open(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("cannot accept connections: %s", error.strerror or error)
                self._loop.remove_reader(self._sock)
                self._retry = self._loop.call_later(RETRY_S, self._open)
                return
            connection.setblocking(False)
            self._look(connection)

    def _look(self, connection: socket.socket) -> None:
        try:
            head = connection.recv(REQUEST_BYTES_MAX, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            if connection not in self._silent:
                self._silent.add(connection)
                self._loop.add_reader(connection, self._look, connection)
            return
        except OSError:
            head = b""
        if connection in self._silent:
            self._silent.discard(connection)
            self._loop.remove_reader(connection)
        if not head:
            connection.close()
            return
        upgrade = upgrade_of(head)
        if upgrade is not None and self._is_ours(upgrade.host):
            with contextlib.suppress(OSError):  # reset since it was looked at: the hub will see that too
                connection.recv(len(head))
            self._upgraded(connection, upgrade.nonce)
            return
        task = self._loop.create_task(self._hand_over(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(await self._http(), connection)
        except (OSError, MegalfsError) as error:
            log.warning("a connection cannot be answered: %s", error)
            connection.close()
        except BaseException:
            connection.close()
            raise

    async def close(self) -> None:
        """Accepts nobody any longer; who has said nothing yet is hung up on."""
        self._loop.remove_reader(self._sock)
        if self._retry is not None:
            self._retry.cancel()
        for connection in self._silent:
            self._loop.remove_reader(connection)
            connection.close()
        self._silent.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
