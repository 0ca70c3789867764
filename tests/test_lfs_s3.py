"""A bucket as a repository's home, on a real S3 server: what is pushed is there, and is found there."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_lfs import Person, content, new_person, objects_in, oid_of, received, requires_git_lfs
from processes import free_port, wait_until

__all__ = ["new_person"]

pytestmark = requires_git_lfs
pytest.importorskip(
    "moto", reason="moto, the S3 server of these tests, is not installed: pip install '.[dev]'"
)
pytest.importorskip("obstore", reason="the extra s3 is not installed: pip install '.[dev]'")
NewPerson = Callable[..., Person]
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
URL = "s3://models/team"


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[str]:
    """The endpoint of a server with one empty bucket."""
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    with (tmp_path / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", port], stdout=log, stderr=log
        )
    try:
        wait_until(lambda: is_put(address), "a bucket")
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def is_put(address: str) -> bool:
    """Whether the server took a bucket."""
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("PUT", "/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_pushed_to_a_bucket_and_found_there(new_person: NewPerson, s3: str) -> None:
    """No node is left but the reader's own; the second version costs its changed chunks."""
    ann = new_person("ann", AWS_ENDPOINT_URL=s3, **KEYS).install()
    bob = new_person("bob", AWS_ENDPOINT_URL=s3).install()
    # As the AWS tools keep it.
    (bob.directory / ".aws").mkdir()
    (bob.directory / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = testing\naws_secret_access_key = testing\n"
    )
    work = ann.new_repository(server=URL)
    ann.git("config", "megalfs.home", URL, cwd=work)
    data = content(1, 20_000_000)
    files = {"a.bin": data, "small.bin": data[:1000]}
    ann.commit(work, files)
    assert "nobody else" not in ann.git("push", "origin", "main", cwd=work)
    ann.kill_node()
    with urllib.request.urlopen(f"{s3}/models/team/{oid_of(data)}", timeout=10) as reply:
        assert reply.read() == data

    bob.git("clone", "-q", ann.directory / "work.git", "clone")
    clone = bob.directory / "clone"
    assert {name: (clone / name).read_bytes() for name in files} == files
    before = received(bob)
    assert len(data) <= before < len(data) + 10_000
    changed = data[:9_000_000] + b"an edit" + data[9_000_000:]
    ann.commit(work, {"a.bin": changed})
    ann.git("push", "-q", "origin", "main", cwd=work)
    ann.kill_node()
    bob.git("pull", "-q", cwd=clone)
    assert (clone / "a.bin").read_bytes() == changed
    assert received(bob) - before < 2_200_000
    shutil.rmtree(clone)
    bob.kill_node()  # while its root still names it
    shutil.rmtree(bob.root)
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})
    done = bob.ok("pull", ".", "--json", cwd=clone)
    assert f"{s3}/models/team/{oid_of(changed)}" in done.out
    assert "X-Amz" not in done.out + done.err  # who has a signed URL may read
    assert (clone / "a.bin").read_bytes() == changed
    # What the bucket has is not sent again: a push of everything, from a root that knows nothing.
    shutil.rmtree(ann.root)
    ann.git("lfs", "push", "--all", "origin", cwd=work)


def test_a_bucket_that_refuses_and_one_that_is_not_there(new_person: NewPerson, s3: str) -> None:
    ann = new_person("ann", AWS_ENDPOINT_URL=s3, **KEYS).install()
    work = ann.new_repository()
    ann.git("config", "megalfs.home", "s3://nothing/here", cwd=work)
    ann.commit(work, {"a.bin": content(2, 100_000)})
    refused = ann.try_git("push", "origin", "main", cwd=work)
    assert refused.code != 0
    assert "s3://nothing/here/" in refused.err
    bob = new_person("bob", AWS_ENDPOINT_URL="http://127.0.0.1:9", **KEYS).install()
    bob.git("clone", "-q", ann.directory / "work.git", "clone", environ={"GIT_LFS_SKIP_SMUDGE": "1"})


def test_without_the_extra_one_line_says_what_to_install(new_person: NewPerson, tmp_path: Path) -> None:
    (tmp_path / "hidden/obstore").mkdir(parents=True)
    (tmp_path / "hidden/obstore/__init__.py").write_text("raise ImportError('hidden by a test')\n")
    ann = new_person(
        "ann", PYTHONPATH=f"{tmp_path / 'hidden'}:{Path(__file__).resolve().parent.parent}"
    ).install()
    work = ann.new_repository(server=URL)
    ann.git("config", "megalfs.home", URL, cwd=work)
    ann.commit(work, {"a.bin": content(3, 100_000)})
    refused = ann.try_git("push", "origin", "main", cwd=work)
    assert (
        f"a.bin ({oid_of(content(3, 100_000))}): {URL} needs the extra s3; pip install 'megalfs[s3]'"
        in refused.err
    )
    shutil.rmtree(work / ".git/lfs/objects")
    (ann.root / "lfs" / oid_of(content(3, 100_000))).unlink()
    refused = ann.try_git("lfs", "fetch", cwd=work)
    assert "pip install 'megalfs[s3]'" in refused.err
    assert objects_in(work / ".git") == set()
