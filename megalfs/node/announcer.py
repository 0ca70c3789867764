"""Telling trackers what we have, asking them who else has it, and being a tracker ourselves.

One request per tracker and interval names everything that changed and renews the rest, so a node with a
thousand blobs costs a tracker one request. The table itself is the core's (`core/tracker.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.core.tracker import Announcement, TrackerTable
from megalfs.errors import MegalfsError, RemoteProtocolError, UsageError
from megalfs.formats.hostport import HostPort
from megalfs.net.http import check_status

if TYPE_CHECKING:
    from megalfs.node.node import Node

__all__ = ["Announcer"]

log = logging.getLogger(__name__)

BLOBS_PER_ANNOUNCE_MAX = 10_000
NAMES_PER_ANNOUNCE_MAX = 1_000
STORE_POLL_S = 1.0
RETRY_S = 5.0
PEERS_PER_ANSWER_MAX = 50


class Announcer:
    """Both sides of the tracker for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self.table = TrackerTable(rng=node.make_rng())
        self.request_count = 0
        # Trackers that a repository named: told of that repository's blobs, and of nothing else.
        self.scoped: dict[str, set[Oid]] = {}

    # --- as a client ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: announce soon."""
        self._wake.set()

    async def run(self) -> None:
        """Announces to every tracker whenever something changed and when the interval says so."""
        version: object = None
        next_at = 0.0
        while True:
            while not self._node.settings.trackers and not self.scoped:
                self._wake.clear()
                await self._wake.wait()
            current = await asyncio.to_thread(self._node.store.version)
            now = self._loop.time()
            if current != version or self._wake.is_set() or now >= next_at:
                version = current
                self._wake.clear()
                interval_s = await self._announce_to_all()
                next_at = self._loop.time() + interval_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), STORE_POLL_S)

    async def _announce_to_all(self) -> float:
        body = await asyncio.to_thread(self._body)
        intervals = [await self._announce(tracker, body) for tracker in self._node.settings.trackers]
        intervals += [
            await self._announce(tracker, _only(body, oids)) for tracker, oids in list(self.scoped.items())
        ]
        return min(intervals)

    async def _announce(self, tracker: str, body: dict[str, object]) -> float:
        url = tracker.rstrip("/") + "/v1/announce"
        try:
            reply = await asyncio.to_thread(self._node.peer_http.post_json, url, body)
            check_status(reply.status, url)
            answer = reply.json()
        except MegalfsError as error:
            log.info("tracker %s: %s", tracker, error)
            return RETRY_S
        if isinstance(answer, dict) and isinstance(answer.get("interval"), int | float):
            return min(max(float(answer["interval"]), RETRY_S), 3600.0)
        return RETRY_S

    def _body(self, *, is_leaving: bool = False) -> dict[str, object]:
        node = self._node
        blobs = {str(blob.oid): True for blob in node.store.blobs() if blob.is_held}
        for driver in node.drivers():
            blobs.setdefault(str(driver.manifest.oid), driver.swarm.is_complete)
        advertise = node.settings.advertise
        return {
            "host": advertise.host if advertise else "",
            "port": (advertise.port or node.port) if advertise else node.port,
            "instance": node.hub.instance.hex(),
            "labels": {"host": node.labels.host, "rack": node.labels.rack, "zone": node.labels.zone},
            "blobs": [
                {"oid": oid, "complete": is_complete}
                for oid, is_complete in list(blobs.items())[:BLOBS_PER_ANNOUNCE_MAX]
            ],
            "leaving": is_leaving,
            "names": [record.decode() for record in node.own_names()][:NAMES_PER_ANNOUNCE_MAX],
        }

    async def leave(self) -> None:
        """Tells the trackers that this node goes away."""
        trackers = dict.fromkeys([*self._node.settings.trackers, *self.scoped])
        if not trackers or not self._node.is_listening:
            return
        body = await asyncio.to_thread(lambda: self._body(is_leaving=True))
        await asyncio.gather(
            *(
                self._announce(tracker, _only(body, self.scoped[tracker]) if tracker in self.scoped else body)
                for tracker in trackers
            )
        )

    async def ask(self, tracker: str, oid: Oid) -> list[HostPort]:
        """Who has a blob, by one tracker's word.

        Raises:
            TemporaryError, RemoteProtocolError: it did not answer, or with nonsense.
        """
        url = f"{tracker.rstrip('/')}/v1/peers/{oid}"
        reply = await asyncio.to_thread(self._node.peer_http.get, url)
        check_status(reply.status, url)
        answer = reply.json()
        if not isinstance(answer, dict) or not isinstance(answer.get("peers"), list):
            raise RemoteProtocolError(f"{tracker} answers with something that is no list of peers")
        peers = []
        for entry in answer["peers"][:PEERS_PER_ANSWER_MAX]:
            match entry:
                case {"host": str(host), "port": int(port), "instance": str(instance)}:
                    if instance != self._node.hub.instance.hex():
                        with contextlib.suppress(UsageError):
                            peers.append(HostPort.parse(str(HostPort(host, port))))
                case _:
                    raise RemoteProtocolError(f"{tracker} names something that is no peer")
        return peers

    # --- as a tracker --------------------------------------------------------------------------------------

    def announced(self, body: object, remote: str) -> dict[str, object]:
        """A node told what it has; the answer says when to tell again.

        Raises:
            UsageError: the body is not an announcement.
        """
        self.request_count += 1
        announcement = Announcement.from_json(body, remote=remote)
        interval_s = self.table.announce(announcement, now=self._loop.time())
        if isinstance(body, dict):
            self._keep_names(body.get("names"))
        return {"interval": interval_s}

    def _keep_names(self, records: object) -> None:
        if isinstance(records, list):
            for record in records[:NAMES_PER_ANNOUNCE_MAX]:
                if isinstance(record, str):
                    with contextlib.suppress(MegalfsError):
                        self._node.learn_name(record.encode())

    def peers_of(self, oid: Oid) -> dict[str, object]:
        """Some of the nodes that announced a blob."""
        self.request_count += 1
        peers = self.table.peers(oid, now=self._loop.time(), labels=None, limit=PEERS_PER_ANSWER_MAX)
        return {"oid": str(oid), "peers": [peer.to_json() for peer in peers]}


def _only(body: dict[str, object], oids: set[Oid]) -> dict[str, object]:
    """An announcement for one repository's tracker: what else lies here, and its names, is not its business."""
    blobs, wanted = body["blobs"], {str(oid) for oid in oids}
    assert isinstance(blobs, list)
    return {**body, "blobs": [blob for blob in blobs if blob["oid"] in wanted], "names": []}
