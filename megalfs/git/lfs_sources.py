"""Whom to ask for the objects of one repository: its user's settings, its git configuration, what it commits.

What a repository commits (`.megalfs.toml`) comes from strangers, so it may only name peers and trackers, and
these are asked as strangers: plain `/v1` requests without any header of ours, no redirects, and never an
address that only means something on this link (cloud metadata services live there). It may also name the LFS
server that it had before: git-lfs itself would ask that, with the login that `git credential` has for it.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.link import parse_http_url
from megalfs.errors import ConfigError, UsageError
from megalfs.formats.hostport import HostPort

if TYPE_CHECKING:
    from megalfs.config import Settings

__all__ = ["CONFIG_NAME", "S3_SCHEME", "RepositoryFile", "Sources", "find_sources", "parse_home"]

log = logging.getLogger(__name__)

CONFIG_NAME = ".megalfs.toml"
S3_SCHEME = "s3://"
DEFAULT_PORT = 7427
ENTRIES_MAX = 64  # peers, and trackers, that one repository may name


class RepositoryFile(Struct, frozen=True):
    """What `.megalfs.toml` says."""

    peers: tuple[HostPort, ...] = ()
    trackers: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> RepositoryFile:
        """Reads the file; keys of later versions, and those that are not harmless, are ignored and logged.

        Raises:
            ConfigError: it is no TOML, or a value is not what its key wants.
        """
        import tomllib

        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{CONFIG_NAME}: {error}") from error
        for name in sorted(set(document) - {"peers", "trackers", "servers"}):
            log.warning("%s: the key %r means nothing here and is ignored", CONFIG_NAME, name)
        try:
            peers = tuple(_stranger_peer(text) for text in _texts(document.get("peers", [])))
            trackers = tuple(_stranger_url(text) for text in _texts(document.get("trackers", [])))
            servers = tuple(_stranger_server(text) for text in _texts(document.get("servers", [])))
        except UsageError as error:
            raise ConfigError(f"{CONFIG_NAME}: {error}") from error
        return cls(peers, trackers, servers)


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > ENTRIES_MAX or not all(isinstance(v, str) for v in value):
        raise UsageError(f"a list of at most {ENTRIES_MAX} texts is expected, not {str(value)[:80]!r}")
    return value


def _stranger_peer(text: str) -> HostPort:
    peer = HostPort.parse(text, default_port=DEFAULT_PORT)
    _check_host(peer.host)
    return peer


def _stranger_url(text: str) -> str:
    url = parse_http_url(text)
    _check_host(urlsplit(url).hostname or "")
    return url


def _stranger_server(text: str) -> str:
    """An LFS server, or a bucket at the endpoint that is the user's own choice."""
    return parse_s3_url(text) if text.startswith(S3_SCHEME) else _stranger_url(text)


def parse_s3_url(text: str) -> str:
    """Checks `s3://BUCKET/PREFIX` and returns it without a slash at its end; raises UsageError."""
    parts = urlsplit(text)
    is_plain = all("!" <= char <= "~" and char not in '\\"<>^`|?#%@' for char in text)
    if parts.scheme != "s3" or not parts.hostname or parts.netloc != parts.hostname or not is_plain:
        raise UsageError(f"not s3://BUCKET/PREFIX: {text[:200]!r}")
    return text.rstrip("/")


def parse_home(text: str) -> str:
    """The URL of an LFS server or of a bucket; raises UsageError."""
    return parse_s3_url(text) if text.startswith(S3_SCHEME) else parse_http_url(text)


def _check_host(host: str) -> None:
    """Refuses addresses of this link, whatever name leads there."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return  # nobody there; asking will say so
    for each in found:
        address = ipaddress.ip_address(each.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise UsageError(f"a repository may not name {host!r}: {address} is no peer")


class Sources(Struct, frozen=True):
    """Peers and trackers of one repository; `strangers` are the `host:port` that only the repository names."""

    peers: tuple[HostPort, ...]
    trackers: tuple[str, ...]
    strangers: frozenset[str]
    stranger_trackers: tuple[str, ...]
    homes: tuple[str, ...]  # LFS servers and buckets that a push must reach, and
    servers: tuple[str, ...]  # those that a download may ask, homes included
    keys: frozenset[NodeKey]  # whose signed manifests the user takes for the proof, here
    description: str

    @property
    def is_empty(self) -> bool:
        """Whether there is nobody to ask."""
        return not self.peers and not self.trackers and not self.servers


def find_sources(
    settings: Settings,
    git: Mapping[str, Sequence[str]],
    text: str,
    where: str,
    *,
    hints: Sequence[HostPort] = (),
    told: Sequence[HostPort] = (),
) -> Sources:
    """Puts together whom to ask. Blocks: names are resolved.

    Args:
        git: the values of `megalfs.*` in git's own configuration (never `.lfsconfig`), which the user wrote.
        text: of the repository's `.megalfs.toml`, and `where` that was found.
        hints: peers that an LFS server of the user's own named.
        told: who holds the repository, as the peer says that the user's p2p:// remote names by its key.

    Raises:
        UsageError: some value is no peer or URL.
    """
    for each in (*hints, *told):
        _check_host(each.host)
    own_peers = [
        *settings.peers,
        *(HostPort.parse(v, default_port=DEFAULT_PORT) for v in git.get("megalfs.peer", ())),
    ]
    own_trackers = [*settings.trackers, *map(parse_http_url, git.get("megalfs.tracker", ()))]
    theirs = RepositoryFile.parse(text) if text else RepositoryFile()
    own = {str(peer) for peer in (*own_peers, *told)} | {urlsplit(url).netloc for url in own_trackers}
    named = {str(peer) for peer in (*theirs.peers, *hints)} | {
        urlsplit(url).netloc for url in theirs.trackers
    }
    homes = tuple(map(parse_home, git.get("megalfs.home", ())))
    own_servers = (*map(parse_home, git.get("megalfs.server", ())), *homes)
    servers = tuple(dict.fromkeys((*own_servers, *theirs.servers)))
    keys = settings.trusted_keys | set(map(NodeKey.parse, git.get("megalfs.key", ())))
    parts = [
        _listed("peers", own_peers, "your configuration"),
        _listed("trackers", own_trackers, "your configuration"),
        _listed("peers", theirs.peers, where),
        _listed("trackers", theirs.trackers, where),
        _listed("peers", hints, "the LFS server"),
        _listed("peers", told, "the p2p remote"),
        _listed("server", own_servers, "your configuration"),
        _listed("server", theirs.servers, where),
        _listed("key", sorted(map(str, keys)), "your configuration"),
    ]
    return Sources(
        peers=tuple(dict.fromkeys((*own_peers, *told, *theirs.peers, *hints))),
        trackers=tuple(dict.fromkeys((*own_trackers, *theirs.trackers))),
        strangers=frozenset(named - own),
        stranger_trackers=tuple(url for url in theirs.trackers if url not in own_trackers),
        homes=homes,
        servers=servers,
        keys=keys,
        description="; ".join(filter(None, parts)),
    )


def _listed(kind: str, entries: Sequence[object], where: str) -> str:
    return f"{kind} {', '.join(map(str, entries))} of {where}" if entries else ""
