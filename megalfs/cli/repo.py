"""`megalfs repo`: share repositories, see those of others, clone and update them by id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from megalfs.cli.arguments import add_command, add_group, node_key
from megalfs.errors import (
    IntegrityError,
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    PolicyError,
    SpaceError,
    TemporaryError,
)

if TYPE_CHECKING:
    from contextlib import closing

    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.cli.ui import Ui
    from megalfs.core.repoid import RepoId
    from megalfs.store.repos import Repo, Repos

__all__ = ["add_commands"]

SYNC_S_MAX = 3600.0
LFS_S_MAX = 7 * 86400.0  # a copy may have terabytes; the node goes on when the command is stopped
_ERRORS: dict[int, type[MegalfsError]] = {
    each.exit_code: each
    for each in (NotFoundError, IntegrityError, SpaceError, NotAuthorisedError, PolicyError)
}


def add_commands(commands: Commands) -> None:
    """Adds the commands of this family."""
    actions = add_group(commands, "repo", "git repositories between nodes")
    add = add_command(actions, "add", _add, "share a repository of this machine; prints its id")
    add.add_argument(
        "--path", type=Path, required=True, metavar="DIR", help="a work tree or a bare repository"
    )
    add.add_argument("--description", default="", metavar="TEXT", help="one line, for the lists of others")
    add.add_argument("--name", metavar="NAME", help="as it stands in URLs (the directory's name)")
    _add_allow(add)
    allow = add_command(actions, "allow", _allow, "let keys push to a repository")
    allow.add_argument("repo", metavar="REPO", help="a name or id")
    allow.add_argument("keys", nargs="+", type=node_key, metavar="KEY", help="did:key:... or 12D3KooW...")
    forbid = add_command(actions, "forbid", _forbid, "let keys no longer push")
    forbid.add_argument("repo", metavar="REPO", help="a name or id")
    forbid.add_argument("keys", nargs="+", type=node_key, metavar="KEY", help="did:key:... or 12D3KooW...")
    remove = add_command(actions, "remove", _remove, "no longer share a repository; its files stay")
    remove.add_argument("repo", metavar="REPO", help="a name or id")
    add_command(actions, "list", _list, "the repositories of this node, and those it heard of")
    pushes = add_command(actions, "log", _log, "who pushed what to a repository of this node")
    _add_repo_id(pushes)
    clone = add_command(actions, "clone", _clone, "clone a repository from whoever has it")
    _add_repo_id(clone)
    clone.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not exist")
    _add_lfs(clone)
    pull = add_command(actions, "pull", _pull, "update the clones of a repository")
    _add_repo_id(pull)
    sync = add_command(actions, "sync", _sync, "look for new states now, instead of within a minute")
    sync.add_argument("--repo-id", metavar="ID", help="only this one (all that are shared or followed)")
    _add_lfs(sync)
    thing = add_command(actions, "object", _object, "one git object of a peer, to stdout or a file")
    thing.add_argument("url", metavar="URL", help="p2p://KEY/object/NAME?addr=HOST:PORT")
    thing.add_argument("--output", type=Path, metavar="FILE", help="instead of stdout")


def _add_allow(parser: object) -> None:
    parser.add_argument(  # type: ignore[attr-defined]  # argparse's class is private to `arguments`
        "--allow", type=node_key, action="append", default=[], metavar="KEY", help="may push; may repeat"
    )


def _add_repo_id(parser: object) -> None:
    parser.add_argument(  # type: ignore[attr-defined]  # as above
        "--repo-id", required=True, metavar="ID", help="did:repo:z..., or a name that only one has"
    )


def _add_lfs(parser: object) -> None:
    parser.add_argument(  # type: ignore[attr-defined]  # as above
        "--lfs",
        action="store_true",
        help="keep the large files of this copy too, whatever they weigh, from now on",
    )


def _open(context: Context, *, create: bool) -> closing[Repos]:
    from contextlib import closing

    from megalfs.store.repos import Repos

    return closing(Repos(context.root(create=create)))


# --- sharing ------------------------------------------------------------------------------------------------


def _add(context: Context) -> int:
    from megalfs.git.repos import add_repository

    args = context.args
    with _open(context, create=True) as repos:
        own = context.root(create=True).public_key()
        repo = add_repository(
            repos, own, args.path, description=args.description, name=args.name, writers=args.allow
        )
    _wake(context)
    if context.ui.is_json:
        context.ui.record({"repo": str(repo.id), "name": repo.name, "creator": str(own), "path": repo.path})
    else:
        context.ui.result(str(repo.id))
        context.ui.note(f"shared as p2p://{own.peer_id}/{repo.name}.git while a node runs on this root")
    return 0


def _allow(context: Context) -> int:
    return _change_writers(context, is_added=True)


def _forbid(context: Context) -> int:
    return _change_writers(context, is_added=False)


def _change_writers(context: Context, *, is_added: bool) -> int:
    from megalfs.git.repos import find_repository

    with _open(context, create=False) as repos:
        repo = find_repository(repos, context.args.repo)
        if repo.is_external:
            raise PolicyError(f"only the creator of {repo.name!r} says who may push: {repo.creator}")
        keys = set(repos.writers(repo.id))
        keys = keys | set(context.args.keys) if is_added else keys - set(context.args.keys)
        repos.set_writers(repo.id, sorted(keys))
    _wake(context)
    count = "1 key" if len(keys) == 1 else f"{len(keys)} keys"
    context.ui.note(f"{count} beside the owner may push to {repo.name}")
    return 0


def _remove(context: Context) -> int:
    from megalfs.git.repos import find_repository

    with _open(context, create=False) as repos:
        repo = find_repository(repos, context.args.repo)
        repos.remove(repo.id)
    _wake(context)
    context.ui.note(f"{repo.name} is no longer shared; its files are where they were")
    return 0


# --- seeing -------------------------------------------------------------------------------------------------


def _list(context: Context) -> int:
    from megalfs.cli.repo_view import repo_fields, repo_lines
    from megalfs.git.push_log import read_pushes

    pushes = read_pushes(context.root(create=False))
    with _open(context, create=False) as repos:
        for repo in repos.all():
            fields = repo_fields(repos, repo, pushes.get(repo.id, ()))
            if context.ui.is_json:
                context.ui.record(fields)
            else:
                for line in repo_lines(fields):
                    context.ui.result(line)
    return 0


def _log(context: Context) -> int:
    from megalfs.cli.repo_view import push_fields, push_line
    from megalfs.git.push_log import read_pushes

    with _open(context, create=False) as repos:
        repo = _find(context, repos)
        aliases = {node.key: node.alias for node in repos.nodes()}
    if repo.is_external:
        raise PolicyError(f"who pushed to {repo.name!r} is known to its owner only: {repo.creator}")
    pushes = read_pushes(context.root(create=False)).get(repo.id, [])
    for push in pushes:
        if context.ui.is_json:
            context.ui.record({"repo": str(repo.id), "name": repo.name, **push_fields(push)})
        else:
            context.ui.result(push_line(push, aliases))
    if not pushes:
        context.ui.note(f"nobody has pushed to {repo.name} through this node")
    return 0


# --- clones -------------------------------------------------------------------------------------------------


def _clone(context: Context) -> int:
    from megalfs.git.clones import clone_repository

    output: Path = context.args.output
    if output.exists():
        raise NotFoundError(f"{str(output)!r} exists", hint="choose another --output")
    with _open(context, create=False) as repos:
        repo = _find(context, repos)
        _bring(context, repos, repo.id, lfs=context.args.lfs)
        seq = clone_repository(repos, repo.id, output.absolute())
    if context.ui.is_json:
        context.ui.record({"repo": str(repo.id), "path": str(output.absolute()), "seq": seq})
    else:
        context.ui.result(str(output))
        context.ui.note(f"cloned {repo.name} at state {seq}")
        if count := _count_pointers(output):
            context.ui.note(
                f"{count} large {'file is' if count == 1 else 'files are'} still to come: megalfs pull {output}"
            )
    return 0


def _count_pointers(output: Path) -> int:
    """Files that git-lfs keeps, in a clone that was made without it."""
    from megalfs.git.worktree import Filter, WorkTree

    tree = WorkTree.find(output)
    return sum(1 for _ in tree.pointers(tree.top, Filter())) if tree is not None else 0


def _pull(context: Context) -> int:
    from megalfs.git.clones import pull_clone

    with _open(context, create=False) as repos:
        repo = _find(context, repos)
        _bring(context, repos, repo.id)
        clones = repos.clones(repo.id)
        if not clones:
            raise NotFoundError(f"no clone of {repo.name!r} was made here", hint="megalfs repo clone")
        failures = _Failures(context.ui)
        for clone in clones:
            try:
                summary = pull_clone(repos, clone)
            except MegalfsError as error:
                failures.add(clone.path, error)
                continue
            if context.ui.is_json:
                context.ui.record({"repo": str(repo.id), "path": clone.path, "summary": summary})
            else:
                context.ui.result(f"{clone.path}: {summary}")
    failures.finish()
    return 0


def _sync(context: Context) -> int:
    with _open(context, create=False) as repos:
        wanted = [_find(context, repos)] if context.args.repo_id else [
            repo for repo in repos.all() if not repo.is_external or repo.is_followed
        ]  # fmt: skip
    failures = _Failures(context.ui)
    for repo in wanted:
        try:
            answer = _ask_sync(context, repo.id, lfs=context.args.lfs)
        except MegalfsError as error:
            failures.add(repo.name, error)
            continue
        if context.ui.is_json:
            kept: dict[str, object] = {
                name: answer[name] for name in ("seq", "large_files", "large_bytes") if name in answer
            }
            context.ui.record({"repo": str(repo.id), "name": repo.name, **kept})
        else:
            context.ui.result(f"{repo.name}: state {answer['seq']}{_kept(answer)}")
    failures.finish()
    return 0


def _kept(answer: dict[str, object]) -> str:
    from megalfs.cli.ui import size_text

    match answer:
        case {"large_files": int(count), "large_bytes": int(size)}:
            return f", {count} large {'file' if count == 1 else 'files'} kept, {size_text(size)}"
        case _:
            return ""


class _Failures:
    """What failed of several: each is said once, and the last one decides how the command ends."""

    def __init__(self, ui: Ui) -> None:
        self._ui = ui
        self._last: MegalfsError | None = None

    def add(self, name: str, error: MegalfsError) -> None:
        """One more."""
        if self._last is not None:
            self._ui.warn(str(self._last))
        self._last = type(error)(f"{name}: {error}", hint=error.hint)

    def finish(self) -> None:
        """Raises the last one."""
        if self._last is not None:
            raise self._last


def _find(context: Context, repos: Repos) -> Repo:
    from megalfs.git.repos import find_repository

    return find_repository(repos, context.args.repo_id)


def _bring(context: Context, repos: Repos, repo: RepoId, *, lfs: bool = False) -> None:
    """The newest state through the node; when nobody can be reached, what is here is good enough."""
    try:
        _ask_sync(context, repo, lfs=lfs)
    except (TemporaryError, NotFoundError) as error:
        row = repos.find(repo)
        if row is None or not row.path:
            raise
        context.ui.note(f"{error}; going on with what is here")


# --- one object ---------------------------------------------------------------------------------------------


def _object(context: Context) -> int:
    import asyncio
    import sys

    from megalfs.git.objects import fetch_object

    with _open(context, create=True) as repos:
        content = asyncio.run(fetch_object(context.root(create=True), repos, context.args.url))
    if context.args.output is not None:
        context.args.output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)
    return 0


# --- the node -----------------------------------------------------------------------------------------------


def _ask_sync(context: Context, repo: RepoId, *, lfs: bool = False) -> dict[str, object]:
    from megalfs.cli.local_node import post_node, running_node

    root = context.root(create=False)
    path = f"/v1/local/p2p/sync/{quote(str(repo), safe='')}" + ("?lfs=1" if lfs else "")
    answer = post_node(root, running_node(root), path, timeout_s=LFS_S_MAX if lfs else SYNC_S_MAX)
    if "error" in answer:
        _raise(answer)
    return answer


def _raise(answer: dict[str, object]) -> NoReturn:
    code, hint = answer.get("code"), answer.get("hint")
    kind = _ERRORS.get(code, TemporaryError) if isinstance(code, int) else TemporaryError
    raise kind(str(answer["error"]), hint=str(hint) if hint else None)


def _wake(context: Context) -> None:
    """Tells the node of this root, when one runs, that the table changed."""
    from contextlib import suppress

    from megalfs.cli.local_node import post_node, running_node

    root = context.root(create=False)
    with suppress(NotFoundError, TemporaryError):
        post_node(root, running_node(root), "/v1/local/p2p/wake")
