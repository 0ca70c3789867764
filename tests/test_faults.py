"""Faults of peers, of the disk, and of the user's patience: each ends well or with one clear line and its code."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from adversaries import (
    MIB,
    Stage,
    error_of,
    litter,
    make_model,
    manifest_of,
    plain_origin,
    pull,
    pulled,
    serve_bad_disk,
    serve_liar,
    serve_odd,
)
from processes import Megalfs, Running, wait_until
from proxy import proxy

from megalfs.core.manifest import Manifest

SECONDS_MORE_MAX = 20.0


@dataclass(frozen=True)
class Scene:
    """A model with an honest seeder, one that is limited, and a liar about all of it."""

    stage: Stage
    model: Path
    content: bytes
    true: Manifest
    oid: str
    seeder: Running
    slow: Running
    liar: Running


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("faults")
    stage = Stage(directory)
    model = make_model(directory)
    content, true = model.read_bytes(), manifest_of(model)
    seeder = stage.node("seeder").seed(model)
    slow = stage.node("slow").serve("seed", model, "--limit-up", "4M")
    liar = serve_liar(stage.node("liar"), model, true)
    yield Scene(stage, model, content, true, str(true.oid), seeder, slow, liar)
    stage.close()


def bytes_of(pulling: Running, field: str = "bytes_fetched") -> int:
    """What the last progress object of a running pull says."""
    found = [int(str(record.get(field, 0))) for record in pulling.records]
    return found[-1] if found else 0


def start_pull(node: Megalfs, *argv: object) -> Running:
    """A pull that is looked at while it runs."""
    return node.start("pull", *argv, "-o", "got.bin", "--no-discover", "--json")


def test_one_killed_one_lying_one_stalled(scene: Scene) -> None:
    mortal = scene.stage.node("mortal").serve("seed", scene.model, "--limit-up", "4M")
    leecher = scene.stage.node("leecher")
    started_s = time.monotonic()
    with proxy(scene.seeder.address, stall_after=2 * MIB) as stalled:
        addresses = [mortal.address, scene.liar.address, stalled.address, scene.slow.address]
        pulling = start_pull(leecher, scene.oid, *(part for each in addresses for part in ("--peer", each)))
        wait_until(lambda: bytes_of(pulling) > 2 * MIB, "some bytes")
        mortal.kill()
        done = pulling.wait()
        seconds = time.monotonic() - started_s
    assert done.code == 0, done.err
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    rejected = done.records[-1]["rejected"]
    assert set(rejected) == {scene.liar.address}  # type: ignore[call-overload]
    assert f"{scene.liar.address} sent" in done.err
    assert seconds < len(scene.content) / 4e6 + SECONDS_MORE_MAX
    assert litter(leecher.directory) == []


def test_a_peer_that_is_stalled_from_the_first_byte(scene: Scene) -> None:
    leecher = scene.stage.node("leecher")
    with proxy(scene.seeder.address, stall_after=0) as stalled:
        started_s = time.monotonic()
        summary = pulled(leecher, scene.oid, "--peer", stalled.address, "--peer", scene.seeder.address)
        assert time.monotonic() - started_s < SECONDS_MORE_MAX
    assert summary["rejected"] == {}
    assert (leecher.directory / "got.bin").read_bytes() == scene.content


def test_only_liars(scene: Scene) -> None:
    leecher = scene.stage.node("leecher")
    other = serve_liar(scene.stage.node("liar too"), scene.model, scene.true)
    done = pull(leecher, scene.oid, "--peer", scene.liar.address, "--peer", other.address)
    error = error_of(done, 4)
    assert set(error["rejected"]) == {scene.liar.address, other.address}
    assert scene.liar.address in done.err
    assert not (leecher.directory / "got.bin").exists()


def test_a_peer_whose_proofs_are_false(scene: Scene) -> None:
    """Its bytes are right: when nobody else has them, they come as a stream and are proven as a whole."""
    liar = serve_odd(scene.stage.node("prover"), scene.model, scene.true, "send_false_proofs")
    for others in ((), ("--peer", scene.slow.address)):
        leecher = scene.stage.node("leecher")
        summary = pulled(leecher, scene.oid, "--peer", liar.address, *others)
        assert set(summary["rejected"]) == {liar.address}
        assert (leecher.directory / "got.bin").read_bytes() == scene.content


def test_a_disk_that_forgot_is_noticed_by_the_node_or_by_those_who_ask_it(scene: Scene) -> None:
    bad = serve_bad_disk(scene.stage.node("bad disk"), scene.model, scene.true)
    leecher = scene.stage.node("leecher")
    summary = pulled(leecher, scene.oid, "--peer", bad.address, "--peer", scene.slow.address)
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    assert (set(summary["rejected"]) == {bad.address}) != ("is not served any longer" in bad.err)


def test_a_peer_that_counts_in_chunks(scene: Scene) -> None:
    """One of a version before there were parts takes no part in the swarm; its file comes as a stream."""
    old = serve_odd(scene.stage.node("old"), scene.model, scene.true, "count_chunks")
    leecher = scene.stage.node("leecher")
    done = pull(leecher, scene.oid, "--peer", old.address)
    assert done.code == 0, done.err
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    (line,) = [line for line in done.err.splitlines() if "is dropped" in line]
    assert f"peer {old.address} is dropped" in line
    assert f"{scene.true.piece_count} pieces of {scene.oid}, which has {scene.true.parts.count} here" in line
    assert "older version" in line
    summary = pulled(
        scene.stage.node("another"), scene.oid, "--peer", old.address, "--peer", scene.seeder.address
    )
    assert summary["rejected"] == {}


def test_a_peer_that_takes_no_part_is_not_waited_for(scene: Scene) -> None:
    stage = scene.stage
    declining = serve_odd(stage.node("declining"), scene.model, scene.true, "decline")
    leecher = stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="600")  # a stall would outlast the test
    summary = pulled(leecher, scene.oid, "--peer", declining.address)
    assert (leecher.directory / "got.bin").read_bytes() == scene.content  # by HTTP, as a whole
    assert summary["rejected"] == {}


def test_no_peer(scene: Scene) -> None:
    leecher = scene.stage.node("leecher")
    error = error_of(pull(leecher, scene.oid, "--peer", "127.0.0.1:9"), 5)
    assert error["rejected"] == {}
    assert not (leecher.directory / "got.bin").exists()
    assert litter(leecher.directory) == []


def test_everybody_says_no(scene: Scene) -> None:
    leecher = scene.stage.node("leecher")
    with plain_origin({}) as origin:
        argv = ["1" * 64, "--peer", scene.seeder.address, "--origin", origin.url("/{oid}")]
        error_of(pull(leecher, *argv), 3)
    assert litter(leecher.directory) == []


def test_a_liar_does_not_survive_a_resume(scene: Scene) -> None:
    """Exit 4, then the same command with an honest peer more: nothing of the liar's is in the file."""
    leecher = scene.stage.node("leecher")
    error_of(pull(leecher, scene.oid, "--peer", scene.liar.address), 4)
    pulled(leecher, scene.oid, "--peer", scene.liar.address, "--peer", scene.seeder.address)
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    assert litter(leecher.directory) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_loses_nothing(scene: Scene, number: signal.Signals, code: int) -> None:
    leecher = scene.stage.node("leecher")
    argv = [scene.oid, "--peer", scene.slow.address]
    pulling = start_pull(leecher, *argv)
    wait_until(lambda: bytes_of(pulling, "bytes_verified") > 4 * MIB, "some bytes")
    done = pulling.stop(number)
    assert done.code == code
    assert "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if line]) == 1, done.err
    assert not (leecher.directory / "got.bin").exists()
    verified = bytes_of(pulling, "bytes_verified")
    summary = pulled(leecher, scene.oid, "--peer", scene.seeder.address)
    assert summary["bytes_fetched"] <= len(scene.content) - 0.95 * verified
    assert (leecher.directory / "got.bin").read_bytes() == scene.content


