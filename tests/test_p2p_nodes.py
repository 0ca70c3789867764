"""Several real nodes: the two-node walk, discovery across relays, and repositories whose owner is gone."""

from __future__ import annotations

import base64
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from helpers_p2p import P2pNode
from processes import wait_until

New = Callable[..., P2pNode]


@pytest.fixture
def new(tmp_path: Path) -> Iterator[New]:
    nodes: list[P2pNode] = []

    def make(name: str, **environ: str) -> P2pNode:
        nodes.append(P2pNode(tmp_path / name, **environ))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


def heads(node: P2pNode, path: Path) -> str:
    return node.git(
        "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", cwd=path
    ).out


def test_the_two_node_walk(new: New, tmp_path: Path) -> None:
    # Steps 1 and 2: keys, then nodes.
    one, two = new("node1"), new("node2")
    certificates = tmp_path / "cert"
    one.start("--alias", "node1", "--cert-path", certificates)
    two.start("--alias", "node2", "--bootstrap-node", one.bootstrap)
    assert list(certificates.iterdir())
    # Step 3: add.
    path = one.repository()
    repo_id = one.share(path, "--description", "Tiny")
    # Steps 4 and 5: the second node finds and fetches it by itself.
    record = two.until("tiny", here=True)
    assert (record["repo"], record["creator"], record["description"]) == (repo_id, one.key, "Tiny")
    # Step 6: clone.
    output = two.directory / "clone"
    two.megalfs.ok("repo", "clone", "--repo-id", repo_id, "--output", output)
    assert two.head(output) == one.head(path)
    two.git("fsck", "--strict", cwd=output)
    assert two.megalfs.run("repo", "clone", "--repo-id", repo_id, "--output", output).code == 3
    # Step 7: update.
    head = one.commit(path, "new.txt", "new\n")
    two.until("tiny", has_updates=True)
    assert "HAS UPDATES" in two.megalfs.ok("repo", "list").out
    (output / "mine.txt").write_text("not committed")
    two.megalfs.ok("repo", "pull", "--repo-id", repo_id)
    assert two.head(output) == head
    assert (output / "mine.txt").read_text() == "not committed"
    assert not two.repos()["tiny"]["has_updates"]
    # Diverged: reported, nothing changed.
    mine = two.commit(output, "mine.txt", "committed")
    one.commit(path, "more.txt", "more\n")
    two.until("tiny", has_updates=True)
    done = two.megalfs.run("repo", "pull", "--repo-id", repo_id)
    assert (done.code, "diverged" in done.err) == (10, True)
    assert two.head(output) == mine
    # No longer shared.
    one.megalfs.ok("repo", "remove", repo_id)
    assert "tiny" not in one.repos()


def test_own_commits_show_as_updates_until_they_are_announced(new: New) -> None:
    one = new("one", MEGALFS_SYNC_INTERVAL_S="3600").start()
    path = one.repository()
    one.share(path)
    one.until("tiny", seq=1, has_updates=False)
    one.commit(path, "new.txt", "new\n")
    assert one.repos()["tiny"]["has_updates"]
    assert one.megalfs.ok("repo", "sync", "--json").records[0]["seq"] == 2
    assert not one.repos()["tiny"]["has_updates"]


