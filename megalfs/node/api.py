"""The library's front door: run a pull, run a node. The command line and every other front end call these."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.link import Link
from megalfs.core.signing import SigningKey
from megalfs.errors import CancelledByUserError, MegalfsError
from megalfs.formats.hostport import HostPort
from megalfs.node.identity import LocalIdentity
from megalfs.node.node import Node
from megalfs.node.publishing import link_of, publish_path
from megalfs.node.pull_request import Located
from megalfs.node.pulling import PullSet
from megalfs.node.resolve import NameSources
from megalfs.node.service import ServiceFactory

if TYPE_CHECKING:
    from megalfs.config import Settings
    from megalfs.store.blobs import Store

__all__ = [
    "NodeInfo",
    "ProgressSnapshot",
    "PublishedLink",
    "PullOptions",
    "PullSummary",
    "PulledFile",
    "run_node",
    "run_pull",
]

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.1
REPORT_SHARE_MAX = 0.1  # of the event loop: adding up 10,000 files takes 30 ms
# DESIGN.md section 6: 7427 to 7447, then any.
PULL_PORTS = range(7427, 7448)


class PullOptions(Struct, frozen=True, kw_only=True):
    """What the user asked for beside the targets."""

    dest: Path | None = None
    is_dest_directory: bool = False  # the user said so with a slash at the end
    peers: tuple[HostPort, ...] = ()
    trackers: tuple[str, ...] = ()
    strangers: frozenset[str] = frozenset()  # `host:port` that only a repository named: see net.http
    origins: tuple[str, ...] = ()
    located: Mapping[Oid, Located] = field(default_factory=dict)
    keys: frozenset[NodeKey] = frozenset()
    force: bool = False
    share: bool = True
    discover: bool = True
    wait_peers_s: float = 10.0
    linger_s: float = 0.0
    listen: HostPort | None = None
    link: Literal["auto", "hard", "sym", "copy"] = "auto"
    proxies: Mapping[str, str] = field(default_factory=dict)


class ProgressSnapshot(Struct, frozen=True):
    """How far a pull is, over all its files."""

    name: str
    bytes_total: int
    bytes_verified: int
    bytes_fetched: int
    bytes_reused: int
    bytes_origin: int
    peer_count: int
    phase: str


class PulledFile(Struct, frozen=True):
    """One file, whole and proven at its place."""

    oid: Oid
    path: Path
    size: int


class PullSummary(Struct, frozen=True):
    """What a pull did."""

    files: list[PulledFile]
    bytes_fetched: int
    bytes_reused: int
    bytes_origin: int
    bytes_by_peer: dict[str, int]
    seconds: float
    rejected: dict[str, int]
    notes: list[str] = field(default_factory=list)


class PublishedLink(Struct, frozen=True):
    """One PATH that a node publishes."""

    path: Path
    oid: Oid
    size: int
    chunks: int
    manifest_id: ManifestId | None
    link: Link
    files: int  # 1, or those of a directory
    bytes_total: int  # of these files


class NodeInfo(Struct, frozen=True):
    """A node that is ready."""

    key: NodeKey
    host: str
    port: int
    link_port: int
    tls_port: int
    blobs: tuple[PublishedLink, ...]


async def run_pull(
    targets: Sequence[str],
    options: PullOptions,
    *,
    store: Store,
    settings: Settings,
    cwd: Path,
    on_progress: Callable[[ProgressSnapshot], None],
    stop: asyncio.Event,
    on_done: Callable[[PullSummary], None] | None = None,
) -> PullSummary:
    """Pulls every target, sharing what is verified meanwhile; ends early when `stop` is set.

    Args:
        on_done: called with the summary once every file is whole, before `linger_s` begins.

    Raises:
        MegalfsError: with `rejected` where sources sent wrong bytes.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    node = Node(store, settings, _identity(store, create=False), proxies=options.proxies)
    is_on_its_own = not (
        options.peers or options.trackers or options.origins or options.located or settings.peers
    )
    uses_lan = is_on_its_own and not settings.trackers and settings.discover and options.discover
    node.peer_http.strangers.update(options.strangers)
    pulls = PullSet(node, options, cwd, uses_lan=uses_lan)
    names = NameSources(
        node.peer_http,
        (*options.peers, *settings.peers),
        (*options.trackers, *settings.trackers),
        options.keys | settings.trusted_keys,
        chosen=options.keys,
        neighbours=node.neighbours.wait if uses_lan else list,
    )
    reporter = asyncio.create_task(_report(pulls, on_progress))
    try:
        if options.share:
            await _share(node, options)
        if uses_lan:
            await node.neighbours.browse(options.listen.host if options.listen is not None else "")
        work = asyncio.create_task(pulls.run(targets, names))
        await _until(work, stop)
        on_progress(pulls.snapshot())
        summary = pulls.summary(loop.time() - started)
        if on_done is not None:
            on_done(summary)
        if options.linger_s > 0 and options.share:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), options.linger_s)
        return summary
    except MegalfsError as error:
        error.rejected = pulls.rejected()
        raise
    finally:
        reporter.cancel()
        await asyncio.gather(reporter, return_exceptions=True)
        await node.close()


