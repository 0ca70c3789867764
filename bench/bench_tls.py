"""Pull of one file from a node's `tls_listen` over loopback, beside curl from the same node.

    .venv/bin/python bench/bench_tls.py [--size-mib 1024] [--rounds 3] [--congestion reno]

Node to node over https: the puller knows the node as an origin, takes the manifest from it and verifies every
byte, with the SHA-256 proof or a trusted key. curl verifies nothing. Method and columns are bench_pull.py's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_pull import Contender, Megalfs, Timing, enter_namespace, make_small, report, run_client, run_rounds
from common import machine, make_model


class SecureNode(Megalfs):
    """One seeder behind TLS, and pulls from it over https."""

    def __init__(self, directory: Path, model: Path, small: Path) -> None:
        self.certificate, key = make_certificate(directory)
        self.tls_environ = {
            "MEGALFS_TLS_LISTEN": "127.0.0.1:0",
            "MEGALFS_TLS_CERT": str(self.certificate),
            "MEGALFS_TLS_KEY": str(key),
        }
        super().__init__(directory, model, small, seeders=1, environ=self.tls_environ)
        for name in self.tls_environ:
            del self.env[name]
        self.env["SSL_CERT_FILE"] = str(self.certificate)

    @property
    def url(self) -> str:
        """Where the blob is."""
        return f"https://127.0.0.1:{self.ready['tls_port']}/v1/file/{self.oids[0]}"

    def curl(self, out: Path, *, target: str | None = None) -> Timing:
        """curl from the node, unverified but for the certificate."""
        argv = ["curl", "-s", "--cacert", str(self.certificate), "-o", target or str(out), self.url]
        return run_client(argv, env=self.env, servers=[self.processes[0].pid], out=out)[0]

    def pull_secure(self, out: Path, *, is_trusted: bool) -> Timing:
        """One pull into a fresh root."""
        shutil.rmtree(self.directory / "puller", ignore_errors=True)
        keys = ["--key", self.key] if is_trusted else []
        argv = self._argv(
            "puller", "pull", self.oids[0], "-o", str(out), "--json", "--listen", "127.0.0.1:0",
            "--origin", self.url, *keys,
        )  # fmt: skip
        timing, stdout = run_client(argv, env=self.env, servers=[self.processes[0].pid], out=out)
        timing.seconds = json.loads(stdout.splitlines()[-1])["seconds"]
        return timing


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=megalfs bench",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--congestion", default="reno", help="as root; empty: the system's")
    args = parser.parse_args()
    missing = [tool for tool in ("openssl", "curl") if shutil.which(tool) is None]
    if missing:
        print(f"TLS: skipped, without {' and '.join(missing)}")
        return
    if args.congestion:
        enter_namespace(args.congestion)
    with tempfile.TemporaryDirectory(prefix="megalfs-bench-") as name:
        directory = Path(name)
        model = make_model(directory / "served" / "model.safetensors", args.size_mib)
        node = SecureNode(directory, model, make_small(directory / "served" / "small.bin"))
        contenders = [
            Contender("curl -o file, the node (unverified)", node.curl),
            Contender("curl -o /dev/null, the node (unverified)", partial(node.curl, target="/dev/null")),
            Contender("megalfs, trusted key, https", partial(node.pull_secure, is_trusted=True)),
            Contender("megalfs, SHA-256 proof, https", partial(node.pull_secure, is_trusted=False)),
        ]
        try:
            run_rounds(contenders, directory / "out.bin", args.rounds, size=model.stat().st_size)
        finally:
            node.close()
        print(machine())
        report(contenders, model.stat().st_size)


if __name__ == "__main__":
    main()
