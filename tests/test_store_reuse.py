"""Reuse: what this disk has already is found, copied in long runs, and hashed on the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers_store import MIB, make_store, published, random_bytes, safetensors_bytes

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.manifest import Manifest
from megalfs.errors import CancelledByUserError, PolicyError, UsageError
from megalfs.store.blobs import Store
from megalfs.store.links import Linked, link_file
from megalfs.store.partial import Partial
from megalfs.store.reuse import ReusePlan, chunk_file, copy, plan

TENSORS = {f"layer{index}": random_bytes(MIB + 100 * index, seed=index) for index in range(8)}
OLD = safetensors_bytes(TENSORS)


def _manifest_of(tmp_path: Path, content: bytes) -> Manifest:
    with make_store(tmp_path, "publisher") as store:
        return published(store, tmp_path / "at the publisher", content)


def _copy_all(
    reuse: ReusePlan, content: bytes, target: Path, store: Store
) -> tuple[Bitfield, list[Run], int]:
    """Copies into a new partial; what was verified, what failed, and the bytes copied."""
    failed: list[Run] = []
    verified: list[Run] = []
    with Partial.create_or_resume(target, reuse.manifest, root=store.root) as partial:
        copied = copy(
            reuse,
            partial,
            lambda first, count: verified.append(Run(first, count)),
            lambda first, count: failed.append(Run(first, count)),
            lambda: False,
        )
        held = Bitfield.from_runs(reuse.manifest.piece_count, verified)
        assert partial.have == held
        for run in held.runs():
            offset, length = reuse.manifest.run_extent(*run)
            assert os.pread(partial.fd, length, offset) == content[offset : offset + length]
    return held, failed, copied


NEW = safetensors_bytes({**TENSORS, "layer3": random_bytes(MIB + 300, seed=99)})


def test_a_changed_tensor_costs_exactly_that_tensor(tmp_path: Path) -> None:
    manifest = _manifest_of(tmp_path, NEW)
    with make_store(tmp_path) as store:
        published(store, tmp_path / "v1", OLD)
        reuse = plan(manifest, store)
        missing = manifest.size - reuse.bytes_planned
        assert MIB + 300 <= missing <= MIB + 300 + 4096  # the tensor, and perhaps the header
        assert len(list(reuse.runs())) <= 3
        verified, failed, copied = _copy_all(reuse, NEW, tmp_path / "v2", store)
        assert verified == reuse.pieces
        assert (failed, copied) == ([], reuse.bytes_planned)


def test_tensors_in_another_order_are_all_found(tmp_path: Path) -> None:
    manifest = _manifest_of(tmp_path, safetensors_bytes(dict(reversed(TENSORS.items()))))
    with make_store(tmp_path) as store:
        published(store, tmp_path / "v1", OLD)
        reuse = plan(manifest, store)
        assert manifest.size - reuse.bytes_planned < 4096
        assert len(list(reuse.runs())) == len(TENSORS)


def test_an_older_version_at_the_target_is_chunked_first(tmp_path: Path) -> None:
    manifest = _manifest_of(tmp_path, NEW)
    target = tmp_path / "model"
    target.write_bytes(OLD)
    with make_store(tmp_path) as store:
        assert plan(manifest, store).bytes_planned == 0
        reuse = plan(manifest, store, [target, tmp_path / "missing", tmp_path])
        assert reuse.sources == (target,)
        assert manifest.size - reuse.bytes_planned < MIB + 5000
        verified, failed, _ = _copy_all(reuse, NEW, tmp_path / "new", store)
        assert verified == reuse.pieces
        assert failed == []


def test_only_what_is_wanted_is_planned(tmp_path: Path) -> None:
    manifest = _manifest_of(tmp_path, OLD)
    with make_store(tmp_path) as store:
        published(store, tmp_path / "v1", OLD)
        wanted = Bitfield.from_runs(manifest.piece_count, [(2, 3), (9, 1)])
        reuse = plan(manifest, store, wanted=wanted)
        assert reuse.pieces == wanted
        assert [part.run for part in reuse.runs()] == [Run(2, 3), Run(9, 1)]


def test_several_files_together(tmp_path: Path) -> None:
    manifest = _manifest_of(tmp_path, OLD)
    names = list(TENSORS)
    with make_store(tmp_path) as store:
        published(store, tmp_path / "a", safetensors_bytes({name: TENSORS[name] for name in names[:3]}))
        published(store, tmp_path / "b", safetensors_bytes({name: TENSORS[name] for name in names[3:]}))
        reuse = plan(manifest, store)
        assert len(reuse.sources) == 2
        assert manifest.size - reuse.bytes_planned < 4096


@pytest.mark.parametrize("change", ["edited", "truncated", "deleted"])
def test_a_source_that_changed_since_fails_and_harms_nothing(tmp_path: Path, change: str) -> None:
    manifest = _manifest_of(tmp_path, OLD)
    source = tmp_path / "v1"
    with make_store(tmp_path) as store:
        published(store, source, OLD)
        reuse = plan(manifest, store)
        assert reuse.pieces.is_full
        if change == "edited":
            with source.open("r+b") as file:
                file.seek(3 * MIB)
                file.write(b"edited")
        elif change == "truncated":
            os.truncate(source, 3 * MIB)
        else:
            source.unlink()
        verified, failed, _ = _copy_all(reuse, OLD, tmp_path / "new", store)
        bad = Bitfield.from_runs(manifest.piece_count, failed)
        assert bad.count > 0
        assert np.array_equal(verified.bits, ~bad.bits)
        if change == "edited":
            assert bad.runs() == [Run(*manifest.pieces_covering(3 * MIB, 6))]


def test_a_blob_that_changed_is_not_planned_with(tmp_path: Path) -> None:
    manifest = _manifest_of(tmp_path, OLD)
    with make_store(tmp_path) as store:
        published(store, tmp_path / "v1", OLD)
        os.utime(tmp_path / "v1", ns=(1, 1))
        assert plan(manifest, store).bytes_planned == 0


def test_copying_stops_when_asked(tmp_path: Path) -> None:
    manifest = _manifest_of(tmp_path, OLD)
    with make_store(tmp_path) as store:
        published(store, tmp_path / "v1", OLD)
        reuse = plan(manifest, store)
        seen: list[int] = []
        with Partial.create_or_resume(tmp_path / "new", manifest, root=store.root) as partial:
            copied = copy(
                reuse, partial, lambda first, count: seen.append(count), lambda *_: None, lambda: bool(seen)
            )
        assert 0 < copied < reuse.bytes_planned


def test_chunking_a_file_is_what_publishing_it_says(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        for index, content in enumerate((OLD, b"", b"x", random_bytes(5 * MIB))):
            manifest = published(store, tmp_path / f"f{index}", content)
            chunks = chunk_file(tmp_path / f"f{index}")
            assert np.array_equal(chunks.offsets, manifest.offsets[:-1])
            assert np.array_equal(chunks.lengths, manifest.lengths)
            assert np.array_equal(chunks.blake3, manifest.blake3)


# A second name for a file.


def test_auto_copies_into_a_work_tree_and_links_between_stores(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(OLD)
    source.chmod(0o755)
    copied = link_file(source, tmp_path / "copy", mode="auto", to_work_tree=True, replace=False)
    assert copied in (Linked.COPY, Linked.REFLINK)
    assert (tmp_path / "copy").read_bytes() == OLD
    assert (tmp_path / "copy").stat().st_ino != source.stat().st_ino
    assert (tmp_path / "copy").stat().st_mode & 0o111
    linked = link_file(source, tmp_path / "linked", mode="auto", to_work_tree=False, replace=False)
    assert linked in (Linked.HARD, Linked.REFLINK)
    assert (tmp_path / "linked").read_bytes() == OLD


def test_hard_and_sym_on_request(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    assert link_file(source, tmp_path / "h", mode="hard", to_work_tree=True, replace=False) is Linked.HARD
    assert (tmp_path / "h").stat().st_ino == source.stat().st_ino
    assert source.stat().st_mode & 0o222 == 0  # one inode: read-only, so that no editor damages the seed
    assert link_file(source, tmp_path / "s", mode="sym", to_work_tree=True, replace=False) is Linked.SYM
    assert (tmp_path / "s").readlink() == source


def test_a_link_never_replaces_unasked(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    target.write_bytes(b"other")
    with pytest.raises(PolicyError, match="exists already"):
        link_file(source, target, mode="auto", to_work_tree=True, replace=False)
    assert target.read_bytes() == b"other"
    link_file(source, target, mode="copy", to_work_tree=True, replace=True)
    assert target.read_bytes() == b"content"
    (tmp_path / "dir").mkdir()
    with pytest.raises(PolicyError, match="is a directory"):
        link_file(source, tmp_path / "dir", mode="copy", to_work_tree=True, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir", "source", "target"]


def test_a_way_that_this_file_system_lacks_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    try:
        assert (
            link_file(source, tmp_path / "r", mode="reflink", to_work_tree=True, replace=False)
            is Linked.REFLINK
        )
    except UsageError as error:
        assert "no reflinks" in str(error)  # noqa: PT017 - which of the two depends on the file system
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("durable", [True, False])
def test_a_copy_is_on_the_disk_before_it_replaces(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bytes]] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        synced.append((path.suffix if path.is_file() else path.name, target.read_bytes()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    link_file(source, target, mode="copy", to_work_tree=True, replace=True, durable=durable)
    assert target.read_bytes() == b"new"
    assert synced == ([(".megalfs-link", b"old"), (tmp_path.name, b"new")] if durable else [])


def test_a_copy_that_is_stopped_leaves_what_was_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random_bytes(1000))
    target.write_bytes(b"old")

    def stop(_: int) -> None:
        raise CancelledByUserError("stopped", exit_code=143)

    with pytest.raises(CancelledByUserError):
        link_file(source, target, mode="copy", to_work_tree=True, replace=True, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
    assert target.read_bytes() == b"old"
