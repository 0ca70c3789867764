"""`megalfs pull`: fetch, verify, and share while fetching."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from megalfs.cli.arguments import (
    add_command,
    add_sharing,
    http_url,
    node_key,
    peer,
    seconds,
)
from megalfs.cli.ui import count_text, rate_text, share_text, size_text, time_text
from megalfs.errors import MegalfsError

if TYPE_CHECKING:
    import asyncio

    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.formats.hostport import HostPort
    from megalfs.git.worktree import WorkTreePull
    from megalfs.node.api import PullOptions, PullSummary

__all__ = ["add_commands"]

WAIT_PEERS_S = 10.0
ASK_S_MAX = 3600.0  # the owner hashes what nobody asked for before
HOLDERS_PATH = "/v1/local/lfs/holders"


def add_commands(commands: Commands) -> None:
    """Adds `pull`."""
    parser = add_command(commands, "pull", _pull, "fetch files from every source at once, verified")
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="a pointer file, a directory of them, a link, an oid, or a published name",
    )
    parser.add_argument(
        "-o", "--output", metavar="DEST", help="a file, or a directory that exists (the TARGET's name, here)"
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
        "--origin",
        type=http_url,
        action="append",
        default=[],
        metavar="URL",
        help="a plain HTTP server; may repeat",
    )
    parser.add_argument(
        "--key",
        type=node_key,
        action="append",
        default=[],
        metavar="KEY",
        help="believe names this key signed",
    )
    parser.add_argument(
        "--wait-peers",
        type=seconds,
        default=WAIT_PEERS_S,
        metavar="SECONDS",
        help=f"how long to wait for a first peer, such as 250ms, 30 or 5m ({WAIT_PEERS_S:.0f})",
    )
    parser.add_argument(
        "--linger",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="go on sharing afterwards, such as 30 or 10m (0)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that was never published or pulled"
    )
    parser.add_argument("--no-share", action="store_true", help="do not serve what was fetched")
    parser.add_argument(
        "--link",
        choices=("auto", "hard", "sym", "copy"),
        default="auto",
        help="how a file that is on this disk already gets to DEST (auto: reflink, else copy)",
    )
    for name, text in (("include", "only these paths of a git work tree"), ("exclude", "not these paths")):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{text}; as git lfs pull reads it",
        )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what each TARGET is")
    add_sharing(parser, listen_help="where to share meanwhile (ports 7427-7447, then any)")


def _pull(context: Context) -> int:
    if context.args.dry_run:
        return _dry_run(context)
    settings = context.settings()
    from megalfs.cli.progress import Progress
    from megalfs.cli.running import run_until_signal
    from megalfs.node.api import run_pull

    args = context.args
    plan = None
    if args.output is None:
        from megalfs.git.worktree import WorkTreePull

        plan = WorkTreePull.plan(args.targets, include=args.include, exclude=args.exclude, settings=settings)
    with context.store(create=True) as store, Progress(context.ui, "pull") as progress:

        def show(summary: PullSummary) -> None:
            progress.close()
            if plan is not None:
                plan.settle(store)
            _print(context, summary)

        async def work(stop: asyncio.Event) -> PullSummary:
            located, troubles = await plan.locate() if plan is not None else ({}, [])
            for text in troubles:
                context.ui.warn(text)
            return await run_pull(
                plan.targets if plan is not None else args.targets,
                replace(_options(context, plan, await _told(context, plan)), located=located),
                store=store,
                settings=settings,
                cwd=Path.cwd(),
                on_progress=progress.update,
                stop=stop,
                on_done=show,
            )

        if plan is not None:
            plan.prepare(store)
        try:
            return run_until_signal(context.ui, work).exit_code
        except MegalfsError as error:
            progress.close()
            if plan is not None:
                plan.settle(store)  # what did arrive
            if not context.ui.is_json:
                for file in error.files:
                    context.ui.result(str(file["path"]))
            raise


async def _told(context: Context, plan: WorkTreePull | None) -> tuple[HostPort, ...]:
    """Who has the objects, by the word of a p2p:// remote; a remote that is away is no reason to stop."""
    remote = plan.tree.remote() if plan is not None else ""
    if plan is None or not plan.files or not remote:
        return ()
    import asyncio

    from megalfs.cli.local_node import post_node, running_node
    from megalfs.formats.hostport import HostPort
    from megalfs.git.lfs_remote import ask_holders

    root = context.root(create=True)
    oids = dict.fromkeys(pointer.oid for _, pointer in plan.files)
    try:
        body = {"remote": remote, "oids": list(map(str, oids))}
        running = running_node(root)
        answer = await asyncio.to_thread(
            post_node, root, running, HOLDERS_PATH, timeout_s=ASK_S_MAX, body=body
        )
    except MegalfsError:  # no node runs here that heard of more than the owner
        pass
    else:
        return tuple(HostPort.parse(str(peer)) for peer in cast("list[str]", answer["peers"]))
    try:
        return await ask_holders(root, remote, oids)
    except MegalfsError as error:
        context.ui.note(f"{error}; asking others")
        return ()


