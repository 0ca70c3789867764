"""What was verified once is not fetched again: after kill -9, in two pulls at once, from an older version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from adversaries import (
    MIB,
    Stage,
    error_of,
    flip,
    litter,
    make_model,
    manifest_of,
    plain_origin,
    pull,
    pulled,
)
from processes import Megalfs, Running, wait_until

from megalfs.store.partial_state import read_state

SEED = 20_261_121


@dataclass(frozen=True)
class Scene:
    """A model on a seeder that is quick and on one that is limited."""

    stage: Stage
    model: Path
    content: bytes
    oid: str
    quick: tuple[str, str]
    slow: tuple[str, str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("resume")
    stage = Stage(directory)
    model = make_model(directory)
    quick = stage.node("quick").seed(model)
    slow = stage.node("slow").serve("seed", model, "--limit-up", "8M")
    oid = str(quick.records[0]["oid"])
    peers = [("--peer", each.address) for each in (quick, slow)]
    yield Scene(stage, model, model.read_bytes(), oid, peers[0], peers[1])
    stage.close()


def start(node: Megalfs, *argv: object) -> Running:
    """A pull that will be interrupted."""
    return node.start("pull", *argv, "-o", "got.bin", "--no-discover", "--json")


def verified(pulling: Running) -> int:
    """What the last whole progress object says."""
    return max((int(str(r.get("bytes_verified", 0))) for r in pulling.records), default=0)


def interrupted(scene: Scene, node: Megalfs, *, at: int) -> int:
    """Pulls from the slow seeder and kills the pull once so many bytes are verified; how many it said."""
    pulling = start(node, scene.oid, *scene.slow)
    wait_until(lambda: verified(pulling) >= at, f"{at} bytes verified")
    pulling.kill()
    assert not (node.directory / "got.bin").exists()
    return verified(pulling)


def is_right(scene: Scene, node: Megalfs) -> bool:
    """Whether the file is there, right, and nothing lies beside it."""
    return (node.directory / "got.bin").read_bytes() == scene.content and litter(node.directory) == []


@pytest.mark.parametrize("seed", range(3))
def test_kill_at_a_random_moment(scene: Scene, seed: int) -> None:
    rng = Random(SEED + seed)
    node = scene.stage.node(f"killed {seed}")
    before = interrupted(scene, node, at=rng.randrange(6 * MIB, 18 * MIB))
    summary = pulled(node, scene.oid, *scene.quick)
    again = summary["bytes_fetched"] - (len(scene.content) - before)
    assert again <= 0.05 * before, f"seed {SEED + seed}: {again} of {before} bytes came again"
    assert is_right(scene, node)


def test_a_kill_with_a_part_of_most_chunks(scene: Scene) -> None:
    """A seeder of several gives each a part here and a part there: few chunks are whole, the others count too."""
    seeder = scene.stage.node("of three").serve("seed", scene.model, "--limit-up", "6M")
    nodes = [scene.stage.node(f"leecher {number}") for number in range(3)]
    pulls = [start(node, scene.oid, "--peer", seeder.address) for node in nodes]
    wait_until(lambda: verified(pulls[0]) >= 5 * MIB, "some bytes are verified")
    for pulling in pulls:
        pulling.kill()
    node, before = nodes[0], verified(pulls[0])
    state = read_state(partial_of(node)[1])
    assert state is not None
    whole = sum(manifest_of(scene.model).run_extent(*run)[1] for run in state.bits().runs())
    assert whole < 0.8 * before, "this is about chunks that are not whole"
    summary = pulled(node, scene.oid, *scene.quick)
    again = summary["bytes_fetched"] - (len(scene.content) - before)
    assert again <= 0.1 * before, f"{again} of {before} bytes came again"
    assert summary["bytes_reused"] >= 0.9 * before
    assert is_right(scene, node)


def test_kill_again_and_again(scene: Scene) -> None:
    rng = Random(SEED)
    node = scene.stage.node("killed often")
    at = 0
    for _ in range(3):
        at = interrupted(scene, node, at=at + rng.randrange(2 * MIB, 5 * MIB))
    summary = pulled(node, scene.oid, *scene.quick)
    assert summary["bytes_fetched"] <= len(scene.content) - 0.95 * at, f"seed {SEED}"
    assert is_right(scene, node)


def partial_of(node: Megalfs) -> tuple[Path, Path]:
    """The one partial and its sidecar."""
    (part,) = node.directory.glob(".got.bin.*.megalfs-part")
    (state,) = node.directory.glob(".got.bin.*.megalfs-state")
    return part, state


def test_a_garbage_sidecar(scene: Scene) -> None:
    """Nothing it says is believed; every piece of the partial is looked at."""
    node = scene.stage.node("garbage")
    before = interrupted(scene, node, at=8 * MIB)
    _, state = partial_of(node)
    state.write_bytes(Random(SEED).randbytes(state.stat().st_size))
    summary = pulled(node, scene.oid, *scene.quick)
    assert (node.directory / "got.bin").read_bytes() == scene.content
    del summary, before  # whose partial it was cannot be known for 30 s, so it may be left to `gc`


def test_bytes_of_the_partial_that_changed(scene: Scene) -> None:
    node = scene.stage.node("flipped")
    before = interrupted(scene, node, at=8 * MIB)
    part, _ = partial_of(node)
    content = part.read_bytes()
    flip(part, *(offset for offset in range(0, len(content), MIB) if content[offset]))
    summary = pulled(node, scene.oid, *scene.quick)
    assert is_right(scene, node)
    assert summary["bytes_fetched"] > len(scene.content) - before


def test_two_pulls_of_one_target_from_one_root(scene: Scene) -> None:
    node = scene.stage.node("twice")
    pulls = [start(node, scene.oid, *scene.slow) for _ in range(2)]
    done = [pulling.wait() for pulling in pulls]
    assert [each.code for each in done] == [0, 0], [each.err for each in done]
    assert is_right(scene, node)


def test_two_pulls_of_one_target_from_two_roots(scene: Scene) -> None:
    one, two = scene.stage.node("one"), scene.stage.node("two")
    target = one.directory / "got.bin"
    argv = [scene.oid, *scene.slow, "--no-discover", "--json", "-o", target]
    pulls = [node.start("pull", *argv) for node in (one, two)]
    done = [pulling.wait() for pulling in pulls]
    assert [each.code for each in done] == [0, 0], [each.err for each in done]
    assert is_right(scene, one)


def test_a_kill_under_a_manifest_and_only_an_origin_left(scene: Scene) -> None:
    """The partial has holes and no manifest to tell them: it is no beginning of a stream."""
    node = scene.stage.node("origin left")
    interrupted(scene, node, at=4 * MIB)
    with plain_origin({"/model": scene.content}) as origin:
        summary = pulled(node, scene.oid, "--origin", origin.url("/model"))
    assert summary["rejected"] == {}
    assert is_right(scene, node)


def test_a_kill_of_a_plain_stream(scene: Scene) -> None:
    node = scene.stage.node("stream")
    with plain_origin({"/model": scene.content}) as origin:
        argv = [scene.oid, "--origin", origin.url("/model")]
        pulling = start(node, *argv, "--limit-down", "8M")
        wait_until(lambda: verified(pulling) > 6 * MIB, "some bytes")
        pulling.kill()
        before = verified(pulling)
        summary = pulled(node, *argv)
        assert summary["bytes_fetched"] <= len(scene.content) - 0.95 * before
    assert is_right(scene, node)


# Older versions.


@pytest.fixture(scope="module")
def newer(scene: Scene) -> tuple[bytes, str, tuple[str, str]]:
    """The model with one tensor changed, on a seeder of its own."""
    content = bytearray(scene.content)
    start = 9 * MIB
    content[start : start + MIB] = Random(SEED).randbytes(MIB)
    node = scene.stage.node("newer")
    path = node.directory / "model.safetensors"
    path.write_bytes(content)
    running = node.seed(path)
    return bytes(content), str(running.records[0]["oid"]), ("--peer", running.address)


def test_an_older_version_that_was_published(scene: Scene, newer: tuple[bytes, str, tuple[str, str]]) -> None:
    content, oid, peer = newer
    node = scene.stage.node("older published")
    target = node.directory / "got.bin"
    target.write_bytes(scene.content)
    node.ok("publish", target)
    summary = pulled(node, oid, *peer)
    assert target.read_bytes() == content
    assert summary["bytes_fetched"] < 4 * MIB
    assert summary["bytes_reused"] == len(content) - summary["bytes_fetched"]
    assert litter(node.directory) == []


def test_an_older_version_that_nobody_knows(scene: Scene, newer: tuple[bytes, str, tuple[str, str]]) -> None:
    content, oid, peer = newer
    node = scene.stage.node("older unknown")
    target = node.directory / "got.bin"
    target.write_bytes(scene.content)
    error_of(pull(node, oid, *peer), 10)
    assert target.read_bytes() == scene.content
    summary = pulled(node, oid, *peer, "--force")
    assert target.read_bytes() == content
    assert summary["bytes_fetched"] < 4 * MIB


def test_chunks_of_another_file_are_reused(scene: Scene, newer: tuple[bytes, str, tuple[str, str]]) -> None:
    content, oid, peer = newer
    node = scene.stage.node("other file")
    other = node.directory / "other.bin"
    other.write_bytes(scene.content)
    node.ok("publish", other)
    summary = pulled(node, oid, *peer)
    assert (node.directory / "got.bin").read_bytes() == content
    assert summary["bytes_fetched"] < 4 * MIB


def test_a_reused_file_that_changed_since(scene: Scene, newer: tuple[bytes, str, tuple[str, str]]) -> None:
    """What the index promises is hashed on the way: a flipped byte costs a chunk, not the pull."""
    content, oid, peer = newer
    node = scene.stage.node("changed file")
    other = node.directory / "other.bin"
    other.write_bytes(scene.content)
    node.ok("publish", other)
    flip(other, 3 * MIB, 20 * MIB)
    pulled(node, oid, *peer)
    assert (node.directory / "got.bin").read_bytes() == content
