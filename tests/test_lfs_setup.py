"""Setting git-lfs up, what a repository may say, and the agent's own manners."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from adversaries import flip
from helpers_lfs import Person, content, new_person, oid_of, requires_git_lfs
from helpers_store import make_store
from processes import wait_until

from megalfs.config import Settings
from megalfs.errors import ConfigError
from megalfs.formats.hostport import HostPort
from megalfs.git.lfs_setup import stub_path
from megalfs.git.lfs_sources import RepositoryFile, find_sources
from megalfs.git.lfs_unsynced import Unsynced
from megalfs.store.blobs import Place, Store
from megalfs.store.identity import ChangedError, Identity
from megalfs.store.ingest import publish

__all__ = ["new_person"]

NewPerson = Callable[..., Person]
INIT = (
    b'{"event":"init","operation":"download","remote":"origin","concurrent":true,"concurrenttransfers":8}\n'
)


# install, uninstall


@requires_git_lfs
@pytest.mark.parametrize("flags", [[], ["--system"], ["--local"]])
def test_uninstall_leaves_the_configuration_as_it_was(new_person: NewPerson, flags: list[str]) -> None:
    ann = new_person("ann")
    ann.git("init", "-q", "repo")
    ann.git("config", "--system", "core.pager", "cat")
    cwd = ann.directory / "repo"
    files = [ann.directory / ".gitconfig", ann.directory / "system-gitconfig", cwd / ".git/config"]
    before = [path.read_bytes() for path in files]
    ann.ok("lfs", "install", *flags, cwd=cwd)
    installed = [path.read_bytes() for path in files]
    assert sum(old != new for old, new in zip(before, installed, strict=True)) == 1
    assert "already" in ann.ok("lfs", "install", *flags, cwd=cwd).err
    assert [path.read_bytes() for path in files] == installed
    ann.ok("lfs", "uninstall", *flags, cwd=cwd)
    assert [path.read_bytes() for path in files] == before
    assert "nothing to do" in ann.ok("lfs", "uninstall", *flags, cwd=cwd).err


@requires_git_lfs
def test_other_remotes_keep_their_transfers(new_person: NewPerson) -> None:
    ann = new_person("ann").install()
    ann.git("init", "-q", "repo")
    cwd = ann.directory / "repo"
    ann.git("remote", "add", "origin", "https://example.invalid/r.git", cwd=cwd)
    assert ann.try_git("config", "lfs.standalonetransferagent", cwd=cwd).code == 1
    for url, agent in (
        ("https://megalfs.invalid/a/b", "megalfs"),
        ("megalfs::x", "megalfs"),
        ("https://example.invalid/r.git/info/lfs", ""),
        ("https://megalfs.invalid.example.invalid/a", ""),
    ):
        found = ann.try_git("config", "--get-urlmatch", "lfs.standalonetransferagent", url, cwd=cwd)
        if url.startswith("https:"):  # git itself knows no `::` URLs; git-lfs does
            assert found.out.strip() == agent, url


@requires_git_lfs
def test_init_repo(new_person: NewPerson) -> None:
    ann = new_person("ann")
    work = ann.new_repository("model", tracker="http://127.0.0.1:9", peer="127.0.0.1:7")
    assert (
        ann.git("config", "-f", ".lfsconfig", "lfs.url", cwd=work).strip()
        == "https://megalfs.invalid/swarm/model"
    )
    assert RepositoryFile.parse((work / ".megalfs.toml").read_text()) == RepositoryFile(
        (HostPort("127.0.0.1", 7),), ("http://127.0.0.1:9",)
    )
    assert ann.git("status", "--porcelain", cwd=work) == ""
    head = ann.git("rev-parse", "HEAD", cwd=work)
    ann.ok("lfs", "init-repo", "--name", "swarm/model", cwd=work)
    assert ann.git("rev-parse", "HEAD", cwd=work) == head
    other = ann.run("lfs", "init-repo", "--name", "other/model", cwd=work)
    assert other.code == 8
    assert "swarm/model" in other.err
    ann.ok(
        "lfs", "init-repo", "--name", "a/b", "--force", "--pushurl", "https://example.invalid/lfs", cwd=work
    )
    assert (
        ann.git("config", "-f", ".lfsconfig", "lfs.pushurl", cwd=work).strip()
        == "https://example.invalid/lfs"
    )
    # A home is where everybody may look, and where this clone pushes.
    home = "s3://models/team"
    ann.ok("lfs", "init-repo", "--name", "a/b", "--home", home, cwd=work)
    assert RepositoryFile.parse((work / ".megalfs.toml").read_text()).servers == (home,)
    assert ann.git("config", "--local", "megalfs.home", cwd=work).strip() == home
    for bad in ("s3://", "s3://a@b/c", "s3://bucket:80/x", "ftp://x/y", "http://u:p@127.0.0.1/"):
        assert ann.run("lfs", "init-repo", "--home", bad, cwd=work).code == 2, bad
    assert ann.run("lfs", "init-repo", "--name", "../x", cwd=work).code == 2
    assert ann.run("lfs", "init-repo", "--peer", "169.254.169.254:80", cwd=work).code == 2
    assert ann.run("lfs", "init-repo", cwd=ann.directory).code == 3


@requires_git_lfs
def test_doctor_finds_what_git_lfs_would_call_eof(new_person: NewPerson) -> None:
    ann = new_person("ann")

    def findings(cwd: Path) -> dict[str, tuple[str, str]]:
        records = ann.run("doctor", "--json", cwd=cwd).records
        return {str(each["id"]): (str(each["level"]), str(each["seen"])) for each in records}

    assert findings(ann.directory)["lfs-agent"][0] == "note"
    ann.install()
    assert findings(ann.directory)["lfs-agent"][0] == "ok"
    ann.git("config", "--global", "lfs.customtransfer.megalfs.path", "~/bin/megalfs-agent")
    assert findings(ann.directory)["lfs-agent"][0] == "bad"
    ann.git("init", "-q", "ssh")
    ann.git("remote", "add", "origin", "git@example.invalid:a/b.git", cwd=ann.directory / "ssh")
    assert "git-lfs-transfer" in findings(ann.directory / "ssh")["lfs-ssh"][1]
    work = ann.new_repository()
    found = findings(work)
    assert found["lfs-sources"][0] == "bad"
    assert "lfs-ssh" not in found
    ann.git("config", "megalfs.peer", "127.0.0.1:7", cwd=work)
    found = findings(work)
    assert found["lfs-sources"] == ("ok", "peers 127.0.0.1:7 of your configuration")
    assert found["lfs-reach"] == ("bad", "does not answer: 127.0.0.1:7 (Connection refused)")
    with recorder() as (address, _):
        ann.git("config", "--add", "megalfs.peer", address, cwd=work)
        assert findings(work)["lfs-reach"][0] == "note"
    ann.git("config", "lfs.url", "https://example.invalid/x", cwd=work)
    assert "example.invalid" in findings(work)["lfs-url"][1]


# What a repository may say


def test_a_repository_names_peers_and_trackers_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    text = (
        'peers = ["127.0.0.1:7427"]\ntrackers = ["http://127.0.0.1:80/t"]\norigins = ["http://127.0.0.1/x"]\n'
    )
    found = RepositoryFile.parse(text)
    assert found == RepositoryFile((HostPort("127.0.0.1", 7427),), ("http://127.0.0.1:80/t",))
    assert "'origins'" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "peers = [",
        'peers = "127.0.0.1:1"',
        "peers = [1]",
        'peers = ["169.254.169.254:80"]',
        'peers = ["[fe80::1]:80"]',
        'peers = ["[::ffff:169.254.169.254]:80"]',
        'peers = ["0.0.0.0:80"]',
        'peers = ["224.0.0.1:80"]',
        'trackers = ["http://169.254.169.254/latest"]',
        'trackers = ["file:///etc/passwd"]',
        'trackers = ["http://user:password@127.0.0.1/"]',
        "peers = [" + '"127.0.0.1:1",' * 65 + "]",
    ],
)
def test_a_repository_may_not_say(text: str) -> None:
    with pytest.raises(ConfigError):
        RepositoryFile.parse(text)


def test_who_named_a_peer_decides_how_it_is_asked() -> None:
    mine, theirs = HostPort("127.0.0.1", 1), HostPort("127.0.0.1", 2)
    text = f'peers = ["{mine}", "{theirs}"]\ntrackers = ["http://127.0.0.1:3"]\n'
    found = find_sources(
        Settings(peers=(mine,)), {"megalfs.peer": ["127.0.0.1:4"]}, text, ".megalfs.toml at HEAD"
    )
    assert found.peers == (mine, HostPort("127.0.0.1", 4), theirs)
    assert found.strangers == {"127.0.0.1:2", "127.0.0.1:3"}
    assert found.stranger_trackers == ("http://127.0.0.1:3",)
    assert "127.0.0.1:1, 127.0.0.1:4 of your configuration" in found.description
    assert "trackers http://127.0.0.1:3 of .megalfs.toml at HEAD" in found.description


@contextmanager
def recorder(location: str | None = None) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An HTTP server that has nothing, or redirects; and the headers it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            self.send_response(302 if location else 404)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@requires_git_lfs
def test_peers_of_a_repository_are_asked_as_strangers(new_person: NewPerson) -> None:
    """No header of ours, no redirect, no session before it offers something."""
    with recorder() as (inside, asked_inside), recorder(f"http://{inside}/secret") as (outside, asked):
        ann = new_person("ann").install()
        work = ann.new_repository(peer=outside)
        ann.commit(work, {"a.bin": content(1, 100_000)})
        shutil.rmtree(work / ".git/lfs/objects")
        done = ann.try_git("lfs", "fetch", cwd=work)
        assert done.code != 0
        assert ".megalfs.toml in the work tree" in done.err
        assert asked
        assert all(each["path"].startswith("/v1/") for each in asked)
        assert not any("authorization" in each or "upgrade" in each for each in asked)
        assert asked_inside == []


# The agent


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts agents as git-lfs does, on a root whose node seems to run (this process)."""
    root, stat = tmp_path / "root", Path(f"/proc/{os.getpid()}/stat").read_text()
    root.mkdir()
    owner = {"pid": os.getpid(), "started": int(stat.rpartition(")")[2].split()[19])}
    (root / "node.json").write_text(json.dumps({"owner": owner, "listen": "127.0.0.1:9", "http_port": 9}))
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-I", "-S", str(stub_path())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "MEGALFS_ROOT": str(root)},
                cwd=tmp_path,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_init_is_answered_quickly(stub: Callable[[], subprocess.Popen[bytes]]) -> None:
    """git-lfs starts eight one after another. CPU seconds, the best of ten: the machine is shared."""
    lives = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out, _ = stub().communicate(INIT, timeout=10)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert json.loads(out) == {}
        lives.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(lives) < 0.060
    process = stub()
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    for _ in range(30):
        begun = time.monotonic()
        process.stdin.write(INIT)
        process.stdin.flush()
        process.stdout.readline()
        answers.append(time.monotonic() - begun)
    assert min(answers) < 0.020


