"""Stock git with git-lfs over p2p:// remotes: history by links, large files by the swarm, nothing set up but the install."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_lfs import Person, content, new_person, objects_in, oid_of, requires_git_lfs
from helpers_p2p import FAST, helpers_on_path
from processes import Running, wait_until

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
        wait_until(lambda: bob.run("repo", "list").code == 0 and "work" in bob.ok("repo", "list").out, "known")
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
