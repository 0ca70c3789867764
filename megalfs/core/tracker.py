"""The announce table of a tracker: which node has which blob, by its own word, until it expires.

Soft state: nodes announce again every interval, so a tracker that restarts knows everything again after one.
Announcements are free to fake, so nobody can push others out: an address may list a bounded number of nodes,
a blob keeps a bounded number of peers, and when it is full the address with the most entries loses one.
"""

from __future__ import annotations

import ipaddress
import re
from random import Random

from msgspec import Struct
from msgspec.structs import replace

from megalfs.core.ids import Oid
from megalfs.core.topology import Labels, tier_between
from megalfs.errors import UsageError
from megalfs.formats.hostport import HostPort

__all__ = ["Announcement", "TrackedPeer", "TrackerTable"]

INTERVAL_S = 60.0
# Three missed announcements in a row: one may be lost, two are bad luck.
EXPIRY_S = 3.5 * INTERVAL_S
PEERS_PER_OID_MAX = 4096
# A host with many containers behind one address is real; a thousand nodes behind one are not.
PEERS_PER_SOURCE_MAX = 64
BLOBS_PER_NODE_MAX = 10_000
OIDS_MAX = 1_000_000
_INSTANCE = re.compile(r"[0-9a-f]{32}\Z")
_LABEL = re.compile(r"[A-Za-z0-9._-]{0,63}\Z")


class TrackedPeer(Struct, frozen=True):
    """One node as a tracker knows it. `source` is the address that the announcement came from."""

    host: str
    port: int
    instance: str
    labels: Labels
    source: str
    is_complete: bool
    expires: float

    def to_json(self) -> dict[str, object]:
        """As `/v1/peers/<oid>` lists it."""
        return {
            "host": self.host,
            "port": self.port,
            "instance": self.instance,
            "complete": self.is_complete,
            "labels": {"host": self.labels.host, "rack": self.labels.rack, "zone": self.labels.zone},
        }


class Announcement(Struct, frozen=True):
    """What one node says: where it listens, and which blobs it has, whole or in part."""

    peer: TrackedPeer
    blobs: tuple[tuple[Oid, bool], ...]
    is_leaving: bool

    @classmethod
    def from_json(cls, body: object, *, remote: str) -> Announcement:
        """Reads a request body; an empty host means the address that the tracker sees.

        Raises:
            UsageError: anything else than an announcement within the limits.
        """
        match body:
            case {
                "host": str(host),
                "port": int(port),
                "instance": str(instance),
                "labels": {"host": str(on), "rack": str(rack), "zone": str(zone)},
                "blobs": list(blobs),
                "leaving": bool(is_leaving),
            } if _INSTANCE.match(instance) and len(blobs) <= BLOBS_PER_NODE_MAX:
                address = HostPort.parse(str(HostPort(host or remote, port)))
            case _:
                raise UsageError("not an announcement")
        if not all(_LABEL.match(label) for label in (on, rack, zone)) or not is_dialable(address, remote):
            raise UsageError(f"an announcement of {str(address)!r} from {remote}")
        peer = TrackedPeer(
            address.host,
            address.port,
            instance,
            Labels(on, rack, zone),
            remote,
            is_complete=False,
            expires=0.0,
        )
        return cls(peer, tuple(_blob(entry) for entry in blobs), is_leaving)


def is_dialable(address: HostPort, remote: str) -> bool:
    """Whether others may be sent there: no privileged port, nothing local unless it came from there itself."""
    if address.port < 1024:
        return False
    try:
        ip = ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return address.host.lower() != "localhost" or _is_loopback(remote)
    if ip.is_multicast or ip.is_unspecified or ip.is_link_local:
        return False
    return not ip.is_loopback or _is_loopback(remote)


