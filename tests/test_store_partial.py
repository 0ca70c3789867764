"""Partials: what was verified survives `kill -9`, nothing claimed is believed, two pulls do no harm to each other."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers_store import MIB, end, make_store, published, random_bytes, read_line, start
from msgspec.structs import replace

import megalfs_ext
from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.chunker import Profile
from megalfs.core.ids import Oid
from megalfs.core.manifest import Manifest
from megalfs.core.parts import Stretch
from megalfs.errors import BusyError, CancelledByUserError, PolicyError, SpaceError
from megalfs.store.ingest import hash_file
from megalfs.store.partial import PART_SUFFIX, STATE_SUFFIX, Partial, is_own_file
from megalfs.store.partial_state import HEADER_BYTES, read_state, write_state
from megalfs.store.root import Root
from megalfs.store.target import make_parent

CONTENT = random_bytes(8 * MIB)
SMALL = Profile(min=16 << 10, avg=64 << 10, max=256 << 10)
PULLER = """
    import sys
    from pathlib import Path
    from megalfs.core.manifest import Manifest
    from megalfs.store.partial import Partial
    from megalfs.store.root import Root
    directory = Path(sys.argv[1])
    manifest = Manifest.decode((directory / "manifest").read_bytes())
    content = (directory / "content").read_bytes()
    root = Root.open(directory / "root", create=True)
    print("ready", flush=True)
    sys.stdin.readline()
    partial = Partial.create_or_resume(directory / "target", manifest, root=root)
    for run, is_good in partial.recheck():
        assert is_good
    print("resumed", partial.have.count, flush=True)
    for index in range(manifest.piece_count):
        if not partial.have.has(index):
            offset, length = manifest.run_extent(index, 1)
            partial.write(offset, content[offset : offset + length])
            partial.mark(index, 1)
            partial.flush()
            print(partial.have.count, flush=True)
            sys.stdin.readline()
    partial.commit(replace=False, durable=False)
    print("done", flush=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(tmp_path / "root", create=True)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    directory = tmp_path_factory.mktemp("publisher")
    with make_store(directory) as store:
        return published(store, directory / "file", CONTENT)


def _write(partial: Partial, run: Run, content: bytes = CONTENT) -> None:
    assert partial.manifest is not None
    offset, length = partial.manifest.run_extent(*run)
    partial.write(offset, content[offset : offset + length])
    partial.mark(*run)


def _state_path(directory: Path) -> Path:
    (path,) = directory.glob(f".*{STATE_SUFFIX}")
    return path


def _leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if is_own_file(path.name)]


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_partial_becomes_the_file(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    target = tmp_path / "target"
    partial = Partial.create_or_resume(target, manifest, root=root)
    assert not target.exists()
    assert partial.path.stat().st_size == manifest.size
    assert partial.path.stat().st_blocks * 512 >= manifest.size  # allocated, so a full disk shows now
    _write(partial, Run(0, manifest.piece_count))
    assert partial.is_complete
    partial.flush()
    identity = partial.commit(replace=False)
    assert target.read_bytes() == CONTENT
    assert identity.size == manifest.size
    assert identity.ino == target.stat().st_ino
    assert identity.ctime_ns == target.stat().st_ctime_ns
    assert _leftovers(tmp_path) == []
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_an_executable_file(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    with Partial.create_or_resume(tmp_path / "run", manifest, root=root) as partial:
        partial.commit(replace=False, executable=True, durable=False)
    assert (tmp_path / "run").stat().st_mode & 0o111


def test_a_closed_partial_is_resumed_by_the_same_process(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(3, 4))
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        assert partial.have.count == 0
        assert partial.candidates.runs() == [Run(3, 4)]
        assert list(partial.recheck()) == [(Run(3, 4), True)]
        assert partial.have.runs() == [Run(3, 4)]
    assert len(_leftovers(tmp_path)) == 2


def test_claims_are_not_believed(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, 10))
        partial.mark(12, 3)  # claimed and never written
        os.pwrite(partial.fd, b"!", int(manifest.offsets[5]) + 7)  # written and damaged since
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        good = Bitfield.from_runs(
            manifest.piece_count, [run for run, is_good in partial.recheck() if is_good]
        )
        assert good.runs() == [Run(0, 5), Run(6, 4)]
        assert partial.have == good


def test_a_recheck_can_be_stopped(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, 10))
    with (
        Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial,
        pytest.raises(CancelledByUserError),
    ):
        list(partial.recheck(should_stop=lambda: True))


