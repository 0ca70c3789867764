"""Repositories whose objects are named by SHA-256: shared, cloned, pushed, kept in step, and served over HTTP."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_p2p import P2pNode


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[P2pNode]:
    node = P2pNode(tmp_path_factory.mktemp("owner")).start()
    try:
        node.share(node.repository(commits=3, names="sha256"))
        node.share(node.repository("pushed", bare=True, names="sha256"), "--name", "pushed")
        yield node
    finally:
        node.close()


def format_of(node: P2pNode, path: Path) -> str:
    return node.git("rev-parse", "--show-object-format", cwd=path).out.strip()


@pytest.mark.parametrize("via", ["tls", "quic"])
def test_clone_and_fetch(owner: P2pNode, member: P2pNode, via: str) -> None:
    target = member.directory / f"clone-{via}"
    member.git("clone", "-q", owner.url(via=via), target)
    assert format_of(member, target) == "sha256"
    assert member.head(target) == owner.head(owner.directory / "tiny")
    head = owner.commit(owner.directory / "tiny", f"{via}.txt", "more\n")
    member.git("fetch", "-q", cwd=target)
    assert member.head(target, "origin/main") == head
    member.git("fsck", "--strict", cwd=target)


def test_push(owner: P2pNode, member: P2pNode) -> None:
    owner.megalfs.ok("repo", "allow", "pushed", member.key)
    target = member.directory / "pushing"
    member.git("clone", "-q", owner.url("pushed.git"), target)
    head = member.commit(target, "ours.txt", "x")
    done = member.git("push", "origin", "main", cwd=target)
    assert f"pushed by {member.key}" in done.err
    assert owner.head(owner.directory / "pushed.git") == head


def test_states_bundles_and_copies(owner: P2pNode, member: P2pNode) -> None:
    """The second node brings its copy to each state, clones from it, and pulls."""
    path = owner.repository("kept", names="sha256")
    repo_id = owner.share(path)
    record = member.until("kept", here=True, seq=1)
    assert format_of(member, Path(str(record["path"]))) == "sha256"
    output = member.directory / "kept"
    member.megalfs.ok("repo", "clone", "--repo-id", repo_id, "--output", output)
    head = owner.commit(path, "second.txt", "x")
    member.until("kept", here=True, seq=2)
    member.megalfs.ok("repo", "pull", "--repo-id", repo_id)
    assert member.head(output) == head
    root = owner.git("rev-list", "--max-parents=0", "HEAD", cwd=path).out.strip()
    assert len(root) == 64
    assert owner.share(path) == repo_id


def test_objects_lists_and_clones_over_http(owner: P2pNode, member: P2pNode) -> None:
    with urllib.request.urlopen(f"{owner.http}/v1/tiny/objects?limit=2", timeout=60) as response:
        page = json.load(response)
    first, second = page["objects"]
    with urllib.request.urlopen(
        f"{owner.http}/v1/tiny/objects?limit=1&after={first}", timeout=60
    ) as response:
        assert json.load(response)["objects"] == [second]
    with urllib.request.urlopen(f"{owner.http}/v1/object/{first}", timeout=60) as response:
        assert hashlib.sha256(response.read()).hexdigest() == first
    target = member.directory / "object"
    member.megalfs.ok("repo", "object", owner.url(f"object/{first}"), "--output", target)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == first
    clone = member.directory / "http-clone"
    member.git("clone", "-q", f"{owner.http}/tiny.git", clone)
    assert format_of(member, clone) == "sha256"


def test_the_two_kinds_do_not_mix(owner: P2pNode, member: P2pNode) -> None:
    """git's own words, and nothing is written."""
    target = member.repository("other")
    for argv in (("fetch", owner.url()), ("push", owner.url("pushed.git"), "main")):
        done = member.git(*argv, cwd=target, ok=False)
        assert done.code != 0
        assert "mismatched algorithms: client sha1; server sha256" in done.err or (
            "the receiving end does not support this repository's hash algorithm" in done.err
        ), done.err
