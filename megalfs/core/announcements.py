"""What nodes tell each other: who is there, which repositories they own, which files they hold, and states.

    payload    canonical JSON {"body": {...}, "key": did, "kind": "node", "time": milliseconds since 1970}
    signature  over `megalfs:gossip:v1` NUL payload, by `key`: everybody speaks for himself only

A repository's state is an announcement too: its payload is the state's own signed text, its key the creator.
Liveness is ordered by time and forgotten when it is old; states are ordered by sequence number and kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, cast

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.ids import Oid
from megalfs.core.refs import parse_commit
from megalfs.core.repo_state import SignedState, check_description
from megalfs.core.repoid import RepoId, parse_repo_name
from megalfs.core.signing import SIGNATURE_BYTES, SigningKey, sign, verify
from megalfs.errors import PolicyError, UsageError
from megalfs.formats import strict_json
from megalfs.formats.hostport import HostPort
from megalfs.formats.limits import SIZE_MAX
from megalfs.formats.strict_json import JsonFault, JsonValue

__all__ = [
    "PAYLOAD_BYTES_MAX",
    "Announcement",
    "FileBody",
    "Kind",
    "NodeAddress",
    "NodeBody",
    "RepoBody",
    "announce",
    "announce_state",
    "parse_announcement",
]

PAYLOAD_BYTES_MAX = 48 << 10  # a state of some 400 refs; larger ones are fetched over a link of their own
ADDRESSES_MAX = 16
ALIAS_CHARS_MAX = 64
WORD_CHARS_MAX = 64
TIME_MAX = 1 << 53  # what every JSON parser keeps exactly
_KIND = "gossip"
_STATE_MAGIC = b"megalfs-state-v1\n"

Kind = Literal["node", "repo", "file", "state"]


class NodeAddress(Struct, frozen=True):
    """A node and where it listens: `did:key:...@HOST:PORT`."""

    key: NodeKey
    address: HostPort

    @classmethod
    def parse(cls, text: str) -> NodeAddress:
        """Reads `KEY@HOST:PORT`.

        Raises:
            UsageError: anything else.
        """
        key, _, address = text.rpartition("@")
        return cls(NodeKey.parse(key), HostPort.parse(address))

    def __str__(self) -> str:
        return f"{self.key}@{self.address}"


class NodeBody(Struct, frozen=True):
    """Who is there: `digest` sums up everything else that the node says."""

    alias: str
    addresses: tuple[HostPort, ...]
    http: tuple[HostPort, ...]
    node_type: str
    version: str
    digest: str


class RepoBody(Struct, frozen=True):
    """A repository that the node owns; `seq` and `state` name its newest state."""

    repo: RepoId
    name: str
    description: str
    root: str
    seq: int
    state: str
    is_removed: bool = False


class FileBody(Struct, frozen=True):
    """A blob that the node holds, such as a bundle of a repository."""

    oid: Oid
    size: int
    repo: RepoId | None
    seq: int


Body = NodeBody | RepoBody | FileBody | SignedState


class Announcement(Struct, frozen=True):
    """One announcement whose signature was checked."""

    kind: Kind
    key: NodeKey
    time: int
    body: Body
    payload: bytes
    signature: bytes

    @property
    def id(self) -> bytes:
        """SHA-256 of the payload."""
        return hashlib.sha256(self.payload).digest()

    @property
    def subject(self) -> str:
        """What it is about: of one key, kind and subject only the newest counts."""
        match self.body:
            case NodeBody():
                return ""
            case RepoBody(repo=repo):
                return str(repo)
            case FileBody(oid=oid):
                return str(oid)
            case SignedState(state=state):
                return str(state.repo)

    @property
    def order(self) -> int:
        """Sequence number of a state, time of everything else."""
        return self.time


def announce(private: SigningKey, time_ms: int, body: NodeBody | RepoBody | FileBody) -> Announcement:
    """Signs an announcement."""
    kind, fields = _fields(body)
    document: dict[str, JsonValue] = {
        "body": fields,
        "key": str(private.public),
        "kind": kind,
        "time": time_ms,
    }
    payload = strict_json.encode(document)
    return Announcement(kind, private.public, time_ms, body, payload, sign(private, _KIND, payload))


def announce_state(signed: SignedState) -> Announcement:
    """A state as an announcement; it brings its creator's signature."""
    payload = signed.encode()
    return Announcement(
        "state", signed.state.creator, signed.state.seq, signed, payload, bytes(SIGNATURE_BYTES)
    )


