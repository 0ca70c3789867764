"""What a repository is now, said by its creator: refs and bundles under a sequence number, signed and chained.

    megalfs-state-v1
    repo did:repo:z...            recomputed from root and creator, so nobody else can speak for it
    name tiny
    description A small one
    root <object name>            SHA-1 or SHA-256; all names of one state are of one kind
    creator did:key:z6Mk...
    seq 3
    previous <sha-256 of the record before, or ->
    conflict <sha-256>            both sides of an equivocation that this record ends; none, or two or more
    created 1790000000
    expires 1821536000
    branch refs/heads/main
    delegate did:key:z6Mk...      keys that may push; sorted
    bundle <oid> <bytes>          to be applied in this order
    ref <name> refs/heads/main    sorted
    signature <base64url>

A lower sequence number is a rollback. The same one with another content proves that the creator said two
things: both are kept and shown, neither is followed until a higher record names both. All of it has one
encoding, so its SHA-256 names it.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Sequence

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.ids import Oid
from megalfs.core.refs import REFS_MAX, check_ref, parse_commit, parse_refs
from megalfs.core.repoid import RepoId, parse_repo_name
from megalfs.core.signing import SigningKey, decode_signature, encode_signature, sign, verify
from megalfs.errors import PolicyError, UsageError
from megalfs.formats.limits import SIZE_MAX

__all__ = [
    "STATE_BYTES_MAX",
    "BundleRef",
    "RepoState",
    "SignedState",
    "Verdict",
    "check_description",
    "judge",
]

STATE_BYTES_MAX = 4 << 20  # ten thousand refs of the longest names
BUNDLES_MAX = 64
DELEGATES_MAX = 256
CONFLICTS_MAX = 16
DESCRIPTION_CHARS_MAX = 500
_MAGIC = "megalfs-state-v1"
_KIND = "repo-state"
_NONE = "-"


class BundleRef(Struct, frozen=True):
    """A bundle file as a blob."""

    oid: Oid
    size: int


class RepoState(Struct, frozen=True, kw_only=True):
    """One record. Times in seconds since 1970; `previous` and `conflicts` are hashes of records."""

    name: str
    root: str
    creator: NodeKey
    seq: int
    previous: str | None
    created: int
    expires: int
    branch: str
    refs: dict[str, str]
    bundles: tuple[BundleRef, ...]
    delegates: tuple[NodeKey, ...] = ()
    conflicts: tuple[str, ...] = ()
    description: str = ""

    @property
    def repo(self) -> RepoId:
        """Whose state it is: what root and creator make it."""
        return RepoId.of(self.root, self.creator)

    def encode(self) -> bytes:
        """The text that is signed."""
        lines = [
            _MAGIC,
            f"repo {self.repo}",
            f"name {self.name}",
            f"description {self.description}",
            f"root {self.root}",
            f"creator {self.creator}",
            f"seq {self.seq}",
            f"previous {self.previous or _NONE}",
            *(f"conflict {each}" for each in sorted(self.conflicts)),
            f"created {self.created}",
            f"expires {self.expires}",
            f"branch {self.branch}",
            *(f"delegate {each}" for each in sorted(str(key) for key in self.delegates)),
            *(f"bundle {bundle.oid} {bundle.size}" for bundle in self.bundles),
            *(f"ref {self.refs[name]} {name}" for name in sorted(self.refs)),
        ]
        return "".join(f"{line}\n" for line in lines).encode()

    def is_expired(self, now: float) -> bool:
        """Whether the creator no longer stands by it; it is usable all the same, with a warning."""
        return now >= self.expires


class SignedState(Struct, frozen=True):
    """A record whose signature was checked: `sign` and `parse` are the only ways to one."""

    state: RepoState
    signature: bytes
    hash: str

    @classmethod
    def sign(cls, private: SigningKey, state: RepoState) -> SignedState:
        """Signs a record as its creator."""
        assert private.public == state.creator
        return cls.parse(_sealed(state.encode(), sign(private, _KIND, state.encode())))

    def encode(self) -> bytes:
        """The record and its signature."""
        return _sealed(self.state.encode(), self.signature)

    @classmethod
    def parse(cls, text: bytes, *, repo: RepoId | None = None) -> SignedState:
        """Reads and verifies; order is for `judge`.

        Args:
            repo: whose state was asked for.

        Raises:
            UsageError: malformed, too long, or not in its one encoding.
            PolicyError: not signed by its creator, or of another repository than asked for.
        """
        if len(text) > STATE_BYTES_MAX:
            raise UsageError(f"a state of {len(text)} bytes; the limit is {STATE_BYTES_MAX}")
        try:
            lines = text.decode().split("\n")
        except UnicodeDecodeError as error:
            raise UsageError("a state that is not UTF-8") from error
        state, signature = _read(_Lines(lines))
        if _sealed(state.encode(), signature) != text:
            raise UsageError("a state that is not in its one encoding")
        if repo is not None and state.repo != repo:
            raise PolicyError(f"a state of {state.repo} instead of {repo}")
        verify(state.creator, _KIND, state.encode(), signature)
        return cls(state, signature, hashlib.sha256(state.encode()).hexdigest())


class Verdict(enum.Enum):
    """What a record is to who knows another one of the same repository."""

    FOLLOWS = "the next one, or the first we see"
    SAME = "the one we have"
    OLDER = "a rollback"
    GAP = "newer, but the records between are not known"
    FORK = "says something else than a record we know: equivocation"


def judge(known: Sequence[SignedState], new: SignedState) -> Verdict:
    """Compares a record with the newest we keep: one, or two that contradict each other."""
    if not known:
        return Verdict.FOLLOWS
    top, seq = max(each.state.seq for each in known), new.state.seq
    hashes = {each.hash for each in known}
    if new.hash in hashes:
        return Verdict.SAME
    if seq > top and hashes <= set(new.state.conflicts):
        return Verdict.FOLLOWS
    if seq < top or len(known) > 1:
        return Verdict.OLDER
    if seq > top and new.state.previous in hashes:
        return Verdict.FOLLOWS
    return Verdict.GAP if seq > top + 1 else Verdict.FORK


def check_description(text: str) -> str:
    """Checks a one-line description of at most 500 printable characters.

    Raises:
        UsageError: it is refused.
    """
    if len(text) > DESCRIPTION_CHARS_MAX or not (text.isprintable() or not text) or text != text.strip():
        raise UsageError(f"not a description of one line: {text[:80]!r}")
    return text


def _sealed(record: bytes, signature: bytes) -> bytes:
    return record + f"signature {encode_signature(signature)}\n".encode()


class _Lines:
    """The lines of a record, taken in their order."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._next = 0

    def magic(self) -> None:
        """The first line."""
        if self._lines[0] != _MAGIC:
            raise UsageError(f"not a repository's state: {self._lines[0][:80]!r}")
        self._next = 1

    def one(self, word: str) -> str:
        """The value of the line that must come now."""
        line = self._lines[self._next] if self._next < len(self._lines) else ""
        if not line.startswith(f"{word} "):
            raise UsageError(f"a state without {word!r} at {line[:80]!r}")
        self._next += 1
        return line[len(word) + 1 :]

    def many(self, word: str, count_max: int) -> Iterator[str]:
        """The values of the lines of one kind; there may be none."""
        count = 0
        while self._next < len(self._lines) and self._lines[self._next].startswith(f"{word} "):
            count += 1
            if count > count_max:
                raise UsageError(f"more than {count_max} lines {word!r} in a state")
            yield self.one(word)

    def end(self) -> None:
        if self._lines[self._next :] != [""]:
            raise UsageError("something after the signature of a state")


