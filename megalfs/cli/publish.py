"""`megalfs publish`: chunk, hash, index and sign files where they lie; print the links that pull takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.cli.arguments import add_command, chunk_size
from megalfs.cli.ui import count_text, rate_text, size_text, time_text
from megalfs.errors import UsageError

if TYPE_CHECKING:
    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.core.link import Link
    from megalfs.formats.hostport import HostPort
    from megalfs.node.publishing import Entry
    from megalfs.store.blobs import Store

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Adds `publish`."""
    parser = add_command(commands, "publish", _publish, "chunk, hash, index and sign; print links")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a directory as one")
    parser.add_argument("--name", metavar="NAME", help="sign this name for it: others can pull by name")
    parser.add_argument(
        "--chunk-size",
        type=chunk_size,
        metavar="SIZE",
        help="average chunk, 64K to 4M: smaller ones spread sooner among many, in a longer manifest (256K)",
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be published")


def _publish(context: Context) -> int:
    from megalfs.node.publishing import size_of

    name: str | None = context.args.name
    if name is not None:
        from megalfs.core.names import parse_name

        parse_name(name)
        if len(context.args.paths) != 1:
            raise UsageError(f"--name names one PATH, here are {len(context.args.paths)}")
    sizes = {path: size_of(path) for path in context.args.paths}
    if not context.args.dry_run:
        return _publish_all(context, sizes, name)
    for path, size in sizes.items():
        context.ui.answer({"path": str(path), "bytes": size, "dry_run": True}, f"{path} {size_text(size)}")
    return 0


def _publish_all(context: Context, sizes: dict[Path, int], name: str | None) -> int:
    from megalfs.cli.hashing import HashProgress
    from megalfs.node.publishing import link_of, publish_path

    with (
        context.store(create=True) as store,
        HashProgress(context.ui, "publish", total=sum(sizes.values())) as progress,
    ):
        peers = _own_address(context, store)
        for path in sizes:
            started_s = time.monotonic()
            progress.name = path.name
            entry = publish_path(
                store, path, profile=context.args.chunk_size, progress=progress.add, at=progress.set_name
            )
            link = link_of(store, entry, name=name, peers=peers)
            for note in entry.notes:
                context.ui.warn(note)
            _print(context, entry, link, time.monotonic() - started_s)
    return 0


def _own_address(context: Context, store: Store) -> tuple[HostPort, ...]:
    """Where the node of this root can be dialled, when one runs and its address is one."""
    from megalfs.formats.hostport import HostPort

    running = store.root.read_node()
    if running is None:
        return ()
    advertised = context.settings().advertise
    if advertised is not None:
        return (advertised,)
    host = HostPort.parse(running.listen).host
    return () if host in ("0.0.0.0", "::") else (HostPort(host, running.http_port),)  # noqa: S104 - compared


def _print(context: Context, entry: Entry, link: Link, seconds: float) -> None:
    if not context.ui.is_json:
        context.ui.note(_summary(entry, seconds))
        context.ui.result(str(link))
        return
    context.ui.record(
        {
            "path": str(entry.path),
            "oid": str(entry.oid),
            "size": entry.blob.size,
            "chunks": entry.blob.chunks,
            "manifest": str(entry.manifest_id),
            "link": str(link),
            "kind": entry.kind,
            "files": entry.files,
            "bytes": entry.bytes_total,
            "seconds": round(seconds, 6),
        }
    )


def _summary(entry: Entry, seconds: float) -> str:
    what = count_text(*((entry.files, "file") if entry.kind == "tree" else (entry.blob.chunks, "chunk")))
    pace = f"{time_text(seconds)}, {rate_text(entry.bytes_total, seconds)}"
    return f"published {entry.path}: {size_text(entry.bytes_total)}, {what}, {pace}"