def test_terminate_and_a_closed_pipe_end_it(stub: Callable[[], subprocess.Popen[bytes]]) -> None:
    for last in (b'{"event":"terminate"}\n', b""):
        process = stub()
        out, err = process.communicate(INIT + last, timeout=10)
        assert (process.returncode, out, err) == (0, b"{}\n", b"")


def test_a_node_that_does_not_answer_is_said_in_words(stub: Callable[[], subprocess.Popen[bytes]]) -> None:
    """Progress comes first, so that the other agents may begin; then one `complete` with the reason."""
    process, oid = stub(), "ab" * 32
    assert process.stdin is not None
    assert process.stdout is not None
    request = json.dumps({"event": "download", "oid": oid, "size": 1000, "action": None}).encode() + b"\n"
    process.stdin.write(INIT + request)
    process.stdin.flush()
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert lines[0] == {}
    assert lines[1] == {"event": "progress", "oid": oid, "bytesSoFar": 1, "bytesSinceLast": 1}
    assert lines[2]["event"] == "complete"
    assert oid in lines[2]["error"]["message"]
    assert "megalfs status" in lines[2]["error"]["message"]
    assert process.communicate(b'{"event":"terminate"}\n', timeout=10)[0] == b""


def test_an_operation_nobody_knows_is_refused_at_init(stub: Callable[[], subprocess.Popen[bytes]]) -> None:
    out, _ = stub().communicate(INIT.replace(b"download", b"dance"), timeout=10)
    assert "dance" in json.loads(out)["error"]["message"]


