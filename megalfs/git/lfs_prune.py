"""The honest prune: an object leaves this machine only when others have shown that they have it.

`git lfs prune --verify-remote` verifies nothing with any standalone agent, and deletes (research/gitlfs.md 1.6).
Here a copy counts when a node says that it holds the whole object *and* sends a piece of it, from a place
chosen now, that equals ours.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.errors import MegalfsError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.node.sources import ask_offers, node_url
from megalfs.store.files import pread_into

if TYPE_CHECKING:
    from megalfs.git.lfs_objects import Objects
    from megalfs.node.node import Node

__all__ = ["Prune", "PruneRequest"]

SAMPLE_BYTES = 64 << 10
OBJECTS_AT_ONCE = 8
PEERS_ASKED_MAX = 32
OBJECTS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """What the command line found in a work tree; git-lfs itself says which objects nothing here needs."""

    oids: tuple[Oid, ...]
    storage: Path
    peers: tuple[HostPort, ...]
    trackers: tuple[str, ...]
    strangers: frozenset[str]
    min_copies: int
    is_dry: bool

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> PruneRequest:
        """Reads the request; raises UsageError."""
        match body:
            case {
                "oids": list(oids),
                "storage": str(storage),
                "peers": list(peers),
                "trackers": list(trackers),
                "strangers": list(strangers),
                "min_copies": int(min_copies),
                "dry": bool(is_dry),
            } if storage.startswith("/") and min_copies >= 1 and len(oids) <= OBJECTS_MAX:
                return cls(
                    tuple(Oid.parse(str(oid)) for oid in oids),
                    Path(storage),
                    tuple(HostPort.parse(str(peer)) for peer in peers),
                    tuple(map(str, trackers)),
                    frozenset(map(str, strangers)),
                    min_copies,
                    is_dry,
                )
        raise UsageError("not a prune")


class Prune:
    """One prune, on the node."""

    def __init__(self, node: Node, objects: Objects, request: PruneRequest) -> None:
        self._node = node
        self._objects = objects
        self._request = request
        self._slots = asyncio.Semaphore(OBJECTS_AT_ONCE)

    async def run(self) -> list[dict[str, object]]:
        """For every object: its size, how many copies were shown, and whether it was (or would be) removed."""
        self._node.peer_http.strangers.update(self._request.strangers)
        return list(await asyncio.gather(*(self._one(oid) for oid in self._request.oids)))

    async def _one(self, oid: Oid) -> dict[str, object]:
        name = str(oid)
        path = self._request.storage / "objects" / name[:2] / name[2:4] / name
        async with self._slots:
            size = path.stat().st_size if path.is_file() else 0
            copies = await self._copies(oid, path)
            is_safe = copies >= self._request.min_copies
            if is_safe and not self._request.is_dry:
                await asyncio.to_thread(self._objects.remove, oid, path)
        return {"oid": name, "size": size, "copies": copies, "removed": is_safe}

    async def _copies(self, oid: Oid, path: Path) -> int:
        peers = list(self._request.peers)
        for tracker in self._request.trackers:
            with suppress(MegalfsError):
                peers += await self._node.announcer.ask(tracker, oid)
        asked = list(dict.fromkeys(peers))[:PEERS_ASKED_MAX]
        shown = await asyncio.gather(*(asyncio.to_thread(self._has_shown, peer, oid, path) for peer in asked))
        # One node under two addresses is one copy.
        return len({instance for instance in shown if instance is not None})

    def _has_shown(self, peer: HostPort, oid: Oid, path: Path) -> str | None:
        """The key of a node that has the object, and is not this one."""
        http = self._node.peer_http
        with suppress(MegalfsError, OSError):
            if not any(offer.is_complete for offer in ask_offers(http, peer, oid)):
                return None
            size = path.stat().st_size
            offset = secrets.randbelow(max(1, size - SAMPLE_BYTES + 1))
            sample = bytearray(min(SAMPLE_BYTES, size))
            with path.open("rb") as file:
                if pread_into(file.fileno(), sample, offset) != len(sample):
                    return None
            wanted = {"Range": f"bytes={offset}-{offset + len(sample) - 1}"}
            reply = http.get(node_url(peer, f"/v1/file/{oid}"), headers=wanted, bytes_max=2 * SAMPLE_BYTES)
            state = http.get(node_url(peer, "/v1/status")).json()
            key = state.get("key") if isinstance(state, dict) else None
            if reply.status == 206 and reply.body == sample and isinstance(key, str):
                return key if key != str(self._node.identity.key) else None
        return None
