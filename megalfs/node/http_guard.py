"""Who may ask what over HTTP: the Host check, the local token, allow-list mode.

A browser on this machine can be made to ask us anything (DNS rebinding), so a request must name us by
address, by a name without a dot, or by a name we know to be ours: an attacker's domain is none of these. In
allow-list mode a remote request needs a token that a listed key signed; `/healthz` and `/readyz` answer all.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct, field

from megalfs.core.identity import NodeKey
from megalfs.errors import RemoteProtocolError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.net.handshake import UPGRADE_PATH
from megalfs.node.identity import LocalIdentity

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Guard", "TokenSource", "make_token"]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
TOKEN_LIFE_S = 3600
TOKEN_RENEW_S = 600
TOKEN_BYTES = 32 + 8 + 64
_LOCAL_SUFFIXES = (".local", ".localhost", ".internal", ".lan", ".home.arpa")


def make_token(identity: LocalIdentity) -> str:
    """A bearer token for a node in allow-list mode: key, expiry (u64 big-endian, seconds), signature; base64url."""
    expiry = (int(time.time()) + TOKEN_LIFE_S).to_bytes(8, "big")  # noqa: TID251 - compared with another host's clock
    signature = identity.sign("token", identity.key.raw + expiry)
    return base64.urlsafe_b64encode(identity.key.raw + expiry + signature).decode("ascii").rstrip("=")


class TokenSource(Struct):
    """This node's token, signed anew now and then: a pull of 10,000 small files sends it 20,000 times."""

    identity: LocalIdentity
    _token: str = ""
    _made_s: float = 0.0

    def token(self) -> str:
        """One that is good for most of an hour, also after the clock was set. Safe to call from threads."""
        now_s = time.time()  # noqa: TID251 - as in `make_token`
        if not 0 <= now_s - self._made_s < TOKEN_RENEW_S:
            self._token, self._made_s = make_token(self.identity), now_s
        return self._token


class Guard(Struct, frozen=True):
    """The rules of one node."""

    local_token: str
    advertise_host: str
    allow_keys: frozenset[NodeKey]
    logins: list[Callable[[web.Request], bool]] = field(default_factory=list)  # of services: who else may ask

    def is_local(self, request: web.Request) -> bool:
        """Whether the request carries this root's token, which only this user can read."""
        return hmac.compare_digest(_bearer(request).encode(), self.local_token.encode())

    def refusal(self, request: web.Request) -> tuple[int, str] | None:
        """The status and the line that refuse a request before any handler runs; None lets it through."""
        if request.path in OPEN_PATHS:
            return None
        host = request.headers.get("Host", "")
        if not self.is_our_name(host):
            return 403, "this host name is not one of this node's"
        if request.headers.get("Origin") not in {None, f"http://{host}", f"https://{host}"}:
            return 403, "cross-origin requests are refused"
        is_peer = request.path == UPGRADE_PATH  # whose hello proves a listed key, or it is dropped
        if not self.allow_keys or is_peer or self.is_local(request) or self._is_listed(request):
            return None
        if any(is_let_in(request) for is_let_in in self.logins):
            return None
        return 401, "this node answers only to listed keys"

    def is_allowed_key(self, key: NodeKey) -> bool:
        """Whether a peer with this key may take part."""
        return not self.allow_keys or key in self.allow_keys

    def is_our_name(self, host_header: str) -> bool:
        """Whether a Host header may be meant for this node: an attacker's domain is not."""
        try:
            host = HostPort.parse(host_header, default_port=80).host.rstrip(".").lower()
        except UsageError:
            return False
        if "." not in host or host.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return host in {
                self.advertise_host.lower(),
                socket.gethostname().lower(),
                socket.getfqdn().lower(),
            }
        return True

    def _is_listed(self, request: web.Request) -> bool:
        token = _bearer(request)
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            return False
        if len(raw) != TOKEN_BYTES:
            return False
        key, expiry, signature = raw[:32], int.from_bytes(raw[32:40], "big"), raw[40:]
        now = time.time()  # noqa: TID251 - compared with another host's clock
        if NodeKey(key) not in self.allow_keys or not now - 60 <= expiry <= now + 2 * TOKEN_LIFE_S:
            return False
        try:
            LocalIdentity.verify(key, signature, "token", raw[:40])
        except RemoteProtocolError:
            return False
        return True


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
