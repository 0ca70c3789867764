"""The store: files that change are noticed, places replace each other, and everything is rebuilt from sidecars."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from helpers_store import MIB, end, make_store, published, random_bytes, read_line, start
from msgspec.structs import replace

from megalfs.core.ids import Oid
from megalfs.core.manifest import Manifest
from megalfs.core.names import NameRecord, SignedName
from megalfs.core.signing import SigningKey, sign_manifest
from megalfs.errors import BusyError, NotFoundError, PolicyError, StoreError
from megalfs.store.blobs import Store
from megalfs.store.identity import ChangedError, Identity
from megalfs.store.index import Place
from megalfs.store.ingest import publish
from megalfs.store.root import Root

CONTENT = random_bytes(2 * MIB)
KEY = SigningKey(bytes(range(32)))


def _oid(content: bytes) -> Oid:
    return Oid(hashlib.sha256(content).digest())


def _forged(path: Path, content: bytes) -> None:
    """Other bytes of the same size, with mtime put back: only ctime tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size


# Files that change.


def test_an_unknown_blob_is_not_found(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        with pytest.raises(NotFoundError):
            store.open(_oid(b"nothing"))
        assert store.find(_oid(b"nothing")) is None
        assert store.recheck(_oid(b"nothing")) is False
        with pytest.raises(NotFoundError):
            store.pin(_oid(b"nothing"))


@pytest.mark.parametrize("change", ["forge", "truncate", "grow", "delete", "replace", "fifo", "symlink"])
def test_a_changed_file_is_not_opened_and_comes_back_only_by_hash(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        manifest = published(store, path, CONTENT)
        match change:
            case "forge":
                _forged(path, b"x")
            case "truncate":
                os.truncate(path, MIB)
            case "grow":
                os.truncate(path, 3 * MIB)
            case "delete":
                path.unlink()
            case "replace":
                (tmp_path / "other").write_bytes(CONTENT)
                (tmp_path / "other").replace(path)
            case "fifo":
                path.unlink()
                os.mkfifo(path)
            case "symlink":
                path.rename(tmp_path / "real")
                path.symlink_to("real")
        assert store.at(path) is None
        with pytest.raises(ChangedError):
            store.open(manifest.oid)
        blob = store.find(manifest.oid)
        assert blob is not None
        assert not blob.is_held
        is_whole = change == "replace"  # other inode, but the same bytes
        assert store.recheck(manifest.oid) is is_whole
        if is_whole:
            with store.open(manifest.oid) as opened:
                opened.check()
        else:
            blob = store.find(manifest.oid)
            assert blob is not None
            assert blob.places == ()


@pytest.mark.parametrize("change", ["edit", "truncate", "forge"])
def test_a_file_that_changes_while_it_is_served_is_withdrawn(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        manifest = published(store, path, CONTENT)
        with store.open(manifest.oid) as opened:
            opened.check()
            assert os.pread(opened.fd, 100, 0) == CONTENT[:100]
            if change == "truncate":
                os.truncate(path, 10)
            elif change == "edit":
                path.write_bytes(CONTENT[:-1] + b"x")
            else:
                _forged(path, b"x")
            with pytest.raises(ChangedError, match="changed since it was hashed"):
                opened.check()
        blob = store.find(manifest.oid)
        assert blob is not None
        assert not blob.is_held


def test_the_next_place_is_used_when_one_is_gone(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        manifest = published(store, tmp_path / "a", CONTENT)
        published(store, tmp_path / "b", CONTENT)
        (tmp_path / "a").unlink()
        with store.open(manifest.oid) as opened:
            assert opened.path == tmp_path / "b"
        blob = store.find(manifest.oid)
        assert blob is not None
        assert [(place.path.name, place.is_suspect) for place in blob.places] == [("b", False), ("a", True)]
        (tmp_path / "a").write_bytes(CONTENT)
        assert store.recheck(manifest.oid)
        blob = store.find(manifest.oid)
        assert blob is not None
        assert not any(place.is_suspect for place in blob.places)


def test_a_path_that_is_published_again_with_other_bytes_moves(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        first = published(store, path, b"first")
        second = published(store, path, b"second")
        blob = store.find(first.oid)
        assert blob is not None
        assert not blob.places
        assert store.at(path) == store.find(second.oid)
        assert store.repair() == 2
        blob = store.find(first.oid)
        assert blob is not None
        assert not blob.places


def test_a_device_number_alone_costs_samples(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        manifest = published(store, path, CONTENT)
        blob = store.find(manifest.oid)
        assert blob is not None
        (place,) = blob.places
        renumbered = Place(path, replace(place.identity, dev=place.identity.dev + 1))
        store.record(renumbered, manifest.oid, None)
        with store.open(manifest.oid) as opened:
            assert opened.identity == place.identity
        blob = store.find(manifest.oid)
        assert blob is not None
        assert blob.places == (place,)


def test_a_device_number_with_other_bytes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        manifest = published(store, path, CONTENT)
        path.write_bytes(bytes(len(CONTENT)))
        identity = Identity.of(path.stat())
        store.record(Place(path, replace(identity, dev=identity.dev + 1)), manifest.oid, None)
        with pytest.raises(ChangedError):
            store.open(manifest.oid)


def test_verify_finds_rot_that_no_identity_shows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        manifest = published(store, path, CONTENT)
        assert store.verify(manifest.oid) == {path: True}
        path.write_bytes(CONTENT[:MIB] + b"!" + CONTENT[MIB + 1 :])
        store.record(
            Place(path, Identity.of(path.stat())), manifest.oid, None
        )  # as a flipped bit on the disk
        store.open(manifest.oid).close()
        seen: list[int] = []
        assert store.verify(manifest.oid, progress=seen.append) == {path: False}
        with pytest.raises(ChangedError):
            store.open(manifest.oid)


def test_a_blob_without_a_manifest_is_checked_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with make_store(tmp_path) as store:
        blob = store.adopt_bare(path, _oid(CONTENT))
        assert blob.manifests == ()
        assert store.verify(blob.oid) == {path: True}
        path.write_bytes(CONTENT + b"x")
        assert store.verify(blob.oid) == {path: False}


def test_adopting_another_size_is_refused(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        manifest = published(store, tmp_path / "a", CONTENT)
        (tmp_path / "b").write_bytes(b"short")
        with pytest.raises(ChangedError, match="has 5 bytes"):
            store.adopt(tmp_path / "b", manifest)


@pytest.mark.parametrize(
    ("kind", "answer"), [("none", True), ("published", True), ("edited", False), ("unknown", False)]
)
def test_only_what_was_published_or_pulled_may_be_replaced(tmp_path: Path, kind: str, answer: bool) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        if kind in ("published", "edited"):
            published(store, path, CONTENT)
        if kind in ("edited", "unknown"):
            path.write_bytes(b"a week of work")
        assert store.may_replace(path) is answer


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink"])
def test_other_things_are_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "target"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/etc/passwd")
    with (
        make_store(tmp_path) as store,
        pytest.raises(PolicyError, match=f"is a {kind}" if kind != "fifo" else "is a FIFO"),
    ):
        store.may_replace(path)


# Manifests, chunks, names, small blobs.


def test_chunks_are_found_by_either_digest(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        first = published(store, tmp_path / "a", CONTENT)
        second = published(store, tmp_path / "b", random_bytes(2 * MIB, seed=2))
        for manifest in (first, second):
            for index in (0, manifest.piece_count - 1):
                expected = (int(manifest.offsets[index]), int(manifest.lengths[index]))
                by_id = store.find_chunk(blake3=manifest.chunk_id(index))
                by_sha = store.find_chunk(sha256=Oid(manifest.sha256[index].tobytes()))
                assert by_id is not None
                assert by_id == by_sha
                assert (by_id[0].oid, *by_id[1:]) == (manifest.oid, *expected)
        assert store.find_chunk(sha256=_oid(b"nothing")) is None
        store.withdraw(first.oid)
        assert store.find_chunk(blake3=first.chunk_id(0)) is None


def test_a_sha256_that_only_a_manifest_claims_is_computed_before_it_is_believed(tmp_path: Path) -> None:
    with make_store(tmp_path, "theirs") as theirs:
        true = published(theirs, tmp_path / "a", CONTENT)
    lie = true.sha256.copy()
    lie[0] = 7
    lying = Manifest(
        oid=true.oid, size=true.size, profile=true.profile, layout=true.layout, lengths=true.lengths.copy(),
        blake3=true.blake3.copy(), sha256=lie, states=true.states.copy(),
    )  # fmt: skip
    (tmp_path / "pulled").write_bytes(CONTENT)
    with make_store(tmp_path) as store:
        store.adopt(tmp_path / "pulled", lying)
        assert store.find_chunk(sha256=Oid(lie[0].tobytes())) is None
        assert store.find_chunk(sha256=Oid(true.sha256[1].tobytes())) is not None
        assert store.find_chunk(blake3=true.chunk_id(0)) is not None


def test_a_refuted_manifest_stays_refuted(tmp_path: Path) -> None:
    with make_store(tmp_path, "theirs") as theirs:
        manifest = published(theirs, tmp_path / "a", CONTENT)
    with make_store(tmp_path) as store:
        assert store.add_manifest(manifest, [sign_manifest(KEY, manifest.id)])
        assert store.manifests(manifest.oid) == [manifest.id]
        assert [signature.key for signature in store.signatures(manifest.id, manifest.oid)] == [KEY.public]
        store.refute(manifest.id, manifest.oid)
        assert store.manifests(manifest.oid) == []
        assert not store.add_manifest(manifest)
        store.repair()
        assert store.is_refuted(manifest.id)
        assert not store.add_manifest(manifest)
        with pytest.raises(NotFoundError):
            store.load_manifest(manifest.id, manifest.oid)


def test_a_damaged_manifest_is_removed_and_published_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with make_store(tmp_path) as store:
        manifest = published(store, path, CONTENT)
        stored = store.root.manifests / str(manifest.oid) / str(manifest.id)
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with make_store(tmp_path) as store:
        with pytest.raises(NotFoundError, match="damaged on disk"):
            store.load_manifest(manifest.id, manifest.oid)
        assert store.manifests(manifest.oid) == []
        assert publish(store, path).manifest_id == manifest.id
        assert store.load_manifest(manifest.id, manifest.oid) == manifest


def _name(seq: int, oid: Oid, *, key: SigningKey = KEY) -> SignedName:
    record = NameRecord(name="llama", oid=oid, size=1, manifest=None, kind="blob", seq=seq, expires=2**40)
    return SignedName.sign(key, record)


def test_names_never_go_back_and_survive_a_rebuild(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        old, new = _name(1, _oid(b"1")), _name(2, _oid(b"2"))
        store.put_name(old)
        store.put_name(new)
        store.put_name(new)
        for refused in (old, _name(2, _oid(b"other"))):
            with pytest.raises(PolicyError):
                store.put_name(refused)
        assert store.name(KEY.public, "llama") == new
        store.put_name(_name(1, _oid(b"1"), key=SigningKey(b"\1" * 32)))  # another key's name is another name
        store.repair()
        assert store.name(KEY.public, "llama") == new
        assert len(store.names()) == 2
        with pytest.raises(PolicyError):
            store.put_name(old)


def test_small_blobs_of_our_own(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        oid = store.put_bytes(b"a tree")
        assert store.put_bytes(b"a tree") == oid == _oid(b"a tree")
        assert store.read_bytes(oid, bytes_max=6) == b"a tree"
        with pytest.raises(PolicyError, match="the limit is 5"):
            store.read_bytes(oid, bytes_max=5)
        assert store.forget(oid) > 0
        assert not store.root.blob_path(oid).exists()


# The index is thrown away at will.


@pytest.mark.parametrize(
    "damage", ["garbage", "truncated", "missing", "empty", "other schema", "hot journal"]
)
def test_a_damaged_index_is_rebuilt(tmp_path: Path, damage: str) -> None:
    with make_store(tmp_path) as store:
        for index in range(20):
            published(store, tmp_path / f"f{index}", b"%d" % index)
        store.pin(_oid(b"3"))
        store.withdraw(_oid(b"4"))
        before = store.blobs()
        database = store.root.index.resolve()
    match damage:
        case "garbage":
            database.write_bytes(random_bytes(40_000))
        case "truncated":
            os.truncate(database, 5000)
        case "missing":
            store.root.index.unlink()
        case "empty":
            os.truncate(database, 0)
        case "other schema":
            with sqlite3.connect(database) as connection:
                connection.execute("PRAGMA user_version = 999")
            connection.close()
        case "hot journal":
            Path(f"{database}-journal").write_bytes(random_bytes(9000))
    with make_store(tmp_path) as store:
        assert store.blobs() == before


def test_an_index_that_lost_any_page_is_rebuilt(tmp_path: Path) -> None:
    # A new index is not synced: after a power cut, pages that never reached the disk read as zeros.
    page_bytes = 4096
    with make_store(tmp_path) as store:
        for index in range(20):
            published(store, tmp_path / f"f{index}", b"%d" % index)
        before = store.blobs()
        whole = store.root.index.resolve().read_bytes()
    assert len(whole) >= 6 * page_bytes
    for at in range(0, len(whole), page_bytes):
        store.root.index.resolve().write_bytes(whole[:at] + bytes(page_bytes) + whole[at + page_bytes :])
        with make_store(tmp_path) as store:
            assert store.blobs() == before, f"page {at // page_bytes}"


def test_an_index_that_breaks_while_it_is_open_is_rebuilt(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        manifest = published(store, tmp_path / "a", CONTENT)
        store.root.index.resolve().write_bytes(random_bytes(40_000))
        blob = store.find(manifest.oid)
        assert blob is not None
        assert blob.is_held
        published(store, tmp_path / "b", b"more")
        assert len(store.blobs()) == 2


def test_a_repair_by_another_process_is_noticed(tmp_path: Path) -> None:
    with make_store(tmp_path) as store, make_store(tmp_path) as other:
        published(store, tmp_path / "a", b"a")
        assert len(other.blobs()) == 1
        assert other.repair() == 1
        published(store, tmp_path / "b", b"b")
        assert len(other.blobs()) == 2
        assert len(list(store.root.local.glob("index-*.sqlite"))) <= 2


def test_what_another_process_publishes_is_seen(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        assert store.blobs() == []
        before = store.version()
        assert store.version() == before
        (tmp_path / "file").write_bytes(CONTENT)
        process = start(
            """
            import sys
            from pathlib import Path
            from megalfs.store.blobs import Store
            from megalfs.store.ingest import publish
            from megalfs.store.root import Root
            print(publish(Store(Root.open(Path(sys.argv[1]), create=False)), Path(sys.argv[2])).oid)
            """,
            store.root.path, tmp_path / "file",
        )  # fmt: skip
        oid = Oid.parse(read_line(process))
        assert end(process) == 0
        assert store.version() != before
        blob = store.find(oid)
        assert blob is not None
        assert blob.is_held


def test_a_place_record_that_somebody_damaged_is_left_out(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        published(store, tmp_path / "a", b"a")
        published(store, tmp_path / "b", b"b")
        published(store, tmp_path / "c", b"c")
        record = store.root.places / f"{_oid(b'a')}.json"
        record.write_text(record.read_text()[:50])
        (store.root.places / f"{_oid(b'b')}.json").write_bytes(b"[" * 100_000)
        assert store.repair() == 1
        assert store.find(_oid(b"c")) is not None


def test_a_locked_index_is_busy_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megalfs.store.index.BUSY_TIMEOUT_S", 0.05)
    with make_store(tmp_path) as store:
        published(store, tmp_path / "a", b"a")
        blocker = sqlite3.connect(store.root.index, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        with make_store(tmp_path) as other, pytest.raises(BusyError, match="busy"):
            other.blobs()
        blocker.execute("ROLLBACK")
        blocker.close()
        assert len(store.blobs()) == 1


def test_a_failed_change_leaves_nothing(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        manifest = published(store, tmp_path / "a", CONTENT)
        before = store.blobs()

        def fail_half_way() -> None:
            with store.index.change():
                store.index.drop_blob(manifest.oid)
                raise RuntimeError("half-way")

        with pytest.raises(RuntimeError, match="half-way"):
            fail_half_way()
        assert store.blobs() == before


def test_threads_share_a_store(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        manifests = [published(store, tmp_path / f"f{i}", random_bytes(MIB, seed=i)) for i in range(3)]
        faults: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for round_ in range(20):
                    manifest = manifests[(number + round_) % 3]
                    with store.open(manifest.oid) as opened:
                        opened.check()
                    assert store.find_chunk(blake3=manifest.chunk_id(0)) is not None
                    store.pin(manifest.oid)
            except BaseException as error:  # noqa: BLE001 - reported by the test's thread
                faults.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []


def test_a_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with make_store(tmp_path) as store:
        manifest = published(store, path, b"content")
        store.repair()
        with store.open(manifest.oid) as opened:
            assert opened.path == path


def test_an_unmounted_root_is_an_error_and_not_made_anew(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    published(store, tmp_path / "a", b"a")
    store.root.path.rename(tmp_path / "away")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises((StoreError, NotFoundError)):
        publish(store, tmp_path / "b")
    assert not store.root.path.exists()
    store.close()


# Garbage.


def test_gc_forgets_what_is_gone_and_keeps_the_rest(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        gone = published(store, tmp_path / "gone", random_bytes(MIB, seed=1))
        pinned = published(store, tmp_path / "pinned", random_bytes(MIB, seed=2))
        kept = published(store, tmp_path / "kept", random_bytes(MIB, seed=3))
        store.pin(pinned.oid)
        for name in ("gone", "pinned"):
            (tmp_path / name).unlink()
        dry = store.gc(is_dry=True)
        assert dry.forgotten == [gone.oid]
        assert store.find(gone.oid) is not None
        report = store.gc()
        assert report.forgotten == [gone.oid]
        assert report.freed_bytes > 0
        assert store.find(gone.oid) is None
        assert store.find(pinned.oid) is not None
        assert store.find(kept.oid) is not None
        assert not (store.root.manifests / str(gone.oid)).exists()
        assert (tmp_path / "kept").exists()


def test_gc_removes_orphans_and_tells_the_truth_about_links(tmp_path: Path) -> None:
    with make_store(tmp_path, "theirs") as theirs:
        stray = published(theirs, tmp_path / "a", CONTENT)
        liar = published(theirs, tmp_path / "b", b"b")
    with make_store(tmp_path) as store:
        store.add_manifest(stray)
        store.add_manifest(liar)
        store.refute(liar.id, liar.oid)
        os.link(store.root.manifests / str(stray.oid) / str(stray.id), tmp_path / "second name")
        report = store.gc()
        assert report.still_linked_bytes > 0
        assert report.freed_bytes == 0
        assert not (store.root.manifests / str(stray.oid)).exists()
        assert store.is_refuted(liar.id)
        store.repair()
        assert store.is_refuted(liar.id)


def test_gc_keeps_what_another_host_of_the_root_uses(tmp_path: Path) -> None:
    stores = [
        Store(
            Root.open(
                tmp_path / "home", create=True, machine=name * 32, is_network=True, local_base=tmp_path / name
            )
        )
        for name in "ab"
    ]
    manifests = [published(store, tmp_path / "file", CONTENT) for store in stores]
    assert manifests[0] == manifests[1]
    assert stores[0].forget(manifests[0].oid) == 0
    stores[0].gc()
    assert stores[1].load_manifest(manifests[1].id, manifests[1].oid) == manifests[1]
    assert stores[1].forget(manifests[1].oid) > 0
    for store in stores:
        store.close()
