"""Repositories, the states seen of them, nodes, clones, and who was caught lying: rows as values."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.ids import Oid
from megalfs.core.repo_state import SignedState
from megalfs.core.repoid import RepoId
from megalfs.errors import BusyError, NotFoundError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.store.repo_db import RepoDb
from megalfs.store.root import Root

__all__ = ["Clone", "Fault", "KnownNode", "Repo", "Repos"]

STATES_KEPT = 64  # of one repository: enough to fill the gaps of whoever was away for that many updates
NODES_MAX = 10_000
FAULTS_MAX = 1000
_COLUMNS = (
    "id, name, creator, description, size, latest_commit_at, path, bundle, is_external, root, is_followed"
)


class Repo(Struct, frozen=True, kw_only=True):
    """One row: ours when `path` is a repository of this machine, external when others announced it."""

    id: RepoId
    name: str
    creator: NodeKey
    description: str = ""
    size: int = 0
    latest_commit_at: int = 0
    path: str = ""
    bundle: str = ""
    is_external: bool = False
    root: str = ""
    is_followed: bool = False


class KnownNode(Struct, frozen=True):
    """What a node last said about itself; `updated_at` in seconds since 1970."""

    key: NodeKey
    alias: str
    addresses: tuple[HostPort, ...]
    http: tuple[HostPort, ...]
    node_type: str
    version: str
    updated_at: int


class Clone(Struct, frozen=True):
    """A work tree that `repo clone` made, and the state that it was brought to last."""

    path: str
    repo: RepoId
    seq: int


class Fault(Struct, frozen=True):
    """Something that a peer was caught at."""

    peer: str
    repo: str
    reason: str
    count: int


class Repos:
    """The repositories of a root."""

    def __init__(self, root: Root) -> None:
        self.directory = root.host / "repos"
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._db = RepoDb(root.host / "repos.sqlite")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @property
    def version(self) -> int:
        """Another number when another process wrote."""
        return self._db.version

    def mirror(self, repo: RepoId) -> Path:
        """Where our copy of an external repository lives: a bare repository that only we write."""
        return self.directory / f"{repo.digest.hex()}.git"

    @property
    def bundles(self) -> Path:
        """The directory of bundles that are seeded, and of what there is of others."""
        directory = self.directory / "bundles"
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def bundle_path(self, name: str) -> Path:
        """Where a bundle lies that is seeded: named by its oid, or by what the owner made it of."""
        return self.bundles / f"{name}.bundle"

    # --- repositories ------------------------------------------------------------------------------------

    def add(self, repo: Repo) -> None:
        """Adds a repository of ours, or changes what is known of it.

        Raises:
            BusyError: another one of ours has that name.
        """
        self._put(repo)

    def learn(self, signed: SignedState) -> None:
        """Notes what a state says of its repository; ours keep their path."""
        known = self.find(signed.state.repo)
        state = signed.state
        self._put(
            Repo(
                id=state.repo,
                name=state.name,
                creator=state.creator,
                description=state.description,
                size=sum(bundle.size for bundle in state.bundles),
                latest_commit_at=state.created,
                path=known.path if known else "",
                bundle=str(state.bundles[-1].oid) if state.bundles else "",
                is_external=known.is_external if known else True,
                root=state.root,
                is_followed=known.is_followed if known else False,
            )
        )

    def _put(self, repo: Repo) -> None:
        now = _now()
        with self._db.writing() as db:
            taken = db.execute(
                "SELECT 1 FROM repos WHERE name = ? AND id != ? AND is_external = 0",
                (repo.name, str(repo.id)),
            ).fetchone()
            if taken and not repo.is_external:
                raise BusyError(
                    f"another repository of this node is named {repo.name!r}",
                    hint="choose a name with --name",
                )
            db.execute(
                f"INSERT INTO repos ({_COLUMNS}, created_at, updated_at)"  # noqa: S608 - our own constant
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
                " ON CONFLICT (id) DO UPDATE SET name=excluded.name, description=excluded.description,"
                " size=excluded.size, latest_commit_at=excluded.latest_commit_at, path=excluded.path,"
                " bundle=excluded.bundle, is_external=excluded.is_external, root=excluded.root,"
                " is_followed=excluded.is_followed, updated_at=excluded.updated_at",
                (
                    str(repo.id),
                    repo.name,
                    str(repo.creator),
                    repo.description,
                    repo.size,
                    repo.latest_commit_at,
                    repo.path,
                    repo.bundle,
                    int(repo.is_external),
                    repo.root,
                    int(repo.is_followed),
                    now,
                    now,
                ),
            )

    def find(self, repo: RepoId) -> Repo | None:
        """One repository."""
        rows = self._select("WHERE id = ?", str(repo))
        return rows[0] if rows else None

    def all(self) -> list[Repo]:
        """Ours first, by name."""
        return self._select("ORDER BY is_external, name, id")

    def count(self) -> int:
        """How many."""
        return int(str(self._db.rows("SELECT count(*) FROM repos")[0][0]))

    def served(self, name: str) -> Repo:
        """The repository that a URL means by a name or an id: a row of the table, never a path.

        Raises:
            NotFoundError: there is none, or nothing of it is here yet.
        """
        rows = self._select("WHERE path != '' AND (id = ? OR (name = ? AND is_external = 0))", name, name)
        rows = rows or self._select("WHERE path != '' AND name = ? AND is_external = 1", name)
        if len(rows) != 1:
            raise NotFoundError(f"no repository {name!r} here")
        return rows[0]

    def copy_named(self, creator: NodeKey, name: str) -> Repo | None:
        """Somebody's repository by a name or an id; None when there is none, or several have that name."""
        rows = self._select(
            "WHERE is_external = 1 AND creator = ?1 AND (id = ?2 OR name = ?2)", str(creator), name
        )
        return rows[0] if len(rows) == 1 else None

    def remove(self, repo: RepoId) -> None:
        """Forgets a repository; its states are kept, so that an older one is refused all the same."""
        with self._db.writing() as db:
            db.execute("DELETE FROM repos WHERE id = ?", (str(repo),))

    def follow(self, repo: RepoId) -> None:
        """Keeps a repository in step from now on."""
        with self._db.writing() as db:
            db.execute("UPDATE repos SET is_followed = 1 WHERE id = ?", (str(repo),))

    def keep_lfs(self, repo: RepoId) -> None:
        """Keeps the large files of a copy, whatever they weigh, from now on."""
        with self._db.writing() as db:
            db.execute("UPDATE repos SET keeps_lfs = 1 WHERE id = ?", (str(repo),))

    def keeps_lfs(self, repo: RepoId) -> bool:
        """Whether somebody asked for that."""
        return bool(self._db.rows("SELECT 1 FROM repos WHERE id = ? AND keeps_lfs = 1", str(repo)))

    def large_files(self, repo: RepoId) -> set[Oid]:
        """The objects that were fetched for a copy."""
        rows = self._db.rows("SELECT oid FROM large_files WHERE repo_id = ?", str(repo))
        return {Oid.parse(str(row[0])) for row in rows}

    def put_large_file(self, repo: RepoId, oid: Oid) -> None:
        """Notes that an object was fetched for a copy."""
        with self._db.writing() as db:
            db.execute("INSERT OR IGNORE INTO large_files VALUES (?, ?)", (str(repo), str(oid)))

    def forget_large_file(self, repo: RepoId, oid: Oid) -> bool:
        """Takes that back; whether no other copy needs the object."""
        with self._db.writing() as db:
            db.execute("DELETE FROM large_files WHERE repo_id = ? AND oid = ?", (str(repo), str(oid)))
            return db.execute("SELECT 1 FROM large_files WHERE oid = ?", (str(oid),)).fetchone() is None

    def set_copy(self, repo: RepoId, path: Path, refs: dict[str, str]) -> None:
        """Notes where our copy lies and at which refs it is."""
        with self._db.writing() as db:
            db.execute(
                "UPDATE repos SET path = ?, updated_at = ? WHERE id = ?", (str(path), _now(), str(repo))
            )
            db.execute("DELETE FROM refs WHERE repo_id = ?", (str(repo),))
            db.executemany(
                "INSERT INTO refs VALUES (?, ?, ?)", [(str(repo), name, oid) for name, oid in refs.items()]
            )

    def refs(self, repo: RepoId) -> dict[str, str]:
        """The refs that our copy of a repository, or our last announcement of it, is at."""
        rows = self._db.rows("SELECT ref_name, commit_hash FROM refs WHERE repo_id = ?", str(repo))
        return {str(name): str(commit) for name, commit in rows}

    def _select(self, where: str, *values: object) -> list[Repo]:
        rows = self._db.rows(f"SELECT {_COLUMNS} FROM repos {where}", *values)  # noqa: S608 - our own constants
        return [_repo(row) for row in rows]

    # --- states ------------------------------------------------------------------------------------------

    def states(self, repo: RepoId) -> list[SignedState]:
        """The newest: one, or those that contradict each other, the highest first."""
        rows = self._db.rows(
            "SELECT record FROM states WHERE repo_id = ? AND is_fork = 1 ORDER BY seq DESC, hash", str(repo)
        ) or self._db.rows(
            "SELECT record FROM states WHERE repo_id = ? ORDER BY seq DESC, hash LIMIT 1", str(repo)
        )
        return [SignedState.parse(row[0]) for row in rows if isinstance(row[0], bytes)]

    def put_fork(self, known: SignedState, new: SignedState) -> None:
        """Keeps two states that contradict each other, as the proof; neither is followed."""
        with self._db.writing() as db:
            for each in (known, new):
                repo, seq = str(each.state.repo), each.state.seq
                db.execute(
                    "INSERT OR REPLACE INTO states VALUES (?,?,?,?,1)", (repo, seq, each.hash, each.encode())
                )

    def state_at(self, repo: RepoId, seq: int) -> list[SignedState]:
        """Those with a sequence number."""
        rows = self._db.rows("SELECT record FROM states WHERE repo_id = ? AND seq = ?", str(repo), seq)
        return [SignedState.parse(row[0]) for row in rows if isinstance(row[0], bytes)]

    def put_state(self, signed: SignedState) -> None:
        """Keeps a state that follows what we know, which ends a fork; the oldest of very many go."""
        repo, seq = str(signed.state.repo), signed.state.seq
        with self._db.writing() as db:
            db.execute("UPDATE states SET is_fork = 0 WHERE repo_id = ?", (repo,))
            db.execute(
                "INSERT OR IGNORE INTO states VALUES (?,?,?,?,0)", (repo, seq, signed.hash, signed.encode())
            )
            db.execute(
                "DELETE FROM states WHERE repo_id = ?1 AND seq <"
                " (SELECT max(seq) FROM states WHERE repo_id = ?1) - ?2",
                (repo, STATES_KEPT),
            )

    # --- who may push, clones, nodes, faults -------------------------------------------------------------

    def set_writers(self, repo: RepoId, keys: Iterable[NodeKey]) -> None:
        """Lists the keys that may push, beside the creator."""
        with self._db.writing() as db:
            db.execute("DELETE FROM writers WHERE repo_id = ?", (str(repo),))
            db.executemany(
                "INSERT OR IGNORE INTO writers VALUES (?, ?)", [(str(repo), str(key)) for key in keys]
            )

    def writers(self, repo: RepoId) -> tuple[NodeKey, ...]:
        """The keys that may push, beside the creator."""
        rows = self._db.rows("SELECT key FROM writers WHERE repo_id = ? ORDER BY key", str(repo))
        return tuple(NodeKey.parse(str(row[0])) for row in rows)

    def put_clone(self, clone: Clone) -> None:
        """Notes a clone and the state it is at."""
        with self._db.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO clones VALUES (?,?,?)", (clone.path, str(clone.repo), clone.seq)
            )

    def clones(self, repo: RepoId) -> list[Clone]:
        """The clones of a repository that were made here."""
        rows = self._db.rows("SELECT path, seq FROM clones WHERE repo_id = ? ORDER BY path", str(repo))
        return [Clone(str(path), repo, seq) for path, seq in rows if isinstance(seq, int)]

    def put_node(self, node: KnownNode) -> None:
        """Notes what a node says about itself; the one not heard of for the longest time makes room."""
        addresses, http = (" ".join(map(str, each)) for each in (node.addresses, node.http))
        with self._db.writing() as db:
            db.execute(
                "INSERT INTO nodes (id, alias, addresses, http, node_type, version, created_at, updated_at)"
                " VALUES (?1,?2,?3,?4,?5,?6,?7,?7) ON CONFLICT (id) DO UPDATE SET alias=?2, addresses=?3,"
                " http=?4, node_type=?5, version=?6, updated_at=?7",
                (str(node.key), node.alias, addresses, http, node.node_type, node.version, node.updated_at),
            )
            db.execute(
                "DELETE FROM nodes WHERE id IN (SELECT id FROM nodes ORDER BY updated_at DESC LIMIT -1 OFFSET ?)",
                (NODES_MAX,),
            )

    def nodes(self) -> list[KnownNode]:
        """Every node we ever heard of, the latest first."""
        rows = self._db.rows(
            "SELECT id, alias, addresses, http, node_type, version, updated_at FROM nodes ORDER BY updated_at DESC"
        )
        return [_node(row) for row in rows]

    def node(self, key: NodeKey) -> KnownNode | None:
        """What one node said."""
        return next((node for node in self.nodes() if node.key == key), None)

    def put_fault(self, peer: str, repo: str, reason: str) -> None:
        """Counts what a peer was caught at."""
        with self._db.writing() as db:
            db.execute(
                "INSERT INTO faults VALUES (?1,?2,?3,1,?4) ON CONFLICT DO UPDATE SET count=count+1, updated_at=?4",
                (peer, repo, reason, _now()),
            )
            db.execute(
                "DELETE FROM faults WHERE rowid IN"
                " (SELECT rowid FROM faults ORDER BY updated_at DESC LIMIT -1 OFFSET ?)",
                (FAULTS_MAX,),
            )

    def faults(self, repo: RepoId | None = None) -> list[Fault]:
        """What peers were caught at."""
        rows = self._db.rows("SELECT peer, repo_id, reason, count FROM faults ORDER BY updated_at DESC")
        found = [Fault(str(peer), str(of), str(why), int(str(count))) for peer, of, why, count in rows]
        return [each for each in found if repo is None or each.repo == str(repo)]


def _repo(row: tuple[object, ...]) -> Repo:
    repo, name, creator, description, size, latest, path, bundle, is_external, root, is_followed = row
    return Repo(
        id=RepoId.parse(str(repo)),
        name=str(name),
        creator=NodeKey.parse(str(creator)),
        description=str(description),
        size=int(str(size)),
        latest_commit_at=int(str(latest)),
        path=str(path),
        bundle=str(bundle),
        is_external=bool(is_external),
        root=str(root),
        is_followed=bool(is_followed),
    )


def _node(row: tuple[object, ...]) -> KnownNode:
    key, alias, addresses, http, node_type, version, updated_at = row
    return KnownNode(
        NodeKey.parse(str(key)),
        str(alias),
        _addresses(str(addresses)),
        _addresses(str(http)),
        str(node_type),
        str(version),
        int(str(updated_at)),
    )


def _addresses(text: str) -> tuple[HostPort, ...]:
    try:
        return tuple(HostPort.parse(each) for each in text.split())
    except UsageError:
        return ()


def _now() -> int:
    return int(time.time())  # noqa: TID251 - rows outlive the process
