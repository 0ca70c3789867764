"""A published name: which blob somebody's key says that it stands for, and since when.

The record is canonical JSON, signed as kind `name`. Records of one key and name are ordered by `seq`: a
lower one is a rollback, the same one with other content is a key that says two things; both are refused.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.pathrules import escape_for_terminal, path_fault
from megalfs.core.signing import SigningKey, decode_signature, encode_signature, sign, verify
from megalfs.errors import PolicyError, UsageError
from megalfs.formats import strict_json
from megalfs.formats.limits import SIZE_MAX
from megalfs.formats.strict_json import JsonFault, JsonValue

__all__ = ["NAME_RECORD_BYTES_MAX", "NameRecord", "SignedName", "check_successor", "parse_name"]

NAME_RECORD_BYTES_MAX = 4096  # a record has about 600 bytes, its name at most 255
NAME_BYTES_MAX = 255
_KIND = "name"
_FIELDS = frozenset({"expires", "kind", "manifest", "name", "oid", "seq", "size"})
_LOOKS_LIKE_AN_OID = re.compile(r"[0-9a-fA-F]{64}\Z")


def parse_name(text: str) -> str:
    """Checks a name: a relative path of at most 255 bytes, without a colon, that no oid or link looks like.

    Raises:
        UsageError: it is refused.
    """
    fault = path_fault(text)
    if fault is None and (":" in text or _LOOKS_LIKE_AN_OID.match(text)):
        fault = "it looks like a link or an oid"
    if fault is None and len(text.encode("utf-8")) > NAME_BYTES_MAX:
        fault = f"it is longer than {NAME_BYTES_MAX} bytes"
    if fault is not None:
        raise UsageError(f"the name '{escape_for_terminal(text[:80])}' is refused: {fault}")
    return text


class NameRecord(Struct, frozen=True, kw_only=True):
    """What a name stands for. `expires` in seconds since 1970; `manifest` where the publisher names one."""

    name: str
    oid: Oid
    size: int
    manifest: ManifestId | None
    kind: Literal["blob", "tree"]
    seq: int
    expires: int

    def encode(self) -> bytes:
        """Canonical JSON: what is signed."""
        return strict_json.encode(self.to_fields())

    def to_fields(self) -> dict[str, JsonValue]:
        """As JSON values."""
        return {
            "expires": self.expires,
            "kind": self.kind,
            "manifest": None if self.manifest is None else str(self.manifest),
            "name": self.name,
            "oid": str(self.oid),
            "seq": self.seq,
            "size": self.size,
        }

    @classmethod
    def from_fields(cls, fields: JsonValue) -> NameRecord:
        """Reads `to_fields`.

        Raises:
            UsageError: malformed.
            PolicyError: an unknown field or kind: an upgrade is needed.
        """
        if isinstance(fields, dict) and set(fields) - _FIELDS:
            raise PolicyError(
                f"unknown fields in a name record: {sorted(fields)!r:.200}", hint="upgrade megalfs"
            )
        match fields:
            case {
                "name": str(name),
                "oid": str(oid),
                "kind": str(kind),
                "manifest": None | str() as manifest,
                "size": size,
                "seq": seq,
                "expires": expires,
            }:
                return cls(
                    name=parse_name(name),
                    oid=Oid.parse(oid),
                    size=_number("size", size),
                    manifest=None if manifest is None else ManifestId.parse(manifest),
                    kind=_kind(kind),
                    seq=_number("seq", seq),
                    expires=_number("expires", expires),
                )
            case _:
                raise UsageError(
                    f"a name record lacks a field or has one of another type: {str(fields)[:200]!r}"
                )

    def is_expired(self, now: float) -> bool:
        """Whether the publisher no longer stands by it; `now` in seconds since 1970."""
        return now >= self.expires


class SignedName(Struct, frozen=True):
    """A record whose signature was checked: making one by `sign` or `parse` are the only ways."""

    record: NameRecord
    key: NodeKey
    signature: bytes

    @classmethod
    def sign(cls, private: SigningKey, record: NameRecord) -> SignedName:
        """Signs a record."""
        parse_name(record.name)
        return cls(record, private.public, sign(private, _KIND, record.encode()))

    def encode(self) -> bytes:
        """`{"key": did, "record": {...}, "signature": base64url}`, canonical."""
        fields: dict[str, JsonValue] = {
            "key": str(self.key),
            "record": self.record.to_fields(),
            "signature": encode_signature(self.signature),
        }
        return strict_json.encode(fields)

    @classmethod
    def parse(cls, text: bytes, *, key: NodeKey | None = None, name: str | None = None) -> SignedName:
        """Reads and verifies; expiry and order are for the caller (`is_expired`, `check_successor`).

        Args:
            key: whose record was asked for.
            name: which name was asked for.

        Raises:
            UsageError: malformed or too long.
            PolicyError: the signature does not fit, another key or name than asked for, or an unknown field.
        """
        if len(text) > NAME_RECORD_BYTES_MAX:
            raise UsageError(f"a name record of {len(text)} bytes; the limit is {NAME_RECORD_BYTES_MAX}")
        signed = cls._read(text)
        if key not in (None, signed.key) or name not in (None, signed.record.name):
            raise PolicyError(f"asked {key} for {name!r}, got {signed.record.name!r} by {signed.key}")
        verify(signed.key, _KIND, signed.record.encode(), signed.signature)
        return signed

    @classmethod
    def _read(cls, text: bytes) -> SignedName:
        try:
            fields = strict_json.parse_canonical(text)
        except JsonFault as e:
            raise UsageError(f"bad name record: {e}") from e
        match fields:
            case {"key": str(by), "record": dict(record), "signature": str(signature), **rest} if not rest:
                signed = cls(NameRecord.from_fields(record), NodeKey.parse(by), decode_signature(signature))
            case _:
                raise UsageError("a signed name is {key, record, signature}")
        if signed.encode() != text:
            raise UsageError("bad name record: not canonical")
        return signed


def check_successor(known: SignedName | None, offered: SignedName) -> None:
    """Returns when `offered` may take the place of `known`, the newest record of that key and name seen here.

    Raises:
        PolicyError: a lower `seq` (rollback), or the same `seq` with other content (equivocation).
    """
    if known is None:
        return
    assert (known.key, known.record.name) == (offered.key, offered.record.name)
    old, new = known.record, offered.record
    shown = escape_for_terminal(new.name)
    if new.seq < old.seq:
        raise PolicyError(f"the name '{shown}' went back from seq {old.seq} to {new.seq}")
    if new.seq == old.seq and new != old:
        raise PolicyError(f"{offered.key} signed two records of '{shown}' with seq {new.seq}")


def _number(name: str, value: JsonValue) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= SIZE_MAX:
        raise UsageError(f"{name} in a name record is {str(value)[:40]!r}")
    return value


def _kind(text: str) -> Literal["blob", "tree"]:
    match text:
        case "blob" | "tree":
            return text
        case _:
            raise PolicyError(f"unknown kind {text[:40]!r} in a name record", hint="upgrade megalfs")
