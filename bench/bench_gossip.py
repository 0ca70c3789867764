"""What gossip of 1,000 repositories costs nodes that are at rest: CPU seconds of whole processes.

    .venv/bin/python bench/bench_gossip.py [--repos 1000] [--seconds 60]

Three real nodes with the default intervals: an owner of so many real repositories, one in the middle that only
passes on, and one that listens. All know all of them before the clock starts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from helpers_p2p import P2pNode  # noqa: E402 - the path comes first
from processes import wait_until  # noqa: E402

from megalfs.core.identity import NodeKey  # noqa: E402
from megalfs.git.repos import add_repository  # noqa: E402
from megalfs.store.repos import Repos  # noqa: E402
from megalfs.store.root import Root  # noqa: E402

DEFAULTS = {"MEGALFS_GOSSIP_INTERVAL_S": "10", "MEGALFS_SYNC_INTERVAL_S": "60"}
SETTLE_S_MAX = 600.0
COMMIT = "commit refs/heads/main\ncommitter A <a@example.org> 1700000000 +0000\ndata {size}\n{text}\n"


def share_many(owner: P2pNode, count: int) -> None:
    """So many repositories of one commit each, added as `repo add` adds them."""
    template = owner.directory / "template"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", template], check=True)
    with closing(Repos(Root.open(owner.megalfs.root, create=True))) as repos:
        for number in range(count):
            path = owner.directory / f"repo{number}.git"
            shutil.copytree(template, path)
            text = f"repository {number}"
            given = COMMIT.format(size=len(text), text=text).encode()
            subprocess.run(["git", "fast-import", "--quiet"], cwd=path, input=given, check=True)
            add_repository(repos, NodeKey.parse(str(owner.key)), path)


def known(node: P2pNode) -> int:
    """How many repositories a node has heard of, with their states."""
    with closing(Repos(Root.open(node.megalfs.root, create=False))) as repos:
        return sum(1 for repo in repos.all() if repos.states(repo.id))


def cpu_s(node: P2pNode) -> float:
    """User and system seconds of a node's process."""
    assert node.running is not None
    stat = Path(f"/proc/{node.running.process.pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repos", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="megalfs-bench-"))
    nodes = {name: P2pNode(directory / name, **DEFAULTS) for name in ("owner", "middle", "listener")}
    try:
        share_many(nodes["owner"], args.repos)
        middle = nodes["middle"].start("--no-discover")
        for name in ("owner", "listener"):
            nodes[name].start("--bootstrap-node", middle.bootstrap, "--no-discover")
        begun = time.monotonic()
        for node in nodes.values():
            wait_until(lambda: known(node) == args.repos, "all are known", timeout_s=SETTLE_S_MAX)  # noqa: B023
        print(f"{args.repos} repositories known to all after {time.monotonic() - begun:.0f} s", flush=True)
        before = {name: cpu_s(node) for name, node in nodes.items()}
        time.sleep(args.seconds)  # at rest, as the nodes are
        for name, node in nodes.items():
            used = cpu_s(node) - before[name]
            print(
                f"{name:8} {used:6.2f} CPU s in {args.seconds:.0f} s: {100 * used / args.seconds:.2f} % of a core"
            )
    finally:
        for node in nodes.values():
            node.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
