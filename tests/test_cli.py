"""The command line as scripts see it: exit codes, one clear line, JSON shapes, roots. Real processes only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Done, Megalfs, environment, wait_until

from megalfs.core import swarm

NewNode = Callable[[str], Megalfs]
HEAVY = [
    "numpy",
    "msgspec",
    "aiohttp",
    "cryptography",
    "asyncio",
    "tqdm",
    "sqlite3",
    "ssl",
    "logging",
    "blake3",
    "megalfs_ext",
]


def assert_one_clear_line(done: Done, code: int) -> str:
    """The exit code, no traceback, and on stderr one message and at most one hint."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert lines, "it failed without a word"
    assert all(line.startswith("megalfs: ") for line in lines), done.err
    messages = [line for line in lines if not line.startswith("megalfs: hint: ")]
    assert len(messages) == 1, done.err
    return messages[0]


# Start-up.


def test_version_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from megalfs.cli.main import main
try:
    main(["--version"], {{}})
except SystemExit as end:
    assert end.code == 0
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), check=True
    )
    version, heavy = done.stdout.splitlines()
    assert re.fullmatch(r"megalfs \d+\.\d+\.\d+", version)
    assert heavy == "[]"


def test_a_pull_that_nobody_calls_needs_no_http_server(tmp_path: Path) -> None:
    """aiohttp costs 0.15 s; what a pull imports before anybody dials in must not bring it."""
    code = "import sys, megalfs.cli.running, megalfs.node.api; print('aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), check=True
    )
    assert done.stdout == "False\n"


def test_help_lists_every_command(megalfs: Megalfs) -> None:
    text = megalfs.ok("--help").out
    for name in (
        "auth", "publish", "seed", "node", "pull", "ls", "info", "verify", "repair", "gc", "pin", "unpin", "status",
        "doctor", "tracker",
    ):  # fmt: skip
        assert re.search(rf"^    {name}\b", text, re.MULTILINE), name
        assert megalfs.ok(name, "--help").out.startswith("usage:")


# Usage: exit 2.


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["pull"],
        ["pull", "--no-such-flag", "x"],
        ["pull", "x", "--peer", "ho st:1"],
        ["pull", "x", "--peer", "host:99999"],
        ["pull", "x", "--peer", "host:0"],
        ["pull", "x", "--peer", "http://host:1"],
        ["pull", "x", "--origin", "ftp://host/"],
        ["pull", "x", "--origin", "http://user:password@host/"],
        ["pull", "x", "--tracker", "http://host/\r\nX: y"],
        ["pull", "x", "--key", "did:key:z123"],
        ["pull", "x", "--wait-peers", "soon"],
        ["pull", "x", "--linger", "-1"],
        ["pull", "x", "--link", "magic"],
        ["pull", "x", "--lin", "3"],  # no abbreviations
        ["pull", "megalfs:0123"],
        ["seed", "x", "--limit-up", "fast"],
        ["seed", "x", "--limit-up", "0"],
        ["node"],
        ["node", "fly"],
        ["auth"],
        ["publish", "a", "b", "--name", "n"],
        ["publish", "a", "--name", "../n"],
    ],
    ids=lambda argv: " ".join(argv) or "nothing",
)
def test_bad_usage(megalfs: Megalfs, argv: list[str]) -> None:
    assert_one_clear_line(megalfs.run(*argv), 2)


def test_an_unknown_flag_leads_to_the_help_of_its_command(megalfs: Megalfs) -> None:
    done = megalfs.run("node", "start", "--no-such-flag")
    assert "--no-such-flag" in assert_one_clear_line(done, 2)
    assert "megalfs node start --help" in done.err


def test_a_bad_flag_is_named(megalfs: Megalfs) -> None:
    assert "--peer" in assert_one_clear_line(megalfs.run("pull", "x", "--peer", "host:x"), 2)


def test_bad_setting_names_the_variable(tmp_path: Path) -> None:
    node = Megalfs(tmp_path, environ={"MEGALFS_LIMIT_UP": "fast"})
    line = assert_one_clear_line(node.run("node", "start", "--listen", "127.0.0.1:0"), 2)
    assert "MEGALFS_LIMIT_UP" in line


