"""Ids, names, URLs and refs: what a stranger may write, and what none may."""

from __future__ import annotations

import hashlib

import pytest

from megalfs.core.identity import NodeKey
from megalfs.core.refs import REF_BYTES_MAX, check_ref, format_refs, parse_refs
from megalfs.core.repoid import RepoId, RepoUrl, parse_repo_name
from megalfs.errors import UsageError
from megalfs.formats import base58
from megalfs.formats.hostport import HostPort

PEER = NodeKey(hashlib.sha256(b"peer").digest())
ME = NodeKey(hashlib.sha256(b"me").digest())
ROOT = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def test_repo_id_is_a_sha3_multihash_of_root_and_creator() -> None:
    text = str(RepoId.of(ROOT, PEER))
    raw = base58.decode(text.removeprefix("did:repo:z"))
    assert raw == b"\x16\x20" + hashlib.sha3_256(bytes.fromhex(ROOT) + PEER.raw).digest()
    assert len(raw) == 34
    assert str(RepoId.parse(text)) == text
    assert RepoId.of(ROOT, ME) != RepoId.of(ROOT, PEER)


def test_the_sample_of_the_original_is_read() -> None:
    sample = "did:repo:zW1iF5iwCChifAcjZUrDbwD9o8LS76kFsz6bTZFEJhEqVCU"
    assert str(RepoId.parse(sample)) == sample


@pytest.mark.parametrize("text", ["", "did:repo:", "did:repo:z", "did:key:z6Mk", "did:repo:z1111", "../x"])
def test_what_is_no_repo_id(text: str) -> None:
    with pytest.raises(UsageError):
        RepoId.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        f"p2p://{PEER.peer_id}/tiny.git",
        f"p2p://{PEER.did}/tiny.git",
        f"p2p://{PEER.peer_id}/pack/tiny.git",
        f"p2p://{PEER.peer_id}/object/tiny.git",
        f"p2p://{PEER.peer_id}/tiny",
        f"mega://{PEER.peer_id}/tiny.git",
        f"megalfs://{PEER.peer_id}/tiny.git/",
        f"megalfs::p2p://{PEER.peer_id}/tiny.git",
        f"megalfs::{PEER.did}/tiny.git",
        f"{PEER.did}/tiny.git",
    ],
)
def test_every_spelling_of_a_url(text: str) -> None:
    assert RepoUrl.parse(text) == RepoUrl(peer=PEER, repo="tiny")


def test_url_with_key_hints_and_id() -> None:
    repo = RepoId.of(ROOT, PEER)
    text = f"p2p://{ME.did}@{PEER.did}/{repo}.git?addr=127.0.0.1:9000&addr=[::1]:9001&via=quic"
    url = RepoUrl.parse(text)
    assert (url.me, url.peer, url.repo, url.via) == (ME, PEER, str(repo), "quic")
    assert url.addresses == (HostPort("127.0.0.1", 9000), HostPort("::1", 9001))
    assert RepoUrl.parse(str(url)) == url


def test_object_url() -> None:
    url = RepoUrl.parse(f"p2p://{PEER.peer_id}/object/{ROOT}")
    assert (url.kind, url.repo) == ("object", ROOT)
    assert RepoUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "/",
        "/../x.git",
        "/a/b.git",
        "/tree/x.git",
        "/%2e%2e/x.git",
        "/.git",
        "/-x.git",
        "/x..y.git",
        "/x\ny.git",
        "/file.git",
        "/names",
        "/object/zz",
        "/x.git?addr=nowhere",
        "/x.git?upload-pack=evil",
        "/x.git?via=http",
        "/" + "x" * 101,
        "/" + "x" * 3000,
    ],
)
def test_hostile_paths(rest: str) -> None:
    with pytest.raises(UsageError):
        RepoUrl.parse(f"p2p://{PEER.peer_id}{rest}")


@pytest.mark.parametrize("host", ["", "--upload-pack=evil", "-oProxyCommand=x", "localhost", "12D3KooW"])
def test_hostile_hosts(host: str) -> None:
    with pytest.raises(UsageError):
        RepoUrl.parse(f"p2p://{host}/x.git")


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        RepoUrl.parse(f"p2p://me:hunter2@{PEER.peer_id}/x.git")
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("name", ["a", "tiny", "Tiny-2.0_x", "x" * 100])
def test_good_names(name: str) -> None:
    assert parse_repo_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "é", "x.git", "x.lock", "File", "pack"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError):
        parse_repo_name(name)


@pytest.mark.parametrize(
    "name", ["refs/heads/main", "refs/heads/a/b-c", "refs/tags/v1.0", "refs/heads/größe"]
)
def test_good_refs(name: str) -> None:
    assert check_ref(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "HEAD",
        "refs/heads/",
        "refs/heads/../x",
        "refs/heads/a..b",
        "refs/heads/a//b",
        "refs/heads/-h",
        "refs/heads/a/-h",
        "refs/heads/.x",
        "refs/heads/x.lock",
        "refs/heads/x.lock/y",
        "refs/heads/x.",
        "refs/heads/a b",
        "refs/heads/a\x1b[2J",
        "refs/heads/a\n",
        "refs/heads/a@{0}",
        "refs/heads/@",
        "refs/heads/HEAD",
        "refs/heads/a:b",
        "refs/heads/a\\b",
        "refs/heads/x\u202ey",
        "refs/notes/x",
        "refs/remotes/x/y",
        "refs/heads/" + "x" * REF_BYTES_MAX,
        "refs/heads/\ud800",
    ],
)
def test_bad_refs(name: str) -> None:
    with pytest.raises(UsageError):
        check_ref(name)


def test_ref_lines_round_trip_and_only_in_order() -> None:
    refs = {"refs/tags/v1": "2" * 40, "refs/heads/main": "1" * 40}
    lines = format_refs(refs).splitlines()
    assert parse_refs(lines) == refs
    for bad in (lines[::-1], lines + lines[-1:], ["1" * 39 + " refs/heads/x"], ["x"]):
        with pytest.raises(UsageError):
            parse_refs(bad)
