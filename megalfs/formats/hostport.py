"""Where a peer listens: a host and a port, as in `node7:7427`, `10.0.0.7:7427` or `[fe80::1%eth0]:7427`."""

from __future__ import annotations

import ipaddress
import re

from msgspec import Struct

from megalfs.errors import UsageError

__all__ = ["HostPort"]

_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"  # RFC 1123, and the underscore that cluster DNS uses
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?\Z")
_NAME_CHARS_MAX = 253  # RFC 1035
_ALL_DIGITS = re.compile(r"(?:0[xX][0-9A-Fa-f]*|[0-9]+)\Z")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,15}\Z")  # IFNAMSIZ - 1
_PORT = re.compile(r"(?:0|[1-9][0-9]{0,4})\Z")


class HostPort(Struct, frozen=True, order=True, gc=False):
    """A host name or address, without brackets, and a TCP or UDP port (0 where any port will do)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, default_port: int | None = None) -> HostPort:
        """Reads `HOST:PORT`; IPv6 addresses stand in brackets.

        Args:
            default_port: taken when the text names none.

        Raises:
            UsageError: anything else; nothing that a shell, header or URL could misread passes.
        """
        host, colon, port = text.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = text, "" if default_port is None else str(default_port)
        is_bracketed = host.startswith("[") and host.endswith("]")
        host = _ipv6(host[1:-1]) if is_bracketed else _name_or_ipv4(host)
        if not host or not _PORT.match(port) or int(port) > 65535:
            raise UsageError(
                f"not a host and port: {text[:300]!r}", hint="HOST:PORT or [IPV6]:PORT is expected"
            )
        return cls(host, int(port))

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


def _ipv6(host: str) -> str:
    address, percent, zone = host.partition("%")
    if percent and not _ZONE.match(zone):
        return ""
    try:
        return str(ipaddress.IPv6Address(address)) + percent + zone
    except ValueError:
        return ""


def _name_or_ipv4(host: str) -> str:
    """The host as it is; empty when neither. Some resolvers read `127.1` or `0x7f000001` as addresses."""
    if len(host) > _NAME_CHARS_MAX or not _NAME.match(host):
        return ""
    if _ALL_DIGITS.match(host.rstrip(".").rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            return ""
    return host
