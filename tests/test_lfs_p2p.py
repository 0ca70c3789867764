"""Stock git with git-lfs over p2p:// remotes: history by links, large files by the swarm, one install."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_lfs import Person, content, new_person, objects_in, oid_of, requires_git_lfs
from helpers_p2p import FAST, helpers_on_path
from processes import Running, wait_until

from megalfs.git.copy_lfs import leaves_room

__all__ = ["new_person"]

pytestmark = requires_git_lfs
FILES = {"a.bin": content(1, 3_000_000), "dir/b.bin": content(2, 70_000)}


class Peer(Person):
    """A person whose git finds our remote helpers, and who may run a node with links."""

    node_running: Running

    def __init__(self, directory: Path, **environ: str) -> None:
        super().__init__(directory, FAST | environ)
        self.environ["PATH"] = helpers_on_path(directory, self.environ["PATH"])
        self.key = str(self.ok("auth", "init", "--json").records[0]["key"])
        self.install()

    def with_node(self, *argv: object) -> Peer:
        self.node_running = self.serve("node", "start", "--addr", "127.0.0.1:0", *argv)
        return self

    @property
    def addr(self) -> str:
        return f"127.0.0.1:{self.node_running.ready['link_port']}"

    def url(self, repo: str = "work") -> str:
        return f"p2p://{self.key}/{repo}.git"

    def repository(self, files: dict[str, bytes], name: str = "work") -> Path:
        """A work tree of LFS files, without any remote and without `.lfsconfig`."""
        work = self.directory / name
        self.git("init", "-q", work)
        (work / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
        self.commit(work, files)
        return work

    def share(self, path: Path, *argv: object) -> None:
        self.ok("repo", "add", "--path", path, *argv)


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(name: str, **environ: str) -> Peer:
        made.append(Peer(tmp_path / name, **environ))
        return made[-1]

    yield make
    for each in made:
        each.close()


New = Callable[..., Peer]


@pytest.mark.parametrize("has_node", [True, False], ids=["with a node", "without"])
def test_a_clone_comes_with_its_large_files(new: New, has_node: bool) -> None:
    """No `.lfsconfig`, nothing published by hand; a person without a node has the address in the URL."""
    ann, bob = new("ann").with_node(), new("bob")
    work = ann.repository(FILES)
    ann.share(work)
    url = ann.url()
    if has_node:
        bob.with_node("--bootstrap-node", f"{ann.key}@{ann.addr}")
        wait_until(
            lambda: bob.run("repo", "list").code == 0 and "work" in bob.ok("repo", "list").out, "known"
        )
    else:
        url += f"?addr={ann.addr}"
    said = bob.git("clone", url, "clone")
    clone = bob.directory / "clone"
    assert "warning" not in said.lower()
    assert {name: (clone / name).read_bytes() for name in FILES} == FILES
    assert objects_in(clone / ".git") == {oid_of(data) for data in FILES.values()}
    assert bob.git("status", "--porcelain", cwd=clone) == ""
    assert bob.git("config", "remote.origin.url", cwd=clone).strip() == url
    # What is committed a moment later is there a moment later.
    ann.commit(work, {"a.bin": FILES["a.bin"] + b"more"})
    bob.git("pull", "-q", cwd=clone)
    assert (clone / "a.bin").read_bytes() == FILES["a.bin"] + b"more"


def test_megalfs_pull_asks_the_remote_too(new: New) -> None:
    ann, bob = new("ann").with_node(), new("bob")
    ann.share(ann.repository(FILES))
    url = f"{ann.url()}?addr={ann.addr}"
    bob.git("clone", "-q", url, "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone = bob.directory / "clone"
    bob.ok("pull", ".", cwd=clone)
    assert {name: (clone / name).read_bytes() for name in FILES} == FILES
    assert bob.git("status", "--porcelain", cwd=clone) == ""


@pytest.mark.parametrize("reachable", [True, False], ids=["pulled", "sent"])
def test_a_push_brings_the_objects_to_the_owner(new: New, tmp_path: Path, reachable: bool) -> None:
    """Pulled by the owner from the pusher's port, or sent over the link where that cannot be reached."""
    ann = new("ann").with_node("--verbose")
    bob = new("bob") if reachable else new("bob", MEGALFS_ADVERTISE="127.0.0.1:1")
    bare = ann.directory / "work.git"
    ann.git("clone", "-q", "--bare", ann.repository({"first.bin": b"first"}), bare)
    ann.share(bare, "--name", "work", "--allow", bob.key)
    url = f"{ann.url()}?addr={ann.addr}"
    bob.git("clone", "-q", url, "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone = bob.directory / "clone"
    bob.commit(clone, FILES)
    said = bob.git("push", "origin", "main", cwd=clone)
    assert "Uploading LFS objects: 100%" in said
    assert "nobody else has" not in said
    assert f"pushed by {bob.key}" in said
    assert ("does not come from 127.0.0.1:1" in ann.node_running.err) is not reachable
    bob.kill_node()
    carol = new("carol")
    carol.git("clone", "-q", url, "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    carol.git("lfs", "pull", "--include", ",".join(FILES), cwd=carol.directory / "clone")
    assert {name: (carol.directory / "clone" / name).read_bytes() for name in FILES} == FILES


def test_a_strangers_objects_are_refused(new: New) -> None:
    ann, eve = new("ann").with_node(), new("eve")
    ann.share(ann.repository(FILES))
    eve.git("clone", "-q", f"{ann.url()}?addr={ann.addr}", "clone")
    clone = eve.directory / "clone"
    eve.commit(clone, {"evil.bin": b"evil"})
    done = eve.try_git("push", "origin", "main", cwd=clone)
    assert done.code != 0
    assert f"{eve.key} may not push to 'work'" in done.err
    assert not (ann.root / "lfs" / oid_of(b"evil")).exists()


def test_the_owner_is_gone_and_who_cloned_serves_the_large_files(new: New) -> None:
    ann = new("ann").with_node()
    bootstrap = f"{ann.key}@{ann.addr}"
    bob, carol = (
        new(name, MEGALFS_SYNC_LFS_BYTES_MAX="0").with_node("--bootstrap-node", bootstrap)
        for name in ("bob", "carol")
    )
    ann.share(ann.repository(FILES))
    for each in (bob, carol):
        wait_until(lambda: "state 1, followed\n" in each.run("repo", "list").out, "a copy of the history")  # noqa: B023
    bob.git("clone", "-q", ann.url(), "clone")
    wait_until(lambda: knows_both(carol), "who is there")
    ann.node_running.kill()
    assert (
        "2 large files are still to come"
        in carol.ok("repo", "clone", "--repo-id", "work", "--output", "one").err
    )
    carol.ok("pull", "one", "--no-share")
    said = carol.git("clone", ann.url(), "two")
    assert "is away" in said
    for clone in ("one", "two"):
        assert {name: (carol.directory / clone / name).read_bytes() for name in FILES} == FILES


def has_copy(person: Peer, files: dict[str, bytes]) -> bool:
    """Whether a node's own store has the files, and nothing else."""
    return {path.name for path in (person.root / "lfs").glob("[0-9a-f]*")} == set(map(oid_of, files.values()))


def test_a_copy_has_the_large_files_too(new: New) -> None:
    """Nobody ever cloned; the owner is killed; who comes then gets everything from the node that kept a copy."""
    ann = new("ann").with_node()
    work = ann.repository(FILES)
    ann.git("branch", "other", cwd=work)
    ann.commit(work, {"dir/b.bin": b"newer on main"})
    ann.share(work)
    files = FILES | {"newer": b"newer on main"}
    bob = new("bob").with_node("--bootstrap-node", f"{ann.key}@{ann.addr}")
    wait_until(lambda: has_copy(bob, files), "what both branches name")
    ann.node_running.kill()
    # By the copy's own key, by somebody who runs no node.
    carol = new("carol")
    carol.git("clone", "-q", f"{bob.url()}?addr={bob.addr}", "clone")
    assert (carol.directory / "clone" / "a.bin").read_bytes() == FILES["a.bin"]
    assert (carol.directory / "clone" / "dir/b.bin").read_bytes() == b"newer on main"
    carol.git("checkout", "-q", "other", cwd=carol.directory / "clone")
    assert (carol.directory / "clone" / "dir/b.bin").read_bytes() == FILES["dir/b.bin"]
    assert carol.git("lfs", "fsck", cwd=carol.directory / "clone").strip() == "Git LFS fsck OK"
    # By the owner's key, by somebody whose node knows the copy.
    dave = new("dave").with_node("--bootstrap-node", f"{bob.key}@{bob.addr}")
    wait_until(lambda: "work" in dave.run("repo", "list").out, "known")
    assert "is away" in dave.git("clone", ann.url(), "clone")
    assert (dave.directory / "clone" / "a.bin").read_bytes() == FILES["a.bin"]


def test_a_copy_of_more_than_the_bound_is_kept_when_asked_for(new: New) -> None:
    ann = new("ann").with_node()
    work = ann.repository(FILES)
    ann.share(work)
    bob = new("bob", MEGALFS_SYNC_LFS_BYTES_MAX="1MB").with_node(
        "--bootstrap-node", f"{ann.key}@{ann.addr}", "--verbose"
    )
    wait_until(lambda: "more than sync_lfs_bytes_max" in bob.node_running.err, "it is said")
    assert has_copy(bob, {})
    bob.ok("repo", "clone", "--repo-id", "work", "--output", "clone", "--lfs")
    assert has_copy(bob, FILES)
    bob.ok("pull", "clone", "--no-share")
    assert {name: (bob.directory / "clone" / name).read_bytes() for name in FILES} == FILES
    done = bob.ok("repo", "sync", "--repo-id", "work", "--lfs")
    assert done.out == "work: state 1, 2 large files kept, 2.9 MiB\n"
    assert bob.ok("repo", "sync", "--lfs", "--json").records[0]["large_bytes"] == 3_070_000
    # From now on it keeps what the branches name, and not what they named.
    newer = FILES | {"a.bin": content(3, 2_000_000)}
    ann.commit(work, newer)
    wait_until(lambda: has_copy(bob, newer), "the new version, and not the old one")
    # It survives a restart, and is not fetched again.
    bob.node_running.kill()
    bob.with_node()
    assert bob.ok("repo", "list", "--json").records[0]["large_files"] == 2
    done = ann.run("repo", "sync", "--lfs")
    assert (done.code, "shared from here" in done.err) == (10, True)


def test_the_last_twentieth_of_a_disk_is_left_alone() -> None:
    assert leaves_room(900, free=950, total=1000)
    assert not leaves_room(901, free=950, total=1000)
    assert leaves_room(0, free=0, total=0)


def knows_both(person: Peer) -> bool:
    return len(person.ok("node", "list", "--json").records) >= 3


def test_over_http_git_lfs_alone_is_enough(new: New, new_person: Callable[..., Person]) -> None:
    """`git clone http://node/work.git`, by somebody without megalfs: the node is the LFS server."""
    ann, dan = new("ann").with_node(), new_person("dan")
    ann.share(ann.repository(FILES))
    dan.git("clone", "-q", f"http://{ann.node_running.address}/work.git", "clone")
    assert {name: (dan.directory / "clone" / name).read_bytes() for name in FILES} == FILES


def test_a_closed_swarm_answers_its_members_only(new: New) -> None:
    bob, eve = new("bob"), new("eve")
    ann = new("ann", MEGALFS_ALLOW_KEYS=bob.key).with_node()
    ann.share(ann.repository(FILES))
    url = f"{ann.url()}?addr={ann.addr}"
    bob.git("clone", "-q", url, "clone")
    assert {name: (bob.directory / "clone" / name).read_bytes() for name in FILES} == FILES
    done = eve.try_git("clone", url, "clone")
    assert done.code != 0
    assert "only keys it lists" in done.err
