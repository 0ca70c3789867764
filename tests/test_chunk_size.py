"""`publish --chunk-size`: what is cut so, served so, pulled so, and what is not taken."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from adversaries import MIB
from processes import Done, Megalfs

from megalfs.core.ids import ManifestId, Oid
from megalfs.store.blobs import Store
from megalfs.store.root import Root

NewNode = Callable[[str], Megalfs]
CONTENT = os.urandom(24 * MIB)


def publish(node: Megalfs, *argv: object) -> dict[str, object]:
    """Publishes `model.bin`; what is said of it."""
    (node.directory / "model.bin").write_bytes(CONTENT)
    done: Done = node.ok("publish", "model.bin", "--json", *argv)
    return dict(done.records[-1])


def lengths_of(node: Megalfs, record: dict[str, object]) -> tuple[str, list[int]]:
    """The profile and the lengths of the chunks, as the store has them."""
    with Store(Root.open(node.root, create=False)) as store:
        manifest = store.load_manifest(
            ManifestId.parse(str(record["manifest"])), Oid.parse(str(record["oid"]))
        )
        return manifest.profile, [int(length) for length in manifest.lengths]


@pytest.mark.parametrize(("size", "average"), [("64K", 64 << 10), ("128K", 128 << 10), ("4M", 4 << 20)])
def test_a_file_is_cut_and_pulled_so(new_node: NewNode, size: str, average: int) -> None:
    owner, puller = new_node("owner"), new_node("puller")
    record = publish(owner, "--chunk-size", size)
    profile, lengths = lengths_of(owner, record)
    assert profile == f"tensor-fastcdc-{average >> 12}-{average >> 10}-{average >> 8}/1"
    assert sum(lengths) == len(CONTENT)
    assert all(average // 4 <= length <= 4 * average for length in lengths[:-1])
    seeder = owner.seed("model.bin")
    puller.ok("pull", record["oid"], "-o", "got.bin", "--peer", seeder.address, "--no-discover")
    assert (puller.directory / "got.bin").read_bytes() == CONTENT
    assert lengths_of(puller, record) == (profile, lengths)  # by its pieces, not as one stream


def test_another_size_is_another_manifest_of_the_same_blob(new_node: NewNode) -> None:
    owner = new_node("owner")
    first = publish(owner)
    assert lengths_of(owner, first)[0] == "tensor-fastcdc-64-256-1024/1"
    (fine, again) = (
        owner.ok("publish", "model.bin", "--json", "--chunk-size", "64K").records[-1] for _ in "ab"
    )
    assert fine["oid"] == first["oid"]
    assert fine["manifest"] == again["manifest"] != first["manifest"]


@pytest.mark.parametrize("size", ["63K", "100K", "8M", "32K", "0K", "big", "-1M", "1G"])
def test_what_is_no_chunk_size(new_node: NewNode, size: str) -> None:
    node = new_node("node")
    (node.directory / "model.bin").write_bytes(b"x")
    done = node.run("publish", "model.bin", f"--chunk-size={size}")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "--chunk-size" in done.err
