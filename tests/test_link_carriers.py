"""One contract for everything that carries streams between keys; each carrier runs all of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from megalfs.core import signing
from megalfs.core.identity import NodeKey
from megalfs.core.signing import SigningKey
from megalfs.errors import (
    BusyError,
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    TemporaryError,
)
from megalfs.formats.hostport import HostPort
from megalfs.net.certificates import CERTIFICATE_NAME, make_certificate, write_certificate
from megalfs.net.link import ALPN, FRAME_BYTES_MAX, Carrier, Handler, Listener, Stream
from megalfs.net.link_quic import QuicCarrier
from megalfs.net.link_tls import TlsCarrier

ALICE, BOB, MALLORY = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3))
ANY = HostPort("127.0.0.1", 0)
CARRIERS = [TlsCarrier, QuicCarrier]
Work = Callable[[], Awaitable[None]]


@pytest.fixture(params=CARRIERS, ids=lambda carrier: carrier.__name__)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Carrier]:
    def make(private: SigningKey, allowed: set[SigningKey] | None = None) -> Carrier:
        certificate = write_certificate(private, tmp_path / private.public.peer_id)
        keys = None if allowed is None else {each.public for each in allowed}
        carrier: Carrier = request.param(
            private, certificate=certificate, is_allowed=lambda key: keys is None or key in keys
        )
        return carrier

    return make


async def echo(stream: Stream) -> None:
    """Says who asked for what, then everything it hears."""
    await stream.accept()
    await stream.send(f"{stream.peer} {stream.service} {stream.subject}".encode())
    while frame := await stream.receive():
        await stream.send(frame)
    await stream.finish()


@asynccontextmanager
async def listening(carrier: Carrier, handler: Handler = echo) -> AsyncIterator[Listener]:
    listener = await carrier.listen(ANY, handler)
    try:
        yield listener
    finally:
        await listener.close()


def run(work: Work) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(main())


def test_both_ends_know_each_other(make: Callable[..., Carrier]) -> None:
    async def work() -> None:
        async with listening(make(ALICE)) as listener:
            link = await make(BOB).dial(listener.address, ALICE.public)
            assert link.peer == ALICE.public
            for subject in ("tiny", "", "größer"):
                stream = await link.open("git-upload-pack", subject)
                assert await stream.receive() == f"{BOB.public} git-upload-pack {subject}".encode()
                await stream.send(b"x" * FRAME_BYTES_MAX)
                await stream.send(b"y")
                await stream.finish()
                assert await stream.receive() == b"x" * FRAME_BYTES_MAX
                assert await stream.receive() == b"y"
                assert await stream.receive() == b""
                await stream.close()
            await link.close()

    run(work)


def test_another_key_at_the_address_is_refused(make: Callable[..., Carrier]) -> None:
    async def work() -> None:
        seen: list[Stream] = []

        async def handler(stream: Stream) -> None:
            seen.append(stream)

        async with listening(make(MALLORY), handler) as listener:
            with pytest.raises(NotAuthorisedError, match="is not 12D3KooW"):
                await make(BOB).dial(listener.address, ALICE.public)
        assert not seen

    run(work)


def test_allow_list(make: Callable[..., Carrier]) -> None:
    async def work() -> None:
        async with listening(make(ALICE, {BOB})) as listener:
            member = await make(BOB).dial(listener.address, ALICE.public)
            assert (await (await member.open("echo")).receive()).startswith(str(BOB.public).encode())
            stranger = await make(MALLORY).dial(listener.address, ALICE.public)
            with pytest.raises(NotAuthorisedError, match="only keys it lists"):
                await stranger.open("echo")
            await member.close()
            await stranger.close()

    run(work)


@pytest.mark.parametrize("error", [NotFoundError("no such repository: 'x'"), BusyError("too many")])
def test_a_refusal_keeps_its_kind_and_words(make: Callable[..., Carrier], error: MegalfsError) -> None:
    async def handler(stream: Stream) -> None:
        await stream.refuse(error)

    async def work() -> None:
        async with listening(make(ALICE), handler) as listener:
            link = await make(BOB).dial(listener.address, ALICE.public)
            with pytest.raises(type(error), match=str(error)):
                await link.open("echo")
            await link.close()

    run(work)


def test_a_refusal_cannot_write_on_the_terminal(make: Callable[..., Carrier]) -> None:
    async def handler(stream: Stream) -> None:
        await stream.send(b"\x01\x01gone \x1b[2J\n")

    async def work() -> None:
        async with listening(make(ALICE), handler) as listener:
            link = await make(BOB).dial(listener.address, ALICE.public)
            with pytest.raises(NotFoundError, match=r"gone \?\[2J\?"):
                await link.open("echo")
            await link.close()

    run(work)


def test_a_sender_waits_for_its_reader(make: Callable[..., Carrier]) -> None:
    frame = b"z" * FRAME_BYTES_MAX
    sent = 0
    is_full = asyncio.Event()

    async def handler(stream: Stream) -> None:
        nonlocal sent
        await stream.accept()
        for _ in range(32):
            await stream.send(frame)
            sent += len(frame)
            if sent == 3 * len(frame):
                is_full.set()
        await stream.finish()

    async def work() -> None:
        async with listening(make(ALICE), handler) as listener:
            link = await make(BOB).dial(listener.address, ALICE.public)
            stream = await link.open("echo")
            await is_full.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            assert sent == 3 * len(frame)  # the window holds them and the answer, but not a fourth
            received = 0
            while got := await stream.receive():
                received += len(got)
            assert received == 32 * len(frame)
            await link.close()

    run(work)


def test_a_peer_that_leaves_is_noticed(make: Callable[..., Carrier]) -> None:
    async def handler(stream: Stream) -> None:
        await stream.accept()
        await stream.send(b"half of it")

    async def work() -> None:
        async with listening(make(ALICE), handler) as listener:
            link = await make(BOB).dial(listener.address, ALICE.public)
            stream = await link.open("echo")
            assert await stream.receive() == b"half of it"
            with pytest.raises(TemporaryError):
                await stream.receive()
            await link.close()

    run(work)


def test_the_last_frames_arrive_over_a_slow_path(tmp_path: Path) -> None:
    """The server is done, and has the client's end, while most of a window still waits in its kernel."""
    frame, count = b"z" * FRAME_BYTES_MAX, 12
    passed_first = 9 * FRAME_BYTES_MAX
    is_done, is_closed = asyncio.Event(), asyncio.Event()

    async def handler(stream: Stream) -> None:
        await stream.accept()
        assert await stream.receive() == b""
        for _ in range(count):
            await stream.send(frame)
        await stream.finish()
        is_done.set()

    async def slowly(listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes on; from some point on only after the server is done."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((listener.address.host, listener.address.port))
        back, forth = await asyncio.open_connection(sock=sock, limit=4096)

        async def upward() -> None:
            while octets := await reader.read(65536):
                forth.write(octets)

        task, passed = asyncio.create_task(upward()), 0
        with suppress(OSError):
            while octets := await back.read(4096):
                passed += len(octets)
                if passed > passed_first:
                    await is_done.wait()
                writer.write(octets)
                await writer.drain()
        task.cancel()
        for each in (writer, forth):
            each.close()
            with suppress(OSError):
                await each.wait_closed()
        is_closed.set()

    async def work() -> None:
        carrier = TlsCarrier(ALICE, certificate=write_certificate(ALICE, tmp_path))
        async with listening(carrier, handler) as listener:
            proxy = await asyncio.start_server(lambda r, w: slowly(listener, r, w), "127.0.0.1", 0)
            host, port = proxy.sockets[0].getsockname()[:2]
            link = await TlsCarrier(BOB).dial(HostPort(host, port), ALICE.public)
            stream = await link.open("echo")
            await stream.finish()
            received = 0
            while got := await stream.receive():
                received += len(got)
            assert received == count * FRAME_BYTES_MAX
            await link.close()
            await is_closed.wait()
            proxy.close()

    run(work)


def test_nobody_there(make: Callable[..., Carrier]) -> None:
    async def work() -> None:
        async with listening(make(ALICE)) as listener:
            address = listener.address
        with pytest.raises(TemporaryError, match="cannot reach"):
            await make(BOB).dial(address, ALICE.public)

    run(work)


def test_a_taken_port_is_said(make: Callable[..., Carrier]) -> None:
    async def work() -> None:
        async with listening(make(ALICE)) as listener:
            with pytest.raises(BusyError, match="cannot listen"):
                await make(BOB).listen(listener.address, echo)

    run(work)


def test_many_streams_at_once(make: Callable[..., Carrier]) -> None:
    async def work() -> None:
        async with listening(make(ALICE)) as listener:
            link = await make(BOB).dial(listener.address, ALICE.public)

            async def one(number: int) -> None:
                stream = await link.open("echo", str(number))
                assert (await stream.receive()).endswith(f" {number}".encode())
                await stream.finish()
                assert await stream.receive() == b""
                await stream.close()

            await asyncio.gather(*(one(number) for number in range(20)))
            await link.close()

    run(work)


# --- what a stranger may write instead of a proof -----------------------------------------------------------


def offer(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


HOSTILE = {
    "noise": b"\x7f" * 300,
    "too-long": (FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
    "empty-end": b"\0\0\0\0",
    "unsigned": offer(b"\x01" + bytes(96) + b"\x04echo\0\0"),
    "version": offer(b"\x02" + bytes(96) + b"\x04echo\0\0"),
    "cut": offer(b"\x01" + bytes(96)),
    "longer-than-it-says": offer(b"\x01" + bytes(96) + b"\x04echo\0\0x"),
    "credit-for-nothing": b"\xff\0\0\0",
}


@pytest.mark.parametrize("octets", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_first_frames_reach_no_handler(tmp_path: Path, octets: bytes) -> None:
    seen: list[Stream] = []

    async def handler(stream: Stream) -> None:
        seen.append(stream)

    async def work() -> None:
        carrier = TlsCarrier(ALICE, certificate=write_certificate(ALICE, tmp_path))
        async with listening(carrier, handler) as listener:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols([ALPN])
            reader, writer = await asyncio.open_connection(
                listener.address.host, listener.address.port, ssl=context
            )
            writer.write(octets)
            answer = await reader.read()  # to the end: it hangs up
            assert len(answer) in {0, 36, 40}  # perhaps its nonce, perhaps that it gives up; nothing else
            writer.close()
            link = await TlsCarrier(BOB).dial(listener.address, ALICE.public)  # it still serves others
            await link.close()
        assert not seen

    run(work)


def test_a_proof_for_another_service_or_server_does_not_fit(tmp_path: Path) -> None:
    """A man in the middle cannot pass on what he was told."""
    from megalfs.net.link import _named, _read_offer, _signed_payload

    nonce = b"n" * 32
    signature = signing.sign(BOB, "link", _signed_payload(ALICE.public, nonce, "git-upload-pack", "tiny"))
    head = b"\x01" + BOB.public.raw + signature

    async def work() -> None:
        reader = asyncio.StreamReader()
        stream = Stream(reader, None)  # type: ignore[arg-type]  # nothing is written
        _read_offer(stream, head + _named("git-upload-pack", "tiny"), ALICE.public, nonce)
        assert (stream.peer, stream.subject) == (BOB.public, "tiny")
        for frame, own, used in (
            (head + _named("git-receive-pack", "tiny"), ALICE.public, nonce),
            (head + _named("git-upload-pack", "tin"), ALICE.public, nonce),
            (head + _named("git-upload-pack", "tiny"), MALLORY.public, nonce),
            (head + _named("git-upload-pack", "tiny"), ALICE.public, b"m" * 32),
        ):
            with pytest.raises(MegalfsError, match="does not hold the key"):
                _read_offer(stream, frame, own, used)
        reader.feed_eof()

    run(work)


@pytest.mark.parametrize("key", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "ee" + "ff" * 31])
def test_a_point_of_small_order_is_nobodys_key(key: str) -> None:
    """OpenSSL takes a signature of zeros for such a key, now and then: who may be anybody is nobody."""
    for number in range(16):
        with pytest.raises(MegalfsError, match="nobody's key"):
            signing.verify(NodeKey(bytes.fromhex(key)), "link", bytes([number]), bytes(64))


def test_certificate_file_is_private(tmp_path: Path) -> None:
    path = write_certificate(ALICE, tmp_path / "new" / "directory")
    assert path.name == CERTIFICATE_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(make_certificate(ALICE))
