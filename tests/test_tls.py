"""A node behind TLS: its routes over https, and pulling from it as from an origin that has a manifest."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from processes import Megalfs

SIZE = 3 << 20


def write_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "megalfs test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = directory / "cert.pem", directory / "key.pem"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_path, key_path


@pytest.fixture
def secure(tmp_path: Path) -> tuple[Megalfs, Path, bytes]:
    """A root whose node serves TLS on a port that it says in its status, the certificate, and the content."""
    cert, key = write_certificate(tmp_path)
    settings = {
        "MEGALFS_TLS_LISTEN": "127.0.0.1:0",
        "MEGALFS_TLS_CERT": str(cert),
        "MEGALFS_TLS_KEY": str(key),
    }
    node = Megalfs(tmp_path / "seeder", environ=settings)
    content = np.random.default_rng(7).bytes(SIZE)
    (node.directory / "model.bin").write_bytes(content)
    return node, cert, content


def test_a_node_behind_tls_is_a_full_source(
    secure: tuple[Megalfs, Path, bytes], tmp_path: Path, new_node: Callable[[str], Megalfs]
) -> None:
    node, cert, content = secure
    oid = hashlib.sha256(content).hexdigest()
    try:
        port = node.seed("model.bin").ready["tls_port"]
        origin = f"https://127.0.0.1:{port}/v1/file/{{oid}}"
        puller = Megalfs(tmp_path / "puller", environ={"SSL_CERT_FILE": str(cert)})
        done = puller.ok("pull", oid, "-o", "m.bin", "--origin", origin, "--listen", "127.0.0.1:0", "--json")
        assert (puller.directory / "m.bin").read_bytes() == content
        assert done.records[-1]["bytes_origin"] == SIZE
        assert len(list((puller.root / "manifests" / oid).iterdir())) == 1, (
            "the manifest came from the origin"
        )
        stranger = new_node("stranger")
        refused = stranger.run("pull", oid, "-o", "m.bin", "--origin", origin, "--listen", "127.0.0.1:0")
        assert refused.code == 5, "a certificate that nobody vouches for"
        assert not (stranger.directory / "m.bin").exists()
    finally:
        node.close()


def test_a_certificate_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    environ = {"MEGALFS_TLS_LISTEN": "127.0.0.1:0", "MEGALFS_TLS_CERT": str(tmp_path / "none.pem")}
    node = Megalfs(tmp_path / "node", environ=environ)
    done = node.run("node", "start", "--listen", "127.0.0.1:0")
    assert done.code == 2
    assert "none.pem" in done.err
    assert "Traceback" not in done.err