# Missing things: exit 3.


@pytest.mark.parametrize(
    "argv",
    [
        ["publish", "missing"],
        ["info", "missing"],
        ["info", "0" * 64],
        ["verify", "0" * 64],
        ["pin", "missing"],
        ["pull", "missing"],
        ["auth", "show"],
        ["node", "info"],
        ["node", "stop"],
        ["node", "list"],
    ],
    ids=" ".join,
)
def test_missing(megalfs: Megalfs, argv: list[str]) -> None:
    line = assert_one_clear_line(megalfs.run(*argv), 3)
    assert "missing" not in argv or "missing" in line


def test_seed_of_a_missing_file(megalfs: Megalfs) -> None:
    assert_one_clear_line(megalfs.run("seed", "missing", "--listen", "127.0.0.1:0"), 3)


def test_no_root_yet(megalfs: Megalfs) -> None:
    assert "no megalfs root" in assert_one_clear_line(megalfs.run("ls"), 3)


# No peers: exit 5.


def test_pull_without_peers(megalfs: Megalfs) -> None:
    done = megalfs.run("pull", "a" * 64, "--wait-peers", "0.1", "--no-discover", "--no-share")
    assert_one_clear_line(done, 5)
    assert not list(megalfs.directory.glob("a*"))


def test_pull_from_a_closed_port(megalfs: Megalfs) -> None:
    argv = ["pull", "a" * 64, "--peer", "127.0.0.1:9", "--wait-peers", "0.1", "--no-discover", "--json"]
    done = megalfs.run(*argv)
    assert_one_clear_line(done, 5)
    last = done.records[-1]
    assert last.keys() >= {"event", "code", "message", "rejected"}
    assert (last["event"], last["code"], last["rejected"]) == ("error", 5, {})


# Keys and roots.


def test_auth_init_twice(megalfs: Megalfs) -> None:
    first = megalfs.ok("auth", "init").out
    assert first.startswith("did:key:z6Mk")
    assert_one_clear_line(megalfs.run("auth", "init"), 8)
    assert megalfs.ok("auth", "show").out == first
    shown = megalfs.ok("auth", "show", "--json").records[0]
    assert shown["key"] == first.strip()
    assert str(shown["peer_id"]).startswith("12D3KooW")


def test_key_that_others_can_read(megalfs: Megalfs) -> None:
    megalfs.ok("auth", "init")
    (megalfs.root / "key.pem").chmod(0o644)
    assert_one_clear_line(megalfs.run("auth", "show"), 10)


def test_root_flag_stands_before_and_after(megalfs: Megalfs, tmp_path: Path) -> None:
    megalfs.ok("auth", "init")
    own = megalfs.ok("auth", "show").out
    other = tmp_path / "other"
    assert megalfs.ok("auth", "init", "--root", other).out != own
    assert megalfs.ok("auth", "--root", other, "show").out == megalfs.ok("auth", "show", "--root", other).out
    assert megalfs.ok("auth", "show").out == own


