"""Ed25519 signatures, each over `megalfs:<kind>:v1` NUL payload, so that one kind never passes for another.

`cryptography` is imported where it is used: reading a key or a link must not cost the 50 ms.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.identity import KEY_BYTES, NodeKey
from megalfs.core.ids import ManifestId
from megalfs.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "SIGNATURE_BYTES",
    "ManifestSignature",
    "SigningKey",
    "decode_signature",
    "encode_signature",
    "format_signatures",
    "parse_signatures",
    "sign",
    "sign_manifest",
    "verify",
]

SIGNATURE_BYTES = 64
SIGNATURES_MAX = 32  # of one manifest
SIGNATURES_CHARS_MAX = 8 << 10  # fits one HTTP header; one signature has 143 characters
MANIFEST_KIND = "manifest"
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")
# Points of small order, sign bit aside, as libsodium lists them: signatures of such "keys" need no private key.
_SMALL_ORDER = frozenset(
    {
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        *(bytes((low,)) + b"\xff" * 30 + b"\x7f" for low in (0xEC, 0xED, 0xEE)),
    }
)


class SigningKey(Struct, frozen=True):
    """An Ed25519 private key: the 32-byte seed of RFC 8032. Never shown."""

    seed: bytes

    def __post_init__(self) -> None:
        assert len(self.seed) == KEY_BYTES

    def __repr__(self) -> str:
        return f"SigningKey(of {self.public})"

    @property
    def public(self) -> NodeKey:
        """The key that others know."""
        return NodeKey(_private_key(self.seed).public_key().public_bytes_raw())


def sign(private: SigningKey, kind: str, payload: bytes) -> bytes:
    """64 bytes over the kind and the payload."""
    return _private_key(private.seed).sign(_message(kind, payload))


@lru_cache(
    maxsize=4
)  # deriving the public half takes longer than signing, and 10,000 files are signed at once
def _private_key(seed: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed)


def verify(key: NodeKey, kind: str, payload: bytes, signature: bytes) -> None:
    """Returns when `key` signed this.

    Raises:
        PolicyError: it did not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if key.raw[:31] + bytes((key.raw[31] & 0x7F,)) in _SMALL_ORDER:
        raise PolicyError(f"{key} is nobody's key: a point of small order")
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, _message(kind, payload))
    except (InvalidSignature, ValueError) as e:  # ValueError: bytes that OpenSSL takes for no key at all
        raise PolicyError(f"the {kind} signature of {key} does not fit") from e


def _message(kind: str, payload: bytes) -> bytes:
    assert _KIND.match(kind)
    return f"megalfs:{kind}:v1\0".encode() + payload


def encode_signature(signature: bytes) -> str:
    """base64url without padding: 86 characters."""
    return base64.urlsafe_b64encode(signature).rstrip(b"=").decode("ascii")


def decode_signature(text: str) -> bytes:
    """Reads `encode_signature`, and only what it writes.

    Raises:
        UsageError: anything else.
    """
    try:
        signature = base64.urlsafe_b64decode(text + "==") if _BASE64URL.match(text) else b""
    except binascii.Error:
        signature = b""
    if len(signature) != SIGNATURE_BYTES or encode_signature(signature) != text:
        raise UsageError(f"not a signature: {text[:100]!r}")
    return signature


class ManifestSignature(Struct, frozen=True):
    """A detached signature over a manifest id; `str()` is `did:key:z6Mk...;<base64url>`."""

    key: NodeKey
    signature: bytes

    @classmethod
    def parse(cls, text: str) -> ManifestSignature:
        """Reads the text form; says nothing about whom it convinces.

        Raises:
            UsageError: malformed.
        """
        key, _, signature = text.strip().partition(";")
        return cls(NodeKey.parse(key), decode_signature(signature))

    def verify(self, manifest: ManifestId) -> None:
        """Returns when the key signed this manifest.

        Raises:
            PolicyError: it did not.
        """
        verify(self.key, MANIFEST_KIND, manifest.raw, self.signature)

    def is_genuine(self, manifest: ManifestId) -> bool:
        """Whether the key signed this manifest."""
        try:
            self.verify(manifest)
        except PolicyError:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.key};{encode_signature(self.signature)}"


def sign_manifest(private: SigningKey, manifest: ManifestId) -> ManifestSignature:
    """Signs a manifest id."""
    return ManifestSignature(private.public, sign(private, MANIFEST_KIND, manifest.raw))


def format_signatures(signatures: Iterable[ManifestSignature]) -> str:
    """One line for a header or a file: the signatures, separated by commas."""
    return ", ".join(str(signature) for signature in signatures)


def parse_signatures(text: str) -> tuple[ManifestSignature, ...]:
    """Reads `format_signatures`, line breaks allowed for commas; an empty text holds none.

    Raises:
        UsageError: malformed, too long, or more than 32.
    """
    if len(text) > SIGNATURES_CHARS_MAX:
        raise UsageError(f"signatures of {len(text)} characters; the limit is {SIGNATURES_CHARS_MAX}")
    parts = [part for part in re.split(r"[,\r\n]", text) if part.strip()]
    if len(parts) > SIGNATURES_MAX:
        raise UsageError(f"{len(parts)} signatures; the limit is {SIGNATURES_MAX}")
    return tuple(ManifestSignature.parse(part) for part in parts)