@pytest.mark.parametrize("damage", ["header", "empty", "bits cut", "bits flipped", "gone"])
def test_a_damaged_sidecar_costs_hashing_not_truth(
    tmp_path: Path, root: Root, manifest: Manifest, damage: str
) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, 10))
    state = _state_path(tmp_path)
    content = bytearray(state.read_bytes())
    match damage:
        case "header":
            content[60] ^= 1
        case "empty":
            content.clear()
        case "bits cut":
            del content[HEADER_BYTES + 1 :]
        case "bits flipped":
            content[HEADER_BYTES:] = b"\xff" * (len(content) - HEADER_BYTES)
    state.write_bytes(content)
    os.utime(state, (1, 1))  # nobody has tended it for a long time
    if damage == "gone":
        state.unlink()
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        list(partial.recheck())
        expected = [] if damage == "gone" else [Run(0, 10)]
        assert partial.have.runs() == expected or damage.startswith("bits")
        assert partial.have.count <= 10


def test_a_damaged_sidecar_that_is_tended_is_left_alone(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, 10))
    _state_path(tmp_path).write_bytes(b"")
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        assert partial.candidates.count == 0
    assert len(_leftovers(tmp_path)) == 4


@pytest.mark.parametrize("silence_s", [0, 60])
def test_another_machine_is_believed_dead_after_30_s_of_silence(
    tmp_path: Path, root: Root, manifest: Manifest, silence_s: int
) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, 10))
    path = _state_path(tmp_path)
    state = read_state(path)
    assert state is not None
    write_state(path, replace(state, owner=replace(state.owner, machine="f" * 32, pid=1)))
    now = path.stat().st_mtime
    os.utime(path, (now - silence_s, now - silence_s))
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        assert partial.candidates.count == (10 if silence_s else 0)


