"""Stock git-lfs, without megalfs, against a node; and git-lfs with the agent, which then brings chunks only."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, cast

import pytest
from helpers_lfs import Person, content, new_person, objects_in, oid_of, received, requires_git_lfs
from processes import Running, free_port, wait_until

from megalfs.errors import NotAuthorisedError, NotFoundError, UsageError
from megalfs.git.lfs_locks import LockedError, Locks

__all__ = ["new_person"]

NewPerson = Callable[..., Person]
LFS_TYPE = "application/vnd.git-lfs+json"


def ask(
    server: Running, path: str, body: object = None, *, method: str = "POST", login: str = ""
) -> tuple[int, dict[str, object]]:
    """One request; the status, and what was said."""
    request = urllib.request.Request(f"http://{server.address}/team/model.git/info/lfs{path}", method=method)
    request.add_header("Accept", LFS_TYPE)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    try:
        with cast("HTTPResponse", urllib.request.urlopen(request, data, timeout=30)) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def repository(person: Person, server: Running, login: str = "") -> Path:
    """A work tree with a bare remote, whose LFS server is the node."""
    remote, work = person.directory / "work.git", person.directory / "work"
    person.git("init", "-q", "--bare", remote)
    person.git("init", "-q", work)
    person.git("remote", "add", "origin", remote, cwd=work)
    (work / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    at = f"{login}@" if login else ""
    person.git(
        "config",
        "-f",
        ".lfsconfig",
        "lfs.url",
        f"http://{at}{server.address}/team/model.git/info/lfs",
        cwd=work,
    )
    person.git("add", "-A", cwd=work)
    person.git("commit", "-qm", "start", cwd=work)
    return work


def log_in(person: Person, server: Running, token: str) -> None:
    """What a person types when git asks, and `git credential-store` keeps."""
    stored = person.directory / "credentials"
    person.git("config", "--global", "credential.helper", f"store --file {stored}")
    stored.write_text(f"http://ann:{token}@{server.address}\n")


@requires_git_lfs
def test_stock_git_lfs_pushes_clones_and_locks(new_person: NewPerson) -> None:
    server = new_person("node").serve("node", "start")
    ann, bob = new_person("ann"), new_person("bob")
    work = repository(ann, server)
    files = {"a.bin": content(1, 2_000_000), "b.bin": content(2, 500), "zero.bin": b""}
    ann.commit(work, files)
    said = ann.git("push", "origin", "main", cwd=work)
    assert "(2/2)" in said
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    clone = bob.directory / "clone"
    assert all((clone / name).read_bytes() == data for name, data in files.items())

    ann.git("config", f"lfs.http://{server.address}/team/model.git/info/lfs.locksverify", "true", cwd=work)
    assert "Locked a.bin" in ann.git("lfs", "lock", "a.bin", cwd=work)
    assert "a.bin" in bob.git("lfs", "locks", cwd=clone)
    assert bob.try_git("lfs", "lock", "a.bin", cwd=clone).code != 0
    ann.commit(work, {"a.bin": content(3, 2_000_000)})
    ann.git("push", "origin", "main", cwd=work)
    assert "Unlocked a.bin" in ann.git("lfs", "unlock", "a.bin", cwd=work)
    assert ann.git("lfs", "locks", cwd=work).strip() == ""


@requires_git_lfs
def test_stock_git_lfs_goes_on_where_the_node_was_killed(new_person: NewPerson) -> None:
    """Run again, it asks for the rest with Range."""
    node, ann, bob = new_person("node", MEGALFS_LIMIT_UP="6M"), new_person("ann"), new_person("bob")
    listen = f"127.0.0.1:{free_port()}"
    server = node.serve("node", "start", listen=listen)
    work, data = repository(ann, server), content(11, 12_000_000)
    ann.commit(work, {"a.bin": data})
    ann.git("push", "-q", "origin", "main", cwd=work)
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone = bob.directory / "clone"
    incomplete = clone / ".git/lfs/incomplete"
    with bob.git_running("lfs", "pull", cwd=clone, environ={}) as git:
        wait_until(
            lambda: any(part.stat().st_size > 4_000_000 for part in incomplete.glob("*")), "a third of it"
        )
        server.kill()
        git.wait(60)
    again = node.serve("node", "start", listen=listen)
    bob.git("lfs", "pull", cwd=clone)
    assert (clone / "a.bin").read_bytes() == data
    with urllib.request.urlopen(f"http://{again.address}/metrics", timeout=10) as reply:
        lines = [line.split() for line in reply.read().decode().splitlines()]
    [sent] = [float(line[1]) for line in lines if line[0] == 'megalfs_sent_bytes_total{via="http"}']
    assert sent < len(data) - 3_000_000


@requires_git_lfs
def test_a_token_is_needed_where_others_can_reach_the_node(new_person: NewPerson) -> None:
    node = new_person("node")
    server = node.serve("node", "start", listen="0.0.0.0:0")
    token = node.ok("lfs", "token", "ann").out.strip()
    assert node.ok("lfs", "token").out.split() == ["ann"]
    ann = new_person("ann")
    work = repository(ann, server)
    data = content(4, 300_000)
    ann.commit(work, {"a.bin": data})
    refused = ann.try_git("push", "origin", "main", cwd=work)
    assert refused.code != 0
    log_in(ann, server, token)
    ann.git("push", "origin", "main", cwd=work)
    lock = {"path": "a.bin"}
    assert ask(server, "/locks", lock)[0] == 401
    assert ask(server, "/locks", lock, login=f"ann:{token[:-1]}x")[0] == 401
    assert ask(server, "/locks", lock, login=f"ann:{token}")[0] == 201
    # Reading is open.
    bob = new_person("bob")
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == data
    node.ok("lfs", "token", "ann", "--revoke")
    assert ask(server, "/locks/verify", {}, login=f"ann:{token}")[0] == 401


@requires_git_lfs
def test_an_allow_list_and_a_token(new_person: NewPerson) -> None:
    """A node that answers only to listed keys: who has no key, but a token, reads, writes and locks with it."""
    listed = new_person("listed").ok("auth", "init").out.strip()
    node = new_person("node", MEGALFS_ALLOW_KEYS=listed)
    server = node.serve("node", "start")
    token = node.ok("lfs", "token", "ann").out.strip()
    ann, bob, eve = new_person("ann"), new_person("bob"), new_person("eve").install()
    work, data = repository(ann, server), content(9, 400_000)
    ann.commit(work, {"a.bin": data})
    url = f"http://{server.address}/team/model.git/info/lfs"

    for wrong in ("", token[:-1] + "x"):
        log_in(ann, server, wrong)
        refused = ann.try_git("push", "origin", "main", cwd=work)
        assert refused.code != 0
        assert f"Git credentials for {url} not found" in refused.err
    for person in (ann, bob, eve):
        log_in(person, server, token)
    ann.git("push", "origin", "main", cwd=work)
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == data
    assert "Locked a.bin" in ann.git("lfs", "lock", "a.bin", cwd=work)
    assert "a.bin" in bob.git("lfs", "locks", cwd=bob.directory / "clone")
    assert "Unlocked a.bin" in ann.git("lfs", "unlock", "a.bin", cwd=work)
    # With the agent, whose own key is not listed either.
    eve.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (eve.directory / "clone/a.bin").read_bytes() == data

    oid = oid_of(data)
    batch = {"operation": "download", "objects": [{"oid": oid, "size": len(data)}]}
    status, answer = ask(server, "/objects/batch", batch)
    assert status == 401
    assert "megalfs lfs token NAME" in str(answer["message"])
    for path, method in (("/locks", "GET"), ("/locks/verify", "POST"), ("/verify", "POST")):
        assert ask(server, path, None if method == "GET" else {}, method=method)[0] == 401
    assert ask(server, f"/objects/{oid}", data, method="PUT")[0] == 401
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{server.address}/v1/file/{oid}", timeout=10)
    # A token opens objects and nothing else of the node.
    basic = {"Authorization": "Basic " + base64.b64encode(f"ann:{token}".encode()).decode()}
    for path in ("/v1/status", f"/v1/file/{oid}/manifests", "/v1/names?name=x"):
        request = urllib.request.Request(f"http://{server.address}{path}", headers=basic)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=10)
    node.ok("lfs", "token", "ann", "--revoke")
    assert ask(server, "/objects/batch", batch, login=f"ann:{token}")[0] == 401


def test_what_the_api_answers(new_person: NewPerson) -> None:
    server = new_person("node").serve("node", "start")
    data = content(5, 200_000)
    oid = oid_of(data)
    wanted = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(data)}]}
    status, answer = ask(server, "/objects/batch", wanted)
    assert (status, answer["transfer"]) == (200, "basic")
    [entry] = cast("list[dict[str, dict[str, dict[str, str]]]]", answer["objects"])
    assert entry["actions"]["upload"]["href"].endswith(f"/team/model.git/info/lfs/objects/{oid}")
    # Wrong bytes, too few of them, and then the right ones.
    assert ask(server, f"/objects/{oid}", data[:-1] + b"?", method="PUT")[0] == 422
    assert ask(server, "/verify", {"oid": oid, "size": len(data)})[0] == 404
    assert ask(server, f"/objects/{oid}", data, method="PUT")[0] == 200
    assert ask(server, "/verify", {"oid": oid, "size": len(data)})[0] == 200
    assert ask(server, "/verify", {"oid": oid, "size": len(data) - 1})[0] == 404
    status, answer = ask(server, "/objects/batch", wanted)
    assert "actions" not in cast("list[dict[str, object]]", answer["objects"])[0]
    status, answer = ask(
        server, "/objects/batch", wanted | {"operation": "download", "transfers": ["basic", "megalfs"]}
    )
    [entry] = cast("list[dict[str, dict[str, dict[str, str]]]]", answer["objects"])
    assert answer["transfer"] == "megalfs"
    assert server.address in entry["actions"]["download"]["header"]["Megalfs-Peers"]  # type: ignore[index]
    request = urllib.request.Request(
        entry["actions"]["download"]["href"], headers={"Range": "bytes=1000-1999"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert (response.status, response.read()) == (206, data[1000:2000])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"operation": "dance", "objects": []}, 422),
        ({"operation": "download", "objects": [{"oid": "x"}]}, 422),
        ({"operation": "download", "objects": [], "hash_algo": "sha1"}, 409),
        ({"operation": "download", "objects": [{"oid": "0" * 64, "size": 1}] * 1001}, 413),
        ([], 422),
        (b"{", 422),
    ],
)
def test_requests_that_are_refused(server_of_module: Running, body: object, status: int) -> None:
    code, answer = ask(server_of_module, "/objects/batch", body)
    assert code == status
    assert answer["message"]


def test_an_unknown_object_is_an_error_of_its_own(server_of_module: Running) -> None:
    objects = [{"oid": "0" * 64, "size": 1}, {"oid": "../../etc/passwd", "size": 1}]
    status, answer = ask(server_of_module, "/objects/batch", {"operation": "download", "objects": objects})
    found = cast("list[dict[str, dict[str, int]]]", answer["objects"])
    assert (status, [entry["error"]["code"] for entry in found]) == (200, [404, 422])


@pytest.fixture(scope="module")
def server_of_module(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One node for all requests that change nothing."""
    from processes import Megalfs

    node = Megalfs(tmp_path_factory.mktemp("node"))
    yield node.serve("node", "start")
    node.close()


