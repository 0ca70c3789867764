"""`megalfs publish`: chunk, hash, index and sign files where they lie; print the links that pull takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.cli.arguments import add_command
from megalfs.cli.ui import rate_text, size_text, time_text
from megalfs.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.cli.hashing import HashProgress
    from megalfs.core.identity import NodeKey
    from megalfs.core.link import Kind, Link
    from megalfs.formats.hostport import HostPort
    from megalfs.store.blobs import Store
    from megalfs.store.ingest import Published

__all__ = ["add_commands"]

NAME_LIFE_S = 366 * 86400  # a name that nobody publishes again is followed for a year


@dataclass(frozen=True, slots=True)
class _Entry:
    """One PATH, published: a file, or a directory as the tree of its files."""

    path: Path
    blob: Published
    kind: Kind
    files: int
    bytes_total: int


def add_commands(commands: Commands) -> None:
    """Adds `publish`."""
    parser = add_command(
        commands, "publish", _publish, "chunk, hash, index and sign files; print their links"
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a file, or a directory as one thing"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="sign this name for it, so that others can pull by name"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be published")


def _publish(context: Context) -> int:
    paths: list[Path] = context.args.paths
    name: str | None = context.args.name
    if name is not None and len(paths) != 1:
        raise UsageError(f"--name names one PATH, here are {len(paths)}")
    sizes = {path: sum(file.stat().st_size for file in _files(path)) for path in paths}
    if context.args.dry_run:
        for path, size in sizes.items():
            context.ui.result(f"{path} {size_text(size)}")
        return 0
    return _publish_all(context, sizes, name)


def _publish_all(context: Context, sizes: dict[Path, int], name: str | None) -> int:
    from megalfs.cli.hashing import HashProgress

    with (
        context.store(create=True) as store,
        HashProgress(context.ui, "publish", total=sum(sizes.values())) as progress,
    ):
        for path in sizes:
            started_s = time.monotonic()
            progress.name = path.name
            entry = _publish_path(store, path, progress)
            link = _link(store, entry, name, _peers(context, store))
            _print(context, entry, link, time.monotonic() - started_s)
    return 0


def _files(path: Path) -> Iterator[Path]:
    """The file, or the files below the directory, in a stable order. Symlinks to directories are not walked.

    Raises:
        NotFoundError: there is nothing.
    """
    if not path.is_dir():
        if not path.exists():
            raise NotFoundError(f"no such file: {str(path)!r}")
        yield path
        return
    for child in sorted(path.iterdir()):
        if child.name != ".git" and not (child.is_dir() and child.is_symlink()):
            yield from _files(child)


def _publish_path(store: Store, path: Path, progress: HashProgress) -> _Entry:
    from megalfs.store.ingest import publish

    if not path.is_dir():
        blob = publish(store, path, is_signed=True, progress=progress.add)
        return _Entry(path, blob, "blob", 1, blob.size)
    return _publish_tree(store, path, progress)


def _publish_tree(store: Store, directory: Path, progress: HashProgress) -> _Entry:
    from megalfs.core.tree import Tree, TreeEntry
    from megalfs.store.ingest import publish

    entries = []
    for file in _files(directory):
        progress.name = file.name
        blob = publish(store, file, is_signed=True, progress=progress.add)
        is_executable = bool(file.stat().st_mode & 0o100)
        entries.append(TreeEntry(file.relative_to(directory).as_posix(), is_executable, blob.oid, blob.size))
    if not entries:
        raise UsageError(f"no files below {str(directory)!r}")
    tree = Tree.of(entries)
    oid = store.put_bytes(tree.encode())
    blob = publish(store, store.root.blob_path(oid), is_signed=True)
    return _Entry(directory, blob, "tree", len(entries), tree.total_size)


def _link(store: Store, entry: _Entry, name: str | None, peers: tuple[HostPort, ...]) -> Link:
    """The link of an entry; a name is signed and stored first."""
    from megalfs.core.link import Link
    from megalfs.core.pathrules import name_fault

    key = _sign_name(store, entry, name) if name is not None else None
    shown = (name or entry.path.resolve().name).rpartition("/")[2]
    return Link(
        oid=entry.blob.oid,
        name=shown if name_fault(shown) is None else None,
        size=entry.blob.size,
        manifest=entry.blob.manifest_id,
        kind=entry.kind,
        key=key,
        peers=peers,
    )


def _sign_name(store: Store, entry: _Entry, name: str) -> NodeKey:
    """Signs and stores the next record of a name; returns the key that signed."""
    from megalfs.core.names import NameRecord, SignedName

    private = store.root.load_or_create_key()
    known = store.name(private.public, name)
    now_s = int(time.time())  # noqa: TID251 - a record's dates are read on other machines
    record = NameRecord(
        name=name,
        oid=entry.blob.oid,
        size=entry.blob.size,
        manifest=entry.blob.manifest_id,
        kind=entry.kind,
        # From the clock: a root that lost its records does not start again below what others saw.
        seq=max(now_s, known.record.seq + 1 if known is not None else 0),
        expires=now_s + NAME_LIFE_S,
    )
    store.put_name(SignedName.sign(private, record))
    return private.public


def _peers(context: Context, store: Store) -> tuple[HostPort, ...]:
    """Where the node of this root can be dialled, when one runs and says so."""
    from megalfs.formats.hostport import HostPort

    running = store.root.read_node()
    if running is None:
        return ()
    advertised = context.settings().advertise
    if advertised is not None:
        return (advertised,)
    host = HostPort.parse(running.listen).host
    return () if host in ("0.0.0.0", "::") else (HostPort(host, running.http_port),)  # noqa: S104 - compared


def _print(context: Context, entry: _Entry, link: Link, seconds: float) -> None:
    blob = entry.blob
    if not context.ui.is_json:
        context.ui.note(_summary(entry, seconds))
        context.ui.result(str(link))
        return
    context.ui.record(
        {
            "path": str(entry.path),
            "oid": str(blob.oid),
            "size": blob.size,
            "chunks": blob.chunks,
            "manifest": str(blob.manifest_id),
            "link": str(link),
            "kind": entry.kind,
            "files": entry.files,
            "bytes": entry.bytes_total,
            "seconds": round(seconds, 6),
        }
    )


def _summary(entry: _Entry, seconds: float) -> str:
    what = f"{entry.files} files" if entry.kind == "tree" else f"{entry.blob.chunks} chunks"
    pace = f"{time_text(seconds)}, {rate_text(entry.bytes_total, seconds)}"
    return f"published {entry.path}: {size_text(entry.bytes_total)}, {what}, {pace}"
