"""Commands about the node that serves: `seed`, `node start|stop|list|info`, `tracker`, `status`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.cli.arguments import add_command, add_group, add_sharing, host_port, node_address, word
from megalfs.cli.ui import count_text, size_text
from megalfs.errors import BusyError

if TYPE_CHECKING:
    import asyncio

    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.node.api import NodeInfo, PublishedLink
    from megalfs.node.service import ServiceFactory

__all__ = ["add_commands"]

DEFAULT_PORT = 7427
STOP_S_MAX = 30.0  # a node drains what it is sending before it ends


def add_commands(commands: Commands) -> None:
    """Adds the commands of this family."""
    listen_help = f"where to listen (0.0.0.0:{DEFAULT_PORT})"
    seed = add_command(commands, "seed", _seed, "publish files and serve them")
    seed.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or directory")
    add_sharing(seed, listen_help=listen_help)
    tracker = add_command(commands, "tracker", _tracker, "tell peers about each other; serves no files")
    add_sharing(tracker, listen_help=listen_help)
    status = add_command(commands, "status", _status, "what the node of this root is doing")
    status.add_argument("--watch", action="store_true", help="again every second, until interrupted")
    _add_node(commands, listen_help)


def _add_node(commands: Commands, listen_help: str) -> None:
    actions = add_group(commands, "node", "the node of this root")
    start = add_command(actions, "start", _start, "serve what is published, until SIGTERM")
    start.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="publish these first")
    add_sharing(start, listen_help=listen_help)
    start.add_argument("--alias", type=word, metavar="NAME", help="what this node calls itself")
    start.add_argument(
        "--addr",
        type=host_port,
        metavar="HOST:PORT",
        help="links between nodes: TLS on TCP, QUIC on UDP (0.0.0.0:9000, or any port when that is taken)",
    )
    start.add_argument(
        "--bootstrap-node",
        type=node_address,
        action="append",
        default=[],
        metavar="KEY@HOST:PORT",
        help="a node to join by, whose repositories are kept in step; may repeat",
    )
    start.add_argument(
        "--cert-path", type=Path, metavar="DIR", help="where its certificate is kept (the root)"
    )
    add_command(actions, "stop", _stop, "ask the node of this root to drain and end")
    add_command(actions, "list", _list, "the node of this root, and the peers it knows")
    add_command(actions, "info", _info, "key, address and process of the node of this root")


def _seed(context: Context) -> int:
    return _serve(context, context.args.paths, is_tracker=False)


def _start(context: Context) -> int:
    return _serve(context, context.args.paths, is_tracker=False, has_links=True)


def _tracker(context: Context) -> int:
    return _serve(context, [], is_tracker=True)


def _serve(context: Context, paths: Sequence[Path], *, is_tracker: bool, has_links: bool = False) -> int:
    settings = context.settings()
    from megalfs.cli.running import run_until_signal
    from megalfs.formats.hostport import HostPort
    from megalfs.git.services import git_services
    from megalfs.node.api import run_node

    listen = context.args.listen or settings.listen or HostPort("0.0.0.0", DEFAULT_PORT)  # noqa: S104 - DESIGN 6
    with context.store(create=True) as store:

        async def work(stop: asyncio.Event) -> None:
            await run_node(
                store=store,
                settings=settings,
                paths=paths,
                listen=listen,
                on_ready=lambda info: _print_ready(context, info, is_tracker=is_tracker),
                stop=stop,
                tracker_only=is_tracker,
                services=() if is_tracker else _links(context) if has_links else git_services(),
            )

        run_until_signal(context.ui, work)
    context.ui.note("stopped")
    return 0  # to be stopped is how a server ends well


def _links(context: Context) -> list[ServiceFactory]:
    """Links, gossip and repositories, as the flags and settings say."""
    from megalfs.git.repo_layer import repo_layer
    from megalfs.node.p2p import P2pOptions

    settings = context.settings()
    options = P2pOptions(
        alias=settings.alias,
        addr=settings.addr,
        bootstrap=settings.bootstrap_nodes,
        certificates=context.args.cert_path,
    )
    return [repo_layer(options)]


def _print_ready(context: Context, info: NodeInfo, *, is_tracker: bool) -> None:
    from megalfs.formats.hostport import HostPort

    ui = context.ui
    for blob in info.blobs:
        ui.answer(
            {
                "path": str(blob.path),
                "oid": str(blob.oid),
                "size": blob.size,
                "chunks": blob.chunks,
                "manifest": str(blob.manifest_id),
                "link": str(blob.link),
            },
            str(blob.link),
        )
    if ui.is_json:
        ui.record(
            {
                "event": "ready",
                "key": str(info.key),
                "host": info.host,
                "port": info.port,
                "link_port": info.link_port,
                "tls_port": info.tls_port,
                "pid": os.getpid(),
            }
        )
    role = "tracker" if is_tracker else f"serving{_what(info.blobs)}"
    ui.note(f"{role} on {HostPort(info.host, info.port)} as {info.key}; ctrl-c stops")


def _what(blobs: Sequence[PublishedLink]) -> str:
    """` weights (2 files, 6.7 MiB)`; of several PATHs only how many; nothing where none was given."""
    if not blobs:
        return ""
    name = blobs[0].path.name if len(blobs) == 1 else f"{len(blobs)} paths"
    files = count_text(sum(blob.files for blob in blobs), "file")
    return f" {name} ({files}, {size_text(sum(blob.bytes_total for blob in blobs))})"


def _stop(context: Context) -> int:
    from megalfs.cli.local_node import running_node

    root = context.root(create=False)
    pid = running_node(root).owner.pid
    os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_S_MAX
    pause = threading.Event()
    while root.read_node() is not None:
        if time.monotonic() > deadline_s:
            raise BusyError(f"the node (pid {pid}) still runs after {STOP_S_MAX:.0f} s", hint=f"kill {pid}")
        pause.wait(0.02)
    context.ui.note(f"stopped the node (pid {pid})")
    return 0


def _info(context: Context) -> int:
    from megalfs.cli.local_node import running_node

    root = context.root(create=False)
    running = running_node(root)
    public = root.public_key()
    facts: dict[str, object] = {
        "key": public.did,
        "peer_id": public.peer_id,
        "listen": running.listen,
        "port": running.http_port,
        "link_port": running.quic_port,
        "pid": running.owner.pid,
        "root": str(root.path),
    }
    if context.ui.is_json:
        context.ui.record(facts)
    else:
        for name, value in facts.items():
            context.ui.result(f"{name.replace('_', ' '):<8} {value}")
    return 0


def _list(context: Context) -> int:
    from megalfs.cli.status import list_nodes

    return list_nodes(context)


def _status(context: Context) -> int:
    from megalfs.cli.status import show_status

    return show_status(context)
