"""A disk that cannot read what it was given: the blob is withdrawn, peers are told so, and the node goes on."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Megalfs, Running, is_ready_at, wait_until

MIB = 1 << 20
SIZES = {"large.bin": 12 * MIB, "small.bin": 30_000, "other.bin": 20_000}
# The disk is a file system in a file, mounted for the seeder alone.
MOUNTED = 'mount -o loop "$0" "$1" && shift && cp -rT "$1" "$2" && sync -f "$2" && shift 2 && exec "$@"'


@pytest.fixture
def contents() -> dict[str, bytes]:
    rng = random.Random(44)
    return {name: rng.randbytes(size) for name, size in SIZES.items()}


@pytest.fixture
def failing(new_node: Callable[[str], Megalfs], tmp_path: Path, contents: dict[str, bytes]) -> Running:
    """A seeder of a directory whose disk has lost everything since."""
    image, mount, source = tmp_path / "disk", tmp_path / "mount", tmp_path / "source" / "many"
    for name, content in contents.items():
        source.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    prefix = ["unshare", "-m", "sh", "-c", MOUNTED, str(image), str(mount), str(source), str(mount / "many")]
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4")
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True, capture_output=True)
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no loop device (needs root)")
    node = new_node("failing")
    node.prefix = prefix
    seeder = node.seed(mount / "many")
    os.truncate(image, 5 * MIB)  # behind the metadata: every block of a file is gone
    for name in contents:
        fd = os.open(f"/proc/{seeder.process.pid}/root{mount}/many/{name}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match="Input/output"):
            os.pread(fd, 1, 0)
        os.close(fd)
    return seeder


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_who_has_it_elsewhere_gets_it(
    failing: Running, new_node: Callable[[str], Megalfs], tmp_path: Path, contents: dict[str, bytes]
) -> None:
    good = new_node("good").seed(tmp_path / "source" / "many")
    leecher = new_node("leecher")
    peers = ("--peer", failing.address, "--peer", good.address)
    leecher.ok("pull", good.link, *peers, "--no-discover")
    for name, content in contents.items():
        assert (leecher.directory / "many" / name).read_bytes() == content


def test_alone_it_says_that_it_has_it_no_more(
    failing: Running, new_node: Callable[[str], Megalfs], tmp_path: Path
) -> None:
    leecher = new_node("leecher")
    argv = ("pull", failing.link, "--peer", failing.address, "--no-discover", "--wait-peers", "1", "--json")
    done = leecher.run(*argv)
    assert done.code in {3, 4, 5, 9}, done.err  # the list itself may have been read before
    assert "Traceback" not in done.err + failing.err
    assert done.records[-1].get("rejected") in ({}, None)  # nobody is blamed
    assert list((leecher.directory).rglob("*.bin")) == []

    def is_withdrawn() -> bool:
        oids = [line.split()[0] for line in (tmp_path / "oids").read_text().splitlines()]
        return all(status_of(f"http://{failing.address}/v1/file/{oid}/manifests") == 404 for oid in oids)

    oids = subprocess.run(
        ["sha256sum", *sorted((tmp_path / "source" / "many").iterdir())], capture_output=True, check=True
    ).stdout
    (tmp_path / "oids").write_bytes(oids)
    wait_until(is_withdrawn, "withdrawn")
    assert is_ready_at(failing.address)
