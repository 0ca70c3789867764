"""Nodes of one LAN find each other without configuration: DNS-SD over multicast DNS (RFC 6763, RFC 6762).

A node announces `_megalfs._tcp.local.` with its port and instance; who pulls browses for it and asks every
node it hears of what it has. Which blobs a node holds is not announced: that is asked, and may be refused.
Only the interface that the node listens on is used, so a node on loopback says nothing to the LAN.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from megalfs.errors import UsageError
from megalfs.formats.hostport import HostPort

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

__all__ = ["Lan"]

log = logging.getLogger(__name__)

SERVICE = "_megalfs._tcp.local."
RESOLVE_MS = 2000
NEIGHBOURS_MAX = 256


class Lan:
    """Our part in the LAN's multicast DNS: announce this node, hear of others, or both."""

    def __init__(self, listen_host: str) -> None:
        self._listen_host = listen_host
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = 0

    async def announce(self, *, port: int, instance: str) -> None:
        """Says on the LAN that a node listens here; a LAN that takes no multicast is none of our faults."""
        from zeroconf import Error
        from zeroconf.asyncio import AsyncServiceInfo

        addresses = [ipaddress.ip_address(text).packed for text in self._addresses()]
        info = AsyncServiceInfo(
            SERVICE,
            f"{instance}.{SERVICE}",
            port=port,
            addresses=addresses,
            properties={"instance": instance, "version": "1"},
            server=f"megalfs-{instance[:12]}.local.",
        )
        try:
            await (await self._open()).async_register_service(info)
        except (OSError, Error) as error:
            log.info("not announced on the LAN: %s", error)

    async def browse(self, found: Callable[[HostPort, str], None]) -> None:
        """Calls `found` with address and instance of every node that is or comes on the LAN, until `close`."""
        from zeroconf.asyncio import AsyncServiceBrowser

        try:
            opened = await self._open()
        except OSError as error:
            log.info("not listening on the LAN: %s", error)
            return

        def changed(
            zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
        ) -> None:
            if state_change.name == "Removed" or self._heard >= NEIGHBOURS_MAX:
                return
            self._heard += 1
            task = asyncio.create_task(self._resolve(zeroconf, service_type, name, found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._browser = AsyncServiceBrowser(opened.zeroconf, SERVICE, handlers=[changed])

    async def close(self) -> None:
        """Takes the announcement back and leaves."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            with contextlib.suppress(OSError):
                await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()
            self._zeroconf = None

    async def _open(self) -> AsyncZeroconf:
        if self._zeroconf is None:
            from zeroconf import InterfaceChoice, IPVersion
            from zeroconf.asyncio import AsyncZeroconf

            interfaces = InterfaceChoice.All if self._is_everywhere else [self._listen_host]
            self._zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        return self._zeroconf

    @property
    def _is_everywhere(self) -> bool:
        return self._listen_host in {"", "0.0.0.0", "::"}  # noqa: S104 - compared

    def _addresses(self) -> list[str]:
        """Where others reach us: the address listened on, or every IPv4 address that is not loopback."""
        if not self._is_everywhere:
            return [self._listen_host]
        import ifaddr

        found = [
            address.ip for adapter in ifaddr.get_adapters() for address in adapter.ips if address.is_IPv4
        ]
        return [str(ip) for ip in found if not ipaddress.ip_address(str(ip)).is_loopback]

    async def _resolve(
        self, zeroconf: Zeroconf, service_type: str, name: str, found: Callable[[HostPort, str], None]
    ) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(zeroconf, RESOLVE_MS) or not info.port:
            return
        raw = info.properties.get(b"instance") or b""
        for address in info.parsed_addresses():
            with contextlib.suppress(UsageError):
                found(HostPort.parse(str(HostPort(address, info.port))), raw.decode("ascii", "replace"))
