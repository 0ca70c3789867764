"""How a repository is named: by an id that its creator alone can speak for, by a short name, by a URL.

    did:repo:z...    base58btc(0x16 0x20 + SHA3-256(root commit id + creator's public key)), a sha3-256 multihash
    p2p://<peer>/<repo>.git               also /pack/<repo>.git; `mega://` and `megalfs::` for `p2p://`
    p2p://<own key>@<peer>/<repo>.git?addr=HOST:PORT

URLs reach us as strangers wrote them (submodules, READMEs): everything here is a closed grammar.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal
from urllib.parse import unquote

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.refs import parse_commit
from megalfs.errors import UsageError
from megalfs.formats import base58
from megalfs.formats.hostport import HostPort

__all__ = ["RESERVED_NAMES", "RepoId", "RepoUrl", "parse_repo_name"]

_DID = "did:repo:z"
_MULTIHASH = bytes((0x16, 0x20))  # sha3-256, 32 bytes
_DIGEST_BYTES = 32
# First parts of the paths of our HTTP routes and URLs (DESIGN.md section 6).
RESERVED_NAMES = frozenset({"file", "object", "pack", "peers", "names"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_SCHEME = re.compile(r"(?:p2p|mega|megalfs)://|megalfs::|")
URL_CHARS_MAX = 2048
ADDRESSES_MAX = 16

Kind = Literal["pack", "object"]
Via = Literal["tls", "quic"]


class RepoId(Struct, frozen=True, order=True):
    """The multihash; `str()` is `did:repo:z...`."""

    digest: bytes

    def __post_init__(self) -> None:
        assert len(self.digest) == _DIGEST_BYTES

    @classmethod
    def of(cls, root_commit: str, creator: NodeKey) -> RepoId:
        """The id of the repository that `creator` added when its history began at `root_commit`."""
        content = bytes.fromhex(parse_commit(root_commit)) + creator.raw
        return cls(hashlib.sha3_256(content).digest())

    @classmethod
    def parse(cls, text: str) -> RepoId:
        """Reads `did:repo:z...`.

        Raises:
            UsageError: anything else.
        """
        raw = base58.decode(text.removeprefix(_DID)) if text.startswith(_DID) else b""
        if len(raw) != len(_MULTIHASH) + _DIGEST_BYTES or not raw.startswith(_MULTIHASH):
            raise UsageError(f"not a repository id: {text[:100]!r}", hint="did:repo:z... is expected")
        return cls(raw[len(_MULTIHASH) :])

    def __str__(self) -> str:
        return _DID + base58.encode(_MULTIHASH + self.digest)


def parse_repo_name(text: str) -> str:
    """Checks a short name: letters, digits, `.`, `_`, `-`; at most 100; none of the reserved words.

    Raises:
        UsageError: it is refused.
    """
    if not _NAME.match(text) or text.lower().endswith((".git", ".lock")) or ".." in text:
        raise UsageError(
            f"not a repository name: {text[:80]!r}", hint="letters, digits, '.', '_' and '-' are expected"
        )
    if text.lower() in RESERVED_NAMES:
        raise UsageError(f"the name {text!r} is reserved", hint="choose another one with --name")
    return text


class RepoUrl(Struct, frozen=True, kw_only=True):
    """A parsed URL: whom to ask, as whom, for what, and where they may be."""

    peer: NodeKey
    repo: str
    kind: Kind = "pack"
    me: NodeKey | None = None
    addresses: tuple[HostPort, ...] = ()
    via: Via | None = None

    @classmethod
    def parse(cls, text: str) -> RepoUrl:
        """Reads a URL; `repo` is a name, a repository id, or for kind `object` an object name.

        Raises:
            UsageError: anything that is none. What may be a password is not repeated.
        """
        if len(text) > URL_CHARS_MAX:
            raise UsageError(f"a URL of {len(text)} characters")
        rest = text
        for _ in range(2):  # megalfs::p2p://... has two
            found = _SCHEME.match(rest)
            rest = rest[found.end() :] if found else rest
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        me, at, host = authority.rpartition("@")
        addresses, via = _query(query)
        kind, repo = _path(path)
        return cls(
            peer=_key(host, "the host of the URL"),
            me=_key(me, "what stands before the @ (no password is needed or accepted)") if at else None,
            kind=kind,
            repo=repo,
            addresses=addresses,
            via=via,
        )

    @classmethod
    def of_repository(cls, text: str) -> RepoUrl:
        """As `parse`, where one object will not do."""
        url = cls.parse(text)
        if url.kind == "object":
            raise UsageError("a URL of one object, not of a repository", hint=f"megalfs repo object {url}")
        return url

    def __str__(self) -> str:
        me = f"{self.me.peer_id}@" if self.me else ""
        path = f"object/{self.repo}" if self.kind == "object" else f"{self.repo}.git"
        pairs = [f"addr={address}" for address in self.addresses] + ([f"via={self.via}"] if self.via else [])
        return f"p2p://{me}{self.peer.peer_id}/{path}" + (f"?{'&'.join(pairs)}" if pairs else "")


def _key(text: str, what: str) -> NodeKey:
    try:
        return NodeKey.parse(text)
    except UsageError:
        raise UsageError(
            f"{what} is not a node's key", hint="p2p://12D3KooW.../name.git or did:key:z6Mk..."
        ) from None


def _path(path: str) -> tuple[Kind, str]:
    parts = path.removesuffix("/").split("/")
    match parts:
        case ["object", name] if not name.endswith(".git"):
            return "object", parse_commit(name)
        case ["pack" | "object", name] | [name]:
            return "pack", _repo(name.removesuffix(".git"))
        case _:
            raise UsageError(
                f"not a repository's path: {path[:80]!r}", hint="/name.git, /pack/name.git or /object/NAME"
            )


def _repo(text: str) -> str:
    return str(RepoId.parse(text)) if text.startswith(_DID) else parse_repo_name(text)


def _query(query: str) -> tuple[tuple[HostPort, ...], Via | None]:
    addresses: list[HostPort] = []
    via: Via | None = None
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        match name, unquote(value):
            case "addr", address if len(addresses) < ADDRESSES_MAX:
                addresses.append(HostPort.parse(address))
            case "via", ("tls" | "quic") as carrier:
                via = carrier
            case _:
                raise UsageError(
                    f"unknown in a p2p URL: {pair[:80]!r}", hint="addr=HOST:PORT and via=tls|quic"
                )
    return tuple(addresses), via
