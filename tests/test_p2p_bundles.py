"""A first clone of something big: history from the swarm, what is newer from the owner; stock git, real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from helpers_p2p import P2pNode
from processes import free_port, wait_until
from proxy import proxy

BIG_BYTES = 17 << 20  # more than what is worth a bundle


@dataclass
class Trio:
    """An owner, whose last commit no state has yet; one who keeps the bundles; one who clones."""

    owner: P2pNode
    keeper: P2pNode
    client: P2pNode
    tip: str

    def clone(self, name: str, *argv: object) -> tuple[Path, str]:
        target = self.client.directory / name
        done = self.client.git(
            "clone", *argv, f"p2p://{self.owner.key}/big.git", target, GIT_TRACE_PACKET="1"
        )
        return target, done.err


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    owner = P2pNode(tmp_path / "owner", MEGALFS_SYNC_INTERVAL_S="3600").start()
    keeper, client = P2pNode(tmp_path / "keeper"), P2pNode(tmp_path / "client")
    try:
        path = owner.repository("big")
        (path / "big.bin").write_bytes(Random(1).randbytes(BIG_BYTES))
        owner.commit(path, "some.txt", "x")
        owner.share(path)
        keeper.start("--bootstrap-node", owner.bootstrap)
        keeper.until("big", here=True)
        # The client joins by the keeper, and follows nobody's repositories but the keeper's.
        client.start("--bootstrap-node", keeper.bootstrap, "--no-discover")
        client.until("big", seq=1)
        yield Trio(owner, keeper, client, owner.commit(path, "tip.txt", "newer than the state\n"))
    finally:
        for node in (client, keeper, owner):
            node.close()


def asked(trace: str) -> tuple[list[str], list[str]]:
    """Wants and haves of a fetch."""
    lines = [line.partition("clone> ")[2].split() for line in trace.splitlines() if "clone> " in line]
    return tuple([line[1] for line in lines if line[0] == word] for word in ("want", "have"))  # type: ignore[return-value]


def bytes_out(node: P2pNode) -> int:
    """What a node has sent in the swarm."""
    return int(str(node.megalfs.ok("status", "--json").records[0]["bytes_out"]))


def test_history_from_the_swarm_and_the_tip_from_the_owner(trio: Trio) -> None:
    state = trio.owner.head(trio.owner.directory / "big", "HEAD~1")
    target, trace = trio.clone("clone")
    assert "history comes from the swarm" in trace
    wants, haves = asked(trace)
    assert set(wants) == {trio.tip}
    assert state in haves, "so only what is newer was sent"
    assert trio.client.head(target) == trio.tip
    trio.client.git("fsck", "--strict", cwd=target)
    refs = trio.client.git("for-each-ref", "--format=%(refname)", cwd=target).out.split()
    assert refs == ["refs/heads/main", "refs/remotes/origin/HEAD", "refs/remotes/origin/main", "refs/tags/v1"]
    # Both who hold the bundle gave some of it: it is a blob like any other.
    assert all(bytes_out(node) > 0 for node in (trio.owner, trio.keeper))
    assert sum(bytes_out(node) for node in (trio.owner, trio.keeper)) < 2.5 * BIG_BYTES, (
        "and the keeper got it once"
    )
    # The client's node has the bundle now, and seeds it.
    bundles = list((trio.client.megalfs.root / "repos" / "bundles").iterdir())
    assert [path.stat().st_size > BIG_BYTES for path in bundles] == [True]


def test_who_wants_less_gets_no_bundle(trio: Trio) -> None:
    for number, argv in enumerate(
        (("--depth", "1"), ("--filter=blob:none", "--no-checkout"), ("--single-branch",))
    ):
        target, trace = trio.clone(f"clone{number}", *argv)
        assert "from the swarm" not in trace
        assert trio.client.head(target) == trio.tip
    empty = trio.client.directory / "empty"
    trio.client.git("init", "-q", empty)
    trio.client.git("ls-remote", f"p2p://{trio.owner.key}/big.git", cwd=empty)
    assert not list(empty.rglob("*.pack"))
    assert not (trio.client.megalfs.root / "repos" / "bundles").exists()


@pytest.mark.parametrize("fault", ["gone", "damaged"])
def test_bundles_that_do_not_come_are_no_obstacle(trio: Trio, fault: str) -> None:
    """The keeper is gone, or what this node has of the bundle is no longer what it was: the owner sends all."""
    if fault == "gone":
        trio.keeper.running.kill()  # type: ignore[union-attr]
        for bundle in (trio.owner.megalfs.root / "repos" / "bundles").iterdir():
            bundle.unlink()
    else:
        trio.clone("first")
        (bundle,) = (trio.client.megalfs.root / "repos" / "bundles").iterdir()
        bundle.write_bytes(bundle.read_bytes()[: BIG_BYTES // 2])
        trio.keeper.running.kill()  # type: ignore[union-attr]
        for other in (trio.owner.megalfs.root / "repos" / "bundles").iterdir():
            other.unlink()
    target, _ = trio.clone("clone")
    assert trio.client.head(target) == trio.tip
    trio.client.git("fsck", "--strict", cwd=target)


def test_a_link_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    """Two real nodes, a proxy between them; the owner's swarm port is said to be one where nobody listens."""
    owner = P2pNode(tmp_path / "owner", MEGALFS_ADVERTISE=f"127.0.0.1:{free_port()}").start()
    client = P2pNode(tmp_path / "client")
    try:
        with proxy(owner.addr) as path:
            path.cut_after = BIG_BYTES // 2
            repository = owner.repository("big")
            (repository / "big.bin").write_bytes(Random(1).randbytes(BIG_BYTES))
            owner.commit(repository, "some.txt", "x")
            repo_id = owner.share(repository)
            client.start("--bootstrap-node", f"{owner.key}@{path.address}", "--no-discover")
            bundles = client.megalfs.root / "repos" / "bundles"
            wait_until(lambda: any(bundles.glob(".*.partial")), "it begins")
            wait_until(lambda: path.passed >= BIG_BYTES // 2, "it is cut")
            (partial,) = bundles.glob(".*.partial")
            # Killed while it waits for another try.
            client.running.kill()  # type: ignore[union-attr]
            kept, before = partial.stat().st_size, path.passed
            assert BIG_BYTES // 4 < kept < BIG_BYTES
            path.cut_after = None
            client.start("--bootstrap-node", f"{owner.key}@{path.address}", "--no-discover")
            record = client.until("big", here=True)
            client.git("fsck", "--strict", cwd=Path(str(record["path"])))
            assert client.megalfs.ok("repo", "sync", "--repo-id", repo_id, "--json").records[0]["seq"] == 1
            again = path.passed - before
            assert BIG_BYTES - kept < again < BIG_BYTES - kept + (2 << 20), "the rest, gossip and headers"
            assert [each.name for each in bundles.glob(".*")] == []
    finally:
        for node in (client, owner):
            node.close()