@requires_git_lfs
def test_the_agent_is_a_command_too(new_person: NewPerson) -> None:
    ann = new_person("ann")
    done = ann.run("lfs", "agent", stdin=INIT + b'{"event":"terminate"}\n')
    assert (done.code, done.out) == (0, "{}\n")
    wait_until(lambda: ann.node is not None, "the node that it started")


def test_a_bad_request_fails_alone(new_person: NewPerson) -> None:
    """Lines that are no message are skipped, requests that cannot be are answered, and the last one is done."""
    ann = new_person("ann")
    work = ann.new_repository()
    good = work / "good"
    good.write_bytes(content(1, 1000))
    oid = oid_of(good.read_bytes())
    noise = [
        b'{"event":"down',
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"x" * (3 << 20),
        b'{"event":"dance"}',
    ]
    bad: list[dict[str, object]] = [
        {"event": "download", "oid": "../../x", "size": 5},
        {"event": "download", "oid": oid, "size": -5},
        {"event": "download", "oid": oid, "size": "5"},
        {"event": "download", "size": 5},
        {"event": "upload", "oid": oid, "size": 1000, "path": str(work / "missing")},
        {"event": "upload", "oid": oid, "size": 1000, "path": 5},
        {"event": "upload", "oid": oid_of(b"other"), "size": 1000, "path": str(good)},
    ]
    last = {"event": "upload", "oid": oid, "size": 1000, "path": str(good)}
    lines = [*noise, *(json.dumps(each).encode() for each in (*bad, last))]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(stub_path())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ann.environ | {"MEGALFS_ROOT": str(ann.root)},
        cwd=work,
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(INIT + b"".join(line + b"\n" for line in lines))
        agent.stdin.flush()
        ends: list[dict[str, object]] = []
        while len(ends) <= len(bad) and (line := agent.stdout.readline()):
            ends += [message for message in [json.loads(line)] if message.get("event") == "complete"]
        agent.stdin.write(b'{"event":"terminate"}\n')
    assert agent.returncode == 0
    assert [each["oid"] for each in ends] == [str(each.get("oid")) for each in (*bad, last)]
    assert ["error" in each for each in ends] == [True] * len(bad) + [False]