def without_root_flag(node: Megalfs, *argv: str, **variables: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "megalfs", *argv],
        capture_output=True,
        text=True,
        env=node.environ | variables,
        cwd=node.directory,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_root_variables(megalfs: Megalfs, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    first = without_root_flag(megalfs, "auth", "init", MEGALFS_ROOT=one).out
    second = without_root_flag(megalfs, "auth", "init", MEGAENGINE_ROOT=two).out
    assert first != second
    both = {"MEGALFS_ROOT": one, "MEGAENGINE_ROOT": two}
    assert without_root_flag(megalfs, "auth", "show", **both).out == first
    assert without_root_flag(megalfs, "auth", "show", "--root", two, **both).out == second
    assert without_root_flag(megalfs, "auth", "show", MEGALFS_ROOT="", MEGAENGINE_ROOT=two).out == second
    home = without_root_flag(megalfs, "auth", "init").out
    assert home not in (first, second)
    assert (megalfs.directory / ".megalfs" / "key.pem").exists()


# Publish.


@pytest.fixture
def model(megalfs: Megalfs) -> Path:
    path = megalfs.directory / "model.bin"
    path.write_bytes(os.urandom(3_000_000))
    return path


def test_publish_json(megalfs: Megalfs, model: Path) -> None:
    record = megalfs.ok("publish", model, "--json").records[0]
    oid = hashlib.sha256(model.read_bytes()).hexdigest()
    assert record.keys() >= {"path", "oid", "size", "chunks", "manifest", "link"}
    assert (record["path"], record["oid"], record["size"]) == (str(model), oid, 3_000_000)
    assert isinstance(record["chunks"], int)
    assert re.fullmatch(r"[0-9a-f]{64}", str(record["manifest"]))
    assert str(record["link"]).startswith(f"megalfs:{oid}?")
    assert f"manifest={record['manifest']}" in str(record["link"])


def test_publish_prints_the_link_alone_on_stdout(megalfs: Megalfs, model: Path) -> None:
    done = megalfs.ok("publish", model)
    link = megalfs.ok("publish", model, "--json").records[0]["link"]
    assert done.out == f"{link}\n"
    assert "published" in done.err
    assert megalfs.ok("publish", model, "-q").err == ""


def test_publish_makes_the_key(megalfs: Megalfs, model: Path) -> None:
    megalfs.ok("publish", model)
    assert megalfs.ok("auth", "show").out.startswith("did:key:")


def test_publish_dry_run_writes_nothing(megalfs: Megalfs, model: Path) -> None:
    megalfs.ok("publish", model, "--dry-run")
    assert not megalfs.root.exists()


def test_publish_a_directory_is_one_record(megalfs: Megalfs) -> None:
    directory = megalfs.directory / "model"
    (directory / "sub").mkdir(parents=True)
    (directory / "a").write_bytes(b"a")
    (directory / "sub" / "b").write_bytes(b"b" * 100_000)
    records = megalfs.ok("publish", directory, "--json").records
    assert [(record["kind"], record["files"], record["bytes"]) for record in records] == [
        ("tree", 2, 100_001)
    ]
    assert "kind=tree" in str(records[0]["link"])


def test_publish_of_what_is_no_file(megalfs: Megalfs) -> None:
    os.mkfifo(megalfs.directory / "fifo")
    assert_one_clear_line(megalfs.run("publish", "fifo", timeout_s=20), 2)
    for argv in (["publish"], ["publish", "-n"], ["pull", "-n"], ["info"], ["verify"]):
        assert_one_clear_line(megalfs.run(*argv, "n" * 256), 3 if argv[0] in {"info", "verify"} else 2)


def test_a_root_that_is_a_file(megalfs: Megalfs, model: Path) -> None:
    done = megalfs.run("--root", model, "publish", model)
    assert "model.bin" in assert_one_clear_line(done, 2)


def test_a_name_leads_to_its_blob(megalfs: Megalfs, model: Path) -> None:
    record = megalfs.ok("publish", model, "--name", "org/model", "--json").records[0]
    assert f"key={megalfs.ok('auth', 'show').out.strip()}" in str(record["link"])
    assert megalfs.ok("info", "org/model", "--json").records[0]["oid"] == record["oid"]


# What is there.


def test_ls_and_info(megalfs: Megalfs, model: Path) -> None:
    published = megalfs.ok("publish", model, "--json").records[0]
    rows = megalfs.ok("ls", "--json").records
    assert [(row["oid"], row["size"], row["held"]) for row in rows] == [(published["oid"], 3_000_000, True)]
    for target in (published["oid"], f"sha256:{published['oid']}", published["link"], model, "model.bin"):
        assert megalfs.ok("info", target, "--json").records[0]["oid"] == published["oid"]
    assert str(published["oid"]) in megalfs.ok("info", model).out


def test_two_roots_know_different_things(new_node: NewNode, model: Path) -> None:
    one, two = new_node("one"), new_node("two")
    oid = one.ok("publish", model, "--json").records[0]["oid"]
    two.ok("auth", "init")
    assert [row["oid"] for row in one.ok("ls", "--json").records] == [oid]
    assert two.ok("ls").out == ""
    assert_one_clear_line(two.run("info", oid), 3)


def test_verify_finds_a_changed_file(megalfs: Megalfs, model: Path) -> None:
    megalfs.ok("publish", model)
    assert [row["ok"] for row in megalfs.ok("verify", "--json").records] == [True]
    with model.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    done = megalfs.run("verify", "--json")
    assert done.code == 4
    assert [record.get("ok") for record in done.records] == [False, None]
    assert done.records[-1]["event"] == "error"
    assert [row["held"] for row in megalfs.ok("ls", "--json").records] == [False]


def test_repair_rebuilds_a_damaged_index(megalfs: Megalfs, model: Path) -> None:
    oid = megalfs.ok("publish", model, "--json").records[0]["oid"]
    (megalfs.root / "index.sqlite").write_bytes(b"no database" * 1000)
    megalfs.ok("repair")
    assert [row["oid"] for row in megalfs.ok("ls", "--json").records] == [oid]


def test_gc_forgets_what_is_gone_and_keeps_pins(megalfs: Megalfs, model: Path) -> None:
    megalfs.ok("publish", model)
    megalfs.ok("pin", "model.bin")
    model.unlink()
    assert megalfs.ok("gc").out == ""
    oid = megalfs.ok("ls", "--json").records[0]["oid"]
    assert megalfs.ok("unpin", oid, "--json").records == [{"oid": oid, "pinned": False}]
    assert str(oid) in megalfs.ok("gc", "--dry-run").out
    assert len(megalfs.ok("ls").out.splitlines()) == 1
    megalfs.ok("gc")
    assert megalfs.ok("ls").out == ""


def test_gc_removes_a_partial_that_nobody_resumed(megalfs: Megalfs, new_node: NewNode, model: Path) -> None:
    """What an interrupted pull left lies beside the target, outside the root: `gc` knows where."""
    seeder = megalfs.serve("seed", model, "--limit-up", "100k")
    leecher = new_node("leecher")
    pull = leecher.start("pull", hashlib.sha256(model.read_bytes()).hexdigest(), "--peer", seeder.address)
    wait_until(lambda: any(leecher.directory.glob(".*.megalfs-part")), "a partial")
    pull.kill()
    partials = [*leecher.directory.glob(".*.megalfs-*")]
    assert leecher.ok("gc", "--json").records == []  # it can be resumed
    for path in partials:
        os.utime(path, (1, 1))
    part = str(next(leecher.directory.glob(".*.megalfs-part")))
    assert leecher.ok("gc", "-n", "--json").records == [{"partial": part, "dry_run": True}]
    assert part in leecher.ok("gc").out
    assert [*leecher.directory.glob(".*.megalfs-*")] == []


def test_hostile_names_are_escaped(megalfs: Megalfs) -> None:
    (megalfs.directory / "a\x1b[31m\n\u202eb").write_bytes(b"x")
    for argv in (["publish", "a\x1b[31m\n\u202eb"], ["ls"], ["info", "nothing\x1b[31m"]):
        done = megalfs.run(*argv)
        assert "\x1b" not in done.out + done.err
        assert "\u202e" not in done.out + done.err
    assert len(megalfs.ok("ls").out.splitlines()) == 1


def test_doctor(megalfs: Megalfs) -> None:
    done = megalfs.run("doctor", "--json")
    found = {str(record["id"]): record for record in done.records}
    ids = {"python", "sqlite", "kernel-cdc", "scheduler", "root", "free-space", "reflink", "port", "git"}
    assert found.keys() >= ids
    assert all(record.keys() == {"id", "level", "seen", "fix"} for record in found.values())
    assert (found["scheduler"]["level"] == "ok") is not swarm.__file__.endswith(".py")
    assert done.code == any(record["level"] == "bad" for record in found.values())
    assert all(record["fix"] for record in found.values() if record["level"] != "ok")


# Servers.


def test_seed_status_and_stop(megalfs: Megalfs, model: Path) -> None:
    server = megalfs.seed(model)
    record = server.records[0]
    assert record.keys() >= {"path", "oid", "size", "chunks", "manifest", "link"}
    info = megalfs.ok("node", "info", "--json").records[0]
    assert (info["pid"], info["port"]) == (server.process.pid, server.ready["port"])
    status = megalfs.ok("status", "--json").records[0]
    assert (status["running"], status["ready"], status["blobs"]) == (True, True, 1)
    assert server.address in megalfs.ok("status").out
    assert [node["self"] for node in megalfs.ok("node", "list", "--json").records] == [True]
    megalfs.ok("node", "stop")
    assert server.wait().code == 0
    assert megalfs.ok("status", "--json").records[0]["running"] is False


def test_seed_says_what_it_serves(megalfs: Megalfs, model: Path) -> None:
    several = megalfs.directory / "several"
    (several / "below").mkdir(parents=True)
    for name in ("one", "below/two"):
        (several / name).write_bytes(b"x" * 1024)
    for paths, said in (
        ([several], "serving several (2 files, 2.0 KiB) on "),
        ([several / "one"], "serving one (1 file, 1.0 KiB) on "),
        ([several, several / "one"], "serving 2 paths (3 files, 3.0 KiB) on "),
    ):
        server = megalfs.start("seed", *paths, "--listen", "127.0.0.1:0")
        wait_until(lambda said=said, server=server: said in server.err, said)
        assert server.stop().code == 0


@pytest.mark.parametrize(
    "argv", [["seed", "model.bin"], ["node", "start"], ["tracker"]], ids=lambda argv: argv[0]
)
def test_servers_end_well_on_sigterm(megalfs: Megalfs, model: Path, argv: list[str]) -> None:
    assert model.exists()
    done = megalfs.serve(*argv).stop()
    assert done.code == 0
    assert "Traceback" not in done.err


def test_a_taken_port(new_node: NewNode) -> None:
    first, second = new_node("one"), new_node("two")
    server = first.serve("node", "start")
    assert_one_clear_line(second.run("node", "start", "--listen", server.address, timeout_s=30), 8)


@pytest.mark.parametrize("address", ["192.0.2.1:0", "no-such-host.invalid:0", f"{'a' * 70}.x:0"])
@pytest.mark.parametrize("flag", ["--listen", "--addr"])
def test_an_address_that_is_not_ours(megalfs: Megalfs, flag: str, address: str) -> None:
    done = megalfs.run("node", "start", "--listen", "127.0.0.1:0", flag, address, timeout_s=30)
    assert address in assert_one_clear_line(done, 2)
    assert "another program" not in done.err


def test_sigterm_does_not_wait_for_a_publish(megalfs: Megalfs) -> None:
    """Hashing 1 TB takes a quarter of an hour; who stops a node meanwhile does not wait for it."""
    huge = megalfs.directory / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    server = megalfs.start("seed", huge, "--listen", "127.0.0.1:0")
    wait_until((megalfs.root / "node.json").exists, "the node to run")
    assert server.stop(timeout_s=30).code == 0
    assert megalfs.ok("ls").out == ""


def test_a_second_node_on_one_root(megalfs: Megalfs) -> None:
    megalfs.serve("node", "start")
    assert_one_clear_line(megalfs.run("node", "start", "--listen", "127.0.0.1:0", timeout_s=30), 8)


# Pull.


def test_pull_json(new_node: NewNode, model: Path) -> None:
    server = new_node("seeder").seed(model)
    done = new_node("leecher").ok("pull", server.link, "--no-discover", "-o", "copy.bin", "--json")
    copy = new_node("leecher").directory / "copy.bin"
    assert copy.read_bytes() == model.read_bytes()
    last = done.records[-1]
    assert last["event"] == "done"
    assert last["files"] == [{"oid": str(server.records[0]["oid"]), "path": str(copy), "size": 3_000_000}]
    assert last["bytes_fetched"] == 3_000_000
    assert last["bytes_reused"] == last["bytes_origin"] == 0
    assert sum(dict(last["bytes_by_peer"]).values()) == 3_000_000  # type: ignore[call-overload]
    assert last["rejected"] == {}
    assert isinstance(last["seconds"], float)
    assert all(record["event"] == "progress" for record in done.records[:-1])


def test_progress_comes_twice_a_second(new_node: NewNode, model: Path) -> None:
    server = new_node("seeder").seed(model)
    argv = ["pull", server.link, "--no-discover", "--limit-down", "1M", "--json", "-o", "copy.bin"]
    done = new_node("leecher").ok(*argv)
    events = [record for record in done.records if record["event"] == "progress"]
    keys = {"bytes_total", "bytes_verified", "bytes_fetched", "bytes_reused"}
    assert all(event.keys() >= keys for event in events)
    seconds = float(str(done.records[-1]["seconds"]))
    assert len(events) >= 2 * seconds - 1
    verified = [int(str(event["bytes_verified"])) for event in events]
    assert verified == sorted(verified)


def test_pull_prints_the_path_alone_on_stdout(new_node: NewNode, model: Path) -> None:
    server = new_node("seeder").seed(model)
    leecher = new_node("leecher")
    done = leecher.ok("pull", server.link, "--no-discover")
    assert done.out == f"{leecher.directory / 'model.bin'}\n"
    assert "pulled 1 file" in done.err
    again = leecher.ok("pull", server.link, "--no-discover", "-q")
    assert again.err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_pull_ends_on_a_signal(new_node: NewNode, model: Path, number: signal.Signals, code: int) -> None:
    server = new_node("seeder").seed(model)
    leecher = new_node("leecher")
    pull = leecher.start("pull", server.link, "--no-discover", "--limit-down", "200K", "--json")
    wait_until(lambda: any(int(str(r["bytes_fetched"])) > 0 for r in pull.records), "bytes fetched")
    done = pull.stop(number)
    assert done.code == code
    assert done.err == f"megalfs: {'terminated' if code == 143 else 'interrupted'}\n"
    assert not (leecher.directory / "model.bin").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pull_that_hashes_a_large_local_file_ends_on_a_signal(
    megalfs: Megalfs, number: signal.Signals
) -> None:
    size = 1 << 40  # of holes: a quarter of an hour of hashing
    stranger = megalfs.directory / "large.bin"
    with stranger.open("wb") as file:
        file.truncate(size)
    pull = megalfs.start("pull", f"megalfs:{'1' * 64}?name=large.bin&size={size}", "--no-discover")

    def is_reading() -> bool:
        fds = Path(f"/proc/{pull.process.pid}/fd").iterdir()
        return any(os.path.lexists(fd) and fd.readlink() == stranger for fd in fds)

    wait_until(is_reading, "the file is read")
    assert pull.stop(number, timeout_s=20).code == 128 + number
    assert stranger.stat().st_size == size


def test_pull_does_not_replace_a_stranger(new_node: NewNode, model: Path) -> None:
    server = new_node("seeder").seed(model)
    leecher = new_node("leecher")
    target = leecher.directory / "model.bin"
    target.write_bytes(b"mine")
    done = leecher.run("pull", server.link, "--no-discover")
    assert_one_clear_line(done, done.code)
    assert done.code not in (0, 1)
    assert target.read_bytes() == b"mine"
    leecher.ok("pull", server.link, "--no-discover", "--force")
    assert target.read_bytes() == model.read_bytes()


def test_pull_dry_run_asks_nobody(megalfs: Megalfs, model: Path) -> None:
    link = megalfs.ok("publish", model, "--json").records[0]["link"]
    found = megalfs.ok("pull", link, "--dry-run", "--json").records[0]
    assert (found["kind"], found["size"], found["held"]) == ("link", 3_000_000, True)


# Streams.


PAGE_BYTES = 4096


def test_a_reader_that_leaves(megalfs: Megalfs) -> None:
    for number in range(300):
        (megalfs.directory / f"file-{number}").write_bytes(b"%d" % number)
    megalfs.ok("publish", *(f"file-{number}" for number in range(300)))
    command = [sys.executable, "-m", "megalfs", "--root", str(megalfs.root), "ls"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=megalfs.environ, pipesize=PAGE_BYTES
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()  # a pipe that held all of it would let it end before we leave
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(30) == 141
    assert err == ""


def test_debug_shows_where(megalfs: Megalfs) -> None:
    assert "Traceback" in megalfs.run("info", "missing", "--debug").err
    assert "Traceback" not in megalfs.run("info", "missing").err


def test_errors_with_json_are_an_object(megalfs: Megalfs) -> None:
    done = megalfs.run("publish", "missing", "--json")
    assert json.loads(done.out.splitlines()[-1])["code"] == done.code == 3
