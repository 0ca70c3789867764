"""Published names: signed, canonical, never rolled back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from megalfs.core.ids import ManifestId, Oid
from megalfs.core.names import NAME_RECORD_BYTES_MAX, NameRecord, SignedName, check_successor, parse_name
from megalfs.core.signing import SigningKey, encode_signature, sign
from megalfs.errors import PolicyError, UsageError
from megalfs.formats import strict_json

ME = SigningKey(bytes(range(32)))
RECORD = NameRecord(
    name="org/model ä.safetensors",
    oid=Oid(bytes(32)),
    size=140_000_000_000,
    manifest=ManifestId(bytes(range(32))),
    kind="blob",
    seq=7,
    expires=2_000_000_000,
)
SIGNED = SignedName.sign(ME, RECORD)


def signed_fields(fields: Any) -> bytes:
    """Anything at all, properly signed: what a malicious key can make."""
    signature = encode_signature(sign(ME, "name", strict_json.encode(fields)))
    return strict_json.encode({"key": str(ME.public), "record": fields, "signature": signature})


@pytest.mark.parametrize(
    "record", [RECORD, replace(RECORD, manifest=None, kind="tree", seq=0, size=0, expires=0)]
)
def test_round_trips(record: NameRecord) -> None:
    signed = SignedName.sign(ME, record)
    assert SignedName.parse(signed.encode(), key=ME.public, name=record.name) == signed
    assert signed_fields(record.to_fields()) == signed.encode()


def test_the_record_is_the_promised_one() -> None:
    fields = json.loads(SIGNED.encode())["record"]
    assert set(fields) == {"name", "oid", "size", "manifest", "kind", "seq", "expires"}


def test_another_key_or_name_than_asked_for() -> None:
    with pytest.raises(PolicyError):
        SignedName.parse(SIGNED.encode(), key=SigningKey(bytes(32)).public)
    with pytest.raises(PolicyError):
        SignedName.parse(SIGNED.encode(), name="other")


def test_a_forged_record_is_refused() -> None:
    for changed in (
        replace(SIGNED, record=replace(RECORD, seq=8)),
        replace(SIGNED, key=SigningKey(bytes(32)).public),
    ):
        with pytest.raises(PolicyError):
            SignedName.parse(changed.encode())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"critical": 1}, PolicyError),
        ({"kind": "volume"}, PolicyError),
        ({"kind": None}, UsageError),
        ({"name": "../x"}, UsageError),
        ({"name": "a" * 256}, UsageError),
        ({"name": "A" * 64}, UsageError),
        ({"name": "megalfs:x"}, UsageError),
        ({"oid": "00"}, UsageError),
        ({"oid": "AB" * 32}, UsageError),
        ({"oid": "sha256:" + "ab" * 32}, UsageError),
        ({"manifest": 5}, UsageError),
        ({"size": -1}, UsageError),
        ({"size": 1 << 63}, UsageError),
        ({"size": True}, UsageError),
        ({"seq": "1"}, UsageError),
        ({"seq": -1}, UsageError),
        ({"expires": None}, UsageError),
    ],
)
def test_bad_records_are_refused_though_signed(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        SignedName.parse(signed_fields({**RECORD.to_fields(), **change}))


@pytest.mark.parametrize("field", sorted(RECORD.to_fields()))
def test_every_field_must_be_there(field: str) -> None:
    fields = RECORD.to_fields()
    del fields[field]
    with pytest.raises(UsageError):
        SignedName.parse(signed_fields(fields))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        SIGNED.encode() + b"\n",
        SIGNED.encode().replace(b",", b", "),
        SIGNED.encode()[:-1] + b',"z":1}',
        SIGNED.encode().replace(b"did:key:z6Mk", b"did:key:z"),
        b'{"a":' + b"[" * 2000,
        b" " * (NAME_RECORD_BYTES_MAX + 1),
    ],
)
def test_malformed_texts_are_refused(text: bytes) -> None:
    with pytest.raises(UsageError):
        SignedName.parse(text)


def test_the_same_key_in_its_other_spelling_is_not_canonical() -> None:
    with pytest.raises(UsageError):
        SignedName.parse(SIGNED.encode().replace(str(ME.public).encode(), ME.public.peer_id.encode()))


def test_order() -> None:
    check_successor(None, SIGNED)
    check_successor(SIGNED, SIGNED)
    check_successor(SIGNED, SignedName.sign(ME, replace(RECORD, seq=8, size=1)))
    for record in (
        replace(RECORD, seq=6),
        replace(RECORD, size=1),
        replace(RECORD, expires=RECORD.expires + 1),
    ):
        with pytest.raises(PolicyError):
            check_successor(SIGNED, SignedName.sign(ME, record))


def test_expiry_takes_now() -> None:
    assert not RECORD.is_expired(RECORD.expires - 0.001)
    assert RECORD.is_expired(RECORD.expires)


@pytest.mark.parametrize("name", ["m", "model.safetensors", "org/model", "a" * 255, "ä ö", "-x", "0" * 63])
def test_names_that_are_taken(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/x", "a//b", "a/..", "a\nb", "a:b", "a\\b", "0" * 64, "é" * 128, "a\u202eb"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        parse_name(name)
