"""Sessions opened before they are needed, and what their sockets are tuned to, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from processes import wait_until

from megalfs.config import load
from megalfs.core.messages import Join, PeerAddress
from megalfs.core.signing import SigningKey
from megalfs.formats.hostport import HostPort
from megalfs.net.sockets import SocketOptions, tune
from megalfs.node.identity import LocalIdentity
from megalfs.node.node import Node
from megalfs.store.blobs import Store
from megalfs.store.ingest import publish
from megalfs.store.root import Root

NEWCOMERS = 24
CLOSE_S = 5  # a handshake with somebody who says nothing takes ten


def node_in(directory: Path) -> Node:
    """A node that listens on loopback once it is started."""
    store = Store(Root.open(directory, create=True))
    return Node(store, load(flags={}, environ={}), LocalIdentity.of(SigningKey(bytes(32))))


def test_an_expected_peer_that_says_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async def run() -> bytes:
        node, loop = node_in(tmp_path), asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as mute:
            mute.setblocking(False)
            node.hub.expect([HostPort("127.0.0.1", mute.getsockname()[1])])
            caller, _ = await loop.sock_accept(mute)
            with caller:
                assert (await loop.sock_recv(caller, 4096)).startswith(b"GET /v1/peer")
                started = loop.time()
                await node.close()
                assert loop.time() - started < CLOSE_S
                return await loop.sock_recv(caller, 1)

    assert asyncio.run(run()) == b""


def test_an_expected_session_has_a_lane_and_is_the_one_that_connect_gives(tmp_path: Path) -> None:
    async def run() -> None:
        here, there = node_in(tmp_path / "here"), node_in(tmp_path / "there")
        await there.start(HostPort("127.0.0.1", 0))
        here.hub.expect([HostPort("127.0.0.1", there.port)])
        await asyncio.to_thread(
            wait_until, lambda: any(each.send_lanes for each in list(there.hub.sessions.values())), "a lane"
        )
        (opened,) = here.hub.sessions.values()
        assert await here.hub.connect("127.0.0.1", there.port) is opened
        here.hub.want_lanes(opened, 1)
        assert opened.lanes_wanted == 1
        await here.close()
        await there.close()

    asyncio.run(run())


def test_of_nodes_that_come_together_each_hears_of_all_others(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(bytes(100_000))

    async def run() -> list[set[int]]:
        first, *others = nodes = [node_in(tmp_path / f"{number}") for number in range(1 + NEWCOMERS)]
        heard: list[set[int]] = []
        for node in nodes:
            published = publish(node.store, file)
            assert published.manifest_id is not None
            heard.append(ports := set())
            node.peer_listeners[published.manifest_id] = partial(note_ports, ports)
            await node.start(HostPort("127.0.0.1", 0))
        sessions = await asyncio.gather(*(node.hub.connect("127.0.0.1", first.port) for node in others))
        for session in sessions:
            session.send(Join(published.manifest_id, published.oid, 1, is_seeder=True))
        everybody = {node.port for node in others}
        expected = [everybody - {node.port} for node in others]
        await asyncio.to_thread(wait_until, lambda: heard[1:] == expected, "news of all newcomers")
        for node in nodes:
            await node.close()
        return heard[:1]

    assert asyncio.run(run()) == [set()]  # nobody tells a node of those that it is connected to


def note_ports(ports: set[int], peers: Sequence[PeerAddress]) -> None:
    """What a pull would dial."""
    ports |= {peer.port for peer in peers}


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no TCP_NOTSENT_LOWAT")
def test_the_send_queue_holds_some_whole_segments() -> None:
    """sendfile holds back a segment that is not full, 0.2 s at a time: on loopback a pull took minutes."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
    ):
        tune(sock, SocketOptions())
        segment = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        unsent = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert unsent >= 4 * segment
