"""Sessions opened before they are needed, and what their sockets are tuned to, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from processes import wait_until

from megalfs.config import load
from megalfs.core.signing import SigningKey
from megalfs.formats.hostport import HostPort
from megalfs.net.sockets import SocketOptions, tune
from megalfs.node.identity import LocalIdentity
from megalfs.node.node import Node
from megalfs.store.blobs import Store
from megalfs.store.root import Root

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
