"""Stock git over links: a node that serves, clients with a node and without one."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_p2p import P2pNode

from megalfs.core.identity import NodeKey
from megalfs.formats import base58


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[P2pNode]:
    node = P2pNode(tmp_path_factory.mktemp("owner")).start("--alias", "owner")
    try:
        path = node.repository(commits=6)
        node.git("update-ref", "refs/stash", "HEAD", cwd=path)
        node.git("update-ref", "refs/remotes/elsewhere/main", "HEAD", cwd=path)
        node.share(path, "--description", "Tiny")
        node.share(node.repository("pushed", bare=True), "--name", "pushed")
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[P2pNode]:
    """Has a key and no node: its helper dials by itself."""
    node = P2pNode(tmp_path_factory.mktemp("client"))
    yield node
    node.close()


@pytest.fixture
def loner(tmp_path: Path) -> Iterator[P2pNode]:
    """Has a node, which knows nobody."""
    node = P2pNode(tmp_path / "loner").start("--no-discover")
    yield node
    node.close()


def peer_id(node: P2pNode) -> str:
    return NodeKey.parse(str(node.key)).peer_id


def test_every_spelling_of_the_url_clones(owner: P2pNode, client: P2pNode) -> None:
    hint = f"?addr={owner.addr}"
    head = owner.head(owner.directory / "tiny")
    for number, url in enumerate(
        (
            f"p2p://{owner.key}/tiny.git{hint}",
            f"p2p://{peer_id(owner)}/tiny.git{hint}",
            f"p2p://{peer_id(owner)}/pack/tiny.git{hint}",
            f"mega://{peer_id(owner)}/tiny.git{hint}",
            f"megalfs::{owner.key}/tiny.git{hint}",
            f"p2p://{client.key}@{owner.key}/tiny.git{hint}",
            f"p2p://{owner.key}/tiny.git{hint}&via=quic",
        )
    ):
        target = client.directory / f"spelling{number}"
        client.git("clone", "-q", url, target)
        assert client.head(target) == head
        client.git("fsck", "--strict", cwd=target)


def test_discovery_needs_no_address(owner: P2pNode, member: P2pNode) -> None:
    target = member.directory / "found"
    member.git("clone", "-q", f"p2p://{peer_id(owner)}/tiny.git", target)
    assert member.head(target) == owner.head(owner.directory / "tiny")
    assert member.head(target, "v1^{}") == owner.head(owner.directory / "tiny")


def test_only_branches_and_tags_are_shown(owner: P2pNode, client: P2pNode) -> None:
    listed = client.git("ls-remote", owner.url()).out.split()[1::2]
    assert listed == ["HEAD", "refs/heads/main", "refs/tags/v1", "refs/tags/v1^{}"]


def test_protocol_version_2_and_only_new_objects_travel(owner: P2pNode, member: P2pNode) -> None:
    path = owner.repository("growing")
    owner.share(path)
    target = member.directory / "growing"
    member.git("clone", "-q", owner.url("growing.git"), target)
    head = owner.commit(path, "new.txt", "new\n")
    done = member.git("fetch", "--progress", cwd=target, GIT_TRACE_PACKET="1")
    assert "version 2" in done.err
    assert "have " in done.err
    assert "Total 3 " in done.err, "a commit, a tree, a blob"
    assert member.head(target, "origin/main") == head


def test_shallow_then_all_of_it(owner: P2pNode, client: P2pNode) -> None:
    target = client.directory / "shallow"
    client.git("clone", "-q", "--depth", "2", owner.url(), target)
    assert client.git("rev-list", "--count", "HEAD", cwd=target).out.strip() == "2"
    client.git("fetch", "-q", "--unshallow", cwd=target)
    assert client.git("rev-list", "--count", "HEAD", cwd=target).out.strip() == "6"


def test_partial_clone_fetches_blobs_when_they_are_needed(owner: P2pNode, member: P2pNode) -> None:
    target = member.directory / "partial"
    member.git("clone", "-q", "--filter=blob:none", "--no-checkout", owner.url(), target)
    missing = member.git("rev-list", "--objects", "--missing=print", "--all", cwd=target).out
    assert missing.count("?") == 6
    member.git("checkout", "-q", "main", cwd=target)
    assert (target / "file5.txt").read_text() == "tiny 5\n"


def test_archive(owner: P2pNode, client: P2pNode) -> None:
    client.git("archive", f"--remote={owner.url()}", "-o", client.directory / "tiny.tar", "main")
    assert (client.directory / "tiny.tar").stat().st_size > 5000


@pytest.mark.parametrize("spelling", ["absolute", "relative"])
def test_submodules_come_once_the_user_allows_the_transport(
    owner: P2pNode, loner: P2pNode, spelling: str
) -> None:
    """git allows unknown transports to what users type, not to what a repository names; it says so.

    Of `p2p://KEY/app.git?addr=...` and `../tiny.git` git makes a URL without the address: the node reloners it.
    """
    allow = ("-c", "protocol.p2p.allow=always")
    app = owner.repository(f"app-{spelling}")
    owner.git("remote", "add", "origin", owner.url(f"{app.name}.git"), cwd=app)
    url = "../tiny.git" if spelling == "relative" else owner.url()
    owner.git(*allow, "submodule", "add", "-q", url, "lib", cwd=app)
    owner.git("commit", "-q", "-m", "a submodule", cwd=app)
    owner.share(app)
    target = loner.directory / app.name
    refused = loner.git("clone", "--recurse-submodules", owner.url(app.name), target, ok=False)
    assert "transport 'p2p' not allowed" in refused.err
    assert (target / "file0.txt").exists(), "the repository itself is there"
    loner.git(*allow, "submodule", "update", "--init", cwd=target)
    again = loner.directory / f"{app.name}-again"
    loner.git(*allow, "clone", "-q", "--recurse-submodules", owner.url(app.name), again)
    for clone in (target, again):
        assert loner.head(clone / "lib") == owner.head(owner.directory / "tiny")
        assert (clone / "lib" / "file0.txt").read_text() == "tiny 0\n"


def test_a_stranger_may_not_push_and_is_told_so(owner: P2pNode, client: P2pNode) -> None:
    target = client.directory / "stranger"
    client.git("clone", "-q", owner.url("pushed.git"), target)
    client.commit(target, "theirs.txt", "x")
    for via in ("tls", "quic"):
        done = client.git("push", owner.url("pushed.git", via=via), "main", cwd=target, ok=False)
        assert done.code != 0
        assert f"megalfs: {client.key} may not push to 'pushed'" in done.err
        assert "megalfs repo allow pushed" in done.err
    listed = client.git("ls-remote", owner.url("pushed.git"), "refs/heads/main").out.split()[0]
    assert listed != client.head(target)


def test_a_push_without_a_key_is_told_to_make_one(owner: P2pNode, client: P2pNode, tmp_path: Path) -> None:
    """A clone needs none; a key for this once, which a push would have, is none that an owner could list."""
    target = tmp_path / "keyless"
    client.git("clone", "-q", owner.url("pushed.git"), target, MEGALFS_ROOT=str(tmp_path / "none"))
    done = client.git("push", "origin", "main", cwd=target, ok=False, MEGALFS_ROOT=str(tmp_path / "none"))
    assert "megalfs: a push needs a key" in done.err
    assert "megalfs: hint: megalfs auth init" in done.err
    assert "may not push" not in done.err


def test_listed_keys_push_branches_tags_and_deletions(owner: P2pNode, member: P2pNode) -> None:
    owner.megalfs.ok("repo", "allow", "pushed", member.key)
    target = member.directory / "pushing"
    member.git("clone", "-q", owner.url("pushed.git"), target)
    head = member.commit(target, "ours.txt", "x")
    member.git("tag", "v2", cwd=target)
    done = member.git("push", "--atomic", "origin", "main", "v2", "HEAD:refs/heads/topic", cwd=target)
    assert f"megalfs: pushed by {member.key}" in done.err
    bare = owner.directory / "pushed.git"
    assert [owner.head(bare, ref) for ref in ("main", "v2", "topic")] == [head] * 3
    assert owner.until("pushed", has_updates=False)["refs"] == 4, "announced at once"
    member.git("push", "-q", "origin", ":topic", cwd=target)
    assert "topic" not in owner.git("branch", cwd=bare).out
    pushes = owner.megalfs.ok("repo", "log", "--repo-id", "pushed", "--json").records
    assert [(each["ref"], each["new"]) for each in pushes] == [
        ("refs/heads/main", head), ("refs/tags/v2", head), ("refs/heads/topic", head), ("refs/heads/topic", "0" * 40),
    ]  # fmt: skip
    assert {(each["key"], each["signer"], each["name"]) for each in pushes} == {(member.key, None, "pushed")}
    shown = owner.megalfs.ok("repo", "log", "--repo-id", "pushed").out.splitlines()
    assert shown[-1].endswith(f" refs/heads/topic deleted, was {head[:10]} by {member.key}")
    listed = owner.megalfs.ok("repo", "list").out
    assert listed.count(f"  last push {pushes[-1]['time']} to refs/heads/topic by {member.key}\n") == 1
    assert "nobody has pushed to tiny" in owner.megalfs.ok("repo", "log", "--repo-id", "tiny").err
    # What is refused was not pushed, and is in no log.
    refused = member.git("push", "origin", "HEAD:refs/hidden/x", cwd=target, ok=False)
    assert refused.code != 0
    assert "refused" in member.git("push", "origin", "HEAD:refs/heads/a/-h", cwd=target, ok=False).err
    member.commit(target, "rewritten.txt", "x")
    member.git("reset", "-q", "--hard", "HEAD~2", cwd=target)
    assert "rejected" in member.git("push", "origin", "main", cwd=target, ok=False).err
    assert "pushed by" not in member.git("push", "origin", "HEAD:refs/notes/x", cwd=target, ok=False).err
    assert owner.megalfs.ok("repo", "log", "--repo-id", "pushed", "--json").records == pushes


def test_signed_push_shows_who(owner: P2pNode, member: P2pNode) -> None:
    key_file = member.directory / "ssh_key"
    exported = member.megalfs.ok("auth", "export", "--ssh", key_file)
    assert (
        subprocess.run(
            ["ssh-keygen", "-y", "-f", key_file], capture_output=True, text=True, check=True
        ).stdout.split()[:2]
        == exported.out.split()
    ), "OpenSSH reads it as the same key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert member.megalfs.run("auth", "export", "--ssh", key_file).code == 8, "nothing is replaced"
    owner.megalfs.ok("repo", "allow", "pushed", member.key)
    target = member.directory / "signing"
    member.git("clone", "-q", owner.url("pushed.git"), target)
    member.commit(target, "signed.txt", "x")
    signing = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={key_file}")
    done = member.git(*signing, "push", "--signed", "origin", "main", cwd=target)
    assert f"pushed by {member.key} signed by {member.key}" in done.err
    last = owner.megalfs.ok("repo", "log", "--repo-id", "pushed", "--json").records[-1]
    assert (last["key"], last["signer"]) == (member.key, member.key)
    other = member.directory / "other_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    member.commit(target, "forged.txt", "x")
    signing = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={other}")
    done = member.git(*signing, "push", "--signed", "origin", "main", cwd=target, ok=False)
    assert done.code != 0
    assert "not signed by a key that may push" in done.err


def test_the_host_is_a_key_and_another_one_there_is_refused(owner: P2pNode, client: P2pNode) -> None:
    done = client.git("ls-remote", f"p2p://{client.key}/tiny.git?addr={owner.addr}", ok=False)
    assert done.code != 0
    assert "is not 12D3KooW" in done.err
    assert not done.out


def test_a_key_that_is_not_ours_cannot_be_used(owner: P2pNode, client: P2pNode, member: P2pNode) -> None:
    for node in (client, member):
        url = owner.url().replace("p2p://", f"p2p://{owner.key}@")
        done = node.git("ls-remote", url, ok=False)
        assert done.code != 0
        assert "is not the one of" in done.err


def test_a_password_is_refused_and_not_shown(owner: P2pNode, client: P2pNode) -> None:
    done = client.git("ls-remote", owner.url().replace("p2p://", "p2p://me:hunter2@"), ok=False)
    assert done.code != 0
    assert "no password is needed" in done.err
    assert "hunter2" not in done.err.replace("fatal: ", "").split("megalfs:")[1]


@pytest.mark.parametrize(
    "repo",
    ["../tiny.git", "%2e%2e/tiny.git", "pack/../tiny.git", "tree/tiny.git", "etc", "-h.git", "tiny.git/x"],
)
def test_hostile_paths_reach_nothing(owner: P2pNode, client: P2pNode, repo: str) -> None:
    done = client.git("ls-remote", owner.url(repo), ok=False)
    assert done.code != 0
    assert "megalfs: " in done.err


def test_upload_pack_of_the_user_goes_nowhere(owner: P2pNode, client: P2pNode) -> None:
    marker = client.directory / "evil"
    client.git("ls-remote", f"--upload-pack=touch {marker}; git-upload-pack", owner.url())
    assert not marker.exists()


def test_a_link_in_the_place_of_a_repository_is_not_followed(owner: P2pNode, client: P2pNode) -> None:
    path = owner.repository("swapped")
    secret = owner.repository("secret")
    owner.share(path)
    client.git("ls-remote", owner.url("swapped.git"))
    shutil.rmtree(path)
    path.symlink_to(secret)
    done = client.git("ls-remote", owner.url("swapped.git"), ok=False)
    assert "is not at its place" in done.err


def test_one_object_by_its_name(owner: P2pNode, client: P2pNode, member: P2pNode) -> None:
    head = owner.head(owner.directory / "tiny")
    blob = owner.head(owner.directory / "tiny", "HEAD:file0.txt")
    for name in (head, blob):
        target = client.directory / name
        client.megalfs.ok("repo", "object", owner.url(f"object/{name}"), "--output", target)
        assert hashlib.sha1(target.read_bytes()).hexdigest() == name
    done = client.megalfs.run("repo", "object", owner.url("object/" + "0" * 40))
    assert done.code == 3
    for node in (client, member):
        done = node.git("clone", owner.url(f"object/{head}"), ok=False)
        assert "megalfs: hint: megalfs repo object" in done.err


def test_allow_list_mode(tmp_path: Path, client: P2pNode, member: P2pNode) -> None:
    closed = P2pNode(tmp_path / "closed", MEGALFS_ALLOW_KEYS=str(member.key)).start()
    try:
        closed.share(closed.repository())
        assert "refs/heads/main" in member.git("ls-remote", closed.url()).out
        done = client.git("ls-remote", closed.url(), ok=False)
        assert "only keys it lists" in done.err
    finally:
        closed.close()


def test_a_hub_a_closed_swarm_and_an_open_one(
    tmp_path: Path, owner: P2pNode, client: P2pNode, member: P2pNode
) -> None:
    """One repository pushed to all three; who is no member is refused by one of them, and gets no byte."""
    closed = P2pNode(tmp_path / "closed", MEGALFS_ALLOW_KEYS=str(member.key)).start()
    public = P2pNode(tmp_path / "public").start()
    work = member.repository("workflow", commits=3)
    try:
        nodes = {"hub": owner, "team": closed, "world": public}
        for name, node in nodes.items():
            node.git("init", "-q", "--bare", "-b", "main", node.directory / f"{name}.git")
            seed = node.repository(f"seed-{name}", commits=1)
            node.git("push", "-q", node.directory / f"{name}.git", "main", cwd=seed)
            node.share(node.directory / f"{name}.git", "--allow", member.key)
            member.git("remote", "add", name, node.url(f"{name}.git"), cwd=work)
            member.git("push", "-q", "--force", name, "main", cwd=work)
            member.git("clone", "-q", node.url(f"{name}.git"), tmp_path / f"member-{name}")
            assert member.head(tmp_path / f"member-{name}") == member.head(work)
        for name in ("hub", "world"):
            client.git("clone", "-q", nodes[name].url(f"{name}.git"), tmp_path / f"client-{name}")
            assert client.head(tmp_path / f"client-{name}") == member.head(work)
        done = client.git("clone", closed.url("team.git"), tmp_path / "client-team", ok=False)
        assert "only keys it lists" in done.err
        assert client.git("clone", f"{closed.http}/team.git", tmp_path / "client-team", ok=False).code != 0
        assert not (tmp_path / "client-team").exists()
    finally:
        public.close()
        closed.close()


def test_an_exported_name_is_all_that_others_see(owner: P2pNode, client: P2pNode, tmp_path: Path) -> None:
    """Where a repository lies on the owner's disk is nobody's business, and no way in."""
    private = owner.repository("very-private-directory")
    (tmp_path / "link").symlink_to(private)
    owner.share(tmp_path / "link", "--name", "exported")
    assert client.git("ls-remote", owner.url("exported.git")).out
    secret = owner.repository("not-shared")
    for path in (
        "very-private-directory.git",
        "link.git",
        "not-shared.git",
        str(secret),
        f"/{secret}",
        f"..{secret}",
    ):
        done = client.git("ls-remote", owner.url(path), ok=False)
        assert done.code != 0
        assert not done.out
    for path in ("very-private-directory", "not-shared"):
        assert client.git("ls-remote", f"{owner.http}/{path}.git", ok=False).code != 0
    seen = client.git("ls-remote", owner.url("exported.git"), GIT_TRACE_PACKET="1", ok=True)
    record = (
        sqlite3.connect(owner.megalfs.root / "repos.sqlite").execute("SELECT record FROM states").fetchall()
    )
    for told in (seen.out, seen.err.replace(str(client.directory), ""), str(record)):
        assert "very-private" not in told


def test_repo_add_says_what_is_wrong(owner: P2pNode, tmp_path: Path) -> None:
    owner.git("init", "-q", tmp_path / "empty")
    for path, code, words in (
        (tmp_path / "nowhere", 3, "no such directory"),
        (tmp_path, 2, "not a git repository"),
        (tmp_path / "empty", 2, "no commit"),
    ):
        done = owner.megalfs.run("repo", "add", "--path", path)
        assert (done.code, words in done.err) == (code, True), done.err
    owner.git("clone", "-q", owner.directory / "tiny", tmp_path / "twin")
    done = owner.megalfs.run("repo", "add", "--path", tmp_path / "twin")
    assert (done.code, "is shared already" in done.err) == (8, True)
    again = owner.share(owner.directory / "tiny")
    assert again == owner.repos()["tiny"]["repo"], "the same repository and key, the same id"
    root = owner.git("rev-list", "--max-parents=0", "HEAD", cwd=owner.directory / "tiny").out.strip()
    raw = b"\x16\x20" + hashlib.sha3_256(bytes.fromhex(root) + NodeKey.parse(str(owner.key)).raw).digest()
    assert again == "did:repo:z" + base58.encode(raw), "recomputed by hand"
