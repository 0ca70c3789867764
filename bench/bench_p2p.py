"""Clone over p2p:// against `git clone git://`, and a fetch of nothing.

    .venv/bin/python bench/bench_p2p.py [--objects 50000] [--megabytes 100] [--rounds 5] [--quic]

Interleaved rounds on loopback; the ratio of medians is what counts, since the machine is shared. The clone goes
through the client's own node (helper -> Unix socket -> node -> TLS -> node -> upload-pack), as users have it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from helpers_p2p import P2pNode  # noqa: E402 - the path comes first
from processes import wait_until  # noqa: E402


def make_repository(path: Path, *, objects: int, megabytes: int) -> None:
    """A history by fast-import: a third each of blobs, trees and commits, so many objects in all."""
    commits = objects // 3
    size = megabytes * 1_000_000 // commits
    rng = Random(1)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], check=True)
    with subprocess.Popen(["git", "fast-import", "--quiet"], cwd=path, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for number in range(commits):
            content = rng.randbytes(size)
            process.stdin.write(
                b"commit refs/heads/main\ncommitter A <a@example.org> %d +0000\ndata 1\nc\n" % (1_700_000_000 + number)
                + b"M 644 inline file%d\ndata %d\n" % (number % 200, size) + content + b"\n"
            )  # fmt: skip
    subprocess.run(["git", "repack", "-q", "-a", "-d"], cwd=path, check=True)


def seconds_of(node: P2pNode, *argv: object, cwd: Path | None = None) -> float:
    start = time.perf_counter()
    node.git(*argv, cwd=cwd)
    return time.perf_counter() - start


def clone_s(node: P2pNode, url: str) -> float:
    target = node.directory / "clone.git"
    seconds = seconds_of(node, "clone", "-q", "--bare", url, target)
    shutil.rmtree(target)
    return seconds


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quic", action="store_true", help="one clone over QUIC as well")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="megalfs-bench-"))
    owner, client = P2pNode(directory / "owner", MEGALFS_GOSSIP_INTERVAL_S="10"), None
    daemon = None
    try:
        path = directory / "base" / "big.git"
        path.parent.mkdir()
        make_repository(path, objects=args.objects, megabytes=args.megabytes)
        count = subprocess.run(
            ["git", "count-objects", "-v"], cwd=path, capture_output=True, text=True, check=True
        )
        print(" ".join(count.stdout.split()))
        owner.start()
        owner.share(path)
        owner.until("big", has_updates=False, seq=1)
        client = P2pNode(directory / "client", MEGALFS_GOSSIP_INTERVAL_S="10").start()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        daemon = subprocess.Popen(
            ["git", "daemon", "--export-all", f"--base-path={path.parent}", "--listen=127.0.0.1", f"--port={port}"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: listens(port), "git daemon")
        urls = {"git://": f"git://127.0.0.1:{port}/big.git", "p2p://": owner.url("big.git")}
        times: dict[str, list[float]] = {name: [] for name in urls}
        for _ in range(args.rounds):
            for name, url in urls.items():
                times[name].append(clone_s(client, url))
        middle = {name: statistics.median(each) for name, each in times.items()}
        for name, each in times.items():
            print(
                f"clone {name:7} median {middle[name]:6.2f} s   {' '.join(f'{value:.2f}' for value in each)}"
            )
        print(f"ratio p2p:// to git:// {middle['p2p://'] / middle['git://']:.2f} (target 1.2)")
        if args.quic:
            print(f"clone p2p:// over QUIC {clone_s(client, owner.url('big.git', via='quic')):.2f} s")
        target = client.directory / "kept.git"
        client.git("clone", "-q", "--bare", owner.url("big.git"), target)
        client.git("fetch", "-q", cwd=target)
        fetches = [seconds_of(client, "fetch", "-q", "origin", cwd=target) for _ in range(10)]
        print(f"fetch of nothing: median {1000 * statistics.median(fetches):.0f} ms (target 300)")
        print(json.dumps({"ratio": round(middle["p2p://"] / middle["git://"], 3)}))
    finally:
        for node in (owner, client):
            if node is not None:
                node.close()
        if daemon is not None:
            daemon.terminate()
            daemon.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
