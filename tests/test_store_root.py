"""A root belongs to one host; keys are made once and kept private; only a live node is believed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers_store import end, read_line, start

from megalfs.errors import BusyError, NotFoundError, PolicyError, StoreError
from megalfs.store.files import is_network_file_system, rename_new, write_new
from megalfs.store.owner import Owner, machine_id
from megalfs.store.root import Root


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_root_is_made_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no megalfs root"):
        Root.open(tmp_path / "r", create=False)
    made = Root.open(tmp_path / "r", create=True)
    assert Root.open(tmp_path / "r", create=False) == made
    assert (made.host, made.local, made.is_shared) == (made.path, made.path, False)
    assert _mode(made.path) == 0o700


def test_a_network_file_system_separates_hosts(tmp_path: Path) -> None:
    roots = [
        Root.open(
            tmp_path / "home",
            create=True,
            machine=name,
            is_network=True,
            local_base=tmp_path / f"local-{name}",
        )
        for name in ("a" * 32, "b" * 32)
    ]
    keys = {root.load_or_create_key().seed for root in roots}
    assert len(keys) == 2
    assert len({root.token() for root in roots}) == 2
    for root, name in zip(roots, ("a" * 32, "b" * 32), strict=True):
        assert root.host == tmp_path / "home" / "hosts" / name
        assert root.index.is_relative_to(tmp_path / f"local-{name}")
        assert _mode(root.local) == 0o700
    assert roots[0].manifests == roots[1].manifests


def test_a_root_of_another_machine_is_shared_even_on_a_local_disk(tmp_path: Path) -> None:
    first = Root.open(tmp_path / "r", create=True, machine="a" * 32, is_network=False)
    second = Root.open(
        tmp_path / "r", create=True, machine="b" * 32, is_network=False, local_base=tmp_path / "l"
    )
    assert not first.is_shared
    assert second.is_shared
    assert first.load_or_create_key().seed != second.load_or_create_key().seed


def test_two_roots_do_not_share_a_local_directory(tmp_path: Path) -> None:
    found = {
        Root.open(tmp_path / name, create=True, is_network=True, local_base=tmp_path / "l").local
        for name in "xy"
    }
    assert len(found) == 2


@pytest.mark.parametrize("attack", ["mode", "symlink"])
def test_a_local_directory_that_others_can_enter_is_refused(tmp_path: Path, attack: str) -> None:
    base = tmp_path / "l"
    if attack == "mode":
        base.mkdir(mode=0o755)
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match="not a private directory"):
        Root.open(tmp_path / "r", create=True, is_network=True, local_base=base)


def test_statfs_knows_local_file_systems(tmp_path: Path) -> None:
    assert not is_network_file_system(tmp_path)
    assert not is_network_file_system(Path("/proc"))


def test_a_newer_root_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "root.json").write_text('{"version": 2, "machine": "x"}')
    with pytest.raises(PolicyError, match="version 2"):
        Root.open(tmp_path / "r", create=True)
    (tmp_path / "r" / "root.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        Root.open(tmp_path / "r", create=True)


def test_a_root_that_disappears_is_noticed_and_not_made_anew(tmp_path: Path) -> None:
    root = Root.open(tmp_path / "r", create=True)
    root.check()
    root.path.rename(tmp_path / "unmounted")
    with pytest.raises(StoreError, match="is gone"):
        root.check()
    assert not root.path.exists()


def test_the_key_is_made_once_and_openssl_reads_it(tmp_path: Path) -> None:
    root = Root.open(tmp_path / "r", create=True)
    assert root.load_key() is None
    key = root.create_key()
    assert root.load_key() == key
    with pytest.raises(BusyError, match="a key already"):
        root.create_key()
    assert _mode(root.host / "key.pem") == 0o600
    assert root.public_key() == key.public
    assert root.public_key() == key.public  # from key.pub now
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    loaded = load_pem_private_key((root.host / "key.pem").read_bytes(), None)
    assert loaded.public_key().public_bytes_raw() == key.public.raw  # type: ignore[union-attr]


def test_the_public_key_follows_a_key_that_was_put_in_by_hand(tmp_path: Path) -> None:
    root = Root.open(tmp_path / "r", create=True)
    before = root.public_key()
    other = Root.open(tmp_path / "other", create=True)
    other.create_key()
    (root.host / "key.pem").write_bytes((other.host / "key.pem").read_bytes())
    assert root.public_key() == other.public_key() != before


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff"]
)
def test_a_damaged_key_is_an_error_not_a_new_key(tmp_path: Path, content: bytes) -> None:
    root = Root.open(tmp_path / "r", create=True)
    assert write_new(root.host / "key.pem", content)
    with pytest.raises(StoreError, match="not an Ed25519 private key"):
        root.load_or_create_key()
    assert (root.host / "key.pem").read_bytes() == content


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    root = Root.open(tmp_path / "r", create=True)
    root.create_key()
    (root.host / "key.pem").chmod(0o644)
    with pytest.raises(PolicyError, match="others can read"):
        root.load_key()


def test_processes_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from megalfs.store.root import Root
        root = Root.open(Path(sys.argv[1]), create=True)
        print("ready", flush=True)
        sys.stdin.readline()
        print(root.load_or_create_key().seed.hex(), root.token(), flush=True)
    """
    processes = [start(code, tmp_path / "r") for _ in range(4)]
    assert [read_line(process) for process in processes] == ["ready"] * 4
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = {read_line(process) for process in processes}
    assert [end(process) for process in processes] == [0] * 4
    assert len(said) == 1


def test_only_a_live_node_is_believed(tmp_path: Path) -> None:
    root = Root.open(tmp_path / "r", create=True)
    assert root.read_node() is None
    process = start(
        """
        import sys
        from pathlib import Path
        from megalfs.store.root import Root
        Root.open(Path(sys.argv[1]), create=True).write_node(listen="0.0.0.0:7427", http_port=7427)
        print("up", flush=True)
        sys.stdin.readline()
        """,
        root.path,
    )
    assert read_line(process) == "up"
    running = root.read_node()
    assert running is not None
    assert (running.owner.pid, running.http_port) == (process.pid, 7427)
    with pytest.raises(BusyError, match=f"pid {process.pid}"):
        root.write_node(listen="0.0.0.0:1", http_port=1)
    root.clear_node()  # another's: stays
    assert root.read_node() is not None
    end(process, kill=True)
    assert root.read_node() is None
    root.write_node(listen="0.0.0.0:1", http_port=1)
    root.clear_node()
    assert root.read_node() is None


def test_owners() -> None:
    here = Owner.here(machine_id())
    assert here.is_alive(here) is True
    assert Owner.from_json(here.to_json()) == here
    with subprocess.Popen(["true"]) as process:
        zombie = Owner(here.machine, here.boot, here.pid_namespace, process.pid, 1)
        assert zombie.is_alive(here) is False  # of another start time, or a zombie
    reused = Owner(here.machine, here.boot, here.pid_namespace, os.getpid(), here.started + 1)
    assert reused.is_alive(here) is False
    assert Owner(here.machine, "another boot", 0, here.pid, 0).is_alive(here) is False
    assert Owner("another machine", here.boot, 0, here.pid, 0).is_alive(here) is None
    assert Owner(here.machine, here.boot, 1, here.pid, here.started).is_alive(here) is None
    assert Owner.from_json({"machine": "x"}) is None


def test_rename_new_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    rename_new(tmp_path / "a", tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
