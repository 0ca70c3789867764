"""The HTTP routes of DESIGN.md section 6, asked by plain HTTP clients of real nodes."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from adversaries import MIB, Stage, make_model
from processes import Megalfs, Running, wait_until

from megalfs.core.signing import SigningKey
from megalfs.node.http_guard import make_token
from megalfs.node.identity import LocalIdentity
from megalfs.store.root import Root

TYPE = "application/vnd.megalfs.manifest"


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


def ask(
    address: str, path: str, headers: dict[str, str] | None = None, *, method: str = "GET", body: bytes = b""
) -> Reply:
    """One request; header names in the answer are lower case."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body=body or None, headers=headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, found, response.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Scene:
    """A node that serves a model and an empty file."""

    stage: Stage
    node: Megalfs
    server: Running
    content: bytes
    oid: str

    def get(self, path: str, headers: dict[str, str] | None = None, *, method: str = "GET") -> Reply:
        """Asks the node."""
        return ask(self.server.address, path, headers, method=method)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("http")
    stage = Stage(directory)
    model = make_model(directory, size=4 * MIB)
    (directory / "empty").write_bytes(b"")
    node = stage.node("server")
    node.ok("publish", model, "--name", "llama/8b")
    server = node.serve("seed", model, directory / "empty")
    yield Scene(stage, node, server, model.read_bytes(), str(server.records[0]["oid"]))
    stage.close()


# Bytes.


def test_the_whole_blob(scene: Scene) -> None:
    reply = scene.get(f"/v1/file/{scene.oid}")
    assert (reply.status, reply.body) == (200, scene.content)
    assert reply.headers["etag"] == f'"{scene.oid}"'
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["content-length"] == str(len(scene.content))


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=1000000-", 1_000_000, None),
        ("bytes=-1", -1, None),
        ("bytes=-99999999999", 0, None),
        ("bytes=5-99999999999", 5, None),
    ],
)
def test_a_range(scene: Scene, value: str, start: int, stop: int | None) -> None:
    reply = scene.get(f"/v1/file/{scene.oid}", {"Range": value})
    expected = scene.content[start:stop]
    first = start if start >= 0 else len(scene.content) + start
    assert (reply.status, reply.body) == (206, expected)
    end = first + len(expected) - 1
    assert reply.headers["content-range"] == f"bytes {first}-{end}/{len(scene.content)}"


@pytest.mark.parametrize("value", ["bytes=99999999-", "bytes=99999999-999999999", "bytes=-0"])
def test_a_range_that_is_not_there(scene: Scene, value: str) -> None:
    reply = scene.get(f"/v1/file/{scene.oid}", {"Range": value})
    assert reply.status == 416
    assert reply.headers["content-range"] == f"bytes */{len(scene.content)}"


