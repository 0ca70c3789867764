"""The table of repositories: schema, migration, what is kept of states, forks and strangers."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from megalfs.core.repo_state import RepoState, SignedState
from megalfs.core.repoid import RepoId
from megalfs.core.signing import SigningKey
from megalfs.errors import BusyError, NotFoundError, StoreError
from megalfs.store.repo_db import _MIGRATIONS, SCHEMA_VERSION, RepoDb
from megalfs.store.repos import STATES_KEPT, Repo, Repos
from megalfs.store.root import Root

OWNER = SigningKey(b"o" * 32)
ROOT = "1" * 40
ID = RepoId.of(ROOT, OWNER.public)


@pytest.fixture
def repos(tmp_path: Path) -> Repos:
    return Repos(Root.open(tmp_path / "root", create=True))


def state(seq: int, previous: str | None = None, **changes: object) -> SignedState:
    made = RepoState(
        name="tiny", root=ROOT, creator=OWNER.public, seq=seq, previous=previous, created=0, expires=1,
        branch="refs/heads/main", refs={"refs/heads/main": ROOT}, bundles=(),
    )  # fmt: skip
    return SignedState.sign(OWNER, replace(made, **changes))  # type: ignore[arg-type]


def columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f"PRAGMA table_info({table})")}


def test_tables_have_the_named_columns(repos: Repos, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "root" / "repos.sqlite")
    assert columns(database, "repos") >= {
        "id", "name", "creator", "description", "language", "size", "latest_commit_at", "path", "bundle",
        "is_external", "created_at", "updated_at",
    }  # fmt: skip
    assert columns(database, "nodes") >= {
        "id", "alias", "addresses", "node_type", "version", "created_at", "updated_at",
    }  # fmt: skip
    database.close()
    repos.close()
    assert (tmp_path / "root" / "repos.sqlite").stat().st_mode & 0o777 == 0o600


def test_an_older_file_is_brought_up_to_date_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "repos.sqlite"
    database = sqlite3.connect(path)
    database.executescript(_MIGRATIONS[0] + "PRAGMA user_version = 1;")
    database.execute("INSERT INTO nodes (id, alias, created_at, updated_at) VALUES ('x', 'old', 1, 2)")
    database.commit()
    database.close()
    migrated = RepoDb(path)
    assert migrated.rows("PRAGMA user_version") == [(SCHEMA_VERSION,)]
    assert migrated.rows("SELECT alias, http FROM nodes") == [("old", "")]
    migrated.close()


def test_a_newer_file_and_no_database_are_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    database = sqlite3.connect(newer)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(StoreError, match="version"):
        RepoDb(newer)
    (tmp_path / "noise.sqlite").write_bytes(b"noise" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        RepoDb(tmp_path / "noise.sqlite")


def test_two_processes_see_each_others_rows(repos: Repos, tmp_path: Path) -> None:
    other = Repos(Root.open(tmp_path / "root", create=False))
    before = repos.version
    other.add(Repo(id=ID, name="tiny", creator=OWNER.public, path="/x", root=ROOT))
    assert repos.version != before
    assert repos.served("tiny").path == "/x"
    other.close()
    repos.close()


def test_names_are_looked_up_and_never_ambiguous(repos: Repos) -> None:
    stranger = SigningKey(b"s" * 32).public
    theirs = RepoId.of(ROOT, stranger)
    repos.add(Repo(id=ID, name="tiny", creator=OWNER.public, path="/ours", root=ROOT))
    repos.add(Repo(id=theirs, name="tiny", creator=stranger, path="/theirs", root=ROOT, is_external=True))
    assert repos.served("tiny").path == "/ours"
    assert repos.served(str(theirs)).path == "/theirs"
    for name in ("tiny", str(theirs)):
        found = repos.copy_named(stranger, name)
        assert found is not None
        assert found.path == "/theirs"
        assert repos.copy_named(OWNER.public, name) is None, "ours is no copy"
    for name in ("/ours", "", "%", "tiny'--"):
        with pytest.raises(NotFoundError):
            repos.served(name)
    with pytest.raises(BusyError):
        repos.add(
            Repo(id=RepoId.of("2" * 40, OWNER.public), name="tiny", creator=OWNER.public, root="2" * 40)
        )
    repos.close()


def test_states_forks_and_what_is_kept(repos: Repos) -> None:
    left, right = state(5), state(5, description="another")
    repos.put_state(left)
    assert repos.states(ID) == [left]
    repos.put_fork(left, right)
    assert {each.hash for each in repos.states(ID)} == {left.hash, right.hash}
    end = state(6, left.hash, conflicts=(left.hash, right.hash))
    repos.put_state(end)
    assert repos.states(ID) == [end]
    assert len(repos.state_at(ID, 5)) == 2, "the proof is kept"
    last = end
    for seq in range(7, 7 + STATES_KEPT + 5):
        last = state(seq, last.hash)
        repos.put_state(last)
    assert repos.states(ID) == [last]
    assert repos.state_at(ID, 5) == []
    repos.close()


def test_a_removed_repository_still_refuses_rollbacks(repos: Repos) -> None:
    signed = state(3)
    repos.put_state(signed)
    repos.learn(signed)
    repos.remove(ID)
    assert repos.find(ID) is None
    assert repos.states(ID) == [signed]
    repos.close()