def _read(lines: _Lines) -> tuple[RepoState, bytes]:
    lines.magic()
    repo = RepoId.parse(lines.one("repo"))
    state = RepoState(
        name=parse_repo_name(lines.one("name")),
        description=check_description(lines.one("description")),
        root=parse_commit(lines.one("root")),
        creator=NodeKey.parse(lines.one("creator")),
        seq=_number(lines.one("seq")),
        previous=_previous(lines.one("previous")),
        conflicts=tuple(str(Oid.parse(each)) for each in lines.many("conflict", CONFLICTS_MAX)),
        created=_number(lines.one("created")),
        expires=_number(lines.one("expires")),
        branch=check_ref(lines.one("branch")),
        delegates=tuple(NodeKey.parse(each) for each in lines.many("delegate", DELEGATES_MAX)),
        bundles=tuple(_bundle(each) for each in lines.many("bundle", BUNDLES_MAX)),
        refs=parse_refs(lines.many("ref", REFS_MAX)),
    )
    signature = decode_signature(lines.one("signature"))
    lines.end()
    if any(len(oid) != len(state.root) for oid in state.refs.values()):
        raise UsageError(f"a state of {repo} with object names of two kinds")
    if state.repo != repo:
        raise PolicyError(f"a state of {repo} that its root and creator do not make")
    return state, signature


def _previous(text: str) -> str | None:
    return None if text == _NONE else str(Oid.parse(text))


def _bundle(text: str) -> BundleRef:
    oid, _, size = text.partition(" ")
    return BundleRef(Oid.parse(oid), _number(size))


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > SIZE_MAX:
        raise UsageError(f"not a number in a state: {text[:80]!r}")
    return int(text)
