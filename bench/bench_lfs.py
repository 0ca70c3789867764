"""`git lfs pull` of a model in 4 files: stock git-lfs from nginx, and the same git-lfs through megalfs.

    python bench/bench_lfs.py [--mib 1024] [--runs 3]

Everything on loopback, page cache warm, a fresh clone for every run, the variants interleaved. `handed over`
is the floor of any agent: the object lies on this disk already, so all that is left is git-lfs's own hash of
it and the copy into the work tree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common import free_port, machine, make_model, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers_lfs import Person
from processes import is_ready_at, wait_until

FILES = 4
NGINX = """
{3} daemon off; pid {0}/nginx.pid; error_log {0}/error.log; worker_processes 2;
events {{ worker_connections 64; }}
http {{ access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {0}/a; proxy_temp_path {0}/b; fastcgi_temp_path {0}/c; uwsgi_temp_path {0}/d;
  scgi_temp_path {0}/e;
  server {{ listen 127.0.0.1:{1}; root {2}; }} }}
"""


class Batch(BaseHTTPRequestHandler):
    """The Batch API in front of nginx: says where each object is."""

    nginx = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        objects = [
            {**each, "authenticated": True, "actions": {"download": {"href": f"{self.nginx}/{each['oid']}"}}}
            for each in asked.get("objects", [])
        ]
        body = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.git-lfs+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-lfs-") as name:
        print(f"{machine()}; {subprocess.check_output(['git', 'lfs', 'version'], text=True).strip()}\n")
        print(run(Path(name), args.mib, args.runs))


def run(directory: Path, mib: int, runs: int) -> str:
    """All variants, interleaved."""
    ann, bob = Person(directory / "ann").install(), Person(directory / "bob").install()
    work = ann.new_repository()
    (work / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    for index in range(FILES):
        make_model(work / f"{index}.safetensors", mib // FILES, seed=index)
    ann.git("add", "-A", cwd=work)
    ann.git("commit", "-qm", "model", cwd=work)
    ann.git("push", "-q", "origin", "main", cwd=work)
    objects = directory / "objects"
    objects.mkdir()
    for path in (work / ".git/lfs/objects").glob("??/??/*"):
        os.link(path, objects / path.name)
    port = free_port()
    (directory / "nginx.conf").write_text(
        NGINX.format(directory, port, objects, "user root;" if os.geteuid() == 0 else "")
    )
    nginx = subprocess.Popen(["nginx", "-c", str(directory / "nginx.conf")], stderr=subprocess.DEVNULL)
    Batch.nginx = f"http://127.0.0.1:{port}"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Batch)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stock = f"lfs.url=http://127.0.0.1:{server.server_address[1]}"
    peer = f"megalfs.peer={ann.address}"
    variants: dict[str, Callable[[], float]] = {
        "stock git-lfs from nginx": lambda: lfs_pull(bob, ann, stock),
        "git-lfs through megalfs": lambda: lfs_pull(bob, ann, peer, is_fresh=True),
        "git-lfs through megalfs, handed over": lambda: lfs_pull(bob, ann, peer),
        "megalfs pull": lambda: megalfs_pull(bob, ann, peer),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    try:
        for _ in range(runs):
            for name, measure in variants.items():
                times[name].append(measure())
    finally:
        nginx.terminate()
        nginx.wait()
        server.shutdown()
        ann.close()
        bob.close()
    rows = [
        [name, f"{statistics.median(each):.2f}", f"{min(each):.2f}", f"{mib / statistics.median(each):.0f}"]
        for name, each in times.items()
    ]
    return table(["variant", "median s", "best s", "MiB/s"], rows)


def clone(bob: Person, ann: Person, setting: str) -> Path:
    """A fresh clone of pointers."""
    target = bob.directory / "clone"
    shutil.rmtree(target, ignore_errors=True)
    skip = {"GIT_LFS_SKIP_SMUDGE": "1"}
    bob.git("clone", "-q", "-c", setting, ann.directory / "work.git", target, environ=skip)
    return target


def lfs_pull(bob: Person, ann: Person, setting: str, *, is_fresh: bool = False) -> float:
    """Seconds of `git lfs pull`; `is_fresh` with a root that has nothing, its node running."""
    target = clone(bob, ann, setting)
    if is_fresh:
        start_fresh(bob)
    started = time.monotonic()
    bob.git("lfs", "pull", cwd=target)
    return time.monotonic() - started


def megalfs_pull(bob: Person, ann: Person, setting: str) -> float:
    """Seconds of `megalfs pull .`, Python's start included."""
    target = clone(bob, ann, setting)
    bob.kill_node()
    shutil.rmtree(bob.root, ignore_errors=True)
    started = time.monotonic()
    bob.ok("-q", "pull", "--no-share", ".", cwd=target)
    return time.monotonic() - started


def start_fresh(bob: Person) -> None:
    """A node on an empty root."""
    bob.kill_node()
    shutil.rmtree(bob.root, ignore_errors=True)
    bob.start("lfs", "node")
    wait_until(lambda: bob.node is not None and is_ready_at(bob.address), "a node")


if __name__ == "__main__":
    main()
