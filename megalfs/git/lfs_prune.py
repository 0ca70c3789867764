"""The honest prune: an object leaves this machine only when others have shown that they have it.

`git lfs prune --verify-remote` verifies nothing with any standalone agent, and deletes (research/gitlfs.md 1.6).
Here a copy counts when a node says that it holds the whole object *and* sends the pieces that are drawn now, by
lot, and they fit their chunk ids. That is no proof of the rest: the command says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

from msgspec import Struct

import megalfs_ext
from megalfs.core.ids import Oid
from megalfs.errors import MegalfsError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.node.sources import ask_offers, node_url

if TYPE_CHECKING:
    from megalfs.core.manifest import Manifest
    from megalfs.git.lfs_objects import Objects
    from megalfs.node.node import Node

__all__ = ["PIECES_SHOWN", "Prune", "PruneRequest"]

# Pieces that a node must show of an object: one that lacks a quarter of them is found out 99 times in 100.
PIECES_SHOWN = 16
OBJECTS_AT_ONCE = 8
PEERS_ASKED_MAX = 32
OBJECTS_MAX = 100_000


class PruneRequest(Struct, frozen=True):
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
            manifest = await asyncio.to_thread(self._manifest, oid, path)
            copies = await self._copies(manifest) if manifest is not None else 0
            is_safe = copies >= self._request.min_copies
            if is_safe and not self._request.is_dry:
                await asyncio.to_thread(self._objects.remove, oid, path)
        return {"oid": name, "size": size, "copies": copies, "removed": is_safe}

    def _manifest(self, oid: Oid, path: Path) -> Manifest | None:
        """What the pieces of an object must be; None for one that is damaged here, and so kept."""
        store = self._node.store
        with suppress(MegalfsError, OSError):
            if not store.manifests(oid):
                self._objects.take_in(path, oid)
            return store.load_manifest(store.manifests(oid)[0], oid)
        return None

    async def _copies(self, manifest: Manifest) -> int:
        peers = list(self._request.peers)
        for tracker in self._request.trackers:
            with suppress(MegalfsError):
                peers += await self._node.announcer.ask(tracker, manifest.oid)
        asked = list(dict.fromkeys(peers))[:PEERS_ASKED_MAX]
        shown = await asyncio.gather(*(asyncio.to_thread(self._shown_by, peer, manifest) for peer in asked))
        # One node under two addresses is one copy.
        return len({instance for instance in shown if instance is not None})

    def _shown_by(self, peer: HostPort, manifest: Manifest) -> str | None:
        """The key of a node that has the object, and is not this one."""
        http = self._node.peer_http
        with suppress(MegalfsError):
            if not any(offer.is_complete for offer in ask_offers(http, peer, manifest.oid)):
                return None
            state = http.get(node_url(peer, "/v1/status")).json()
            key = state.get("key") if isinstance(state, dict) else None
            if not isinstance(key, str) or key == str(self._node.identity.key):
                return None
            pieces = range(manifest.piece_count)
            drawn = SystemRandom().sample(pieces, min(PIECES_SHOWN, len(pieces)))
            return key if all(self._is_shown(peer, manifest, piece) for piece in drawn) else None
        return None

    def _is_shown(self, peer: HostPort, manifest: Manifest, piece: int) -> bool:
        """Whether a node sends one piece that fits its chunk id."""
        offset, length = manifest.run_extent(piece, 1)
        reply = self._node.peer_http.get(
            node_url(peer, f"/v1/file/{manifest.oid}"),
            headers={"Range": f"bytes={offset}-{offset + length - 1}"},
            bytes_max=length,
        )
        chosen = slice(piece, piece + 1)
        lengths, ids = manifest.lengths[chosen], manifest.blake3[chosen]
        return len(reply.body) == length and not megalfs_ext.verify_chunks(reply.body, lengths.data, ids.data)
