"""Real git and git-lfs, whose objects come from and go to the swarm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from adversaries import FORGERIES, adopt, flip, manifest_of
from helpers_lfs import Person, content, new_person, objects_in, oid_of, received, requires_git_lfs
from processes import wait_until

from megalfs.core.signing import sign_manifest
from megalfs.git.lfs_setup import stub_path
from megalfs.git.lfs_unsynced import LATE_BYTES_MIN
from megalfs.store.blobs import Store
from megalfs.store.root import Root

__all__ = ["new_person"]

pytestmark = requires_git_lfs
NewPerson = Callable[..., Person]


@pytest.mark.parametrize("concurrent", ["true", "false"])
def test_twelve_objects_pushed_wiped_and_fetched(new_person: NewPerson, concurrent: str) -> None:
    """As git-lfs's own test of standalone agents does it: t/t-custom-transfers.sh."""
    ann = new_person("ann").install()
    ann.git("config", "--global", "lfs.customtransfer.megalfs.concurrent", concurrent)
    work = ann.new_repository()
    for commit in range(4):
        files = {
            f"{commit}-{index}.bin": content(3 * commit + index, 40_000 + 9_000 * commit)
            for index in range(3)
        }
        ann.commit(work, files)
    expected = objects_in(work / ".git")
    assert len(expected) == 12
    pushed = ann.git("push", "origin", "main", cwd=work)
    assert "Uploading LFS objects: 100% (12/12)" in pushed

    shutil.rmtree(work / ".git" / "lfs" / "objects")
    ann.git("lfs", "fetch", "--all", cwd=work)
    assert objects_in(work / ".git") == expected
    ann.git("lfs", "fsck", cwd=work)
    assert not list((work / ".git" / "lfs" / "megalfs").iterdir())


def test_a_fresh_clone_needs_nothing_but_the_install(new_person: NewPerson) -> None:
    """The publisher's clone is gone by then: its node has links of its own."""
    tracker = new_person("tracker").serve("tracker")
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work = ann.new_repository(tracker=f"http://{tracker.address}")
    files = {"a.bin": content(1, 3_000_000), "dir/b with space.bin": content(2, 70_000), "empty.bin": b""}
    ann.commit(work, files)
    ann.git("push", "origin", "main", cwd=work)
    own = ann.root / "lfs" / oid_of(files["a.bin"])
    stored = work / ".git" / "lfs" / "objects" / own.name[:2] / own.name[2:4] / own.name
    assert own.stat().st_blocks * 512 >= 3_000_000
    assert own.stat().st_ino == stored.stat().st_ino or own.stat().st_dev != stored.stat().st_dev
    shutil.rmtree(work)

    said = bob.git("clone", ann.directory / "work.git", "clone")
    assert "warning" not in said.lower()
    clone = bob.directory / "clone"
    for name, data in files.items():
        assert (clone / name).read_bytes() == data
    assert bob.git("status", "--porcelain", cwd=clone) == ""
    # A linked work tree has its objects in the common directory; a new version comes from whoever has it.
    bob.commit(clone, {"a.bin": content(1, 3_000_000) + b"more"})
    bob.git("push", "origin", "main", cwd=clone)
    bob.git("worktree", "add", "-q", "--detach", "../tree", "HEAD~1", cwd=clone)
    assert (bob.directory / "tree" / "a.bin").read_bytes() == files["a.bin"]


def test_a_submodule_and_a_work_tree_of_its_own(new_person: NewPerson) -> None:
    ann, bob = new_person("ann").install(), new_person("bob").install()
    inner = ann.new_repository("inner")
    data = content(3, 200_000)
    ann.commit(inner, {"model.bin": data})
    ann.git("push", "origin", "main", cwd=inner)
    outer = ann.new_repository("outer")
    ann.git("submodule", "add", "-q", ann.directory / "inner.git", "deps/inner", cwd=outer)
    ann.git("commit", "-qm", "submodule", cwd=outer)
    ann.git("push", "origin", "main", cwd=outer)

    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", "--recurse-submodules", ann.directory / "outer.git", "outer")
    assert (bob.directory / "outer/deps/inner/model.bin").read_bytes() == data
    assert objects_in(bob.directory / "outer/.git/modules/deps/inner") == {oid_of(data)}
    # In a linked work tree, wiped: fetched again through the work tree, into the common directory.
    shutil.rmtree(bob.directory / "outer/.git/modules/deps/inner/lfs/objects")
    bob.git("worktree", "add", "-q", "--detach", "../../../tree", cwd=bob.directory / "outer/deps/inner")
    assert (bob.directory / "tree/model.bin").read_bytes() == data


