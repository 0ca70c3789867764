"""What this node says about itself: `/v1/status` as JSON, `/metrics` as Prometheus text. Questions only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megalfs import __version__
from megalfs.node.driver import SwarmDriver
from megalfs.node.metrics import Metric, render

if TYPE_CHECKING:
    from megalfs.node.node import Node

__all__ = ["metrics", "state"]


def state(node: Node, *, with_files: bool) -> dict[str, object]:
    """The state of a node; `with_files` names oids and files, which only the local token may ask for."""
    now = node.now()
    answer: dict[str, object] = {
        "version": __version__,
        "key": str(node.identity.key),
        "host": node.host,
        "port": node.port,
        "ready": node.is_ready,
        "draining": node.is_draining,
        "uptime_s": round(now - node.started_at, 3),
        "blobs": len(node.store.blobs()),
        "sessions": len(node.hub.sessions),
        "bytes_in": node.bytes_received(),
        "bytes_out": node.bytes_sent(),
        "dropped": [{"peer": name, "reason": reason} for name, reason in node.hub.dropped],
        "swarms": [_swarm(driver, now, with_files=with_files) for driver in node.drivers()],
    }
    if with_files:
        answer["files"] = [
            {"oid": str(blob.oid), "size": blob.size, "paths": [str(place.path) for place in blob.places]}
            for blob in node.store.blobs()
        ]
    return answer


def _swarm(driver: SwarmDriver, now: float, *, with_files: bool) -> dict[str, object]:
    swarm, manifest = driver.swarm, driver.manifest
    rate_in = swarm.rate_in(now)
    availability = swarm.availability()
    answer: dict[str, object] = {
        "size": manifest.size,
        "pieces": driver.parts.count,
        "pieces_held": swarm.have.count,
        "bytes_missing": swarm.missing_bytes,
        "rate_in": round(rate_in),
        "rate_out": round(swarm.rate_out(now)),
        "eta_s": round(swarm.missing_bytes / rate_in, 1) if rate_in > 0 and swarm.missing_bytes else None,
        "copies_min": availability.copies_min,
        "copies_median": availability.copies_median,
        "rarest_piece": availability.rarest,
        "peers": [
            {
                "peer": driver.names.get(peer.peer, "?"),
                "kind": peer.kind.value,
                "tier": peer.tier.name.lower(),
                "pieces": peer.pieces,
                "rate_in": round(peer.rate_in),
                "rate_out": round(peer.rate_out),
                "bytes_in": peer.bytes_in,
                "bytes_out": peer.bytes_out,
                "outstanding": peer.outstanding,
                "paused": peer.is_paused,
                "rejected": peer.rejected,
            }
            for peer in swarm.peers(now)
        ],
    }
    if with_files:
        answer |= {"oid": str(manifest.oid), "manifest": str(manifest.id)}
    return answer


def metrics(node: Node) -> str:
    """Few labels on purpose: no series per peer or per blob."""
    drivers = node.drivers()
    leeching = [driver for driver in drivers if not driver.swarm.is_complete]
    origin = node.totals.bytes_origin + sum(driver.totals.bytes_origin for driver in drivers)
    received = node.bytes_received()
    rejected = node.totals.pieces_rejected + sum(sum(driver.totals.rejected.values()) for driver in drivers)
    return render(
        [
            Metric("build_info", "gauge", "Version of megalfs.", (({"version": __version__}, 1),)),
            Metric("uptime_seconds", "gauge", "Seconds since start.", (({}, node.now() - node.started_at),)),
            Metric("ready", "gauge", "1 when ready to serve.", (({}, float(node.is_ready)),)),
            Metric("blobs", "gauge", "Blobs in the index.", (({}, len(node.store.blobs())),)),
            Metric("sessions", "gauge", "Connected peers.", (({}, len(node.hub.sessions)),)),
            Metric("swarms", "gauge", "Swarms this node takes part in.",
                   (({"role": "leecher"}, len(leeching)), ({"role": "seeder"}, len(drivers) - len(leeching)))),
            Metric("received_bytes_total", "counter", "Verified bytes received.",
                   (({"source": "peer"}, received - origin), ({"source": "origin"}, origin))),
            Metric("sent_bytes_total", "counter", "Bytes sent.",
                   (({"via": "peer"}, node.bytes_sent()), ({"via": "http"}, node.totals.bytes_served_http))),
            Metric("bulk_answers_total", "counter", "Answers that carried many small files.",
                   (({}, node.totals.bulk_answers),)),
            Metric("pieces_rejected_total", "counter", "Pieces that came with wrong bytes.", (({}, rejected),)),
            Metric("peers_dropped_total", "counter", "Peers banned since start.", (({}, node.hub.ban_count),)),
            Metric("tracker_requests_total", "counter", "Requests answered as a tracker.",
                   (({}, node.announcer.request_count),)),
        ]
    )  # fmt: skip
