"""Keys in both spellings, and what they sign. Vectors: did:key, libp2p peer ids, RFC 8032."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId
from megalfs.core.signing import (
    ManifestSignature,
    SigningKey,
    decode_signature,
    encode_signature,
    format_signatures,
    parse_signatures,
    sign,
    sign_manifest,
    verify,
)
from megalfs.errors import PolicyError, UsageError
from megalfs.formats import base58

# https://datatracker.ietf.org/doc/html/draft-msporny-base58-03, section 5
BASE58 = [
    (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
    (
        b"The quick brown fox jumps over the lazy dog.",
        "USm3fpXnKG5EUBx2ndxBDMPVciP5hGey2Jh4NDv6gmeo1LkMeiKrLJUUBk6Z",
    ),
    (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    (b"", ""),
    (b"\0\0\0", "111"),
]

# https://w3c-ccg.github.io/did-key-spec/#ed25519-x25519 and the examples of did-core
DIDS = [
    "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
    "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp",
    "did:key:z6MkjchhfUsD6mmvni8mCdXHw216Xrm9bQe2mBH1P5RDjVJG",
    "did:key:z6MknGc3ocHs3zdPiJbnaaqDi58NGb4pk1Sp9WxWufuXSdxf",
]

# RFC 8032, 7.1, test 1: the seed and public key; the spelling of that public key as libp2p prints it.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
ME = SigningKey(SEED)
MANIFEST = ManifestId(bytes(range(32)))


@pytest.mark.parametrize(("raw", "text"), BASE58)
def test_base58_known_answers(raw: bytes, text: str) -> None:
    assert base58.encode(raw) == text
    assert base58.decode(text) == raw


@given(st.binary(max_size=80))
def test_base58_round_trips(raw: bytes) -> None:
    assert base58.decode(base58.encode(raw)) == raw


@pytest.mark.parametrize("text", ["0", "O", "I", "l", "a b", "é", "z" * 129])
def test_base58_rejections(text: str) -> None:
    with pytest.raises(UsageError):
        base58.decode(text)


@pytest.mark.parametrize("did", DIDS)
def test_did_keys_round_trip(did: str) -> None:
    key = NodeKey.parse(did)
    assert str(key) == key.did == did
    assert key.peer_id.startswith("12D3KooW")
    assert NodeKey.parse(key.peer_id) == key


def test_known_spellings_of_one_key() -> None:
    assert ME.public == NodeKey(PUBLIC)
    assert NodeKey(PUBLIC).did == "did:key:" + "z" + base58.encode(b"\xed\x01" + PUBLIC)
    # libp2p's peer-id specification prints this peer id, and its key as a protobuf.
    key = NodeKey.parse("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
    assert key.raw.hex() == "2ffa35a99d3a3cfbb17bb7c1dc5561b18a8dcca4df38dc613ea859c37eb1336b"


@given(st.binary(min_size=32, max_size=32))
def test_every_spelling_parses_and_the_legacy_one_is_never_written(raw: bytes) -> None:
    key = NodeKey(raw)
    legacy = "did:key:z" + base58.encode(b"\xed" + raw)
    assert NodeKey.parse(key.did) == NodeKey.parse(key.peer_id) == NodeKey.parse(legacy) == key
    assert key.did.startswith("did:key:z6Mk")
    assert key.did != legacy


def test_legacy_keys_look_as_the_predecessor_wrote_them() -> None:
    legacy = "did:key:z" + base58.encode(b"\xed" + PUBLIC)
    assert legacy.startswith("did:key:z2D")
    assert NodeKey.parse(legacy).raw == PUBLIC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "did:key:",
        "did:key:z",
        "did:key:z6Mk",
        DIDS[0][:-1],
        DIDS[0] + "1",
        " " + DIDS[0],
        DIDS[0] + "\n",
        DIDS[0].upper(),
        DIDS[0].removeprefix("did:key:"),
        "did:key:z" + base58.encode(b"\xec\x01" + PUBLIC),  # x25519
        "did:key:z" + base58.encode(b"\xe7\x01" + PUBLIC + b"\x02"),  # secp256k1
        "did:key:z" + base58.encode(b"\xed\x01" + PUBLIC[:-2]),
        "did:key:z" + base58.encode(b"\xed\x01" + PUBLIC + b"\0"),
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # a hashed RSA peer id
        base58.encode(b"\x00\x25\x08\x02\x12\x21" + b"\x02" + PUBLIC),  # secp256k1 peer id
        base58.encode(b"\x00\x24\x08\x01\x12\x20" + PUBLIC + b"\0"),
        "1" * 128,
        "z" * 10_000,
    ],
)
def test_other_keys_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        NodeKey.parse(text)


def test_signatures_bind_kind_payload_and_key() -> None:
    signature = sign(ME, "name", b"payload")
    verify(ME.public, "name", b"payload", signature)
    stranger = SigningKey(bytes(32)).public
    for key, kind, payload, given_signature in (
        (ME.public, "manifest", b"payload", signature),
        (ME.public, "name", b"payload!", signature),
        (stranger, "name", b"payload", signature),
        (ME.public, "name", b"payload", signature[:-1]),
        (ME.public, "name", b"payload", signature[:-1] + bytes([signature[-1] ^ 1])),
        (ME.public, "name", b"payload", b""),
    ):
        with pytest.raises(PolicyError):
            verify(key, kind, payload, given_signature)


def test_what_is_signed_is_the_promised_message() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = sign_manifest(ME, MANIFEST).signature
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(signature, b"megalfs:manifest:v1\0" + MANIFEST.raw)


def test_a_private_key_is_not_shown() -> None:
    assert SEED.hex() not in repr(ME)
    assert repr(SEED) not in repr(ME)


def test_manifest_signatures_round_trip() -> None:
    mine = sign_manifest(ME, MANIFEST)
    other = sign_manifest(SigningKey(bytes(32)), MANIFEST)
    line = format_signatures([mine, other])
    assert line.isascii()
    assert line.isprintable()
    assert parse_signatures(line) == (mine, other)
    assert parse_signatures(line.replace(", ", "\n") + "\n") == (mine, other)
    assert parse_signatures("") == ()
    assert ManifestSignature.parse(str(mine)) == mine
    mine.verify(MANIFEST)
    with pytest.raises(PolicyError):
        mine.verify(ManifestId(bytes(32)))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        ";",
        DIDS[0],
        f"{DIDS[0]};",
        f"{DIDS[0]};AAAA",
        f"{DIDS[0]};{'A' * 87}",
        f"{DIDS[0]};{'A' * 85}B",  # bits behind the last byte
        f"{DIDS[0]};{'A' * 86}==",
        f"{DIDS[0]};{'+' * 86}",
        ",".join([f"{DIDS[0]};{'A' * 86}"] * 33),
        "x" * 8193,
    ],
)
def test_bad_signature_lines_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_signatures(text)


@given(st.binary(min_size=64, max_size=64))
def test_signature_text_round_trips(raw: bytes) -> None:
    assert decode_signature(encode_signature(raw)) == raw
