"""Which files of a sharded model its index names, and what a publish and a pull say of those that are missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Megalfs

from megalfs.formats.weight_index import missing_shards

INDEX = "model.safetensors.index.json"


def index_of(*shards: object) -> bytes:
    return json.dumps({"weight_map": {f"tensor{i}": shard for i, shard in enumerate(shards)}}).encode()


@pytest.mark.parametrize(
    ("name", "shards", "names", "missing"),
    [
        (INDEX, ["a", "b", "a"], ["a", "b"], []),
        (INDEX, ["a", "c", "b"], ["a"], ["b", "c"]),
        (f"below/{INDEX}", ["a", "b"], ["below/a", "b"], ["b"]),
        (INDEX, ["../a", "/etc/passwd"], ["a"], ["../a", "/etc/passwd"]),
        (INDEX, [1, None, ["a"]], [], []),
    ],
)
def test_missing(name: str, shards: list[object], names: list[str], missing: list[str]) -> None:
    assert missing_shards(name, index_of(*shards), names) == missing


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"weight_map": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_index_names_nothing(content: bytes) -> None:
    assert missing_shards(INDEX, content, []) == []


def test_publish_and_pull_say_so(new_node: Callable[[str], Megalfs], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "one.safetensors").write_bytes(b"1" * 100)
    (model / INDEX).write_bytes(index_of("one.safetensors", "two.safetensors", "../../etc/\x1b[2J"))
    said = f"{INDEX} names 2 files that are not in model: '../../etc/"
    publisher = new_node("publisher")
    done = publisher.ok("publish", model)
    assert said in done.err
    assert "\x1b" not in done.err
    seeder = publisher.seed(model)
    assert said in seeder.err
    leecher = new_node("leecher")
    assert said in leecher.ok("pull", seeder.link, "--peer", seeder.address, "--no-discover").err
    (model / INDEX).write_bytes(index_of("one.safetensors"))
    assert "names" not in publisher.ok("publish", model).err
