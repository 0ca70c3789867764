"""A root that can only be read, as a snapshot or an export mounted so: what only reads goes on working."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from processes import Megalfs

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


@pytest.fixture
def read_only(megalfs: Megalfs, tmp_path: Path) -> Megalfs:
    """A root with two published files, one of them changed since, whose commands see it mounted read-only."""
    for name in ("good", "changed"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    megalfs.ok("publish", tmp_path / "good", "--name", "one")
    megalfs.ok("publish", tmp_path / "changed")
    (tmp_path / "changed").write_bytes(b"something else")
    prefix = ["unshare", "-m", "sh", "-c", READ_ONLY, str(megalfs.root)]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace (needs root and unshare)")
    megalfs.prefix = prefix
    return megalfs


def test_what_only_reads_works(read_only: Megalfs, tmp_path: Path) -> None:
    rows = read_only.ok("ls", "--json").records
    assert {Path(row["paths"][0]["path"]).name for row in rows} == {"good", "changed"}  # type: ignore[index]
    assert "good" in read_only.ok("ls").out
    info = json.loads(read_only.ok("info", "one", "--json").out)
    assert info["names"] == ["one"]
    assert read_only.ok("verify", "one").out.startswith("ok ")
    bad = read_only.run("verify")
    assert bad.code == 4
    assert "no longer holds" in bad.err
    assert read_only.ok("auth", "show", "-q").out.startswith("did:key:")
    assert "2 blobs" in read_only.ok("status").out


def test_what_writes_says_why_not(read_only: Megalfs, tmp_path: Path) -> None:
    for argv in (("pin", "one"), ("publish", tmp_path / "changed")):
        done = read_only.run(*argv)
        assert (argv, done.code) == (argv, 7), done.err
        assert "read-only" in done.err
        assert len([line for line in done.err.splitlines() if not line.startswith("megalfs: hint")]) == 1
