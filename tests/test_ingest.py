"""Publishing: the manifest of a file is right however it is read, and a file that changes meanwhile is refused."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from helpers_store import (
    MIB,
    REPOSITORY,
    end,
    make_store,
    published,
    random_bytes,
    read_line,
    safetensors_bytes,
    start,
)
from msgspec.structs import replace

from megalfs.core.chunker import DEFAULT_PROFILE, chunk_buffer
from megalfs.core.ids import Oid
from megalfs.core.manifest import Manifest
from megalfs.core.tree import Tree
from megalfs.errors import IntegrityError, MegalfsError, NotFoundError, PolicyError, UsageError
from megalfs.formats.layout import Layout, Plain
from megalfs.formats.manifest_fields import EncodedManifest
from megalfs.node.publishing import publish_path
from megalfs.store.cutting import SLOT_BYTES
from megalfs.store.identity import ChangedError
from megalfs.store.ingest import LANES_BYTES, hash_file, publish
from megalfs.store.publish_tree import publish_tree

LARGE = 3 * SLOT_BYTES
SIZES = [0, 1, DEFAULT_PROFILE.min, DEFAULT_PROFILE.min + 1, MIB - 1, MIB, MIB + 1,
         SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, SLOT_BYTES + MIB, 5 * SLOT_BYTES + 12345,
         3 * LANES_BYTES + 12345]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_every_column_is_right(tmp_path: Path, size: int) -> None:
    content = random_bytes(size)
    with make_store(tmp_path) as store:
        manifest = published(store, tmp_path / "file", content)
    ends, layout = chunk_buffer(content)
    assert manifest.oid.raw == hashlib.sha256(content).digest()
    assert (manifest.size, manifest.layout) == (size, layout)
    assert np.array_equal(manifest.offsets[1:], ends)
    starts = [0, *ends.tolist()]
    chunks = [content[a:b] for a, b in pairwise(starts)]
    assert manifest.blake3.tobytes() == b"".join(blake3.blake3(chunk).digest() for chunk in chunks)
    assert manifest.sha256.tobytes() == b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    assert manifest.has_states


def test_a_safetensors_file_is_cut_at_its_tensors(tmp_path: Path) -> None:
    content = safetensors_bytes({f"t{i}": random_bytes(3 * MIB + i, seed=i) for i in range(4)})
    with make_store(tmp_path) as store:
        manifest = published(store, tmp_path / "m.safetensors", content)
    assert manifest.tensors is not None
    cuts = set(manifest.offsets.tolist())
    assert {tensor.offset for tensor in manifest.tensors} <= cuts
    assert np.array_equal(manifest.offsets[1:], chunk_buffer(content)[0])


def test_a_header_longer_than_the_first_read(tmp_path: Path) -> None:
    content = safetensors_bytes({"x" * 200 + str(i): b"ab" for i in range(3000)})
    with make_store(tmp_path) as store:
        manifest = published(store, tmp_path / "m.safetensors", content)
    assert manifest.tensors is not None
    assert len(manifest.tensors) == 3000


def test_zeros_and_a_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(3 * SLOT_BYTES + 7)
    with make_store(tmp_path) as store:
        found = publish(store, path)
    assert found.oid.raw == hashlib.sha256(bytes(3 * SLOT_BYTES + 7)).digest()


def test_progress_adds_up_and_nothing_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(LARGE))
    seen: list[int] = []
    with make_store(tmp_path) as store:
        publish(store, path, progress=seen.append)
        assert sum(seen) == LARGE
        stored = sum(entry.stat().st_size for entry in store.root.path.rglob("*") if entry.is_file())
    assert stored < 200_000


def test_a_first_publish_does_not_import_numpy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(safetensors_bytes({"t": random_bytes(LARGE)}))
    code = (
        "import sys; from pathlib import Path\n"
        "from megalfs.store.root import Root; from megalfs.store.blobs import Store\n"
        "from megalfs.store.ingest import publish\n"
        "store = Store(Root.open(Path(sys.argv[1]), create=True))\n"
        "early = {'numpy', 'cryptography', 'asyncio', 'aiohttp'}\n"
        "publish(store, Path(sys.argv[2]), progress=lambda count: early.intersection_update(sys.modules))\n"
        "print(sorted(early), 'numpy' in sys.modules)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "root"), str(path)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ).stdout  # fmt: skip
    assert said == "[] False\n"


def gguf_bytes() -> bytes:
    """A GGUF file of one F32 vector."""
    name, count = b"blk.0.weight", 300_000
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)
    header += struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, count, 0, 0)
    return header + bytes(-len(header) % 32) + random_bytes(4 * count)


ENCODED = {
    "empty": b"",
    "one byte": b"x",
    "small": random_bytes(DEFAULT_PROFILE.min),
    "plain": random_bytes(LARGE + 17),
    "safetensors": safetensors_bytes({f"ä{i}": random_bytes(MIB + i, seed=i) for i in range(5)}),
    "gguf": gguf_bytes(),
}


@pytest.mark.parametrize("name", ENCODED)
def test_the_manifest_is_the_one_that_a_decoder_writes(tmp_path: Path, name: str) -> None:
    """Publishing has no numpy, pulling has; both must come to the same bytes, or ids would differ."""
    path = tmp_path / "file"
    path.write_bytes(ENCODED[name])
    with path.open("rb") as file:
        made = hash_file(file.fileno(), len(ENCODED[name]))
    read = Manifest.decode(made.encoded, oid=made.oid)
    again = replace(read)  # nothing cached: encodes anew, from arrays
    assert again.encode() == made.encode() == made.encoded
    assert (again.id, again.oid, again.size, again.piece_count) == (
        made.id, made.oid, made.size, made.piece_count,
    )  # fmt: skip
    assert (name in ("safetensors", "gguf")) == (read.tensors is not None)
    assert made.oid.raw == hashlib.sha256(ENCODED[name]).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"size": 11},
        {"size": -1},
        {"lengths": array("I", [10, 0])},
        {"lengths": array("I", [10])},
        {"lengths": array("I", [2 << 20, 10]), "size": (2 << 20) + 10},
        {"blake3": bytes(32)},
        {"sha256": bytes(96)},
        {"states": bytes(32)},
        {"layout": Layout("gguf", 11, ())},
        {"size": 0, "lengths": array("I"), "blake3": b"", "sha256": b""},
    ],
)
def test_columns_that_cannot_be_of_one_blob_are_not_encoded(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "oid": Oid(bytes(32)), "size": 10, "profile": DEFAULT_PROFILE, "layout": Plain("unknown-format"),
        "lengths": array("I", [4, 6]), "blake3": bytes(64), "sha256": bytes(64), "states": b"",
    }  # fmt: skip
    assert EncodedManifest.of(**fields).piece_count == 2
    with pytest.raises(IntegrityError, match="manifest of"):
        EncodedManifest.of(**{**fields, **change})


def test_a_second_publish_reads_nothing_and_does_not_import_numpy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(LARGE))
    with make_store(tmp_path) as store:
        first = publish(store, path, is_signed=True)
    code = (
        "import sys; from pathlib import Path\n"
        "from megalfs.store.root import Root; from megalfs.store.blobs import Store\n"
        "from megalfs.store.ingest import publish\n"
        "store = Store(Root.open(Path(sys.argv[1]), create=False))\n"
        "found = publish(store, Path(sys.argv[2]), is_signed=True, progress=lambda count: sys.exit('read it'))\n"
        "heavy = {'numpy', 'cryptography', 'aiohttp', 'blake3'} & set(sys.modules)\n"
        "print(found.oid, found.chunks, sorted(heavy))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "root"), str(path)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ).stdout  # fmt: skip
    assert said == f"{first.oid} {first.chunks} []\n"


def test_a_signed_publish_carries_the_roots_signature_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with make_store(tmp_path) as store:
        for _ in range(2):
            found = publish(store, path, is_signed=True)
        assert found.manifest_id is not None
        (signature,) = store.signatures(found.manifest_id, found.oid)
        signature.verify(found.manifest_id)
        assert signature.key == store.root.public_key()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(160 * MIB)
    with make_store(tmp_path) as store:
        publish_small = tmp_path / "small"
        publish_small.write_bytes(random_bytes(LARGE))
        publish(store, publish_small)  # imports are not what is measured
        tracemalloc.start()
        try:
            publish(store, path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 64 * MIB


@pytest.mark.parametrize("change", ["truncate", "grow", "edit", "touch"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(4 * SLOT_BYTES))
    seen = 0

    def interfere(count: int) -> None:
        nonlocal seen
        seen += count
        if seen == count:  # after the first window
            with path.open("r+b") as file:
                if change == "truncate":
                    file.truncate(SLOT_BYTES + 5)
                elif change == "grow":
                    file.seek(0, os.SEEK_END)
                    file.write(b"more")
                elif change == "edit":
                    file.seek(3 * SLOT_BYTES)
                    file.write(b"edited")
            if change == "touch":
                os.utime(path, ns=(1, 1))

    with make_store(tmp_path) as store:
        with pytest.raises(ChangedError, match="cannot publish") as caught:
            publish(store, path, progress=interfere)
        assert "\n" not in str(caught.value)
        assert store.blobs() == []


def test_another_process_that_truncates_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(4 * SLOT_BYTES))
    process = start(
        "import os, sys; print('ready', flush=True); sys.stdin.readline(); os.truncate(sys.argv[1], 1000);"
        "print('done', flush=True)",
        path,
    )
    assert read_line(process) == "ready"
    asked = False

    def ask(_count: int) -> None:
        nonlocal asked
        if not asked:
            asked = True
            assert process.stdin is not None
            process.stdin.write("now\n")
            process.stdin.flush()
            assert read_line(process) == "done"

    with make_store(tmp_path) as store, pytest.raises(ChangedError):
        publish(store, path, progress=ask)
    assert end(process) == 0


def test_a_callback_that_raises_stops_the_threads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(4 * SLOT_BYTES))

    def refuse(_count: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with make_store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        publish(store, path, progress=refuse)
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "link to directory", "missing", "dangling"])
def test_what_is_no_regular_file_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "target"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path = Path("/dev/null")
        case "link to directory":
            path.symlink_to(tmp_path)
        case "dangling":
            path.symlink_to("nowhere")
    with make_store(tmp_path) as store, pytest.raises(MegalfsError) as caught:
        publish(store, path)
    assert isinstance(caught.value, NotFoundError if kind in ("missing", "dangling") else UsageError)
    assert repr(str(path)) in str(caught.value)


def test_a_symlink_to_a_file_publishes_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    with make_store(tmp_path) as store:
        found = publish(store, tmp_path / "link")
        assert found.path == tmp_path / "link"
        blob = store.find(found.oid)
        assert blob is not None
        assert [place.path for place in blob.places] == [tmp_path / "real"]


def test_a_file_just_written_is_settled_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        for round_ in range(10):
            path.write_bytes(b"%02d" % round_)
            publish(store, path)
            path.write_bytes(b"%02d" % (round_ + 50))  # the same size, perhaps within one tick of the clock
            assert store.at(path) is None, "a write right after publish went unnoticed"


def test_a_directory_becomes_a_tree(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    (directory / ".git").mkdir()
    (directory / ".git" / "config").write_text("secret")
    (directory / "b").write_bytes(b"bb")
    (directory / "sub" / "a").write_bytes(b"a")
    (directory / "run.sh").write_bytes(b"#!")
    (directory / "run.sh").chmod(0o755)
    (directory / ".b.12345678.00000000.megalfs-part").write_bytes(b"partial")
    (directory / "cached").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_bytes(b"from a model cache")
    names: list[str] = []
    with make_store(tmp_path) as store:
        found = publish_tree(store, directory, is_signed=True, on_file=lambda entry: names.append(entry.name))
        tree = Tree.decode(store.read_bytes(found.tree.oid, bytes_max=MIB))
        assert [(entry.path, entry.is_executable) for entry in tree.entries] == [
            ("b", False), ("cached", False), ("run.sh", True), ("sub/a", False),
        ]  # fmt: skip
        assert names == [entry.path for entry in tree.entries]
        assert [entry.oid for entry in tree.entries] == [file.oid for file in found.files]
        assert publish_tree(store, directory).tree.oid == found.tree.oid
        assert found.tree.manifest_id is not None
        assert store.signatures(found.tree.manifest_id, found.tree.oid)


@pytest.mark.parametrize("bad", ["link", "fifo", "name", "case"])
def test_a_directory_that_nobody_could_pull_is_refused(tmp_path: Path, bad: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    if bad == "link":
        (directory / "x").symlink_to(tmp_path)
    elif bad == "fifo":
        os.mkfifo(directory / "x")
    elif bad == "case":
        (directory / "x").write_bytes(b"")
        (directory / "X").write_bytes(b"")
    else:
        (directory / "x\x1b[31m").write_bytes(b"")
    with make_store(tmp_path) as store, pytest.raises((UsageError, PolicyError)) as caught:
        publish_path(store, directory)
    assert "\x1b" not in str(caught.value)


def test_a_directory_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model" / ".git").mkdir(parents=True)
    with make_store(tmp_path) as store, pytest.raises(UsageError, match="no files below"):
        publish_path(store, tmp_path / "model")


def test_two_processes_publish_into_one_root_at_once(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from megalfs.store.blobs import Store
        from megalfs.store.ingest import publish
        from megalfs.store.root import Root
        directory = Path(sys.argv[1])
        store = Store(Root.open(directory / "root", create=True))
        print("ready", flush=True)
        sys.stdin.readline()
        for index in range(40):
            publish(store, directory / f"{sys.argv[2]}-{index}", is_signed=True)
            publish(store, directory / f"shared-{index}", is_signed=True)
        print(len(store.blobs()), flush=True)
    """
    for index in range(40):
        for name in ("a", "b", "shared"):
            (tmp_path / f"{name}-{index}").write_bytes(f"{name} {index}".encode())
    processes = [start(code, tmp_path, name) for name in "ab"]
    assert [read_line(process) for process in processes] == ["ready"] * 2
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [int(read_line(process)) for process in processes]
    assert [end(process) for process in processes] == [0, 0]
    assert max(counts) == 120
    with make_store(tmp_path) as store:
        before = store.blobs()
        assert len(before) == 120
        assert all(len(blob.places) == 1 and len(blob.manifests) == 1 for blob in before)
        assert store.repair() == 120
        assert store.blobs() == before


def test_a_publisher_killed_at_any_moment_leaves_a_store_that_works(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from megalfs.store.blobs import Store
        from megalfs.store.ingest import publish
        from megalfs.store.root import Root
        directory = Path(sys.argv[1])
        store = Store(Root.open(directory / "root", create=True))
        for index in range(int(sys.argv[2]), 10**6):
            (directory / f"f{index}").write_bytes(b"%d" % index)
            publish(store, directory / f"f{index}")
            print(index, flush=True)
    """
    done = 0
    for _ in range(4):
        process = start(code, tmp_path, done)
        said = [read_line(process) for _ in range(20)]
        end(process, kill=True)
        done = int(said[-1]) + 1
    with make_store(tmp_path) as store:
        held = {place.path.name for blob in store.blobs() for place in blob.places}
        assert {f"f{index}" for index in range(done)} <= held
        assert all(
            store.verify(blob.oid) == {place.path: True for place in blob.places} for blob in store.blobs()
        )
