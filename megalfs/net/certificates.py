"""The certificate of a node: self-signed, and its Ed25519 key is the node's key, so the key is the name.

Nothing else in it is believed or checked: no dates, no names, no authority. TLS itself proves that the server
holds the private half.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from megalfs.core.identity import NodeKey
from megalfs.core.signing import SigningKey
from megalfs.errors import NotAuthorisedError, StoreError
from megalfs.net.link import spki

__all__ = ["CERTIFICATE_NAME", "check_certificate", "make_certificate", "write_certificate"]

CERTIFICATE_NAME = "node-certificate.pem"


def make_certificate(private: SigningKey) -> bytes:
    """A PEM certificate for ever (RFC 5280 4.1.2.5: 99991231235959Z), of this key and signed by it."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = Ed25519PrivateKey.from_private_bytes(private.seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, private.public.peer_id)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
        .sign(key, None)
    )
    return certificate.public_bytes(Encoding.PEM)


def write_certificate(private: SigningKey, directory: Path) -> Path:
    """Writes the certificate and its key into one file of `directory` that only this user can read.

    Raises:
        StoreError: it cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.from_private_bytes(private.seed)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = directory / CERTIFICATE_NAME
    new = directory / f".{CERTIFICATE_NAME}-{secrets.token_hex(8)}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(make_certificate(private) + secret)
        new.rename(path)
    except OSError as error:
        raise StoreError(f"cannot write the certificate {str(path)!r}: {error.strerror}") from error
    return path


def check_certificate(der: bytes | None, expected: NodeKey) -> None:
    """Returns when the certificate's key is the one that was named.

    Raises:
        NotAuthorisedError: it is another one's, or none.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        public = x509.load_der_x509_certificate(der or b"").public_key()
        found = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        found = b""
    if found != spki(expected):
        raise NotAuthorisedError(
            f"the peer at this address is not {expected.peer_id}",
            hint="its key changed, or somebody else answers there",
        )
