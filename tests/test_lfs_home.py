"""A push that means that somebody else has it: homes that are nodes, reached over what the pusher dialled."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers_lfs import Person, content, new_person, oid_of, received, requires_git_lfs
from processes import Running, free_port, wait_until

__all__ = ["new_person"]

pytestmark = requires_git_lfs
NewPerson = Callable[..., Person]
# Nobody can dial back: the home sees 127.0.0.1 and our port, and nothing listens there.
BEHIND_NAT = {"MEGALFS_LISTEN": "127.0.0.2:0"}


def with_home(ann: Person, home: Running) -> Path:
    """A repository whose pushes must reach a node."""
    work = ann.new_repository(peer=home.address)
    ann.git("config", "megalfs.home", f"http://{home.address}/team/model.git/info/lfs", cwd=work)
    return work


def test_from_behind_nat_only_missing_chunks_travel(new_person: NewPerson) -> None:
    node, ann, bob = (
        new_person("node"),
        new_person("ann", **BEHIND_NAT).install(),
        new_person("bob").install(),
    )
    home = node.serve("node", "start")
    work, data = with_home(ann, home), content(1, 6_000_000)
    ann.commit(work, {"a.bin": data, "small.bin": data[:100]})
    assert "nobody else" not in ann.git("push", "origin", "main", cwd=work)
    assert received(node) == len(data)
    changed = data[:3_000_000] + b"an edit" + data[3_000_000:]
    ann.commit(work, {"a.bin": changed})
    ann.git("push", "origin", "main", cwd=work)
    assert len(data) < received(node) < len(data) + 2_200_000
    # Her node is gone; the home has her signature too, for whoever trusts her key.
    ann.kill_node()
    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    assert (bob.directory / "clone/a.bin").read_bytes() == changed
    with urllib.request.urlopen(
        f"http://{home.address}/v1/file/{oid_of(data)}/manifests", timeout=10
    ) as reply:
        signed = json.load(reply)["manifests"][0]["signatures"]
    assert any(ann.ok("auth", "show", "-q").out.strip() in each for each in signed)


@dataclass(frozen=True)
class Push:
    """A `git push` whose home was killed in the middle."""

    node: Person
    listen: str
    ann: Person
    work: Path
    data: bytes
    git: subprocess.Popen[bytes]


@contextmanager
def cut_off(new_person: NewPerson) -> Iterator[Push]:
    """Kills the home when it has a third of a file, while git runs on."""
    node, ann = new_person("node"), new_person("ann", MEGALFS_LIMIT_UP="6M", **BEHIND_NAT).install()
    listen = f"127.0.0.1:{free_port()}"
    home = node.serve("node", "start", listen=listen)
    work, data = with_home(ann, home), content(2, 12_000_000)
    ann.commit(work, {"a.bin": data})
    with ann.git_running("push", "origin", "main", cwd=work, environ={}) as git:
        wait_until(lambda: received(node) > 4_000_000, "a third of the file")
        home.kill()
        yield Push(node, listen, ann, work, data, git)


def test_a_push_goes_on_where_the_home_was_killed(new_person: NewPerson) -> None:
    """The first push fails, in words; the second sends what is missing."""
    with cut_off(new_person) as push:
        assert push.git.wait(60) != 0
    said = (push.ann.directory / "git-running.log").read_text()
    assert push.listen in said
    assert "a.bin" in said
    push.node.serve("node", "start", listen=push.listen)
    push.ann.git("push", "origin", "main", cwd=push.work)
    assert received(push.node) < len(push.data) - 3_000_000
    assert (push.node.root / "lfs" / oid_of(push.data)).read_bytes() == push.data


def test_a_home_that_comes_back_is_taken_up_in_the_same_push(new_person: NewPerson) -> None:
    with cut_off(new_person) as push:
        push.node.serve("node", "start", listen=push.listen)
        assert push.git.wait(60) == 0
    assert received(push.node) < len(push.data) - 3_000_000
