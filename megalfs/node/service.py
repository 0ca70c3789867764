"""What a layer above adds to a running node: routes of its own, and a life beside the node's.

The node knows nothing of git; an entry point hands it services (an LFS server, the repositories' layer), so
imports keep pointing inward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aiohttp import web

    from megalfs.node.node import Node

__all__ = ["Service", "ServiceFactory"]


class Service(Protocol):
    """Made before the node listens; started when its port is known; closed before the node's peers are."""

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        """Routes beside the node's own; the guard runs before them too."""

    async def start(self) -> None:
        """The node listens now."""

    async def close(self) -> None:
        """The node is about to stop."""


ServiceFactory = Callable[["Node"], Service]
