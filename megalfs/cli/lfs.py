"""`megalfs lfs`: make git-lfs use the swarm, for a user and for a repository."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.cli.arguments import add_command, add_group, http_url, peer

if TYPE_CHECKING:
    import asyncio

    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.git.lfs_setup import Scope

__all__ = ["add_commands"]

PRUNE_S_MAX = 600.0


def add_commands(commands: Commands) -> None:
    """Adds the commands of this family."""
    actions = add_group(commands, "lfs", "large files of git repositories, through git-lfs")
    for name, run, text in (
        ("install", _install, "let git-lfs use megalfs where a repository asks for it"),
        ("uninstall", _uninstall, "undo install"),
    ):
        parser = add_command(actions, name, run, text)
        scope = parser.add_mutually_exclusive_group()
        scope.add_argument("--system", action="store_true", help="for all users of this machine")
        scope.add_argument("--local", action="store_true", help="for this repository only")
    _add_init_repo(actions)
    _add_prune(actions)
    token = add_command(actions, "token", _token, "who may push to this node's LFS server")
    token.add_argument(
        "name", nargs="?", metavar="NAME", help="makes a token for NAME; without, lists the names"
    )
    token.add_argument("--revoke", action="store_true", help="take the token of NAME away")
    add_command(actions, "agent", _agent, "what git-lfs starts; speaks its protocol on stdin and stdout")
    add_command(
        actions, "node", _node, "what the agent starts: the node of this root, on the first free port"
    )


def _add_init_repo(actions: Commands) -> None:
    parser = add_command(actions, "init-repo", _init_repo, "commit what lets a plain git clone use the swarm")
    parser.add_argument("--name", default="", metavar="SWARM/REPO", help="what the objects are known under")
    parser.add_argument(
        "--tracker",
        type=http_url,
        action="append",
        default=[],
        metavar="URL",
        help="where peers meet; may repeat",
    )
    parser.add_argument(
        "--peer",
        type=peer,
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a node to ask; may repeat",
    )
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="URL",
        help="an LFS server to fall back on, https://HOST/REPO.git/info/lfs, or s3://BUCKET/PREFIX; may repeat",
    )
    parser.add_argument(
        "--home",
        metavar="URL",
        help="a --server that every push from this clone must reach (git config megalfs.home)",
    )
    parser.add_argument(
        "--pushurl", type=http_url, metavar="URL", help="an LFS server that pushes go to instead"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace the LFS server that the repository names"
    )


def _add_prune(actions: Commands) -> None:
    parser = add_command(actions, "prune", _prune, "remove objects that git no longer needs and others hold")
    parser.add_argument(
        "--verify-swarm", action="store_true", required=True, help="ask every peer and tracker that is known"
    )
    parser.add_argument(
        "--min-copies", type=int, default=2, metavar="N", help="how many other nodes must have it (2)"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be removed")


def _scope(context: Context) -> Scope:
    return "system" if context.args.system else "local" if context.args.local else "global"


def _install(context: Context) -> int:
    from megalfs.errors import StoreError
    from megalfs.git.lfs_setup import git, install

    is_new = install(_scope(context))
    context.ui.note(
        "git-lfs uses megalfs for repositories that ask for it" if is_new else "installed already"
    )
    try:
        git("config", "--get", "filter.lfs.process")
    except StoreError:
        context.ui.warn("git-lfs itself is not set up; run: git lfs install")
    return 0


def _uninstall(context: Context) -> int:
    from megalfs.git.lfs_setup import uninstall

    context.ui.note("uninstalled" if uninstall(_scope(context)) else "not installed there; nothing to do")
    return 0


def _init_repo(context: Context) -> int:
    from megalfs.git.lfs_setup import init_repository

    args = context.args
    changed = init_repository(
        Path.cwd(),
        name=args.name,
        trackers=args.tracker,
        peers=[str(each) for each in args.peer],
        servers=args.server,
        home=args.home,
        pushurl=args.pushurl,
        force=args.force,
    )
    for path in changed:
        context.ui.result(str(path))
    if not args.tracker and not args.peer and not args.server and not args.home:
        context.ui.note(
            "no tracker or peer is named: clones find objects only where their user's settings lead"
        )
    return 0


def _prune(context: Context) -> int:
    from megalfs.cli.local_node import post_node, running_node
    from megalfs.cli.ui import size_text
    from megalfs.errors import UsageError
    from megalfs.git.lfs_prune import PIECES_SHOWN
    from megalfs.git.worktree import WorkTree

    args, ui, root = context.args, context.ui, context.root(create=False)
    tree = WorkTree.find(Path.cwd())
    if tree is None:
        raise UsageError("no git work tree here")
    if args.min_copies < 1:
        raise UsageError(f"--min-copies {args.min_copies}: at least one other node must have an object")
    sources = tree.sources(context.settings())
    body = {
        "oids": tree.prunable(),
        "storage": str(tree.storage),
        "peers": [str(each) for each in sources.peers],
        "trackers": list(sources.trackers),
        "strangers": sorted(sources.strangers),
        "min_copies": args.min_copies,
        "dry": args.dry_run,
    }
    answer = post_node(root, running_node(root), "/v1/local/lfs/prune", body=body, timeout_s=PRUNE_S_MAX)
    objects = answer["objects"]
    assert isinstance(objects, list)
    removed = [each for each in objects if each["removed"]]
    for each in objects:
        if ui.is_json:
            ui.record(each)
        elif not each["removed"]:
            ui.warn(f"kept {each['oid']}: {each['copies']} of {args.min_copies} copies found elsewhere")
    freed, what = (
        size_text(sum(each["size"] for each in removed)),
        f"{len(removed)} of {len(objects)} objects",
    )
    ui.note(f"{'would remove' if args.dry_run else 'removed'} {what}, {freed}")
    if removed:
        ui.note(
            f"each was shown by others in up to {PIECES_SHOWN} pieces drawn by lot, not read there as a whole"
        )
    return 0


def _token(context: Context) -> int:
    from megalfs.errors import UsageError
    from megalfs.git.lfs_users import Users

    name, users = context.args.name, Users(context.root(create=True))
    if name is None and context.args.revoke:
        raise UsageError("whose token is revoked?", hint="megalfs lfs token NAME --revoke")
    if name is None:
        for each in users.names():
            context.ui.result(each)
    elif context.args.revoke:
        users.remove(name)
        context.ui.note(f"{name} may no longer push")
    else:
        context.ui.result(users.add(name))
        context.ui.note(f"git asks for it: user {name}, and this token as the password")
    return 0


def _agent(context: Context) -> int:
    from megalfs.git.lfs_setup import stub_path

    environ = {**context.environ, "MEGALFS_ROOT": str(context.root_path)}
    os.execve(sys.executable, [sys.executable, "-I", "-S", str(stub_path())], environ)  # noqa: S606 - our own program


def _node(context: Context) -> int:
    """Serves like `node start`; nobody waits for it, so a port that is taken is no reason to fail."""
    settings = context.settings()
    from megalfs.cli.running import run_until_signal
    from megalfs.formats.hostport import HostPort
    from megalfs.git.services import git_services
    from megalfs.node.api import PULL_PORTS, run_node

    # DESIGN.md section 6: what pulls shares, on all interfaces, unless told otherwise.
    host = settings.listen.host if settings.listen else "0.0.0.0" if settings.share else "127.0.0.1"  # noqa: S104
    port = settings.listen.port if settings.listen else 0
    with context.store(create=True) as store:

        async def work(stop: asyncio.Event) -> None:
            await run_node(
                store=store,
                settings=settings,
                paths=[],
                listen=HostPort(host, port),
                ports=range(port, port + 1) if port else PULL_PORTS,
                on_ready=lambda info: context.ui.note(f"serving on {info.host}:{info.port} as {info.key}"),
                stop=stop,
                services=git_services(),
            )

        run_until_signal(context.ui, work)
    return 0