async def _until(work: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Waits for the work; when `stop` comes first, ends it and says so."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        raise CancelledByUserError("stopped", exit_code=143)
    work.result()


async def _share(node: Node, options: PullOptions) -> None:
    if options.listen is not None:
        await node.start(options.listen, answers_at_once=False)
    else:
        anywhere = HostPort("0.0.0.0", 0)  # noqa: S104 - DESIGN.md section 6
        await node.start(anywhere, ports=PULL_PORTS, answers_at_once=False)
    node.is_ready = True


async def _report(pulls: PullSet, on_progress: Callable[[ProgressSnapshot], None]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        on_progress(pulls.snapshot())
        await asyncio.sleep(max(PROGRESS_INTERVAL_S, (loop.time() - started) / REPORT_SHARE_MAX))


async def run_node(
    *,
    store: Store,
    settings: Settings,
    paths: Sequence[Path],
    listen: HostPort,
    on_ready: Callable[[NodeInfo], None],
    stop: asyncio.Event,
    tracker_only: bool = False,
    services: Sequence[ServiceFactory] = (),
    ports: range | None = None,
) -> None:
    """Serves what is published, and `paths` once they are, until `stop` is set; then drains.

    Args:
        ports: instead of the port of `listen`, the first of these that is free, else any.

    Raises:
        BusyError: the port is taken, or another node runs on this root.
    """
    identity = _identity(store, create=True)
    node = Node(store, settings, identity, services=services)
    await node.start(listen, ports=ports)
    try:
        if not tracker_only:
            listening = str(HostPort(node.host, node.port))
            store.root.write_node(listen=listening, http_port=node.port, quic_port=node.link_port)
        if settings.discover and not tracker_only:
            node.neighbours.announce(listen.host, node.port)
        publishing = asyncio.create_task(_publish_all(node, paths, stop))
        await _until_published(publishing, stop)
        if not stop.is_set():
            node.is_ready = True
            node.announcer.wake()
            published = tuple(publishing.result())
            on_ready(NodeInfo(identity.key, node.host, node.port, node.link_port, node.tls_port, published))
            await stop.wait()
    finally:
        await node.close()
        store.root.clear_node()


async def _until_published(publishing: asyncio.Task[list[PublishedLink]], stop: asyncio.Event) -> None:
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({publishing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.is_set():
        publishing.cancel()
    else:
        publishing.result()


async def _publish_all(node: Node, paths: Sequence[Path], stop: asyncio.Event) -> list[PublishedLink]:
    def go_on(_: object) -> None:
        # A thread cannot be cancelled, and the process ends only with it: hours later, of a large file.
        if stop.is_set():
            raise CancelledByUserError("stopped", exit_code=143)

    published = []
    for path in paths:
        entry = await asyncio.to_thread(publish_path, node.store, path, progress=go_on, at=go_on)
        for note in entry.notes:
            log.warning("%s", note)
        link = await asyncio.to_thread(link_of, node.store, entry, name=None, peers=node.own_addresses())
        published.append(
            PublishedLink(
                path,
                entry.oid,
                entry.blob.size,
                entry.blob.chunks,
                entry.manifest_id,
                link,
                entry.files,
                entry.bytes_total,
            )
        )
    return published


def _identity(store: Store, *, create: bool) -> LocalIdentity:
    """The root's key; a pull of a root that has none makes one for this process only."""
    import secrets

    key = store.root.load_or_create_key() if create else store.root.load_key()
    return LocalIdentity.of(key or SigningKey(secrets.token_bytes(32)))
