"""Objects that git-lfs pushes: taken into the node's store, announced, and brought to the repository's home."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.ids import Oid
from megalfs.errors import MegalfsError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.git.lfs_client import LfsClient, Upload
from megalfs.git.lfs_delivery import Delivery
from megalfs.git.lfs_downloads import PROGRESS_S
from megalfs.git.lfs_s3 import Bucket
from megalfs.git.lfs_sources import S3_SCHEME
from megalfs.node.sources import ask_offers
from megalfs.store.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from megalfs.git.lfs_objects import Objects
    from megalfs.git.lfs_remote import Remotes
    from megalfs.git.lfs_sources import Sources
    from megalfs.git.lfs_transfer import Transfer
    from megalfs.node.node import Node

__all__ = ["Uploads"]

log = logging.getLogger(__name__)

SESSIONS_MAX = 256
ASK_S_MAX = 2.0  # whether somebody else has an object is worth so much waiting, and no more
PEERS_ASKED_MAX = 8
TAKEN_AT_ONCE = 2  # hashing fills a core each
LOCKS = 64
SCOPED_MAX = 100_000
SCOPES_FILE = "trackers.json"


class _Session(Struct):
    """One push: what it brought, and how much of that nobody else has."""

    files: int = 0
    bytes: int = 0
    alone_files: int = 0
    alone_bytes: int = 0


class _Reached(Struct):
    """How far one object is: on its way to a home once there is one, else hashed."""

    has_home: bool
    hashed: int = 0
    delivered: int = 0

    @property
    def bytes(self) -> int:
        """What git-lfs is told; never more than what is behind us."""
        return self.delivered if self.has_home else self.hashed

    def hash(self, count: int) -> None:
        """So many more bytes are hashed. Called from a thread."""
        self.hashed += count

    def deliver(self, count: int) -> None:
        """So many bytes are at a home; with several homes, at the one that is furthest."""
        self.delivered = max(self.delivered, count)


class Uploads:
    """What agents of this user push."""

    def __init__(self, node: Node, objects: Objects, client: LfsClient, remotes: Remotes) -> None:
        self._node = node
        self._remotes = remotes
        self._client = client
        self._objects = objects
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._locks = [asyncio.Lock() for _ in range(LOCKS)]  # of objects: two agents may bring the same one
        self._slots = asyncio.Semaphore(TAKEN_AT_ONCE)

    async def run(self, transfer: Transfer) -> AsyncGenerator[dict[str, object], None]:
        """Progress, then `{"done": true}` once the node holds the object and has told about it.

        Raises:
            MegalfsError: it could not be read, or its home did not take it.
        """
        if transfer.path is None:
            raise UsageError("git-lfs names no file to upload")
        sources = await asyncio.to_thread(transfer.sources, self._node.settings)
        reached = _Reached(has_home=bool(sources.homes or transfer.action))

        async def take() -> bool:
            assert transfer.path is not None
            async with self._locks[transfer.oid.raw[0] % LOCKS], self._slots:
                await asyncio.to_thread(
                    self._objects.take_in, transfer.path, transfer.oid, progress=reached.hash
                )
            self._announce(transfer.oid, sources)
            return await self._bring_home(transfer, sources, reached) or await self._is_elsewhere(
                transfer.oid, sources
            )

        task = asyncio.create_task(take())
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=PROGRESS_S)
                yield {"bytes": reached.bytes}
            self._count(transfer, is_elsewhere=task.result())
        finally:
            task.cancel()
        yield {"done": True}

    def notes(self, session: str) -> list[str]:
        """What the user should know about a push, told once."""
        found = self._sessions.pop(session, None)
        if found is None or not found.alone_files:
            return []
        what = f"{found.alone_files} of {found.files} objects ({found.alone_bytes} bytes)"
        return [
            f"nobody else has {what} of this push yet; this machine's node serves them from "
            f"{self._node.host}:{self._node.port} until others have pulled"
        ]

    def restore(self) -> None:
        """Reads what repositories' trackers were told before the last stop, so that they are told again."""
        with suppress(OSError, ValueError, UsageError):
            document = json.loads((self._objects.directory / SCOPES_FILE).read_bytes())
            for tracker, oids in document.items():
                self._node.announcer.scoped[tracker] = {Oid.parse(oid) for oid in oids}
            self._node.announcer.wake()

    def save(self) -> None:
        """Writes what `restore` reads."""
        document = {url: sorted(map(str, oids)) for url, oids in list(self._node.announcer.scoped.items())}
        with suppress(OSError):
            write_atomic(self._objects.directory / SCOPES_FILE, json.dumps(document).encode())

    def _count(self, transfer: Transfer, *, is_elsewhere: bool) -> None:
        session = self._sessions.setdefault(transfer.session, _Session())
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        session.files += 1
        session.bytes += transfer.size
        if not is_elsewhere:
            session.alone_files += 1
            session.alone_bytes += transfer.size

    async def _bring_home(self, transfer: Transfer, sources: Sources, reached: _Reached) -> bool:
        """Brings the object to every server that a push must reach; whether there is one.

        Raises:
            MegalfsError: one of them does not have it now.
        """
        assert transfer.path is not None
        oid, size, path = transfer.oid, transfer.size, transfer.path
        uploads: list[Upload | None] = []
        if transfer.action is not None:
            uploads.append(Upload(transfer.action, None, is_node=True))  # git-lfs asks it to verify
        for home in sources.homes:
            if home.startswith(S3_SCHEME):
                await self._fill(Bucket.open(home), oid, size, path, reached)
            else:
                uploads.append(await self._client.upload_to(home, oid, size))
        for upload in filter(None, uploads):
            await Delivery(self._node, self._client, reached=reached.deliver).run(upload, oid, size, path)
        is_at_remote = await self._remotes.push(transfer.remote_url(is_push=True), oid, size, path)
        return is_at_remote or reached.has_home

    async def _fill(self, bucket: Bucket, oid: Oid, size: int, path: Path, reached: _Reached) -> None:
        """Brings an object to a bucket that has it not."""
        if not await bucket.has(oid, size):
            store = self._node.store
            manifest = store.encoded_manifest(store.manifests(oid)[0], oid)
            await bucket.put(oid, size, path, manifest, reached=reached.deliver)

    # --- telling, and asking ---------------------------------------------------------------------------------

    def _announce(self, oid: Oid, sources: Sources) -> None:
        scoped = self._node.announcer.scoped
        for tracker in sources.stranger_trackers:
            if tracker not in self._node.settings.trackers and len(scoped.get(tracker, ())) < SCOPED_MAX:
                scoped.setdefault(tracker, set()).add(oid)
        self._node.peer_http.strangers.update(sources.strangers)
        self._node.announcer.wake()

    async def _is_elsewhere(self, oid: Oid, sources: Sources) -> bool:
        """Whether some other node says that it holds all of the object."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._ask(oid, sources), ASK_S_MAX)
        return False

    async def _ask(self, oid: Oid, sources: Sources) -> bool:
        peers = list(sources.peers)
        for tracker in sources.trackers:
            with suppress(MegalfsError):
                peers += await self._node.announcer.ask(tracker, oid)
        own = {str(peer) for peer in self._node.own_addresses()}
        asked = [peer for peer in dict.fromkeys(peers) if str(peer) not in own][:PEERS_ASKED_MAX]

        def has_all(peer: HostPort) -> bool:
            with suppress(MegalfsError):
                return any(offer.is_complete for offer in ask_offers(self._node.peer_http, peer, oid))
            return False

        return any(await asyncio.gather(*(asyncio.to_thread(has_all, peer) for peer in asked)))