@requires_git_lfs
def test_hybrid_mode_moves_only_chunks_that_the_server_lacks(new_person: NewPerson) -> None:
    """The server offers `megalfs` to whoever has it; one without it clones all the same."""
    node = new_person("node")
    server = node.serve("node", "start")
    ann, bob, eve = new_person("ann").install(), new_person("bob").install(), new_person("eve")
    work, data = repository(ann, server), content(6, 6_000_000)
    ann.commit(work, {"a.bin": data})
    assert "nobody else" not in ann.git("push", "origin", "main", cwd=work)
    before = received(node)
    assert before >= len(data) - 1
    changed = data[:3_000_000] + b"an edit" + data[3_000_000:]
    ann.commit(work, {"a.bin": changed})
    ann.git("push", "origin", "main", cwd=work)
    after = received(node)
    assert 0 < after - before < 2_200_000
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == changed
    assert bob.node is not None
    eve.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (eve.directory / "clone/a.bin").read_bytes() == changed
    assert eve.node is None


@requires_git_lfs
def test_a_home_has_everything_when_git_push_returns(new_person: NewPerson) -> None:
    node = new_person("node")
    server = node.serve("node", "start", listen="0.0.0.0:0")
    token = node.ok("lfs", "token", "ann").out.strip()
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work = ann.new_repository(peer=server.address)
    ann.git("config", "megalfs.home", f"http://{server.address}/team/model.git/info/lfs", cwd=work)
    data = content(7, 700_000)
    ann.commit(work, {"a.bin": data, "b.bin": data[:1000]})
    refused = ann.try_git("push", "origin", "main", cwd=work)
    assert refused.code != 0
    assert "megalfs lfs token" in refused.err
    log_in(ann, server, token)
    said = ann.git("push", "origin", "main", cwd=work)
    assert "nobody else" not in said
    ann.kill_node()
    shutil.rmtree(ann.root)
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == data
    assert objects_in(bob.directory / "clone/.git") == {oid_of(data), oid_of(data[:1000])}


