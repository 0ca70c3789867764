"""What users would pick instead of `megalfs pull`: nginx with curl or aria2c, libtorrent, hf_xet; each at its best.

A rival is a `Rival`: how one download is started, and which servers' CPU seconds count with it. Those that
are not installed are skipped with a line that says so.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common import free_port

__all__ = ["Rival", "rivals", "start_nginx"]

# TCP only, since uTP reaches 10 MB/s over this loopback; no encryption, no rate limits, and libtorrent's own
# settings for a fast seed.
LIBTORRENT_CLIENT = """
import sys, time, libtorrent as lt
role, torrent, where, port, seed_port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
settings = lt.high_performance_seed()
settings.update({"listen_interfaces": f"127.0.0.1:{port}", "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "enable_incoming_utp": False, "enable_outgoing_utp": False,
    "in_enc_policy": 2, "out_enc_policy": 2, "allow_multiple_connections_per_ip": True, "alert_mask": 0})
s = lt.session(settings)
p = lt.add_torrent_params()
p.ti = lt.torrent_info(torrent); p.save_path = where
if role == "seed": p.flags |= lt.torrent_flags.seed_mode
h = s.add_torrent(p)
if role == "seed":
    print("ready", flush=True); time.sleep(3600)
h.connect_peer(("127.0.0.1", seed_port))
while not h.status().is_seeding: time.sleep(0.005)
"""
# Its "local:" store is a directory, so nothing crosses a socket here: that favours it.
HF_XET_CLIENT = """
import sys, hf_xet
role, endpoint, path = sys.argv[1:4]
session = hf_xet.XetSession()
if role == "upload":
    with session.new_upload_commit(endpoint=endpoint) as commit:
        upload = commit.start_upload_file(path, sha256=hf_xet.SKIP_SHA256)
    info = upload.result().xet_info
    print(info.hash, info.file_size)
else:
    info = hf_xet.XetFileInfo(sys.argv[4], int(sys.argv[5]))
    with session.new_file_download_group(endpoint=endpoint) as group:
        group.start_download_file(info, path)
"""


@dataclass
class Rival:
    """One way to get the file: `argv` downloads it to a path, `made` is what appears for it."""

    name: str
    argv: Callable[[Path], list[str]]
    servers: list[int] = field(default_factory=list)
    close: Callable[[], None] = lambda: None


def rivals(directory: Path, model: Path) -> Iterator[Rival]:
    """Everybody who can run here, with their servers started; curl is the first."""
    yield from _over_http(directory, model)
    for make, package in ((_libtorrent, "libtorrent"), (_hf_xet, "hf_xet")):
        try:
            __import__(package)
        except ImportError:
            print(f"skipped: {package} (pip install {package})")
            continue
        yield make(directory, model)


def _over_http(directory: Path, model: Path) -> Iterator[Rival]:
    if not (shutil.which("nginx") and shutil.which("curl")):
        print("skipped: curl and nginx (apt-get install nginx curl)")
        return
    nginx, port = start_nginx(directory, model.parent)
    url, servers = f"http://127.0.0.1:{port}/{model.name}", [nginx.pid]
    yield Rival(
        "curl -o file, nginx (unverified)",
        lambda out: ["curl", "-s", "-o", str(out), url],
        servers,
        lambda: _end(nginx),
    )
    if shutil.which("aria2c"):
        yield Rival(
            "aria2c -x8 -s8, nginx (unverified)",
            lambda out: ["aria2c", "-q", "-x8", "-s8", "-d", str(out.parent), "-o", out.name, url],
            servers,
        )
    else:
        print("skipped: aria2c (apt-get install aria2)")


def start_nginx(directory: Path, served: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.log; worker_processes 1; user root;\n"
        f"events {{ worker_connections 64; }}\n"
        f"http {{ sendfile on; tcp_nopush on; access_log off; client_body_temp_path {directory};\n"
        f"proxy_temp_path {directory}; fastcgi_temp_path {directory}; uwsgi_temp_path {directory};\n"
        f"scgi_temp_path {directory}; server {{ listen 127.0.0.1:{port}; root {served}; }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(config), "-p", str(directory)])
    _wait_for_port(port)
    return process, port


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def _libtorrent(directory: Path, model: Path) -> Rival:
    """A seed, and a fresh leech for each download."""
    import libtorrent as lt

    torrent = lt.create_torrent([lt.create_file_entry(model.name, model.stat().st_size)], 1 << 20)
    lt.set_piece_hashes(torrent, str(model.parent))
    path, script, port = directory / "model.torrent", directory / "lt_client.py", free_port()
    path.write_bytes(lt.bencode(torrent.generate()))
    script.write_text(LIBTORRENT_CLIENT)
    python = [sys.executable, "-W", "ignore", str(script)]
    seed = subprocess.Popen(
        [*python, "seed", str(path), str(model.parent), str(port), "0"], stdout=subprocess.PIPE
    )
    assert seed.stdout is not None
    seed.stdout.readline()

    def argv(out: Path) -> list[str]:
        where = out.parent / "lt"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        return [*python, "leech", str(path), str(where), str(free_port()), str(port)]

    return Rival(f"libtorrent {lt.version}, 1 to 1", argv, [seed.pid], lambda: _end(seed))


def _hf_xet(directory: Path, model: Path) -> Rival:
    """Downloads from a store on this disk."""
    script, endpoint = directory / "xet_client.py", f"local://{directory}/xet"
    (directory / "xet").mkdir()
    script.write_text(HF_XET_CLIENT)
    os.environ["HF_XET_TELEMETRY_ENABLED"] = "0"
    python = [sys.executable, str(script)]
    done = subprocess.run(
        [*python, "upload", endpoint, str(model)], stdout=subprocess.PIPE, text=True, check=True
    )
    digest, size = done.stdout.split()[-2:]
    return Rival(
        "hf_xet, from a store on this disk (unverified)",
        lambda out: [*python, "download", endpoint, str(out), digest, size],
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()