def _options(context: Context, plan: WorkTreePull | None, told: tuple[HostPort, ...]) -> PullOptions:
    from megalfs.node.api import PullOptions

    args = context.args
    return PullOptions(
        dest=None if args.output is None else Path(args.output),
        is_dest_directory=bool(args.output) and args.output.endswith(os.sep),
        peers=(*args.peer, *told, *(plan.sources.peers if plan else ())),
        trackers=(*args.tracker, *(plan.sources.trackers if plan else ())),
        strangers=plan.sources.strangers if plan else frozenset(),
        origins=tuple(args.origin),
        keys=frozenset(args.key) | (plan.sources.keys if plan else frozenset()),
        force=args.force,
        share=not args.no_share,
        discover=not args.no_discover,
        wait_peers_s=args.wait_peers,
        linger_s=args.linger,
        listen=args.listen,
        link=args.link,
        proxies=context.proxies(),
    )


def _print(context: Context, summary: PullSummary) -> None:
    ui = context.ui
    for line in summary.notes:
        ui.note(line)
    for peer_name, count in summary.rejected.items():
        ui.warn(f"{peer_name} sent {count} wrong pieces and was banned")
    if ui.is_json:
        ui.record(_done(summary))
        return
    for file in summary.files:
        ui.result(str(file.path))
    ui.note(_totals(summary))


def _done(summary: PullSummary) -> dict[str, object]:
    fetched = summary.bytes_fetched
    return {
        "event": "done",
        "files": [
            {"oid": str(file.oid), "path": str(file.path), "size": file.size} for file in summary.files
        ],
        "bytes_fetched": fetched,
        "bytes_reused": summary.bytes_reused,
        "bytes_origin": summary.bytes_origin,
        "bytes_by_peer": dict(summary.bytes_by_peer),
        "seconds": round(summary.seconds, 6),
        "rate": round(fetched / max(summary.seconds, 1e-6)),
        "rejected": dict(summary.rejected),
    }


def _totals(summary: PullSummary) -> str:
    """`pulled 1 file, 86.7 MiB in 0.31s (280 MiB/s): 4 sources, 0% origin, 12% reused`."""
    size = sum(file.size for file in summary.files)
    parts = [
        count_text(len(summary.bytes_by_peer), "source"),
        f"{share_text(summary.bytes_origin, size)} origin",
        f"{share_text(summary.bytes_reused, size)} reused",
    ]
    pace = f"{size_text(size)} in {time_text(summary.seconds)} ({rate_text(size, summary.seconds)})"
    return f"pulled {count_text(len(summary.files), 'file')}, {pace}: {', '.join(parts)}"


def _dry_run(context: Context) -> int:
    """Says what each TARGET is, as far as this machine knows; asks nobody."""
    from megalfs.cli.targets import describe

    with context.store(create=True) as store:
        for target in context.args.targets:
            found = describe(store, target)
            facts = " ".join(f"{name}={value}" for name, value in found.items() if value is not None)
            context.ui.answer({"target": target, **found}, f"{target}: {facts}")
    return 0
