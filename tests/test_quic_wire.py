"""QUIC as others see it on the wire: version 1, enough where TCP does not pass, and it survives a new address."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from helpers_p2p import P2pNode
from udp_proxy import UdpProxy

from megalfs.core.signing import SigningKey
from megalfs.formats.hostport import HostPort
from megalfs.net.certificates import write_certificate
from megalfs.net.link import FRAME_BYTES_MAX, Stream
from megalfs.net.link_quic import QuicCarrier

ALICE, BOB = (SigningKey(bytes([number]) * 32) for number in (1, 2))
QUIC_V1 = 1
INITIAL = 0
FRAMES = 24


@contextmanager
def proxied(listen: tuple[str, int], server: tuple[str, int]) -> Iterator[UdpProxy]:
    proxy = UdpProxy(listen, server)
    try:
        yield proxy
    finally:
        proxy.close()


def long_headers(datagrams: list[bytes]) -> list[tuple[int, int]]:
    """Version and packet type of the datagrams that begin with a long header (RFC 9000, 17.2)."""
    return [
        (int.from_bytes(each[1:5], "big"), (each[0] & 0x30) >> 4)
        for each in datagrams
        if each[0] & 0xC0 == 0xC0
    ]


def test_the_wire_is_quic_version_1_and_a_new_address_ends_nothing(tmp_path: Path) -> None:
    """The client's port, as the server sees it, changes twice in the middle of a stream both ways."""
    frames = [Random(number).randbytes(FRAME_BYTES_MAX) for number in range(FRAMES)]

    async def echo(stream: Stream) -> None:
        await stream.accept()
        while frame := await stream.receive():
            await stream.send(frame)
        await stream.finish()

    async def work() -> UdpProxy:
        carrier = QuicCarrier(ALICE, certificate=write_certificate(ALICE, tmp_path))
        listener = await carrier.listen(HostPort("127.0.0.1", 0), echo)
        with proxied(("127.0.0.1", 0), ("127.0.0.1", listener.address.port)) as proxy:
            link = await QuicCarrier(BOB).dial(HostPort(*proxy.address), ALICE.public)
            stream = await link.open("echo")
            for number, frame in enumerate(frames):
                if number in {FRAMES // 3, 2 * FRAMES // 3}:
                    proxy.rebind()
                await stream.send(frame)
                assert await stream.receive() == frame
            await stream.finish()
            assert await stream.receive() == b""
            await link.close()
            await listener.close()
            return proxy

    async def bounded() -> UdpProxy:
        async with asyncio.timeout(60):
            return await work()

    proxy = asyncio.run(bounded())
    assert len(proxy.client_ports) == 3
    for datagrams in (proxy.sent, proxy.received):
        headers = long_headers(datagrams)
        assert {version for version, _ in headers} == {QUIC_V1}
        assert INITIAL in {kind for _, kind in headers}
    seen = b"".join(proxy.sent + proxy.received)
    assert frames[0][:64] not in seen
    assert b"echo" not in seen, "the service is encrypted too"


def test_everything_works_where_only_udp_passes(tmp_path: Path) -> None:
    """The owner is known at an address where nothing listens on TCP, neither for links nor for the swarm."""
    owner = P2pNode(tmp_path / "owner", MEGALFS_ADVERTISE="127.0.0.9:1").start()
    port = int(owner.addr.rpartition(":")[2])
    member = P2pNode(tmp_path / "member")
    try:
        with proxied(("127.0.0.9", port), ("127.0.0.1", port)) as proxy:
            owner.share(owner.repository(commits=3))
            member.start("--bootstrap-node", f"{owner.key}@127.0.0.9:{port}")
            record = member.until("tiny", here=True)  # gossip, then the bundle
            member.git("fsck", "--strict", cwd=Path(str(record["path"])))
            target = member.directory / "clone"
            done = member.git("clone", "-q", f"p2p://{owner.key}/tiny.git", target)
            assert "is away" not in done.err, "from the owner himself, not from our copy"
            assert member.head(target) == owner.head(owner.directory / "tiny")
            done = member.git("ls-remote", f"p2p://{owner.key}/tiny.git?via=tls")
            assert "is away" in done.err, "there is no TCP"
            assert {version for version, _ in long_headers(proxy.sent)} == {QUIC_V1}
    finally:
        member.close()
        owner.close()