def test_who_was_taken_over_notices(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    partial = Partial.create_or_resume(tmp_path / "target", manifest, root=root)
    _write(partial, Run(0, 10))
    partial.flush()
    path = _state_path(tmp_path)
    os.utime(path, (1, 1))
    other = Root.open(tmp_path / "other", create=True, machine="e" * 32)
    with Partial.create_or_resume(tmp_path / "target", manifest, root=other) as taker:
        assert taker.candidates.count == 10
        with pytest.raises(BusyError, match="took over"):
            partial.flush()
        partial.close()
        assert _state_path(tmp_path) != path
        list(taker.recheck())
        _write(taker, Run(10, manifest.piece_count - 10))
        taker.commit(replace=False, durable=False)
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_another_blob_for_the_same_target_is_another_partial(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    with make_store(tmp_path, "store") as store:
        other = published(store, tmp_path / "other", random_bytes(MIB, seed=9))
    with Partial.create_or_resume(tmp_path / "target", other, root=root) as partial:
        partial.mark(0, 1)
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        assert partial.candidates.count == 0


def test_kill_9_at_any_piece_loses_none_that_was_flushed(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    (tmp_path / "manifest").write_bytes(manifest.encode())
    (tmp_path / "content").write_bytes(CONTENT)
    said = 0
    for pieces in (1, 5, 0, 7, manifest.piece_count):
        process = start(PULLER, tmp_path)
        assert read_line(process) == "ready"
        _go(process)
        resumed = read_line(process)
        assert resumed == f"resumed {said}"
        for _ in range(min(pieces, manifest.piece_count - said)):
            said = int(read_line(process))
            if pieces != manifest.piece_count and said % 3 == 0:
                break
            _go(process)
        if pieces == manifest.piece_count:
            assert read_line(process) == "done"
            assert end(process) == 0
        else:
            end(process, kill=True)
            state = read_state(_state_path(tmp_path))
            assert state is not None
            said = state.bits().count  # it may have done one more before it died
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert _leftovers(tmp_path) == []


def test_of_two_processes_one_resumes_and_both_come_to_an_end(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    (tmp_path / "manifest").write_bytes(manifest.encode())
    (tmp_path / "content").write_bytes(CONTENT)
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, 20))
    processes = [start(PULLER, tmp_path) for _ in range(3)]
    assert [read_line(process) for process in processes] == ["ready"] * 3
    for process in processes:
        _go(process)
    assert sorted(read_line(process) for process in processes) == ["resumed 0", "resumed 0", "resumed 20"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    codes = sorted(end(process) for process in processes)
    assert codes == [0, 1, 1]  # the target exists for the second and third: refused, not overwritten
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_rebase_keeps_what_both_manifests_name(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        other = Manifest.decode(hash_file(file.fileno(), len(CONTENT), profile=SMALL).encoded)
    assert other.id != manifest.id
    partial = Partial.create_or_resume(tmp_path / "target", manifest, root=root)
    held = Run(4, 12)
    _write(partial, held)
    kept = partial.rebase(other)
    offset, length = manifest.run_extent(*held)
    inside = (other.offsets[:-1] >= offset) & (other.offsets[1:] <= offset + length)
    assert np.array_equal(kept.bits, inside)
    assert kept.count > 0
    partial.flush()
    partial.close()
    partial = Partial.create_or_resume(tmp_path / "target", other, root=root)
    assert partial.candidates == kept
    list(partial.recheck())
    back = partial.rebase(manifest)
    assert 0 < back.count <= held.count
    for run in Bitfield.from_runs(manifest.piece_count, [(0, manifest.piece_count)]).runs():
        _write(partial, run)
    partial.commit(replace=False, durable=False)
    assert (tmp_path / "target").read_bytes() == CONTENT


# Parts of chunks that are not whole yet.


def begin_chunks(partial: Partial, *, chunks: int = 6) -> list[Run]:
    """Writes the first and the last part of some chunks that have three or more; the runs of parts."""
    manifest, proofs = partial.manifest, partial.proofs
    assert manifest is not None
    assert proofs is not None
    parts, begun = manifest.parts, []
    per_chunk = [parts.of_chunks(chunk, 1).count for chunk in range(manifest.piece_count)]
    for chunk in [chunk for chunk, count in enumerate(per_chunk) if count >= 3][:chunks]:
        first, count = parts.of_chunks(chunk, 1)
        offset, length = manifest.run_extent(chunk, 1)
        assert proofs.put(chunk, megalfs_ext.blake3_groups(CONTENT[offset : offset + length]))
        for part in (first, first + count - 1):
            offset, length = parts.extent(part, 1)
            partial.write(offset, CONTENT[offset : offset + length])
            partial.mark_parts(Stretch(part, 1, chunk, 0))
            partial.mark_parts(Stretch(part, 1, chunk, 0))  # said twice, noted once
            begun.append(Run(part, 1))
    assert len(begun) == 2 * chunks
    return begun


def abandon(partial: Partial) -> None:
    """What is left when the process is killed after a flush: nothing more is written."""
    partial.flush()
    state = _state_path(partial.target.parent)
    content = state.read_bytes()
    partial.close()  # names nobody as the owner, and so may be taken over
    saved = state.read_bytes()
    assert saved[4096:] == content[4096:]


def rechecked(partial: Partial) -> tuple[list[Run], list[Run]]:
    """The begun parts that are right, and those that are not."""
    found = list(partial.recheck_parts(partial.begun()))
    return [run for run, is_good in found if is_good], [run for run, is_good in found if not is_good]


def test_parts_are_resumed(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    partial = Partial.create_or_resume(tmp_path / "target", manifest, root=root)
    begun = begin_chunks(partial)
    _write(partial, Run(0, 1))
    assert not manifest.parts.of_chunks(0, 1).covers(begun[0])
    abandon(partial)
    for _ in range(2):  # what a resume found stays for the next one
        partial = Partial.create_or_resume(tmp_path / "target", manifest, root=root)
        list(partial.recheck())
        assert partial.have.runs() == [Run(0, 1)]
        assert rechecked(partial) == (begun, [])
        abandon(partial)


def test_a_part_of_a_whole_chunk_is_not_begun(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        first, *others = begin_chunks(partial)
        (stretch,) = manifest.parts.within_chunks(*first)
        _write(partial, Run(stretch.chunk, 1))
        assert [part for run in partial.begun() for part in range(run.first, run.end)] == [
            run.first for run in others[1:]
        ]


def test_parts_that_were_damaged_since(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        begun = begin_chunks(partial)
        os.pwrite(partial.fd, b"!", manifest.parts.extent(*begun[3])[0] + 70_000 % 64)
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        assert rechecked(partial) == ([*begun[:3], *begun[4:]], [begun[3]])
        (stretch,) = manifest.parts.within_chunks(*begun[3])
        offset, length = manifest.parts.extent(*begun[3])
        partial.write(offset, CONTENT[offset : offset + length])
        partial.mark_parts(stretch)  # fetched again
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        assert rechecked(partial) == (begun, [])


@pytest.mark.parametrize("damage", ["cut", "proof", "numbers", "noise"])
def test_damaged_records_claim_less(tmp_path: Path, root: Root, manifest: Manifest, damage: str) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        begun = begin_chunks(partial)
    state = _state_path(tmp_path)
    content = bytearray(state.read_bytes())
    start = 4096 + (manifest.piece_count + 7) // 8
    match damage:
        case "cut":
            del content[start + (len(content) - start) // 2 :]
        case "proof":
            content[start + 12] ^= 1
        case "numbers":
            content[start : start + 4] = b"\xff" * 4
        case _:
            content[start:] = np.random.default_rng(5).bytes(len(content) - start)
    state.write_bytes(content)
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        good, bad = rechecked(partial)
        assert not bad
        assert good == (begun[: len(good)] if damage == "cut" else [])
        assert len(good) < len(begun)
        assert begin_chunks(partial) == begun  # and everything can be noted anew
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        assert rechecked(partial) == (begun, [])


def test_parts_under_another_manifest(tmp_path: Path, root: Root, manifest: Manifest) -> None:
    """Chunks that the verified parts cover stay, and what was noted of parts goes."""
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        other = Manifest.decode(hash_file(file.fileno(), len(CONTENT), profile=SMALL).encoded)
    partial = Partial.create_or_resume(tmp_path / "target", manifest, root=root)
    begun = begin_chunks(partial)
    kept = partial.rebase(other)
    extents = [manifest.parts.extent(*run) for run in begun]
    inside = [
        any(start <= offset and offset + length <= start + size for start, size in extents)
        for offset, length in (other.run_extent(chunk, 1) for chunk in range(other.piece_count))
    ]
    assert kept.bits.tolist() == inside
    assert any(inside)
    abandon(partial)
    partial = Partial.create_or_resume(tmp_path / "target", other, root=root)
    assert partial.begun() == []
    partial.close()


def test_a_resume_under_another_manifest_hashes_everything(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, 10))
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        other = Manifest.decode(hash_file(file.fileno(), len(CONTENT), profile=SMALL).encoded)
    with Partial.create_or_resume(tmp_path / "target", other, root=root) as partial:
        assert partial.candidates.is_full
        list(partial.recheck())
        held = int(other.offsets[1:][partial.have.bits].max())
        assert held <= manifest.offsets[10]
        assert partial.have.count > 10


def test_without_a_manifest_bytes_are_appended_and_hashed_again(tmp_path: Path, root: Root) -> None:
    oid = Oid(hashlib.sha256(CONTENT).digest())
    with Partial.create_or_resume(tmp_path / "target", None, root=root, oid=oid) as partial:
        partial.write(0, CONTENT[: 3 * MIB])
        partial.flush()
    with Partial.create_or_resume(
        tmp_path / "target", None, root=root, oid=oid, size=len(CONTENT)
    ) as partial:
        hasher, offset = partial.rehash_prefix()
        assert offset == 3 * MIB
        assert hasher.digest() == hashlib.sha256(CONTENT[: 3 * MIB]).digest()
        partial.write(offset, CONTENT[offset:])
        partial.commit(replace=False)
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_a_manifest_that_comes_late_keeps_what_was_appended(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    with Partial.create_or_resume(tmp_path / "target", None, root=root, oid=manifest.oid) as partial:
        partial.write(0, CONTENT[: 3 * MIB])
        kept = partial.rebase(manifest)
        assert kept.runs() == [Run(0, int(np.searchsorted(manifest.offsets, 3 * MIB, "right")) - 1)]
        assert partial.path.stat().st_size == manifest.size


# Targets.


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink", "dangling symlink"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, root: Root, manifest: Manifest, kind: str) -> None:
    target, victim = tmp_path / "target", tmp_path / "victim"
    victim.write_text("victim")
    match kind:
        case "directory":
            target.mkdir()
        case "fifo":
            os.mkfifo(target)
        case "symlink":
            target.symlink_to(victim)
        case _:
            target.symlink_to("nowhere")
    with pytest.raises(PolicyError, match="will not replace"):
        Partial.create_or_resume(target, manifest, root=root)
    assert victim.read_text() == "victim"
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_symlink_put_there_meanwhile_is_not_followed(
    tmp_path: Path, root: Root, manifest: Manifest, force: bool
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("victim")
    with Partial.create_or_resume(tmp_path / "target", manifest, root=root) as partial:
        _write(partial, Run(0, manifest.piece_count))
        (tmp_path / "target").symlink_to(victim)
        with pytest.raises(PolicyError, match="symlink"):
            partial.commit(replace=force)
    assert victim.read_text() == "victim"


def test_a_file_that_appeared_meanwhile_is_kept_and_the_pull_can_be_resumed(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    target = tmp_path / "target"
    with Partial.create_or_resume(target, manifest, root=root) as partial:
        _write(partial, Run(0, manifest.piece_count))
        target.write_text("somebody's")
        with pytest.raises(PolicyError, match="never published or pulled"):
            partial.commit(replace=False)
        assert target.read_text() == "somebody's"
    with Partial.create_or_resume(target, manifest, root=root) as partial:
        list(partial.recheck())
        assert partial.is_complete
        partial.commit(replace=True)
    assert target.read_bytes() == CONTENT


def test_the_directory_is_the_one_that_was_there_at_the_start(
    tmp_path: Path, root: Root, manifest: Manifest
) -> None:
    directory, elsewhere = tmp_path / "d", tmp_path / "elsewhere"
    directory.mkdir()
    elsewhere.mkdir()
    with Partial.create_or_resume(directory / "target", manifest, root=root) as partial:
        _write(partial, Run(0, manifest.piece_count))
        directory.rename(tmp_path / "moved")
        directory.symlink_to(elsewhere)
        partial.commit(replace=True, durable=False)
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "moved" / "target").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, ".hidden", "with space\n"])
def test_names_of_any_length(tmp_path: Path, root: Root, manifest: Manifest, name: str) -> None:
    with Partial.create_or_resume(tmp_path / name, manifest, root=root) as partial:
        _write(partial, Run(0, 10))
    with Partial.create_or_resume(tmp_path / name, manifest, root=root) as partial:
        assert partial.candidates.count == 10
        partial.commit(replace=False, durable=False)
    assert (tmp_path / name).stat().st_size == manifest.size


def test_parents_are_made_and_no_symlink_is_followed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    assert make_parent(base, "a/b/c") == base / "a/b/c"
    assert (base / "a/b").is_dir()
    assert make_parent(base, "top") == base / "top"
    (base / "link").symlink_to(tmp_path)
    (base / "file").write_text("")
    for relative in ("link/x", "file/x", "../x", "/x", "a//x", "a/../x", "a\x1b/x"):
        with pytest.raises(PolicyError) as caught:
            make_parent(base, relative)
        assert "\x1b" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_gc_keeps_what_can_be_resumed_and_removes_the_old(tmp_path: Path, manifest: Manifest) -> None:
    with make_store(tmp_path) as store:
        directory = tmp_path / "d"
        directory.mkdir()
        alive = Partial.create_or_resume(directory / "alive", manifest, root=store.root)
        with Partial.create_or_resume(directory / "dead", manifest, root=store.root) as partial:
            _write(partial, Run(0, 10))
        assert store.gc().partials == []
        for path in directory.iterdir():
            os.utime(path, (1, 1))
        report = store.gc()
        assert [path.name.split(".")[1] for path in report.partials] == ["dead"]
        assert report.freed_bytes >= manifest.size
        assert sorted(name.split(".")[1] for name in _leftovers(directory)) == ["alive", "alive"]
        alive.close()
        stray = directory / f".x.00000000.11111111{PART_SUFFIX}"
        stray.write_bytes(b"x")
        assert stray not in store.gc().partials
        os.utime(stray, (1, 1))
        assert stray in store.gc().partials
        shutil.rmtree(directory)
        store.gc()
        assert list(store.root.partials.iterdir()) == []


# A full disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_too_small_is_known_at_once(small_disk: Path, root: Root, manifest: Manifest) -> None:
    (small_disk / "ballast").write_bytes(bytes(6 * MIB))
    with pytest.raises(SpaceError, match="no space") as caught:
        Partial.create_or_resume(small_disk / "target", manifest, root=root)
    assert caught.value.exit_code == 6
    assert _leftovers(small_disk) == []
    (small_disk / "ballast").unlink()
    with Partial.create_or_resume(small_disk / "target", manifest, root=root) as partial:
        assert partial.path.stat().st_blocks * 512 >= manifest.size


def test_a_disk_that_fills_keeps_the_partial(small_disk: Path, root: Root, manifest: Manifest) -> None:
    with Partial.create_or_resume(small_disk / "target", None, root=root, oid=manifest.oid) as partial:
        partial.write(0, CONTENT[: 4 * MIB])
        partial.flush()
        with (
            (small_disk / "ballast").open("wb", buffering=0) as ballast,
            suppress(OSError),
        ):
            while ballast.write(bytes(MIB)):
                pass
        with pytest.raises(SpaceError, match="no space left"):
            partial.write(4 * MIB, CONTENT[4 * MIB :])
    (small_disk / "ballast").unlink()
    with Partial.create_or_resume(small_disk / "target", None, root=root, oid=manifest.oid) as partial:
        hasher, offset = partial.rehash_prefix()
        assert offset >= 4 * MIB
        assert hasher.digest() == hashlib.sha256(CONTENT[:offset]).digest()
        partial.write(offset, CONTENT[offset:])
        partial.commit(replace=False, durable=False)
    assert (small_disk / "target").read_bytes() == CONTENT


def test_a_resume_that_lacks_room_keeps_what_is_there(
    small_disk: Path, root: Root, manifest: Manifest
) -> None:
    with Partial.create_or_resume(small_disk / "target", None, root=root, oid=manifest.oid) as partial:
        partial.write(0, CONTENT[: 2 * MIB])
    (small_disk / "ballast").write_bytes(bytes(8 * MIB))
    with pytest.raises(SpaceError):
        Partial.create_or_resume(small_disk / "target", manifest, root=root)
    (small_disk / "ballast").unlink()
    with Partial.create_or_resume(small_disk / "target", manifest, root=root) as partial:
        list(partial.recheck())
        assert partial.have.count > 3