# Disk full.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_no_room_from_the_start(scene: Scene, small_disk: Path) -> None:
    leecher = scene.stage.node("leecher")
    argv = [scene.oid, "--peer", scene.seeder.address]
    error_of(pull(leecher, *argv, target=str(small_disk / "got.bin")), 6)
    assert not (small_disk / "got.bin").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    pulled(leecher, *argv, target=str(small_disk / "got.bin"))
    assert (small_disk / "got.bin").read_bytes() == scene.content
    assert litter(small_disk) == []


def test_the_disk_fills_in_the_middle(scene: Scene, small_disk: Path) -> None:
    """Without a manifest the size may be unknown: it fills when it fills, and goes on where it stopped."""
    leecher = scene.stage.node("leecher")
    target = str(small_disk / "got.bin")
    with plain_origin({"/model": scene.content}) as origin:
        argv = [scene.oid, "--origin", origin.url("/model")]
        error_of(pull(leecher, *argv, target=target), 6)
        assert not (small_disk / "got.bin").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        summary = pulled(leecher, *argv, target=target)
    assert summary["bytes_fetched"] < len(scene.content) - 12 * MIB
    assert (small_disk / "got.bin").read_bytes() == scene.content
    assert litter(small_disk) == []


def test_a_directory_that_does_not_exist(scene: Scene) -> None:
    leecher = scene.stage.node("leecher")
    argv = [scene.oid, "--peer", scene.seeder.address]
    assert "nowhere" in error_of(pull(leecher, *argv, target="nowhere/got.bin"), 3)["message"]


def test_three_seeders_share_the_work_and_a_limit_is_kept(scene: Scene) -> None:
    """Shares follow what each has to give; the one that is limited most gives no more than it was allowed."""
    limits = {"quick": "8M", "as quick": "8M", "narrow": "2M"}
    seeders = {
        name: scene.stage.node(name).serve("seed", scene.model, "--limit-up", limit)
        for name, limit in limits.items()
    }
    leecher = scene.stage.node("leecher")
    argv = [part for each in seeders.values() for part in ("--peer", each.address)]
    summary = pulled(leecher, scene.oid, *argv)
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    given: dict[str, int] = summary["bytes_by_peer"]  # type: ignore[assignment]
    shares = {name: given.get(seeder.address, 0) for name, seeder in seeders.items()}
    assert all(shares.values()), shares
    assert 2 * shares["narrow"] < min(shares["quick"], shares["as quick"]), shares
    seconds = float(str(summary["seconds"]))
    assert shares["narrow"] <= 2e6 * (seconds + 1), "at rest it may have saved up a second"
