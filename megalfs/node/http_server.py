"""The HTTP side of a node: aiohttp, given connections by the front door, and the TLS port.

Nothing else of the node imports aiohttp, which costs 0.15 s of a process: a pull that only peers call ends
without it (`Node.start`).
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from aiohttp import web

from megalfs.node.front_door import HttpProtocol
from megalfs.node.routes import make_app

if TYPE_CHECKING:
    from megalfs.node.node import Node

__all__ = ["HttpServer"]

BACKLOG = 512
SHUTDOWN_S = 5.0


class HttpServer:
    """Answers the routes of one node."""

    def __init__(self, node: Node) -> None:
        self._runner = web.AppRunner(
            make_app(node), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S
        )

    async def start(self) -> HttpProtocol:
        """Begins to answer; returns what makes the protocol of one connection."""
        await self._runner.setup()
        assert self._runner.server is not None
        return self._runner.server

    async def listen_tls(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Answers on a socket that listens, over TLS; closed with the server."""
        await web.SockSite(self._runner, sock, backlog=BACKLOG, ssl_context=context).start()

    async def close(self) -> None:
        """Ends what is being answered, after `SHUTDOWN_S` at most."""
        await self._runner.cleanup()
