"""Work trees made from our copy of a repository, and brought up to date from it."""

from __future__ import annotations

from pathlib import Path

from megalfs.core.repoid import RepoId
from megalfs.errors import BusyError, NotFoundError, PolicyError, UsageError
from megalfs.git.gitcmd import run_git
from megalfs.store.repos import Clone, Repos

__all__ = ["clone_repository", "pull_clone"]


def clone_repository(repos: Repos, repo: RepoId, output: Path) -> int:
    """Clones our copy to `output`, with the peer's URL as `origin`; returns the number of the state.

    Raises:
        NotFoundError: nothing of the repository is here.
    """
    row, states = repos.find(repo), repos.states(repo)
    if row is None or not row.path or not states:
        raise NotFoundError(f"nothing of {repo} is here yet", hint="megalfs repo sync")
    output.parent.mkdir(parents=True, exist_ok=True)
    run_git(None, "clone", "--quiet", "--no-hardlinks", "--", row.path, output, error=UsageError)
    url = f"p2p://{row.creator.peer_id}/{row.name}.git"
    run_git(output, "remote", "set-url", "origin", url)
    repos.put_clone(Clone(str(output), repo, states[0].state.seq))
    return states[0].state.seq


def pull_clone(repos: Repos, clone: Clone) -> str:
    """Fetches from our copy and moves the current branch forward, whatever it is called.

    Raises:
        NotFoundError: the clone is gone.
        PolicyError: the branch has commits of its own, or was rewritten by the owner.
        BusyError: local changes are in the way; they are left as they are.
    """
    path = Path(clone.path)
    row, states = repos.find(clone.repo), repos.states(clone.repo)
    if not (path / ".git").exists():
        raise NotFoundError(f"the clone {clone.path!r} is gone")
    if row is None or not row.path or not states:
        raise NotFoundError(f"nothing of {clone.repo} is here yet")
    run_git(
        path, "fetch", "--quiet", "--prune", "--no-write-fetch-head", row.path,
        "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*",
    )  # fmt: skip
    branch = run_git(path, "rev-parse", "--abbrev-ref", "HEAD").decode().strip()
    upstream = f"refs/remotes/origin/{branch}"
    summary = "fetched; no branch of the owner's is checked out"
    if f"refs/heads/{branch}" in states[0].state.refs:
        summary = _advance(path, branch, upstream)
    repos.put_clone(Clone(clone.path, clone.repo, states[0].state.seq))
    return summary


def _advance(path: Path, branch: str, upstream: str) -> str:
    counts = run_git(path, "rev-list", "--left-right", "--count", f"HEAD...{upstream}").split()
    ahead, behind = int(counts[0]), int(counts[1])
    if not behind:
        return f"{branch} is up to date"
    if ahead:
        raise PolicyError(
            f"{branch} and the owner's have diverged: {ahead} commits here, {behind} there; nothing was changed",
            hint=f"git rebase origin/{branch}, or git merge",
        )
    run_git(path, "merge", "--quiet", "--ff-only", upstream, error=BusyError)
    return f"{branch} moved forward by {behind} {'commit' if behind == 1 else 'commits'}"