def _is_loopback(remote: str) -> bool:
    try:
        return ipaddress.ip_address(remote.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _blob(entry: object) -> tuple[Oid, bool]:
    match entry:
        case {"oid": str(oid), "complete": bool(is_complete)}:
            return Oid.parse(oid), is_complete
        case _:
            raise UsageError("not a blob in an announcement")


class TrackerTable:
    """Everything one tracker knows. `now` in seconds on any steady clock."""

    def __init__(self, *, rng: Random) -> None:
        self._rng = rng
        self._peers: dict[Oid, dict[str, TrackedPeer]] = {}
        self._blobs_of: dict[str, set[Oid]] = {}
        self._instances_of: dict[str, dict[str, float]] = {}

    @property
    def oid_count(self) -> int:
        """Blobs that somebody announced."""
        return len(self._peers)

    def announce(self, announcement: Announcement, *, now: float) -> float:
        """Takes what a node says in place of what it said before; returns when to say it again, in seconds."""
        peer = replace(announcement.peer, expires=now + EXPIRY_S)
        if announcement.is_leaving:
            self._forget(peer.instance)
            return INTERVAL_S
        if not self._admits(peer, now):
            return INTERVAL_S
        wanted = {oid for oid, _ in announcement.blobs}
        for oid in self._blobs_of.get(peer.instance, set()) - wanted:
            self._drop(oid, peer.instance)
        for oid, is_complete in announcement.blobs:
            self._add(oid, replace(peer, is_complete=is_complete), now)
        return INTERVAL_S

    def peers(
        self, oid: Oid, *, now: float, labels: Labels | None = None, limit: int = 50
    ) -> list[TrackedPeer]:
        """Some of the peers of a blob: near ones first, whole ones mixed with partial ones, else at random."""
        known = self._peers.get(oid)
        if known is None:
            return []
        for instance in [each.instance for each in known.values() if each.expires <= now]:
            self._drop(oid, instance)
        found = list(known.values())
        self._rng.shuffle(found)
        found.sort(key=lambda peer: tier_between(labels, peer.labels) if labels is not None else 0)
        seeders = [peer for peer in found if peer.is_complete]
        leechers = [peer for peer in found if not peer.is_complete]
        share = max(limit // 2, limit - len(leechers))
        return (seeders[:share] + leechers)[:limit]

    def _admits(self, peer: TrackedPeer, now: float) -> bool:
        """Whether the source may list this node: one source has a bounded number of them."""
        instances = self._instances_of.setdefault(peer.source, {})
        for instance in [key for key, expires in instances.items() if expires <= now]:
            del instances[instance]
        if peer.instance not in instances and len(instances) >= PEERS_PER_SOURCE_MAX:
            return False
        instances[peer.instance] = peer.expires
        return True

    def _add(self, oid: Oid, peer: TrackedPeer, now: float) -> None:
        if oid not in self._peers and len(self._peers) >= OIDS_MAX:
            return
        known = self._peers.setdefault(oid, {})
        if peer.instance not in known and len(known) >= PEERS_PER_OID_MAX:
            self._make_room(oid, known, now)
        known[peer.instance] = peer
        self._blobs_of.setdefault(peer.instance, set()).add(oid)

    def _make_room(self, oid: Oid, known: dict[str, TrackedPeer], now: float) -> None:
        expired = next((peer for peer in known.values() if peer.expires <= now), None)
        if expired is None:
            counts: dict[str, int] = {}
            for peer in known.values():
                counts[peer.source] = counts.get(peer.source, 0) + 1
            most = max(counts.values())
            crowd = [peer for peer in known.values() if counts[peer.source] == most]
            # Of ten thousand honest nodes the first to go would be the first that came: the only seeder.
            expired = next((peer for peer in crowd if not peer.is_complete), crowd[0])
        self._drop(oid, expired.instance)

    def _drop(self, oid: Oid, instance: str) -> None:
        known = self._peers.get(oid, {})
        known.pop(instance, None)
        if not known:
            self._peers.pop(oid, None)
        blobs = self._blobs_of.get(instance, set())
        blobs.discard(oid)
        if not blobs:
            self._blobs_of.pop(instance, None)

    def _forget(self, instance: str) -> None:
        for oid in list(self._blobs_of.get(instance, ())):
            self._drop(oid, instance)
