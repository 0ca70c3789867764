"""Repositories of this machine that are shared: adding one, and what it is right now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.refs import check_ref
from megalfs.core.repo_state import check_description
from megalfs.core.repoid import RepoId, parse_repo_name
from megalfs.errors import BusyError, NotFoundError, UsageError
from megalfs.git.gitcmd import run_git
from megalfs.store.repos import Repo, Repos

__all__ = [
    "Snapshot",
    "add_repository",
    "find_repository",
    "has_updates",
    "refs_stamp",
    "shared_refs",
    "snapshot",
]

DEFAULT_BRANCH = "refs/heads/main"


class Snapshot(Struct, frozen=True):
    """What a repository shares: branches and tags that other nodes accept, and which branch HEAD is on."""

    refs: dict[str, str]
    branch: str


def add_repository(
    repos: Repos,
    own: NodeKey,
    path: Path,
    *,
    description: str = "",
    name: str | None = None,
    writers: Sequence[NodeKey] = (),
) -> Repo:
    """Shares the repository at `path`; adding it again changes its description and name, not its id.

    Raises:
        NotFoundError: no such directory.
        UsageError: no complete repository with a commit, or a name or description that is refused.
        BusyError: another repository here has that name, or that id.
    """
    check_description(description)
    git_dir = _git_dir(path)
    known = next((repo for repo in repos.all() if repo.path == str(git_dir) and not repo.is_external), None)
    root = known.root if known else _root_commit(git_dir)
    repo_id = RepoId.of(root, own)
    same = repos.find(repo_id)
    if same is not None and not same.is_external and same.path != str(git_dir) and Path(same.path).exists():
        raise BusyError(
            f"{repo_id} is shared already, from {same.path!r}: both begin with the commit {root}",
            hint="share one of the two, or megalfs repo remove it first",
        )
    repo = Repo(
        id=repo_id,
        name=parse_repo_name(name if name is not None else known.name if known else _name_of(git_dir)),
        creator=own,
        description=description or (known.description if known else ""),
        path=str(git_dir),
        root=root,
        size=known.size if known else 0,
        latest_commit_at=known.latest_commit_at if known else _latest_commit_at(git_dir),
        bundle=known.bundle if known else "",
    )
    repos.add(repo)
    if writers:
        repos.set_writers(repo.id, [*repos.writers(repo.id), *writers])
    return repo


def find_repository(repos: Repos, text: str) -> Repo:
    """The repository with an id, or with a name that only one has.

    Raises:
        NotFoundError: there is none, or there are several.
    """
    found = [repo for repo in repos.all() if text in {str(repo.id), repo.name}]
    own = [repo for repo in found if not repo.is_external]
    if len(own or found) != 1:
        many = "several repositories are" if found else "no repository is"
        raise NotFoundError(f"{many} named {text[:100]!r} here", hint="megalfs repo list shows them")
    return (own or found)[0]


def snapshot(git_dir: Path) -> Snapshot:
    """The shared refs of a repository now; names that other nodes would refuse are left out."""
    refs = shared_refs(git_dir)
    return Snapshot(refs, _branch(git_dir, refs))


def shared_refs(git_dir: Path) -> dict[str, str]:
    """Branches and tags with the objects they name."""
    listed = run_git(
        git_dir, "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags"
    ).decode(errors="replace")
    refs: dict[str, str] = {}
    for line in listed.splitlines():
        oid, _, name = line.partition(" ")
        try:
            refs[check_ref(name)] = oid
        except UsageError:
            continue
    return refs


def refs_stamp(git_dir: Path) -> tuple[tuple[str, int], ...]:
    """What changes whenever a shared ref does: git replaces files, so their directories' times say it.

    A thousand repositories are looked at every minute; two git processes for each would be a fifth of a core.
    """
    found: list[tuple[str, int]] = []
    waiting = [
        git_dir / "HEAD",
        git_dir / "packed-refs",
        git_dir / "refs" / "heads",
        git_dir / "refs" / "tags",
    ]
    while waiting:
        path = waiting.pop()
        try:
            found.append((str(path), path.stat().st_mtime_ns))
            if path.is_dir():
                waiting += path.iterdir()
        except OSError:
            found.append((str(path), 0))
    return tuple(sorted(found))


def has_updates(repos: Repos, repo: Repo) -> bool:
    """Ours: commits that were not announced yet. Others': a state that a clone of ours was not brought to."""
    if not repo.is_external:
        return Path(repo.path, "HEAD").is_file() and shared_refs(Path(repo.path)) != repos.refs(repo.id)
    states = repos.states(repo.id)
    return bool(states) and any(clone.seq < states[0].state.seq for clone in repos.clones(repo.id))


def _branch(git_dir: Path, refs: Iterable[str]) -> str:
    head = run_git(git_dir, "rev-parse", "--symbolic-full-name", "HEAD").decode().strip()
    names = sorted(name for name in refs if name.startswith("refs/heads/"))
    return head if head in names else names[0] if names else DEFAULT_BRANCH


def _git_dir(path: Path) -> Path:
    if not path.is_dir():
        raise NotFoundError(f"no such directory: {str(path)!r}")
    answer = run_git(
        path.resolve(), "rev-parse", "--path-format=absolute", "--git-common-dir", error=UsageError
    ).decode()
    return Path(answer.rstrip("\n")).resolve()


def _root_commit(git_dir: Path) -> str:
    """Where the history of HEAD begins, along first parents.

    Raises:
        UsageError: there is no commit, or the history is not all here.
    """
    facts = run_git(git_dir, "rev-parse", "--is-shallow-repository").decode().split()
    if facts != ["false"]:
        raise UsageError(
            f"{str(git_dir)!r} is a shallow clone: its history is not all here", hint="git fetch --unshallow"
        )
    if (git_dir / "objects" / "info" / "alternates").exists():
        raise UsageError(
            f"{str(git_dir)!r} borrows objects from another repository",
            hint="git repack -a -d, then remove it",
        )
    try:
        roots = run_git(
            git_dir, "rev-list", "--first-parent", "--max-parents=0", "HEAD", error=UsageError
        ).split()
    except UsageError as error:
        if branches := sorted(shared_refs(git_dir)):
            raise UsageError(
                f"the HEAD of {str(git_dir)!r} is on a branch without commits",
                hint=f"git symbolic-ref HEAD {branches[0]}",
            ) from error
        raise UsageError(f"{str(git_dir)!r} has no commit yet", hint="git commit first") from error
    return roots[-1].decode()


def _name_of(git_dir: Path) -> str:
    directory = git_dir.parent if git_dir.name == ".git" else git_dir
    return directory.name.removesuffix(".git")


def _latest_commit_at(git_dir: Path) -> int:
    return int(run_git(git_dir, "log", "-1", "--format=%ct", "HEAD") or b"0")