def test_storage_on_another_file_system(new_person: NewPerson, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system that this user can write to")
    storage = shm / f"megalfs-test-{os.getpid()}"
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work = ann.new_repository()
    data = content(4, 2_000_000)
    ann.commit(work, {"a.bin": data, "b.bin": data[:50_000]})
    ann.git("push", "origin", "main", cwd=work)
    bob.environ["MEGALFS_PEERS"] = ann.address
    try:
        bob.git("clone", "-q", "-c", f"lfs.storage={storage}", ann.directory / "work.git", "clone")
        assert (bob.directory / "clone/a.bin").read_bytes() == data
        assert len(list(storage.glob("objects/??/??/*"))) == 2
        bob.git("lfs", "fsck", cwd=bob.directory / "clone")
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def test_many_small_files(new_person: NewPerson) -> None:
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work = ann.new_repository()
    files = {f"d{index % 10}/{index}.bin": content(index, 1 + 37 * index) for index in range(250)}
    ann.commit(work, files | {"zero.bin": b""})
    pushed = ann.git("push", "origin", "main", cwd=work)
    assert "(250/250)" in pushed
    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert all((bob.directory / "clone" / name).read_bytes() == data for name, data in files.items())
    assert (bob.directory / "clone/zero.bin").read_bytes() == b""


def test_one_object_that_nobody_has(new_person: NewPerson) -> None:
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work = ann.new_repository()
    files = {f"{index}.bin": content(index, 100_000 + index) for index in range(6)}
    ann.commit(work, files)
    ann.git("push", "origin", "main", cwd=work)
    lost = oid_of(files["3.bin"])
    (ann.root / "lfs" / lost).unlink()
    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone = bob.directory / "clone"
    done = bob.try_git("lfs", "pull", cwd=clone)
    assert done.code != 0
    assert objects_in(clone / ".git") == {oid_of(data) for data in files.values()} - {lost}
    message = next(line for line in done.err.splitlines() if "megalfs: " in line)
    assert f"3.bin ({lost})" in message
    assert ann.address in message
    assert "git lfs push --all" in message
    assert "EOF" not in done.err
    # Put back, the same command completes.
    (ann.root / "lfs" / lost).write_bytes(files["3.bin"])
    ann.ok("publish", ann.root / "lfs" / lost)
    bob.git("lfs", "pull", cwd=clone)
    assert (clone / "3.bin").read_bytes() == files["3.bin"]


def test_a_peer_that_sends_wrong_bytes(new_person: NewPerson) -> None:
    liar, honest, bob = (new_person(name).install() for name in ("liar", "honest", "bob"))
    data = content(5, 3_000_000)
    work = liar.new_repository()
    liar.commit(work, {"a.bin": data})
    liar.git("push", "origin", "main", cwd=work)
    honest.environ["MEGALFS_PEERS"] = liar.address
    honest.git("clone", "-q", liar.directory / "work.git", "clone")
    honest.kill_node(signal.SIGTERM)
    path = liar.root / "lfs" / oid_of(data)
    manifest = manifest_of(path)
    # A chunk of one part, which needs no proof: the liar would notice while it makes one.
    rotten = next(n for n in range(manifest.piece_count) if manifest.parts.of_chunks(n, 1)[1] == 1)
    flip(path, manifest.run_extent(rotten, 1)[0])

    bob.environ["MEGALFS_PEERS"] = liar.address
    bob.git("clone", "-q", liar.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone = bob.directory / "clone"
    done = bob.try_git("lfs", "pull", cwd=clone)
    assert done.code != 0
    assert liar.address in done.err
    assert "wrong bytes" in done.err
    assert not objects_in(clone / ".git")
    bob.git("config", "megalfs.peer", honest.serve("node", "start").address, cwd=clone)
    bob.git("lfs", "pull", cwd=clone)
    assert (clone / "a.bin").read_bytes() == data


def fetched_bytes(log: Path) -> int:
    """How far a running git-lfs says it is."""
    try:
        return max((int(line.split()[2].split("/")[0]) for line in log.read_text().splitlines()), default=0)
    except (OSError, IndexError, ValueError):
        return 0


def test_a_peer_killed_in_the_middle(new_person: NewPerson) -> None:
    ann, eve = new_person("ann", MEGALFS_LIMIT_UP="6M").install(), new_person("eve").install()
    data = content(6, 12_000_000)
    work = ann.new_repository()
    ann.commit(work, {"a.bin": data})
    ann.git("push", "origin", "main", cwd=work)
    bob = new_person("bob").install()
    seeder = eve.directory / "a.bin"
    seeder.write_bytes(data)
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone, log = bob.directory / "clone", bob.directory / "progress"
    other = eve.serve("node", "start")
    bob.environ["MEGALFS_PEERS"] = f"{ann.address},{other.address}"
    with bob.git_running("lfs", "pull", cwd=clone, environ={"GIT_LFS_PROGRESS": str(log)}) as git:
        wait_until(lambda: fetched_bytes(log) > 1_000_000, "some of the file")
        ann.kill_node()
        assert git.poll() is None
        eve.ok("publish", seeder)  # the one that is left has it from now on
        assert git.wait(60) == 0
    assert (clone / "a.bin").read_bytes() == data


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_git_lfs_stopped_in_the_middle_and_run_again(new_person: NewPerson, number: signal.Signals) -> None:
    """`kill -9` and Ctrl-C, which the terminal sends to git, git-lfs and all agents; the node runs on."""
    ann, bob = new_person("ann", MEGALFS_LIMIT_UP="6M").install(), new_person("bob").install()
    data = content(7, 12_000_000)
    work = ann.new_repository()
    ann.commit(work, {"a.bin": data})
    ann.git("push", "origin", "main", cwd=work)
    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone, log = bob.directory / "clone", bob.directory / "progress"
    with bob.git_running("lfs", "pull", cwd=clone, environ={"GIT_LFS_PROGRESS": str(log)}) as git:
        wait_until(lambda: fetched_bytes(log) > 4_000_000, "a third of the file")
        os.killpg(git.pid, number)
        assert git.wait(10) != 0
    assert objects_in(clone / ".git") == set()
    node = bob.node
    bob.git("lfs", "pull", cwd=clone)
    assert bob.node == node
    assert (clone / "a.bin").read_bytes() == data
    assert received(bob) < 1.25 * len(data)
    assert not list((bob.root / "lfs").glob(".*"))


def until_complete(out: IO[bytes]) -> Iterator[dict[str, Any]]:
    """What an agent says of one transfer."""
    for line in out:
        message = json.loads(line)
        yield message
        if message["event"] == "complete":
            return


def test_progress_is_told_while_a_file_comes(new_person: NewPerson) -> None:
    """Spoken to as git-lfs does: something at once, then all along, never backwards, the size at the end."""
    ann, bob = new_person("ann", MEGALFS_LIMIT_UP="4M").install(), new_person("bob").install()
    work, data = ann.new_repository(), content(15, 8_000_000)
    ann.commit(work, {"a.bin": data})
    ann.git("push", "-q", "origin", "main", cwd=work)
    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    asked = {"event": "download", "oid": oid_of(data), "size": len(data), "action": None}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", stub_path()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=bob.directory / "clone",
        env=bob.environ,
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        for line in ({"event": "init", "operation": "download"}, asked):
            agent.stdin.write(json.dumps(line).encode() + b"\n")
        agent.stdin.flush()
        assert json.loads(agent.stdout.readline()) == {}
        *progress, complete = until_complete(agent.stdout)
        agent.stdin.close()
    assert Path(complete["path"]).read_bytes() == data
    counts = [each["bytesSoFar"] for each in progress]
    assert (counts[0], counts[-1]) == (1, len(data))
    assert counts == sorted(set(counts))
    assert len(counts) > 6  # of a transfer that the other side's limit stretches over a second at least
    assert sum(each["bytesSinceLast"] for each in progress) == len(data)


def test_a_push_with_nobody_else_online_says_so(new_person: NewPerson) -> None:
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work = ann.new_repository()
    ann.commit(work, {"a.bin": content(8, 90_000), "b.bin": content(9, 10_000)})
    said = ann.git("push", "origin", "main", cwd=work)
    assert "megalfs: nobody else has 2 of 2 objects (100000 bytes)" in said
    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    ann.environ["MEGALFS_PEERS"] = bob.address
    ann.kill_node(signal.SIGTERM)
    ann.git("init", "-q", "--bare", ann.directory / "second.git")
    said = ann.git("push", ann.directory / "second.git", "main", cwd=work)
    assert "nobody else" not in said


def test_a_second_version_costs_its_changes(new_person: NewPerson) -> None:
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work, data = ann.new_repository(), content(10, 8_000_000)
    ann.commit(work, {"a.bin": data})
    ann.git("push", "origin", "main", cwd=work)
    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    before = received(bob)
    changed = data[:4_000_000] + b"a small edit" + data[4_000_000:]
    ann.commit(work, {"a.bin": changed})
    ann.git("push", "origin", "main", cwd=work)
    bob.git("pull", "-q", cwd=bob.directory / "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == changed
    after = received(bob)
    assert after - before < 2_200_000


def test_a_large_object_is_synced_after_git_lfs_has_it(new_person: NewPerson) -> None:
    """Until then it stands in a list; a node that was killed meanwhile hashes it again, and serves it."""
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work, data = ann.new_repository(), content(16, LATE_BYTES_MIN + 1)
    ann.commit(work, {"a.bin": data})
    ann.git("push", "-q", "origin", "main", cwd=work)
    bob.environ["MEGALFS_PEERS"] = ann.address
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    unsynced = bob.root / "lfs" / "unsynced.json"
    listed = {oid_of(data): str(bob.root / "lfs" / oid_of(data))}
    assert json.loads(unsynced.read_bytes()) == listed
    bob.kill_node(signal.SIGTERM)
    assert json.loads(unsynced.read_bytes()) == {}
    unsynced.write_text(json.dumps(listed))
    shutil.rmtree(bob.directory / "clone")
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == data
    wait_until(lambda: json.loads(unsynced.read_bytes()) == {}, "the hash")


def test_a_trusted_signature_saves_our_proof(new_person: NewPerson) -> None:
    """As `pull`: git-lfs hashes every object again, so ours would be the second hash of a second hash.

    A manifest whose chaining state is wrong shows who looked: only who proves finds it out.
    """
    ann = new_person("ann").install()
    key = ann.ok("auth", "init").out.strip()
    work, data = ann.new_repository(), content(14, 4_000_000)
    ann.commit(work, {"a.bin": data})
    source = ann.directory / "forged"
    source.write_bytes(data)
    false = FORGERIES["state"](manifest_of(source), data).manifest
    adopt(ann.root, source, false)
    private = Root.open(ann.root, create=False).load_key()
    assert private is not None
    with Store(Root.open(ann.root, create=False)) as store:
        store.add_manifest(false, [sign_manifest(private, false.id)])
    peer = ann.serve("node", "start").address
    for name, settings, is_taken in (
        ("trusting", {"megalfs.key": key}, True),
        ("asking", {}, False),
        ("proving", {"megalfs.key": key}, False),
    ):
        bob = new_person(name, **({"MEGALFS_PROOF": "always"} if name == "proving" else {})).install()
        bob.git("init", "-q", "clone")
        clone = bob.directory / "clone"
        for each, value in {**settings, "megalfs.peer": peer}.items():
            bob.git("config", each, value, cwd=clone)
        bob.git("pull", "-q", ann.directory / "work", "main", cwd=clone)
        assert (clone / "a.bin").read_bytes() == data
        with urllib.request.urlopen(
            f"http://{bob.address}/v1/file/{oid_of(data)}/manifests", timeout=10
        ) as reply:
            held = [each["manifest"] for each in json.load(reply)["manifests"]]
        assert (held == [str(false.id)]) is is_taken, name


def test_with_nobody_named_the_lan_is_asked(new_person: NewPerson) -> None:
    ann, bob = (new_person(name, MEGALFS_DISCOVER="true").install() for name in ("ann", "bob"))
    work, data = ann.new_repository(), content(12, 300_000)
    ann.commit(work, {"a.bin": data})
    ann.git("push", "-q", "origin", "main", cwd=work)
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == data


def test_git_never_waits_for_the_node(new_person: NewPerson) -> None:
    """The node that an agent starts has none of git's descriptors: the push ends while it runs on."""
    ann = new_person("ann").install()
    work = ann.new_repository()
    ann.commit(work, {"a.bin": content(11, 50_000)})
    started = time.monotonic()
    ann.git("push", "origin", "main", cwd=work)
    assert time.monotonic() - started < 25  # git waits 30 s for a stderr that somebody holds open
    assert ann.node is not None
    pid = ann.node["owner"]["pid"]  # type: ignore[index]
    held = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.name in "012"]
    assert sorted(each.name for each in held) == ["node.log", "node.log", "null"]
    assert os.getsid(pid) != os.getsid(0)