def parse_announcement(payload: bytes, signature: bytes) -> Announcement:
    """Reads and verifies.

    Raises:
        UsageError: malformed.
        PolicyError: not signed by the key that it speaks for, or a repository that is not this key's.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise UsageError(f"an announcement of {len(payload)} bytes")
    if payload.startswith(_STATE_MAGIC):
        if signature != bytes(SIGNATURE_BYTES):
            raise UsageError("a second signature on a state")
        return announce_state(SignedState.parse(payload))
    try:
        document = strict_json.parse_canonical(payload)
    except JsonFault as fault:
        raise UsageError(f"an announcement that is not canonical: {fault}") from fault
    match document:
        case {"body": dict() as fields, "key": str(text), "kind": str(kind), "time": int(time), **rest} if (
            not rest
        ):
            key = NodeKey.parse(text)
        case _:
            raise UsageError("not an announcement")
    if isinstance(time, bool) or not 0 <= time <= TIME_MAX or str(key) != text:
        raise UsageError("an announcement with another spelling of its key or time")
    body = _body(kind, fields)
    if isinstance(body, RepoBody) and body.repo != RepoId.of(body.root, key):
        raise PolicyError(f"{key} announces {body.repo}, which is not its own")
    verify(key, _KIND, payload, signature)
    return Announcement(cast(Kind, kind), key, time, body, payload, signature)


def _fields(body: NodeBody | RepoBody | FileBody) -> tuple[Kind, dict[str, JsonValue]]:
    match body:
        case NodeBody():
            return "node", {
                "addresses": [str(each) for each in body.addresses],
                "alias": body.alias,
                "digest": body.digest,
                "http": [str(each) for each in body.http],
                "node_type": body.node_type,
                "version": body.version,
            }
        case RepoBody():
            return "repo", {
                "description": body.description,
                "name": body.name,
                "removed": body.is_removed,
                "repo": str(body.repo),
                "root": body.root,
                "seq": body.seq,
                "state": body.state,
            }
        case FileBody():
            return "file", {
                "oid": str(body.oid),
                "repo": None if body.repo is None else str(body.repo),
                "seq": body.seq,
                "size": body.size,
            }


def _body(kind: str, fields: Mapping[str, JsonValue]) -> NodeBody | RepoBody | FileBody:
    match kind, fields:
        case "node", {
            "addresses": list(addresses),
            "alias": str(alias),
            "digest": str(digest),
            "http": list(http),
            "node_type": str(node_type),
            "version": str(version),
            **rest,
        } if not rest:
            return NodeBody(
                _word(alias, ALIAS_CHARS_MAX),
                _addresses(addresses),
                _addresses(http),
                _word(node_type, WORD_CHARS_MAX),
                _word(version, WORD_CHARS_MAX),
                str(Oid.parse(digest)),
            )
        case "repo", {
            "description": str(description),
            "name": str(name),
            "removed": bool(is_removed),
            "repo": str(repo),
            "root": str(root),
            "seq": seq,
            "state": str(state),
            **rest,
        } if not rest:
            return RepoBody(
                RepoId.parse(repo),
                parse_repo_name(name),
                check_description(description),
                parse_commit(root),
                _number(seq),
                str(Oid.parse(state)),
                is_removed,
            )
        case "file", {"oid": str(oid), "repo": None | str() as of, "seq": seq, "size": size, **rest} if (
            not rest
        ):
            repo_id = None if of is None else RepoId.parse(of)
            return FileBody(Oid.parse(oid), _number(size), repo_id, _number(seq))
        case _:
            raise UsageError(f"not an announcement of kind {kind[:32]!r}")


def _addresses(texts: list[JsonValue]) -> tuple[HostPort, ...]:
    if len(texts) > ADDRESSES_MAX:
        raise UsageError(f"{len(texts)} addresses in an announcement")
    return tuple(HostPort.parse(text) for text in texts if isinstance(text, str))


def _word(text: str, chars_max: int) -> str:
    if len(text) > chars_max or not (text.isprintable() or not text):
        raise UsageError(f"not a word for an announcement: {text[:80]!r}")
    return text


def _number(value: JsonValue) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= SIZE_MAX:
        raise UsageError(f"not a number in an announcement: {str(value)[:80]!r}")
    return value
