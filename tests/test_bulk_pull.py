"""Directories of many small files, pulled whole: few requests, groups on the disk, and what may go wrong on the way."""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from adversaries import Stage, adopt, error_of, flip, litter, manifest_of
from helpers_store import make_store
from processes import Done, Megalfs, Running, wait_until

from megalfs.core.ids import Oid
from megalfs.errors import PolicyError
from megalfs.store.write_group import NewFile, write_group

COUNT = 700  # several requests, and more than one group


def make_tree(directory: Path, count: int = COUNT) -> dict[str, bytes]:
    """Small files in some directories: an empty one, equal ones and one to execute among them."""
    rng = random.Random(20_261_126)
    contents = {
        f"{number % 7}/{number}.bin": rng.randbytes(rng.randint(1, 20_000)) for number in range(count)
    }
    contents |= {"empty": b"", "also-empty": b"", "0/0.copy": contents["0/0.bin"], "run.sh": b"#!/bin/sh\n"}
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (directory / "run.sh").chmod(0o755)
    return contents


def oid_of(content: bytes) -> Oid:
    """The id of some bytes."""
    return Oid(hashlib.sha256(content).digest())


def found_in(directory: Path) -> dict[str, bytes]:
    """What lies below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def whole_in(directory: Path) -> dict[str, bytes]:
    """As `found_in`, without temporary files; those may have their names, or be gone, by the time they are read."""
    names = [path.relative_to(directory) for path in directory.rglob("*") if not path.name.startswith(".")]
    return {str(name): (directory / name).read_bytes() for name in names if (directory / name).is_file()}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def pull_tree(node: Megalfs, link: str, *argv: object) -> Done:
    return node.run("pull", link, *argv, "--no-discover", "--json", "--wait-peers", "2")


def requests_of(seeder: Running) -> int:
    """How many requests for many files a node has answered."""
    with urllib.request.urlopen(f"http://{seeder.address}/metrics") as response:
        lines = response.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("megalfs_bulk_answers_total ")))


def test_a_directory_of_small_files_travels_in_few_answers_and_on_from_there(stage: Stage) -> None:
    contents = make_tree(stage.directory / "many")
    seeder = stage.node("seeder").seed(stage.directory / "many")
    first, second = stage.node("first"), stage.node("second")
    done = pull_tree(first, seeder.link, "--peer", seeder.address)
    assert done.code == 0, done.err
    assert found_in(first.directory / "many") == contents
    assert (first.directory / "many" / "run.sh").stat().st_mode & 0o100
    assert not (first.directory / "many" / "empty").stat().st_mode & 0o100
    assert litter(first.directory) == []
    summary = done.records[-1]
    assert len(summary["files"]) == len(contents)  # type: ignore[arg-type]
    assert list(summary["bytes_by_peer"]) == [seeder.address]  # type: ignore[call-overload]
    assert 0 < requests_of(seeder) < 20
    # What came so is held like anything else: it is there for the next one when the seeder is gone.
    link = seeder.link
    seeder.stop()
    served = first.serve("node", "start")
    done = pull_tree(second, link, "--peer", served.address)
    assert done.code == 0, done.err
    assert found_in(second.directory / "many") == contents
    # And it needs no network where it is already.
    again = pull_tree(second, link, "--peer", served.address)
    assert again.records[-1]["bytes_fetched"] == 0
    verified = second.run("verify", "-q")
    assert verified.code == 0, verified.err


def test_a_pull_that_is_killed_goes_on_with_what_is_missing(stage: Stage) -> None:
    contents = make_tree(stage.directory / "many")
    seeder = stage.node("seeder").seed(stage.directory / "many")
    leecher = stage.node("leecher")
    slow = leecher.start("pull", seeder.link, "--peer", seeder.address, "--no-discover", "--limit-down", "2M")
    many = leecher.directory / "many"
    wait_until(lambda: len(whole_in(many)) > 100, "some files")
    slow.kill()
    kept = sum(map(len, whole_in(many).values()))
    done = pull_tree(leecher, seeder.link, "--peer", seeder.address)
    assert done.code == 0, done.err
    assert 0 < int(str(done.records[-1]["bytes_fetched"])) <= sum(map(len, contents.values())) - kept
    assert whole_in(many) == contents


def test_what_a_killed_pull_left_among_the_files_is_removed_by_the_next(stage: Stage) -> None:
    make_tree(stage.directory / "many")
    seeder = stage.node("seeder").seed(stage.directory / "many")
    leecher = stage.node("leecher")
    many = leecher.directory / "many"
    for _ in range(20):  # until one was killed while it wrote a group
        shutil.rmtree(many, ignore_errors=True)
        shutil.rmtree(leecher.root, ignore_errors=True)
        running = leecher.start("pull", seeder.link, "--peer", seeder.address, "--no-discover")
        ended = running.process.poll
        wait_until(lambda ended=ended: bool(litter(leecher.directory)) or ended() is not None, "a group")  # type: ignore[misc]
        if running.process.poll() is None:
            running.kill()
        if litter(leecher.directory):
            break
    assert litter(leecher.directory)
    assert pull_tree(leecher, seeder.link, "--peer", seeder.address).code == 0
    assert litter(leecher.directory) == []
    assert list((leecher.root / "groups").iterdir()) == []


def test_a_stopped_pull_ends_at_once_and_leaves_no_litter(stage: Stage) -> None:
    make_tree(stage.directory / "many")
    seeder = stage.node("seeder").seed(stage.directory / "many")
    leecher = stage.node("leecher")
    slow = leecher.start(
        "pull", seeder.link, "--peer", seeder.address, "--no-discover", "--limit-down", "200K"
    )
    many = leecher.directory / "many"
    wait_until(many.is_dir, "the directory")
    assert slow.stop(timeout_s=10).code == 143
    assert litter(leecher.directory) == []


def liar(stage: Stage, directory: Path, name: str) -> Running:
    """A node that has the tree, and wrong bytes of one file."""
    node = stage.node(name)
    seeder = node.seed(directory)
    manifest = manifest_of(directory / "0" / "7.bin")
    other = node.directory / "other.bin"
    other.write_bytes((directory / "0" / "7.bin").read_bytes())
    adopt(node.root, other, manifest)
    flip(other, 3)
    with make_store(node.directory) as store:
        for place in store.find(manifest.oid).places:  # type: ignore[union-attr]
            store.drop_place(manifest.oid, place.path)
        store.adopt(other, manifest)
    return seeder


def test_wrong_bytes_cost_the_liar_and_come_from_another(stage: Stage) -> None:
    contents = make_tree(stage.directory / "many", 60)
    bad = liar(stage, stage.directory / "many", "liar")
    alone, leecher = stage.node("alone"), stage.node("leecher")
    error = error_of(pull_tree(alone, bad.link, "--peer", bad.address), 9)
    assert error["rejected"][bad.address] >= 1
    assert "7.bin" in pull_tree(alone, bad.link, "--peer", bad.address).err
    good = stage.node("good").seed(stage.directory / "many")
    done = pull_tree(leecher, bad.link, "--peer", bad.address, "--peer", good.address)
    assert done.code == 0, done.err
    assert found_in(leecher.directory / "many") == contents


@contextmanager
def older_node(seeder: Running) -> Iterator[str]:
    """What a node was before it could be asked for many files: the rest is passed on."""

    class Older(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(f"http://{seeder.address}{self.path}") as reply:
                    status, body = reply.status, reply.read()
            except urllib.error.HTTPError as error:
                status, body = error.code, b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Older) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_an_older_node_is_asked_file_by_file(stage: Stage) -> None:
    contents = make_tree(stage.directory / "many", 12)
    seeder = stage.node("seeder").seed(stage.directory / "many")
    leecher = stage.node("leecher")
    with older_node(seeder) as address:
        done = pull_tree(leecher, seeder.link, "--peer", address)
    assert done.code == 0, done.err
    assert found_in(leecher.directory / "many") == contents


def test_a_seeder_that_goes_away_ends_the_pull_soon(stage: Stage) -> None:
    make_tree(stage.directory / "many")
    seeder = stage.node("seeder").seed(stage.directory / "many")
    leecher = stage.node("leecher")
    slow = leecher.start(
        "pull", seeder.link, "--peer", seeder.address, "--no-discover", "--limit-down", "2M", "--json",
        "--wait-peers", "1",
    )  # fmt: skip
    many = leecher.directory / "many"
    wait_until(lambda: len(whole_in(many)) > 100, "some files")
    seeder.kill()
    error = error_of(slow.wait(timeout_s=60), 9)
    assert len(error["files"]) > 100


def test_what_was_never_published_stays_and_the_others_come(stage: Stage) -> None:
    contents = make_tree(stage.directory / "many", 40)
    seeder = stage.node("seeder").seed(stage.directory / "many")
    leecher = stage.node("leecher")
    mine = leecher.directory / "many" / "0" / "7.bin"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    done = pull_tree(leecher, seeder.link, "--peer", seeder.address)
    error = error_of(done, 9)
    assert len(error["files"]) == len(contents) - 1
    assert mine.read_bytes() == b"mine"
    assert "never published" in done.err
    done = pull_tree(leecher, seeder.link, "--peer", seeder.address, "--force")
    assert done.code == 0, done.err
    assert found_in(leecher.directory / "many") == contents


@pytest.mark.parametrize("durable", [True, False])
def test_one_file_that_cannot_be_does_not_stop_its_group(tmp_path: Path, durable: bool) -> None:
    def new(name: str, content: bytes, *, may_replace: bool = False) -> NewFile:
        return NewFile(tmp_path / name, oid_of(content), content, False, may_replace)

    for name in ("stays", "goes"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "is-a-directory").mkdir()
    files = [
        new("one", b"1"),
        new("stays", b"2"),
        new("goes", b"3", may_replace=True),
        new("is-a-directory", b"4", may_replace=True),
        new("empty", b""),
    ]
    with make_store(tmp_path) as store:
        errors = write_group(store, files, durable=durable)
        assert {path.name for path in errors} == {"stays", "is-a-directory"}
        assert all(isinstance(error, PolicyError) for error in errors.values())
        for name, content in (("one", b"1"), ("goes", b"3"), ("empty", b"")):
            assert (tmp_path / name).read_bytes() == content
            assert store.at(tmp_path / name).oid == oid_of(content)  # type: ignore[union-attr]
        assert (tmp_path / "stays").read_bytes() == b"old"
        assert store.at(tmp_path / "stays") is None
    assert litter(tmp_path) == []