@pytest.mark.parametrize(
    "value",
    [
        "bytes=5-2",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "lines=1-2",
        "bytes=0-1,5-6",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_a_range_that_is_none(scene: Scene, value: str) -> None:
    """RFC 9110 14.2: what cannot be read is ignored."""
    reply = scene.get(f"/v1/file/{scene.oid}", {"Range": value})
    assert (reply.status, len(reply.body)) == (200, len(scene.content))
    assert "content-range" not in reply.headers


def test_if_range(scene: Scene) -> None:
    path, headers = f"/v1/file/{scene.oid}", {"Range": "bytes=0-9"}
    assert scene.get(path, headers | {"If-Range": f'"{scene.oid}"'}).status == 206
    assert scene.get(path, headers | {"If-Range": '"other"'}).status == 200


def test_head(scene: Scene) -> None:
    reply = scene.get(f"/v1/file/{scene.oid}", method="HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == str(len(scene.content))


def test_an_empty_blob(scene: Scene) -> None:
    path = f"/v1/file/{hashlib.sha256(b'').hexdigest()}"
    assert (scene.get(path).status, scene.get(path).body) == (200, b"")
    assert scene.get(path, {"Range": "bytes=0-"}).status == 416


@pytest.mark.parametrize(
    "path", ["/v1/file/{}", "/v1/file/{}/chunks", "/v1/file/{}/have", "/v1/file/{}/manifests"]
)
def test_ids_that_are_none_and_unknown_ones(scene: Scene, path: str) -> None:
    assert scene.get(path.format("0" * 64)).status == 404
    for bad in ("0" * 63, "g" * 64, "0" * 65, "%2e%2e", "x"):
        assert scene.get(path.format(bad)).status == 400, bad
    assert scene.get(path.format(scene.oid.upper())).status == 200


# Manifests and chunks.


def test_the_manifest_as_json(scene: Scene) -> None:
    reply = scene.get(f"/v1/file/{scene.oid}/chunks", {"Accept": "application/json"})
    found = reply.json()
    assert reply.headers["content-type"].startswith("application/json")
    assert (found["oid"], found["size"]) == (scene.oid, len(scene.content))
    offset, whole = 0, hashlib.sha256()
    for chunk in found["chunks"]:
        assert set(chunk) == {"offset", "length", "sha256", "blake3"}
        assert chunk["offset"] == offset
        part = scene.content[offset : offset + chunk["length"]]
        assert hashlib.sha256(part).hexdigest() == chunk["sha256"]
        whole.update(part)
        offset += chunk["length"]
    assert offset == len(scene.content)
    assert whole.hexdigest() == scene.oid


def test_the_manifest_as_bytes(scene: Scene) -> None:
    reply = scene.get(f"/v1/file/{scene.oid}/chunks", {"Accept": TYPE})
    assert reply.headers["content-type"] == TYPE
    assert reply.headers["megalfs-manifest"] == hashlib.sha256(reply.body).hexdigest()
    manifest = reply.headers["megalfs-manifest"]
    assert scene.get(f"/v1/file/{scene.oid}/chunks?manifest={manifest}").status == 200
    assert scene.get(f"/v1/file/{scene.oid}/chunks?manifest={'0' * 64}").status == 404
    assert scene.get(f"/v1/file/{scene.oid}/chunks?manifest=zz").status == 400


def test_one_chunk(scene: Scene) -> None:
    chunks = scene.get(f"/v1/file/{scene.oid}/chunks").json()["chunks"]
    for chunk in (chunks[0], chunks[-1]):
        expected = scene.content[chunk["offset"] : chunk["offset"] + chunk["length"]]
        for name in (chunk["sha256"], f"sha256:{chunk['sha256']}", f"blake3:{chunk['blake3']}"):
            reply = scene.get(f"/v1/file/chunks/{name}")
            assert (reply.status, reply.body) == (200, expected)
    assert scene.get(f"/v1/file/chunks/{'0' * 64}").status == 404
    assert scene.get(f"/v1/file/chunks/blake3:{'0' * 64}").status == 404
    assert scene.get("/v1/file/chunks/zz").status == 400
    assert scene.get("/v1/file/chunks/blake3:zz").status == 400


def test_have(scene: Scene) -> None:
    reply = scene.get(f"/v1/file/{scene.oid}/have")
    count = int(reply.headers["megalfs-pieces"])
    assert len(reply.body) == (count + 7) // 8
    assert sum(byte.bit_count() for byte in reply.body) == count


def test_a_partial_holder_serves_what_it_has_verified(scene: Scene) -> None:
    slow = scene.stage.node("slow").serve(
        "seed", scene.stage.directory / "model.safetensors", "--limit-up", "1M"
    )
    leecher = scene.stage.node("leecher")
    argv = ["--peer", slow.address, "--listen", "127.0.0.1:0", "--no-discover", "--json", "-o", "got.bin"]
    pulling = leecher.start("pull", scene.oid, *argv, "-v")
    chunks = scene.get(f"/v1/file/{scene.oid}/chunks").json()["chunks"]
    wait_until(lambda: any(int(str(r.get("bytes_verified", 0))) > 0 for r in pulling.records), "some pieces")
    address = listening_address(pulling)
    bits = ask(address, f"/v1/file/{scene.oid}/have").body
    held = [bool(bits[i // 8] >> (7 - i % 8) & 1) for i in range(len(chunks))]
    assert True in held
    assert False in held
    chunk = chunks[held.index(True)]
    start, stop = chunk["offset"], chunk["offset"] + chunk["length"]
    reply = ask(address, f"/v1/file/{scene.oid}", {"Range": f"bytes={start}-{stop - 1}"})
    assert (reply.status, reply.body) == (206, scene.content[start:stop])
    assert ask(address, f"/v1/file/{scene.oid}").status in {404, 200}  # 200 once it is whole
    pulling.stop()


def listening_address(running: Running) -> str:
    """The port that a pull listens on, by what the kernel says of its process."""
    inodes = set()
    for entry in Path(f"/proc/{running.process.pid}/fd").iterdir():
        try:
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return f"127.0.0.1:{int(fields[1].partition(':')[2], 16)}"
    raise AssertionError("it does not listen")


# State, names, trackers.


def test_health(scene: Scene) -> None:
    assert scene.get("/healthz").status == 200
    assert scene.get("/readyz").status == 200


def test_status_names_files_only_to_the_local_token(scene: Scene) -> None:
    reply = scene.get("/v1/status")
    assert reply.status == 200
    assert scene.oid not in reply.body.decode()
    assert "model.safetensors" not in reply.body.decode()
    token = Root.open(scene.node.root, create=False).token()
    files = scene.get("/v1/status", {"Authorization": f"Bearer {token}"}).json()["files"]
    assert scene.oid in {each["oid"] for each in files}
    wrong = scene.get("/v1/status", {"Authorization": "Bearer " + "x" * len(token)})
    assert "files" not in wrong.json()


def test_metrics_are_prometheus_text(scene: Scene) -> None:
    scene.get(f"/v1/file/{scene.oid}")
    reply = scene.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    sample = re.compile(r'(\w+)(\{(\w+="(\\.|[^"\\])*",?)*\})? (-?[0-9.e+-]+|NaN|[+-]Inf)\Z')
    types, values = {}, {}
    for line in reply.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            types[name] = kind
        elif not line.startswith("# HELP "):
            found = sample.match(line)
            assert found, line
            assert found[1] in types, line
            values[line.rpartition(" ")[0]] = float(found[5])
    assert values["megalfs_ready"] == 1
    assert values['megalfs_sent_bytes_total{via="http"}'] >= len(scene.content)


def test_names(scene: Scene) -> None:
    did = scene.node.ok("auth", "show", "--json").records[0]
    for key in (did["key"], did["peer_id"]):
        record = scene.get(f"/v1/names/{key}/llama/8b").json()
        assert record["record"]["oid"] == scene.oid
        assert record["key"] == did["key"]
    assert scene.get(f"/v1/names/{did['key']}/other").status == 404
    assert scene.get("/v1/names/did:key:zzz/llama/8b").status == 400


def test_announce_and_peers(scene: Scene) -> None:
    tracker = scene.stage.node("tracker").serve("tracker")
    url = f"http://{tracker.address}"
    node = scene.stage.node("announcing")
    seeder = node.serve("seed", scene.stage.directory / "model.safetensors", "--tracker", url)

    def peers() -> list[dict[str, object]]:
        return list(ask(tracker.address, f"/v1/peers/{scene.oid}").json()["peers"])

    wait_until(lambda: [peer["port"] for peer in peers()] == [seeder.ready["port"]], "the tracker knows it")
    seeder.stop()
    wait_until(lambda: peers() == [], "the tracker forgets who left")
    for body in (b"", b"{", b"[]", b"null", b'{"port": "x"}', b"\xff" * 10):
        reply = ask(
            tracker.address, "/v1/announce", {"Content-Type": "application/json"}, method="POST", body=body
        )
        assert reply.status == 400, body
    assert ask(tracker.address, "/v1/announce", method="POST", body=b"x" * (5 << 20)).status in {400, 413}
    assert ask(tracker.address, "/healthz").status == 200


# Who may ask.


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7427", "127.0.0.1.evil.example", "", "a b", "["]
)
def test_another_host_name(scene: Scene, host: str) -> None:
    assert scene.get("/v1/status", {"Host": host}).status in {400, 403}
    assert scene.get(f"/v1/file/{scene.oid}", {"Host": host}).status in {400, 403}


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7427", "127.0.0.1", "[::1]:7427", "seeder-1", "seeder.local"]
)
def test_our_host_names(scene: Scene, host: str) -> None:
    assert scene.get("/v1/status", {"Host": host}).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1"])
def test_another_origin(scene: Scene, origin: str) -> None:
    assert scene.get("/v1/status", {"Origin": origin}).status == 403


def test_no_way_to_write_or_to_leave_the_routes(scene: Scene) -> None:
    for method in ("PUT", "DELETE", "POST", "PATCH"):
        assert ask(scene.server.address, f"/v1/file/{scene.oid}", method=method).status == 405
    for path in ("/v1/file/../../etc/passwd", "/v1/file/%2e%2e%2f%2e%2e", "/etc/passwd", "/v1/"):
        assert scene.get(path).status in {400, 404}


def test_an_allow_list(scene: Scene) -> None:
    friend = scene.stage.node("friend")
    did = friend.ok("auth", "init").out.strip()
    model = scene.stage.directory / "model.safetensors"
    closed = Megalfs(scene.stage.directory / "closed", environ={"MEGALFS_ALLOW_KEYS": did})
    scene.stage.nodes.append(closed)
    server = closed.serve("seed", model)
    path = f"/v1/file/{scene.oid}"
    assert ask(server.address, "/healthz").status == 200
    assert ask(server.address, "/readyz").status == 200
    for closed_path in (path, path + "/chunks", "/v1/status", "/metrics", "/v1/peers/" + scene.oid):
        assert ask(server.address, closed_path).status == 401
    key = Root.open(friend.root, create=False).load_key()
    assert key is not None
    good, other = (make_token(LocalIdentity.of(each)) for each in (key, SigningKey(bytes(32))))
    assert ask(server.address, path, {"Authorization": f"Bearer {good}"}).body == scene.content
    for bad in (other, good[:-4], good[:-4] + "AAAA", "", "x" * 4000):
        assert ask(server.address, path, {"Authorization": f"Bearer {bad}"}).status == 401
    argv = [
        "pull",
        scene.oid,
        "--peer",
        server.address,
        "--no-discover",
        "-o",
        "got.bin",
        "--wait-peers",
        "1",
    ]
    summary = friend.ok(*argv, "--json").records[-1]
    assert (friend.directory / "got.bin").read_bytes() == scene.content
    assert summary["rejected"] == {}
    stranger = scene.stage.node("stranger")
    assert stranger.run(*argv).code in {5, 7}
    assert not (stranger.directory / "got.bin").exists()


def test_a_listed_friend_is_a_peer_of_the_swarm(scene: Scene) -> None:
    """Not only plain HTTP works in allow-list mode: the peer protocol proves the key itself."""
    friend = scene.stage.node("swarm friend")
    did = friend.ok("auth", "init").out.strip()
    model = scene.stage.directory / "model.safetensors"
    closed = Megalfs(scene.stage.directory / "closed swarm", environ={"MEGALFS_ALLOW_KEYS": did})
    scene.stage.nodes.append(closed)
    server = closed.serve("seed", model)
    friend.ok("pull", scene.oid, "--peer", server.address, "--no-discover", "-o", "got.bin")
    token = Root.open(closed.root, create=False).token()
    metrics = ask(server.address, "/metrics", {"Authorization": f"Bearer {token}"}).body.decode()
    sent = re.search(r'sent_bytes_total\{via="peer"\} ([0-9.e+]+)', metrics)
    assert sent is not None
    assert float(sent[1]) > 0


# Files that change while they are served.


@pytest.mark.parametrize("change", ["edit", "truncate", "delete", "replace"])
def test_a_file_that_changed(scene: Scene, change: str) -> None:
    node = scene.stage.node(f"changes {change}")
    path = node.directory / "model.bin"
    path.write_bytes(scene.content)
    server = node.seed(path)
    url = f"/v1/file/{scene.oid}"
    assert ask(server.address, url).status == 200
    match change:
        case "edit":
            with path.open("r+b") as file:
                file.seek(1_000_000)
                file.write(b"edited")
        case "truncate":
            with path.open("r+b") as file:
                file.truncate(1_000_000)
        case "delete":
            path.unlink()
        case "replace":
            path.with_suffix(".new").write_bytes(scene.content[::-1])
            path.with_suffix(".new").replace(path)

    def status() -> int:
        try:
            reply = ask(server.address, url)
        except (OSError, http.client.HTTPException):
            return 0
        assert reply.status != 200 or reply.body == scene.content
        return reply.status

    assert status() in {0, 404, 503}
    wait_until(lambda: status() in {404, 503}, "the blob is withdrawn")
    path.write_bytes(scene.content)
    node.ok("publish", path)
    wait_until(lambda: status() == 200, "the blob is offered again")


def test_a_file_that_changes_while_it_is_sent(scene: Scene) -> None:
    node = scene.stage.node("changes under way")
    path = node.directory / "model.bin"
    path.write_bytes(scene.content)
    server = node.serve("seed", path, "--limit-up", "2M")
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("GET", f"/v1/file/{scene.oid}")
    response = connection.getresponse()
    response.read(1000)
    with path.open("r+b") as file:
        file.seek(len(scene.content) - 100)
        file.write(b"edited")
    with pytest.raises((OSError, http.client.IncompleteRead)):
        response.read()  # no clean end: what came is not taken for the blob
    connection.close()