# Files that git-lfs has a hard link of


def test_a_linked_file_is_watched_by_its_bytes_not_its_links(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        path = tmp_path / "object"
        path.write_bytes(content(1, 300_000))
        oid = publish(store, path).oid
        store.record(Place(path, Identity.of(path.lstat()).linked()), oid, None)
        os.link(path, tmp_path / "other")
        assert is_open(store, path, oid)
        (tmp_path / "other").unlink()
        assert is_open(store, path, oid)
        path.write_bytes(content(2, 300_000))
        assert not is_open(store, path, oid)
        path.write_bytes(content(1, 300_000))
        assert store.recheck(oid)
        os.link(path, tmp_path / "other")
        assert is_open(store, path, oid)


def test_what_a_power_cut_could_have_damaged_is_hashed_again(tmp_path: Path) -> None:
    """Large objects are handed over before the disk has them; the list of those outlives the node."""
    with make_store(tmp_path) as store:
        paths = [tmp_path / name for name in ("whole", "damaged", "synced")]
        for index, path in enumerate(paths):
            path.write_bytes(content(index, 300_000))
        oids = [publish(store, path).oid for path in paths]
        before = Unsynced(store, tmp_path)
        for oid, path in zip(oids, paths, strict=True):
            before.add(oid, path)
        before.settle(oids[2])
        flip(paths[1], 100_000)

        after = Unsynced(store, tmp_path)
        left = after.withdraw()
        assert left == oids[:2]
        assert [store.at(path) is not None for path in paths] == [False, False, True]
        after.recheck(left)
        assert [store.at(path) is not None for path in paths] == [True, False, True]
        assert Unsynced(store, tmp_path).withdraw() == []


def is_open(store: Store, path: Path, oid: object) -> bool:
    """Whether the store serves the blob, and the file is known to hold it."""
    from megalfs.core.ids import Oid

    assert isinstance(oid, Oid)
    try:
        with store.open(oid) as opened:
            opened.check()
    except ChangedError:
        assert store.at(path) is None
        return False
    assert store.at(path) is not None
    assert oid_of(path.read_bytes()) == str(oid)
    return True
