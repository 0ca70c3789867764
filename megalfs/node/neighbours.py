"""The nodes of this LAN, as multicast DNS tells; asked only when the user named nobody else to ask."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from megalfs.formats.hostport import HostPort
from megalfs.net.lan import Lan

__all__ = ["Neighbours"]

# What a LAN needs to answer a first query: RFC 6762 has responders wait up to 120 ms, and loss asks twice.
FIRST_ANSWER_S = 2.0


class Neighbours:
    """Announces this node and collects the others. Owned by the event loop; `wait` may block in a thread."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._lan: Lan | None = None
        self._known: dict[str, HostPort] = {}
        self._listeners: list[Callable[[Sequence[HostPort]], None]] = []
        self._has_any = threading.Event()
        self._starting: asyncio.Task[None] | None = None

    def announce(self, host: str, port: int) -> None:
        """Says that this node listens there; returns at once."""
        self._lan = self._lan or Lan(host)
        self._starting = asyncio.create_task(self._lan.announce(port=port, instance=self._instance))

    async def browse(self, host: str) -> None:
        """Listens for others, on the interface of `host`."""
        self._lan = self._lan or Lan(host)
        await self._lan.browse(self._found)

    def listen(self, listener: Callable[[Sequence[HostPort]], None]) -> None:
        """Calls `listener` with everybody known, now and whenever somebody comes."""
        self._listeners.append(listener)
        listener(list(self._known.values()))

    def wait(self) -> list[HostPort]:
        """Everybody known after the time of a first answer; blocks."""
        self._has_any.wait(FIRST_ANSWER_S)
        return list(self._known.values())

    async def close(self) -> None:
        """Leaves the LAN."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._lan is not None:
            await self._lan.close()

    def _found(self, address: HostPort, instance: str) -> None:
        if instance == self._instance or instance in self._known:
            return
        self._known[instance] = address
        self._has_any.set()
        for listener in self._listeners:
            listener([address])
