"""Shared repositories over HTTP: objects, lists, packs, and stock git's clone."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from helpers_p2p import P2pNode

from megalfs.core.refs import ObjectFormat, object_name


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[P2pNode]:
    node = P2pNode(tmp_path_factory.mktemp("node")).start()
    try:
        path = node.repository(commits=5)
        (path / "dir").mkdir()
        node.commit(path, "dir/deep.txt", "deep\n")
        node.git("checkout", "-q", "--orphan", "secret", cwd=path)
        node.commit(path, "hidden.txt", "nobody's business\n")
        node.git("update-ref", "refs/hidden/secret", "HEAD", cwd=path)
        node.git("checkout", "-q", "main", cwd=path)
        node.git("branch", "-D", "secret", cwd=path)
        node.share(path)
        yield node
    finally:
        node.close()


def get(node: P2pNode, path: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{node.http}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def listed(node: P2pNode, path: str) -> dict[str, object]:
    status, body = get(node, path)
    assert status == 200, body
    found: dict[str, object] = json.loads(body)
    return found


def reachable(node: P2pNode) -> list[str]:
    out = node.git("rev-list", "--objects", "--branches", "--tags", cwd=node.directory / "tiny").out
    return sorted({line.split()[0] for line in out.splitlines()})


@pytest.mark.parametrize("names", ["sha1", "sha256"])
def test_hash_of_an_object_is_gits(tmp_path: Path, names: ObjectFormat) -> None:
    subprocess.run(["git", "init", "-q", f"--object-format={names}", tmp_path], check=True)
    for body in (b"Hello, World!\n", b"", b"\0" * 70_000):
        ours = object_name(b"blob %d\0" % len(body) + body, names)
        command = ["git", "hash-object", "--stdin"]
        done = subprocess.run(command, cwd=tmp_path, input=body, capture_output=True, check=True)
        assert done.stdout.decode().strip() == ours
    known = object_name(b"blob 14\0Hello, World!\n", "sha1")
    assert known == "8ab686eafeb1f44702738c8b0f24f2567c36da6d", "as the slides have it"


def test_the_list_is_what_shared_refs_reach_and_pages(node: P2pNode) -> None:
    expected = reachable(node)
    whole = listed(node, "/v1/tiny/objects")
    assert (whole["objects"], whole["count"], whole["next"]) == (expected, len(expected), None)
    pages, after = [], ""
    for _ in range(len(expected)):
        page = listed(node, f"/v1/tiny/objects?limit=4&after={after}")
        pages += page["objects"]  # type: ignore[operator]
        after = str(page["next"])
        if page["next"] is None:
            break
    assert pages == expected


def test_a_client_rebuilds_the_repository_from_objects_alone(node: P2pNode) -> None:
    rebuilt = node.directory / "rebuilt.git"
    node.git("init", "-q", "--bare", rebuilt)
    for name in listed(node, "/v1/tiny/objects")["objects"]:  # type: ignore[attr-defined]
        status, content = get(node, f"/v1/object/{name}")
        assert status == 200
        assert hashlib.sha1(content).hexdigest() == name
        target = rebuilt / "objects" / name[:2] / name[2:]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(zlib.compress(content))
    head = node.head(node.directory / "tiny")
    node.git("update-ref", "refs/heads/main", head, cwd=rebuilt)
    node.git("fsck", "--strict", "--full", cwd=rebuilt)
    assert node.git("show", "main:dir/deep.txt", cwd=rebuilt).out == "deep\n"


def test_hidden_unknown_and_malformed_objects(node: P2pNode) -> None:
    hidden = node.head(node.directory / "tiny", "refs/hidden/secret")
    assert hidden not in reachable(node)
    assert get(node, f"/v1/object/{hidden}")[0] == 404
    assert get(node, f"/v1/object/{'0' * 40}")[0] == 404
    for bad in ("xyz", "0" * 39, "0" * 41, "%2e%2e", "--all"):
        assert get(node, f"/v1/object/{bad}")[0] == 400, bad
    for bad in ("?limit=0", "?limit=x", "?limit=999999", "?after=x"):
        assert get(node, f"/v1/tiny/objects{bad}")[0] == 400, bad
    assert get(node, "/v1/nothing/objects")[0] == 404
    assert get(node, "/v1/-h/objects")[0] == 400
    assert get(node, "/v1/names/objects")[0] != 200


def test_a_new_commit_is_listed_at_once(node: P2pNode) -> None:
    head = node.commit(node.directory / "tiny", "later.txt", "x")
    assert get(node, f"/v1/object/{head}")[0] == 200
    assert listed(node, "/v1/tiny/objects")["objects"] == reachable(node)


def test_the_pack_passes_index_pack(node: P2pNode) -> None:
    status, pack = get(node, "/v1/tiny/objects", Accept="application/x-git-pack")
    assert status == 200
    target = node.directory / "packed.git"
    node.git("init", "-q", "--bare", target)
    done = subprocess.run(
        ["git", "index-pack", "--strict", "--stdin"], input=pack, cwd=target, capture_output=True, check=True
    )
    assert done.stdout.startswith(b"pack\t")
    names = node.git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=target).out.split()
    assert names == reachable(node)


@pytest.mark.parametrize("version", ["0", "2"])
def test_stock_git_clones_and_fetches_over_http(node: P2pNode, version: str) -> None:
    target = node.directory / f"clone{version}"
    setting = ("-c", f"protocol.version={version}")
    node.git(*setting, "clone", "-q", f"{node.http}/tiny.git", target)
    assert node.head(target) == node.head(node.directory / "tiny")
    assert "hidden" not in node.git("ls-remote", f"{node.http}/tiny.git").out
    head = node.commit(node.directory / "tiny", f"http{version}.txt", "x" * 1000)
    node.git(*setting, "fetch", "-q", cwd=target)
    assert node.head(target, "origin/main") == head
    node.git(*setting, "clone", "-q", "--depth", "1", f"{node.http}/tiny.git", f"{target}-shallow")


def test_http_is_read_only(node: P2pNode) -> None:
    target = node.directory / "pushing"
    node.git("clone", "-q", f"{node.http}/tiny.git", target)
    node.commit(target, "x.txt", "x")
    done = node.git("push", "origin", "main", cwd=target, ok=False)
    assert done.code != 0
    assert "403" in done.err


def test_a_hostile_request_does_not_stop_the_node(node: P2pNode) -> None:
    for body in (b"", b"\xff" * 1000, gzip.compress(b"0032want " + b"0" * 40 + b"\n00000009done\n")):
        request = urllib.request.Request(f"{node.http}/tiny.git/git-upload-pack", data=body)
        with suppress(OSError, HTTPException), urllib.request.urlopen(request, timeout=60) as response:
            response.read()
    assert get(node, "/healthz")[0] == 200
    assert node.git("ls-remote", f"{node.http}/tiny.git").out