def test_five_nodes_in_a_line_and_owner_gone(new: New) -> None:
    """The last one knows only its neighbour; it learns of the first one's repository, and clones it when both
    the owner and that knowledge's way are gone but for the copies."""
    nodes = [new("node0").start("--alias", "node0")]
    for number in range(1, 5):
        before = nodes[-1]
        # No node dials others than its neighbour: announcements must be relayed.
        node = new(f"node{number}")
        nodes.append(
            node.start("--alias", f"node{number}", "--bootstrap-node", before.bootstrap, "--no-discover")
        )
    first, second, last = nodes[0], nodes[1], nodes[-1]
    path = first.repository(commits=3)
    repo_id = first.share(path)
    last.until("tiny", repo=repo_id, external=True)
    listed = last.megalfs.ok("node", "list", "--json").records
    assert {record["alias"] for record in listed if record.get("alias")} >= {f"node{n}" for n in range(4)}
    far = next(record for record in listed if record.get("alias") == "node0")
    assert (far["key"], far["node"], far["type"]) == (first.key, first.addr, "full")
    assert last.git("ls-remote", f"p2p://{first.key}/tiny.git").out, "its address is known by gossip"
    # The second one follows its bootstrap node, and has a copy when the owner dies.
    second.until("tiny", here=True)
    signed = heads(first, path)
    assert first.running is not None
    first.running.kill()
    output = last.directory / "clone"
    last.megalfs.ok("repo", "clone", "--repo-id", repo_id, "--output", output)
    assert last.head(output) == first.head(path)
    # Stock git too, by the owner's URL, ends at exactly the signed refs.
    target = last.directory / "by-url"
    done = last.git("clone", "--mirror", f"p2p://{first.key}/tiny.git", target)
    assert "is away" in done.err
    assert heads(last, target) == signed
    # Clients become servers: with the second one gone as well, the third clones from the last.
    second.running.kill()  # type: ignore[union-attr]
    third = nodes[3]
    third.megalfs.ok("repo", "clone", "--repo-id", repo_id, "--output", third.directory / "clone")
    assert third.head(third.directory / "clone") == first.head(path)
    push = last.git("push", f"p2p://{first.key}/tiny.git", "HEAD:refs/heads/x", cwd=output, ok=False)
    assert push.code != 0, "a copy is not pushed to"
    wait_until(
        lambda: any(
            record.get("alias") == "node0" and record["stale"]
            for record in last.megalfs.ok("node", "list", "--json").records
        ),
        "node0 is shown as stale",
    )


def test_a_bootstrap_node_that_comes_later_or_again_is_joined(new: New) -> None:
    one, two = new("one").start(), new("two")
    bootstrap, addr = one.bootstrap, one.addr
    one.share(one.repository())
    one.stop()
    two.start("--bootstrap-node", bootstrap)
    assert not two.repos()
    one.start(addr=addr)
    two.until("tiny", here=True)
    one.running.kill()  # type: ignore[union-attr]
    head = one.commit(one.directory / "tiny", "away.txt", "x")
    one.start(addr=addr)
    two.until("tiny", seq=2, here=True)
    assert two.git("ls-remote", f"p2p://{one.key}/tiny.git", "HEAD").out.startswith(head)
    two.stop()  # the helper dials by itself then, where its node last knew the owner
    assert two.git("ls-remote", f"p2p://{one.key}/tiny.git", "HEAD").out.startswith(head)


def test_another_key_at_the_bootstrap_address_is_not_joined(new: New) -> None:
    one, two, three = new("one").start(), new("two"), new("three")
    one.share(one.repository())
    two.start("--bootstrap-node", f"{three.key}@{one.addr}")
    four = new("four").start("--bootstrap-node", one.bootstrap)
    four.until("tiny", here=True)  # time enough for the wrong one too
    assert "tiny" not in two.repos()


def test_restart_after_kill_keeps_what_was_seen(new: New) -> None:
    one, two = new("one").start(), new("two")
    path = one.repository()
    one.share(path)
    two.start("--bootstrap-node", one.bootstrap)
    for number in range(2):
        one.commit(path, f"more{number}.txt", "x")
        two.running.kill()  # type: ignore[union-attr]
        two.start("--bootstrap-node", one.bootstrap)
    two.until("tiny", here=True, seq=one.until("tiny", has_updates=False)["seq"])
    database = sqlite3.connect(two.megalfs.root / "repos.sqlite")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables >= {"repos", "nodes", "refs"}
    database.close()


