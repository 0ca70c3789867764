"""`megalfs pull` in a git work tree: files, LFS storage and git's index, without a filter in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from adversaries import flip
from helpers_lfs import Person, content, new_person, objects_in, oid_of, requires_git_lfs

from megalfs.errors import BusyError, StoreError
from megalfs.formats.pointer import Pointer
from megalfs.git.lfs_index import refresh, with_stats
from megalfs.git.worktree import Filter

__all__ = ["new_person"]

pytestmark = requires_git_lfs
NewPerson = Callable[..., Person]
FILES = {"a.bin": content(1, 900_000), "data/b.bin": content(2, 70_000), "data/run.bin": content(3, 5_000)}
# A filter that fails whenever git asks it: what git shows then, it knew without looking into files.
NO_FILTER = ("-c", "filter.lfs.process=", "-c", "filter.lfs.clean=false", "-c", "filter.lfs.required=true")


def pushed(new_person: NewPerson) -> tuple[Person, Person, Path]:
    """A publisher whose node runs, and a reader with a clone of pointers."""
    ann, bob = new_person("ann").install(), new_person("bob").install()
    work = ann.new_repository()
    for name, data in FILES.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(data)
    (work / "data/run.bin").chmod(0o755)
    ann.git("add", "-A", cwd=work)
    ann.git("commit", "-qm", "files", cwd=work)
    ann.git("push", "-q", "origin", "main", cwd=work)
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    clone = bob.directory / "clone"
    bob.git("config", "megalfs.peer", ann.address, cwd=clone)
    return ann, bob, clone


def test_pull_does_what_git_lfs_pull_does(new_person: NewPerson) -> None:
    ann, bob, clone = pushed(new_person)
    bob.ok("pull", ".", cwd=clone)
    assert {name: (clone / name).read_bytes() for name in FILES} == FILES
    assert (clone / "data/run.bin").stat().st_mode & 0o111
    assert objects_in(clone / ".git") == {oid_of(data) for data in FILES.values()}
    assert bob.git(*NO_FILTER, "status", "--porcelain", cwd=clone) == ""
    bob.git("lfs", "fsck", cwd=clone)
    # git-lfs has them now: another branch and back, with nobody to ask.
    ann.kill_node()
    bob.git("checkout", "-q", "HEAD~1", cwd=clone)
    bob.git("checkout", "-q", "main", cwd=clone)
    assert (clone / "a.bin").read_bytes() == FILES["a.bin"]


def test_only_what_is_included(new_person: NewPerson) -> None:
    _, bob, clone = pushed(new_person)
    bob.ok("pull", ".", "--include", "data", "--exclude", "*/run.*", cwd=clone)
    assert (clone / "data/b.bin").read_bytes() == FILES["data/b.bin"]
    assert Pointer.parse((clone / "a.bin").read_bytes()) is not None
    assert Pointer.parse((clone / "data/run.bin").read_bytes()) is not None
    bob.ok("pull", "--include", "nothing", clone, cwd=bob.directory)
    assert Pointer.parse((clone / "a.bin").read_bytes()) is not None
    bob.git("config", "lfs.fetchexclude", "a.bin", cwd=clone)
    bob.ok("pull", clone / "data", cwd=bob.directory)
    assert (clone / "data/run.bin").read_bytes() == FILES["data/run.bin"]


def test_what_git_lfs_has_is_not_fetched(new_person: NewPerson) -> None:
    ann, bob, clone = pushed(new_person)
    bob.git("lfs", "fetch", cwd=clone)
    bob.kill_node()
    ann.kill_node()
    shutil.rmtree(bob.root)
    bob.ok("pull", ".", cwd=clone)
    assert {name: (clone / name).read_bytes() for name in FILES} == FILES
    assert bob.git(*NO_FILTER, "status", "--porcelain", cwd=clone) == ""


def test_some_that_nobody_has_and_some_that_the_index_does_not_know(new_person: NewPerson) -> None:
    """Two files of one object; one that the index knows under another object; one that nobody has."""
    _, bob, clone = pushed(new_person)
    (clone / "a.bin").write_bytes((clone / "data/b.bin").read_bytes())
    lost = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 9\n".encode()
    (clone / "data/lost.bin").write_bytes(lost)
    done = bob.run("pull", ".", "--wait-peers", "1", cwd=clone)
    assert done.code == 9
    assert (clone / "a.bin").read_bytes() == FILES["data/b.bin"] == (clone / "data/b.bin").read_bytes()
    assert (clone / "data/lost.bin").read_bytes() == lost
    status = bob.git("status", "--porcelain", cwd=clone).splitlines()
    assert sorted(status) == [" M a.bin", "?? data/lost.bin"]


def test_prune_removes_only_what_others_show(new_person: NewPerson) -> None:
    """`git lfs prune --verify-remote` would have removed both without asking anybody."""
    ann, bob, clone = pushed(new_person)
    work = ann.directory / "work"
    bob.git("lfs", "pull", "--include", "a.bin", cwd=clone)
    ann.environ["GIT_COMMITTER_DATE"] = "2020-01-01T00:00:00Z"
    ann.git("rm", "-q", *FILES, cwd=work)
    ann.git("commit", "-qm", "nothing", cwd=work)
    ann.git("push", "-q", "origin", "main", cwd=work)
    held = objects_in(work / ".git")
    ann.git("config", "megalfs.peer", bob.address, cwd=work)
    ann.git("config", "--add", "megalfs.peer", ann.address, cwd=work)  # this node itself is no copy
    prune = ("lfs", "prune", "--verify-swarm", "--min-copies")
    assert "would remove 1 of 3" in ann.ok(*prune, 1, "--dry-run", cwd=work).err
    assert "removed 0 of 3" in ann.ok(*prune, 2, cwd=work).err
    # One wrong byte in the other copy: this small, every piece is drawn.
    copy = bob.root / "lfs" / oid_of(FILES["a.bin"])
    flip(copy, 700_000)
    assert "would remove 0 of 3" in ann.ok(*prune, 1, "--dry-run", cwd=work).err
    flip(copy, 700_000)
    assert objects_in(work / ".git") == held
    done = ann.ok(*prune, 1, cwd=work)
    assert objects_in(work / ".git") == held - {oid_of(FILES["a.bin"])}
    assert not (ann.root / "lfs" / oid_of(FILES["a.bin"])).exists()
    assert done.err.count("kept ") == 2
    assert "pieces drawn by lot, not read there as a whole" in done.err
    assert ann.run("lfs", "prune", cwd=work).code == 2


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_an_index_of_every_kind(new_person: NewPerson, version: int, object_format: str) -> None:
    """Long names, names that share prefixes, and an extended entry among them."""
    ann = new_person("ann")
    work = ann.directory / "work"
    ann.git("init", "-q", f"--object-format={object_format}", work)
    names = ["a", "ab", "abc/d", "abc/de", "n" * 255, "/".join(["x" * 100] * 30), "y", "zz"]
    for name in names:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    ann.git("update-index", "--index-version", version, cwd=work)
    ann.git("add", *names[:-1], cwd=work)
    ann.git("add", "-N", "zz", cwd=work)
    before = ann.git("ls-files", "--stage", "--debug", cwd=work)
    for name in names[:-1]:
        (work / name).write_text("X" * len(name) * 3)
    files = {os.fsencode(name): work / name for name in names[:-1]}
    count = refresh(work / ".git/index", files, oid_bytes=20 if object_format == "sha1" else 32)
    assert count == len(files)
    assert [line[1] for line in ann.git("status", "--porcelain", cwd=work).splitlines()] == [" "] * 7 + ["A"]
    assert ann.git("ls-files", "--stage", "--debug", cwd=work) != before
    ann.git("fsck", cwd=work)
    (work / ".git/index.lock").touch()
    with pytest.raises(BusyError):
        refresh(work / ".git/index", files, oid_bytes=20)


@pytest.mark.parametrize(
    "content", [b"", b"DIRC", b"PACK" + bytes(8), b"DIRC" + bytes([0, 0, 0, 2, 0, 0, 0, 9]) + bytes(70)]
)
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(StoreError):
        with_stats(content, {}, oid_bytes=20)


@pytest.mark.parametrize(
    ("pattern", "wanted", "unwanted"),
    [
        ("*.bin", ["a.bin", "x/y/a.bin"], ["a.txt", "a.bin2"]),
        ("data", ["data/a", "data/x/a", "x/data/a", "data"], ["data2/a", "mydata"]),
        ("/data/", ["data/a"], ["x/data/a"]),
        ("data/*.bin", ["data/a.bin"], ["data/x/a.bin", "x/data/a.bin"]),
        ("data/**/a.bin", ["data/a.bin", "data/x/y/a.bin"], ["data/b.bin"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_patterns(pattern: str, wanted: list[str], unwanted: list[str]) -> None:
    only, rest = Filter(include=(pattern,)), Filter(exclude=(pattern,))
    assert [path for path in [*wanted, *unwanted] if only.is_wanted(path)] == wanted
    assert [path for path in [*wanted, *unwanted] if rest.is_wanted(path)] == unwanted
