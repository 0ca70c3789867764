"""Leechers help each other while they pull, by trackers and without being reachable; and what a pull says meanwhile."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from adversaries import MIB, Stage, litter, make_model, pulled
from processes import Done, Megalfs, Running, free_port, wait_until

RATE = "1500K"  # slow enough that a second process starts while the first still pulls, on a busy machine too
PROGRESS_KEYS = {"event", "bytes_total", "bytes_verified", "bytes_fetched", "bytes_reused"}
DONE_KEYS = {
    "event", "files", "bytes_fetched", "bytes_reused", "bytes_origin", "bytes_by_peer", "seconds", "rejected",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A model on a limited seeder that a tracker knows."""

    stage: Stage
    content: bytes
    oid: str
    link: str
    seeder: Running
    tracker: str
    quick: Running


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("swarm")
    stage = Stage(directory)
    model = make_model(directory, size=8 * MIB)
    tracker = f"http://{stage.node('tracker').serve('tracker').address}"
    seeder = stage.node("seeder").serve("seed", model, "--limit-up", RATE, "--tracker", tracker)
    quick = stage.node("quick").seed(model)
    yield Scene(stage, model.read_bytes(), str(seeder.records[0]["oid"]), seeder.link, seeder, tracker, quick)
    stage.close()


def start(scene: Scene, node: Megalfs, *argv: object) -> Running:
    """A pull that runs beside others."""
    return node.start("pull", *argv, "-o", "got.bin", "--no-discover", "--json")


def finished(scene: Scene, node: Megalfs, pulling: Running) -> Done:
    """Its end, which must be a good one."""
    done = pulling.wait()
    assert done.code == 0, done.err
    assert (node.directory / "got.bin").read_bytes() == scene.content
    assert litter(node.directory) == []
    return done


def from_others(done: Done, seeder: Running) -> int:
    """Bytes that came from anybody but the seeder."""
    by_peer: dict[str, int] = done.records[-1]["bytes_by_peer"]  # type: ignore[assignment]
    return sum(count for name, count in by_peer.items() if name != seeder.address)


def test_leechers_that_meet_at_a_tracker_help_each_other(scene: Scene) -> None:
    nodes = [scene.stage.node(f"leecher {number}") for number in range(2)]
    argv = [scene.oid, "--tracker", scene.tracker, "--listen", "127.0.0.1:0", "--linger", "6"]
    pulls = [start(scene, node, *argv) for node in nodes]
    done = [finished(scene, node, pulling) for node, pulling in zip(nodes, pulls, strict=True)]
    assert sum(from_others(each, scene.seeder) for each in done) > MIB


def test_a_second_leecher_gets_pieces_from_the_first(scene: Scene) -> None:
    """The first still pulls; the second names it beside the seeder."""
    first, second = scene.stage.node("first"), scene.stage.node("second")
    port = free_port()
    listen = ["--listen", f"127.0.0.1:{port}", "--linger", "6"]
    one = start(scene, first, scene.link, *listen)
    wait_until(lambda: verified(one) > 2 * MIB, "the first has begun")
    two = start(scene, second, scene.link, "--peer", f"127.0.0.1:{port}")
    done = finished(scene, second, two)
    finished(scene, first, one)
    assert from_others(done, scene.seeder) > MIB


def test_who_cannot_be_reached_serves_over_what_it_dialled(scene: Scene) -> None:
    """The first does not listen at all; it dials the second, which gets pieces over that connection."""
    hidden, open_ = scene.stage.node("hidden"), scene.stage.node("open")
    port = free_port()
    two = start(scene, open_, scene.link, "--listen", f"127.0.0.1:{port}", "--linger", "6")
    wait_until(lambda: verified(two) > 0, "the open one has begun")
    # Nobody can dial it: it says that it listens where nobody does.
    argv = [scene.link, "--peer", f"127.0.0.1:{port}", "--advertise", "127.0.0.1:9"]
    one = start(scene, hidden, *argv)
    done = finished(scene, open_, two)
    finished(scene, hidden, one)
    assert from_others(done, scene.seeder) > 0


def test_two_leechers_that_never_meet(scene: Scene) -> None:
    """What the seeder gave one of them spreads to nobody: it must go to the other, not to the same one again."""
    nodes = [scene.stage.node(f"apart {number}") for number in range(2)]
    pulls = [start(scene, node, scene.link, "--listen", "127.0.0.1:0") for node in nodes]
    for node, pulling in zip(nodes, pulls, strict=True):
        done = finished(scene, node, pulling)
        fetched = int(str(done.records[-1]["bytes_fetched"]))
        assert fetched < 1.5 * len(scene.content)


def verified(pulling: Running) -> int:
    """What the last whole progress object says."""
    return max((int(str(r.get("bytes_verified", 0))) for r in pulling.records), default=0)


# What a pull says.


def test_json_comes_twice_a_second_and_flushed(scene: Scene) -> None:
    node = scene.stage.node("json")
    pulling = start(scene, node, scene.link)
    times: list[float] = []

    def is_over() -> bool:
        while len(times) < len(pulling.records):
            times.append(time.monotonic())
        return pulling.process.poll() is not None

    wait_until(is_over, "the pull is over")
    done = finished(scene, node, pulling)
    progress = [record for record in done.records if record["event"] == "progress"]
    assert all(record.keys() >= PROGRESS_KEYS for record in progress)
    assert {record["bytes_total"] for record in progress[2:]} == {len(scene.content)}
    seconds = float(str(done.records[-1]["seconds"]))
    assert len(progress) >= 2 * seconds - 1
    assert max(b - a for a, b in itertools.pairwise(times)) < 2.0  # 0.5 on a machine that is not busy
    last = done.records[-1]
    assert last.keys() >= DONE_KEYS
    by_peer: dict[str, int] = last["bytes_by_peer"]  # type: ignore[assignment]
    assert sum(by_peer.values()) == last["bytes_fetched"]
    assert set(by_peer) == {scene.seeder.address}


def test_a_line_on_a_pipe_and_one_at_the_end(scene: Scene) -> None:
    node = scene.stage.node("lines")
    done = node.ok("pull", scene.quick.link, "-o", "got.bin", "--no-discover")
    assert done.out == f"{node.directory / 'got.bin'}\n"
    lines = done.err.splitlines()
    assert all(line.startswith("megalfs: ") for line in lines)
    assert re.search(r"pulled 1 file, 8\.0 MiB in .*1 source, 0% origin, 0% reused", lines[-1])
    assert "\r" not in done.err
    assert "\x1b" not in done.err


def test_quiet_says_nothing(scene: Scene) -> None:
    node = scene.stage.node("quiet")
    assert node.ok("pull", scene.quick.link, "-o", "got.bin", "--no-discover", "-q").err == ""


def test_no_share_serves_nobody(scene: Scene) -> None:
    node = scene.stage.node("no share")
    assert pulled(node, scene.quick.link, "--no-share")["bytes_fetched"] >= len(scene.content)