@requires_git_lfs
def test_the_server_that_a_repository_had_is_an_origin(new_person: NewPerson) -> None:
    """A team turns megalfs on: who clones needs no peer, and becomes one."""
    server = new_person("node").serve("node", "start")
    ann, bob, eve = new_person("ann"), new_person("bob").install(), new_person("eve").install()
    work, data = repository(ann, server), content(8, 900_000)
    ann.commit(work, {"a.bin": data})
    ann.git("push", "-q", "origin", "main", cwd=work)
    assert ann.run("lfs", "init-repo", cwd=work).code == 8
    ann.ok("lfs", "init-repo", "--force", cwd=work)
    assert server.address in (work / ".megalfs.toml").read_text()
    ann.git("push", "-q", "origin", "main", cwd=work)
    pat = new_person("pat")
    pat.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    pat.ok("pull", ".", cwd=pat.directory / "clone")
    assert (pat.directory / "clone/a.bin").read_bytes() == data
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == data
    server.kill()
    eve.git("clone", "-q", "-c", f"megalfs.peer={bob.address}", ann.directory / "work.git", "clone")
    assert (eve.directory / "clone/a.bin").read_bytes() == data


class BusyServer(BaseHTTPRequestHandler):
    """An LFS server that sends everybody away once, and says until when."""

    objects: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        [wanted] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["objects"]
        href = f"http://{self.headers['Host']}/{wanted['oid']}"
        answer = {"objects": [{**wanted, "actions": {"download": {"href": href}}}]}
        self._answer(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self._answer(self.objects[self.path.strip("/")])

    def _answer(self, body: bytes) -> None:
        is_first = self.path not in self.asked
        self.asked.append(self.path)
        self.send_response(429 if is_first else 200)
        if is_first:
            self.send_header("Retry-After", "1")
        body = b"" if is_first else body
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@requires_git_lfs
def test_a_busy_server_is_asked_again_when_it_says(new_person: NewPerson) -> None:
    """429 with Retry-After, from the Batch API and for the object: as git-lfs itself takes it."""
    data = content(10, 300_000)
    oid = oid_of(data)
    BusyServer.objects, BusyServer.asked = {oid: data}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), BusyServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        ann = new_person("ann").install()
        work = ann.new_repository(server=f"http://127.0.0.1:{server.server_address[1]}/lfs")
        ann.commit(work, {"a.bin": data})
        shutil.rmtree(work / ".git/lfs/objects")
        ann.git("lfs", "pull", cwd=work)
        assert objects_in(work / ".git") == {oid}
        assert BusyServer.asked == 2 * ["/lfs/objects/batch"] + 2 * [f"/{oid}"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_locks(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "locks.sqlite")
    made = [locks.create("r", f"{index}.bin", "ann") for index in range(5)]
    with pytest.raises(LockedError) as caught:
        locks.create("r", "3.bin", "bob")
    assert caught.value.lock == made[3]
    assert locks.create("other", "3.bin", "bob").owner == "bob"
    first, cursor = locks.find("r", limit=3)
    rest, end = locks.find("r", limit=3, cursor=cursor)
    assert ([*first, *rest], end) == (made, "")
    assert locks.find("r", path="2.bin") == ([made[2]], "")
    assert locks.find("r", lock_id=made[1].id) == ([made[1]], "")
    with pytest.raises(NotAuthorisedError):
        locks.remove("r", made[0].id, "bob", force=False)
    assert locks.remove("r", made[0].id, "bob", force=True) == made[0]
    with pytest.raises(NotFoundError):
        locks.remove("r", made[0].id, "ann", force=False)
    for path in ("", "a\0b", "x" * 5000):
        with pytest.raises(UsageError):
            locks.create("r", path, "ann")
