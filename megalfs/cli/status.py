"""`megalfs status` and `megalfs node list`: what the node of this root says about itself."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias, cast

from megalfs.cli.local_node import ask_node, running_node
from megalfs.cli.ui import count_text, rate_text, share_text, size_text, time_text
from megalfs.errors import NotFoundError, TemporaryError
from megalfs.formats.hostport import HostPort

if TYPE_CHECKING:
    from megalfs.cli.context import Context
    from megalfs.store.root import Root, RunningNode

__all__ = ["list_nodes", "show_status"]

Fields: TypeAlias = "dict[str, object]"

WATCH_INTERVAL_S = 1.0


def show_status(context: Context) -> int:
    """Prints the state once, or with `--watch` every second until interrupted."""
    root = context.root(create=False)
    pause = threading.Event()
    while True:
        state = _state(root)
        if context.ui.is_json:
            context.ui.record(state)
        else:
            lines = _lines(state)
            if context.args.watch:
                context.ui.clear_screen()
            for line in lines:
                context.ui.result(line)
        if not context.args.watch:
            return 0
        pause.wait(WATCH_INTERVAL_S)


def list_nodes(context: Context) -> int:
    """One line per node: this one first, then the peers it is connected to."""
    root = context.root(create=False)
    running = running_node(root)
    state = ask_node(root, running, "/v1/status")
    nodes: list[Fields] = [{"node": _address(state), "key": state["key"], "self": True}]
    peers = {str(peer["peer"]): peer for swarm in _each(state, "swarms") for peer in _each(swarm, "peers")}
    nodes += [{"node": name, "tier": peer["tier"], "self": False} for name, peer in sorted(peers.items())]
    nodes += _gossiped(root, running)
    for node in nodes:
        parts = (node["node"], node.get("key"), node.get("alias"), node.get("tier"))
        context.ui.answer(
            node, " ".join(str(part) for part in parts if part) + " (self)" * bool(node["self"])
        )
    return 0


def _gossiped(root: Root, running: RunningNode) -> list[Fields]:
    """Nodes known by gossip; a tracker and `seed` have none."""
    with suppress(TemporaryError):
        state = ask_node(root, running, "/v1/local/p2p/nodes")
        return [
            {
                "node": " ".join(cast("list[str]", each["addresses"])) or "-",
                "key": each["key"],
                "alias": each["alias"],
                "type": each["type"],
                "tier": "neighbour" if each["neighbour"] else "stale" if each["stale"] else "gossip",
                "stale": each["stale"],
                "self": False,
            }
            for each in _each(state, "nodes")
        ]
    return []


def _state(root: Root) -> Fields:
    """What the node answers; without one, what can be read from the root."""
    try:
        running = running_node(root)
    except NotFoundError:
        from megalfs.store.blobs import Store

        with Store(root) as store:
            return {"running": False, "root": str(root.path), "blobs": len(store.blobs())}
    return {"running": True, "pid": running.owner.pid, **ask_node(root, running, "/v1/status")}


def _lines(state: Fields) -> list[str]:
    if not state["running"]:
        return [f"not running; {count_text(int(_number(state, 'blobs')), 'blob')} in {state['root']}"]
    word = "draining" if state["draining"] else "ready" if state["ready"] else "starting"
    sent, received = size_text(_number(state, "bytes_out")), size_text(_number(state, "bytes_in"))
    lines = [
        f"{word} on {_address(state)} as {state['key']}",
        f"pid {state['pid']}, up {time_text(_number(state, 'uptime_s'))}, {state['blobs']} blobs,"
        f" {state['sessions']} peers, sent {sent}, received {received}",
    ]
    for swarm in _each(state, "swarms"):
        lines.append(_swarm_line(swarm))
        lines += [_peer_line(peer) for peer in _each(swarm, "peers")]
    lines += [f"dropped {each['peer']}: {each['reason']}" for each in _each(state, "dropped")]
    return lines


def _address(state: Fields) -> str:
    return str(HostPort(str(state["host"]), int(_number(state, "port"))))


def _swarm_line(swarm: Fields) -> str:
    held, pieces = int(_number(swarm, "pieces_held")), int(_number(swarm, "pieces"))
    rates = f"in {rate_text(_number(swarm, 'rate_in'), 1)} out {rate_text(_number(swarm, 'rate_out'), 1)}"
    eta = f" eta {time_text(_number(swarm, 'eta_s'))}" if swarm.get("eta_s") is not None else ""
    who = str(swarm.get("oid", ""))[:12]
    return f"{who} {share_text(held, pieces)} of {size_text(_number(swarm, 'size'))}, {rates}{eta}"


def _peer_line(peer: Fields) -> str:
    rates = f"in {rate_text(_number(peer, 'rate_in'), 1)} out {rate_text(_number(peer, 'rate_out'), 1)}"
    rejected = f" rejected={peer['rejected']}" if peer.get("rejected") else ""
    return f"  {peer['peer']} {peer['tier']} {rates}{rejected}"


def _each(fields: Fields, name: str) -> list[Fields]:
    return cast("list[Fields]", fields.get(name) or [])


def _number(fields: Fields, name: str) -> float:
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