def test_deleted_and_rewritten_refs_reach_the_copies(new: New) -> None:
    one, two = new("one").start(), new("two")
    path = one.repository(commits=4)
    one.git("branch", "topic", cwd=path)
    one.share(path)
    two.start("--bootstrap-node", one.bootstrap)
    two.until("tiny", here=True, refs=3)
    one.git("branch", "-D", "topic", cwd=path)
    one.git("reset", "-q", "--hard", "HEAD~2", cwd=path)
    head = one.commit(path, "other.txt", "another history")
    record = two.until("tiny", here=True, refs=2)
    assert two.git("rev-parse", "main", cwd=Path(str(record["path"]))).out.strip() == head


@pytest.mark.parametrize("heard", ["before he shares again", "after"])
def test_an_owner_who_lost_his_table_goes_on_from_what_others_have(new: New, heard: str) -> None:
    one, two = new("one").start(), new("two")
    path = one.repository()
    one.share(path)
    addr = one.addr
    two.start("--bootstrap-node", one.bootstrap)
    two.until("tiny", here=True)
    one.commit(path, "second.txt", "x")
    two.until("tiny", seq=2, here=True)
    one.stop()
    (one.megalfs.root / "repos.sqlite").unlink()
    if heard == "after":
        two.stop()
    one.start(addr=addr)
    if heard == "after":
        one.share(path)
        one.until("tiny", seq=1)
        two.start("--bootstrap-node", one.bootstrap)
        one.until("tiny", seq=3)  # names both, so that nobody holds what he could not know against him
    else:
        one.until("tiny", seq=2)
        one.share(path)
    head = one.commit(path, "third.txt", "x")
    record = two.until("tiny", seq=3 if heard != "after" else 4, here=True, equivocation=[])
    assert two.git("rev-parse", "main", cwd=Path(str(record["path"]))).out.strip() == head


def test_only_what_is_new_travels_and_is_in_the_next_bundle(new: New) -> None:
    one, two = new("one").start(), new("two")
    path = one.repository()
    one.commit(path, "big.txt", Random(1).randbytes(300_000).hex())
    one.share(path)
    two.start("--bootstrap-node", one.bootstrap)
    two.until("tiny", here=True)
    one.commit(path, "small.txt", "small\n")
    two.until("tiny", seq=2, here=True)
    sizes = sorted(file.stat().st_size for file in (two.megalfs.root / "repos" / "bundles").iterdir())
    assert len(sizes) == 2
    assert sizes[0] < 2000 < 300_000 < sizes[1]


def test_a_repository_that_is_no_longer_shared_is_no_longer_listed(new: New) -> None:
    """By a node that heard of it through another one, and has no copy."""
    one, relay, far = new("one"), new("relay").start("--no-discover"), new("far")
    for node in (one, far):
        node.start("--bootstrap-node", relay.bootstrap, "--no-discover")
    repo_id = one.share(one.repository())
    one.share(one.repository("stays"))
    for name in ("tiny", "stays"):
        assert far.until(name, seq=1)["external"]
    one.megalfs.ok("repo", "remove", repo_id)
    wait_until(lambda: "tiny" not in far.repos(), "it is gone from the list")
    assert "stays" in far.repos()


def test_a_repository_of_a_thousand_tags_is_kept_in_step_too(new: New) -> None:
    """Its state is too long for gossip: it is asked for when its owner announces its number."""
    one, two = new("one").start(), new("two")
    path = one.repository()
    head = one.head(path)
    for count in (1000, 1001):
        lines = "".join(f"create refs/tags/a-tag-with-a-long-name-{count}-{n} {head}\n" for n in range(1000))
        one.git("update-ref", "--stdin", cwd=path, stdin=lines)
        if count == 1000:
            one.share(path)
            two.start("--bootstrap-node", one.bootstrap)
        two.until("tiny", here=True, refs=(2002 if count == 1001 else 1002))
    assert heads(two, Path(str(two.repos()["tiny"]["path"]))) == heads(one, path)


