"""A first clone of a big history from an owner whose uplink is thin, with and without others who keep its bundles.

    .venv/bin/python bench/bench_bundles.py [--mbit 50] [--keepers 2] [--rounds 2]

Every node is a host of its own behind a shaped link; needs root. `connect` is a clone of the single branch, which
never takes bundles; the other one takes history from the swarm and the rest from the owner.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_p2p import make_repository
from netns import Host, Network, why_not

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from helpers_p2p import P2pNode  # noqa: E402 - the path comes first


class HostNode(P2pNode):
    """A node inside a namespace; its commands and git, outside, reach it by files and its Unix socket."""

    def __init__(self, directory: Path, host: Host) -> None:
        super().__init__(directory, MEGALFS_GOSSIP_INTERVAL_S="2")
        self.host = host
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"{self.key}@{self.host.address}:9000"

    def run_node(self, *argv: object) -> HostNode:
        """Starts it and does not wait: whatever needs it waits."""
        addresses = ("--listen", f"{self.host.address}:7427", "--addr", f"{self.host.address}:9000")
        command = [
            sys.executable,
            "-m",
            "megalfs",
            "--root",
            self.megalfs.root,
            "node",
            "start",
            *addresses,
            *argv,
        ]
        with (self.directory / "node.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.host.command(list(map(str, command))), env=self.megalfs.environ, stdout=log, stderr=log
            )
        return self

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


def clone_s(client: HostNode, owner: HostNode, *argv: str) -> float:
    """Seconds of one clone, by a client that has nothing."""
    target = client.directory / "clone.git"
    bundles = client.megalfs.root / "repos" / "bundles"
    start = time.perf_counter()
    client.git("clone", "-q", "--bare", *argv, f"p2p://{owner.key}/big.git", target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    shutil.rmtree(bundles, ignore_errors=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--mbit", type=float, default=50.0)
    parser.add_argument("--keepers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    if reason := why_not():
        sys.exit(f"bench_bundles: {reason}")
    directory = Path(tempfile.mkdtemp(prefix="megalfs-bench-"))
    nodes: list[HostNode] = []
    try:
        with Network(2 + args.keepers, 10_000.0) as network:
            nodes += [HostNode(directory / f"node{n}", host) for n, host in enumerate(network.hosts)]
            owner, client, *keepers = nodes
            path = directory / "base" / "big.git"
            path.parent.mkdir()
            make_repository(path, objects=args.objects, megabytes=args.megabytes)
            owner.run_node().share(path)
            owner.until("big", seq=1, has_updates=False)
            for keeper in keepers:
                keeper.run_node("--bootstrap-node", owner.bootstrap).until("big", here=True)
            client.run_node("--bootstrap-node", (keepers or [owner])[0].bootstrap, "--no-discover")
            client.until("big", seq=1)
            for host in network.hosts[:1] + network.hosts[2:]:
                host.shape(args.mbit)
            times: dict[str, list[float]] = {"connect": [], "bundles": []}
            for _ in range(args.rounds):
                times["connect"].append(clone_s(client, owner, "--single-branch"))
                times["bundles"].append(clone_s(client, owner))
            for name, each in times.items():
                print(
                    f"{name:8} median {statistics.median(each):6.2f} s   {' '.join(f'{s:.2f}' for s in each)}"
                )
            for node in nodes:
                node.close()
    finally:
        for node in nodes:
            node.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