def test_pull_whatever_the_branch_is_called(new: New) -> None:
    one, two = new("one").start(), new("two")
    path = one.repository()
    one.git("branch", "-q", "-m", "release/1.0", cwd=path)
    repo_id = one.share(path)
    two.start("--bootstrap-node", one.bootstrap)
    two.until("tiny", here=True)
    output = two.directory / "clone"
    two.megalfs.ok("repo", "clone", "--repo-id", repo_id, "--output", output)
    head = one.commit(path, "new.txt", "new\n")
    two.until("tiny", has_updates=True)
    done = two.megalfs.ok("repo", "pull", "--repo-id", repo_id)
    assert "release/1.0 moved forward by 1 commit" in done.out
    assert two.head(output) == head
    assert two.git("symbolic-ref", "--short", "HEAD", cwd=output).out.strip() == "release/1.0"


def test_each_step_of_the_workflow_is_said_once(new: New) -> None:
    """Discovery, request, generation, transfer, storage, restoration."""
    one, two = new("one").start("--verbose"), new("two")
    two.start("--bootstrap-node", one.bootstrap, "--verbose")
    path = one.repository()
    repo_id = one.share(path)
    two.until("tiny", here=True)
    assert one.running is not None
    assert two.running is not None
    steps = [
        ("heard of", two),
        ("asks for the bundle", two),
        ("made the bundle", one),
        ("has the bundle", two),
    ]
    for step, node in steps:
        said = [line for line in node.running.err.splitlines() if step in line and repo_id in line]  # type: ignore[union-attr]
        assert len(said) == 1, (step, said)
    assert two.running.err.count("tiny is at state 1") == 1
    output = two.directory / "clone"
    said = two.megalfs.ok("repo", "clone", "--repo-id", repo_id, "--output", output).err
    assert said.count("cloned tiny at state 1") == 1
    assert two.head(output) == one.head(path)


def test_secrets_are_never_logged(new: New) -> None:
    """Keys and tokens of two nodes that say all they can, and a password that somebody put into a URL."""
    one, two = new("one").start("--verbose", "--debug"), new("two")
    two.start("--bootstrap-node", one.bootstrap, "--verbose", "--debug")
    path = one.repository(bare=True)
    one.share(path, "--name", "tiny", "--allow", two.key)
    target = two.directory / "clone"
    two.git("clone", "-q", one.url(), target)
    two.commit(target, "new.txt", "x")
    said = two.git("push", "origin", "main", cwd=target).err
    for url in (
        one.url().replace("p2p://", "p2p://me:hunter2@"),
        f"{one.http}/tiny.git".replace("//", "//me:hunter2@"),
    ):
        done = two.git("ls-remote", url, ok=False)
        said += done.err if url.startswith("http") else done.err.split("megalfs:", 1)[1]
    assert one.running is not None
    assert two.running is not None
    said += one.running.err + one.running.out + two.running.err + two.running.out
    assert "tiny" in said
    for node in (one, two):
        root = node.megalfs.root
        pem = (root / "key.pem").read_text().splitlines()[1]
        for secret in (
            pem,
            base64.b64decode(pem)[-32:].hex(),
            (root / "token").read_text().strip(),
            "hunter2",
        ):
            assert secret not in said


def test_a_taken_address_is_said(new: New) -> None:
    one, two = new("one").start(), new("two")
    done = two.megalfs.run("node", "start", "--addr", one.addr, "--listen", "127.0.0.1:0")
    assert (done.code, "--addr" in done.err) == (8, True)


def test_a_moved_away_repository_is_said_and_others_go_on(new: New) -> None:
    one = new("one").start()
    gone, stays = one.repository("gone"), one.repository("stays")
    one.share(gone)
    one.share(stays)
    one.until("stays", seq=1)
    shutil.move(gone, one.directory / "elsewhere")
    one.commit(stays, "new.txt", "x")
    one.until("stays", seq=2)
    assert one.megalfs.ok("repo", "add", "--path", one.directory / "elsewhere", "--name", "gone").code == 0
