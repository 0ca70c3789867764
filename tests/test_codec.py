"""Frames: whole, byte by byte, with trailing bytes; what is refused; and noise."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalfs.core import codec
from megalfs.core.bitfield import Run
from megalfs.core.codec import Decoder, encode
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.messages import (
    CancelRequest,
    Credit,
    Data,
    Expecting,
    Granting,
    HaveAll,
    HaveRuns,
    Hello,
    Join,
    Leave,
    Lost,
    Message,
    OpenData,
    PeerAddress,
    Peers,
    Ping,
    Pong,
    Reject,
    RejectReason,
    Request,
    Role,
)
from megalfs.core.topology import Labels
from megalfs.errors import LocalProtocolError, RemoteProtocolError

MANIFEST = ManifestId(bytes(range(32)))

manifests = st.binary(min_size=32, max_size=32).map(ManifestId)
runs = st.tuples(st.integers(0, 2**31), st.integers(1, 2**31 - 1)).map(lambda pair: Run(*pair))
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80)
u16, u32, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
sixteen = st.binary(min_size=16, max_size=16)
hellos = st.builds(
    Hello,
    version=u16,
    role=st.sampled_from(Role),
    session=sixteen,
    instance=sixteen,
    key=st.binary(min_size=32, max_size=32),
    signature=st.binary(min_size=64, max_size=64),
    port=u16,
    advertise=texts,
    labels=st.builds(Labels, texts, texts, texts),
    flags=u32,
)
not_data: st.SearchStrategy[Message] = st.one_of(
    hellos,
    st.builds(Join, manifests, st.binary(min_size=32, max_size=32).map(Oid), u32, st.booleans()),
    st.builds(Leave, manifests),
    st.builds(HaveRuns, manifests, st.lists(runs, max_size=20).map(tuple)),
    st.builds(HaveAll, manifests),
    st.builds(Granting, manifests),
    st.builds(Expecting, manifests, st.lists(runs, max_size=20).map(tuple)),
    st.builds(Lost, manifests, st.lists(runs, max_size=20).map(tuple)),
    st.builds(lambda m, r: Request(m, *r), manifests, runs),
    st.builds(lambda m, r: CancelRequest(m, *r), manifests, runs),
    st.builds(lambda m, r, why: Reject(m, *r, why), manifests, runs, st.sampled_from(RejectReason)),
    st.builds(Credit, manifests, st.integers(1, codec.CREDIT_MAX)),
    st.builds(OpenData, st.integers(1, codec.OPEN_DATA_MAX)),
    st.builds(
        Peers, manifests, st.lists(st.builds(PeerAddress, texts, u16, sixteen), max_size=10).map(tuple)
    ),
    st.builds(Ping, u64),
    st.builds(Pong, u64),
)
data = st.builds(lambda m, r, size: Data(m, *r, size), manifests, runs, u64)


@given(st.lists(not_data, max_size=5))
def test_messages_come_back_whole_and_byte_by_byte(messages: list[Message]) -> None:
    wire = b"".join(encode(message) for message in messages)
    assert Decoder().feed(wire) == messages
    decoder = Decoder()
    assert [one for byte in wire for one in decoder.feed(bytes([byte]))] == messages
    assert decoder.take_trailing() == b""


@given(st.lists(not_data, max_size=2), data, st.binary(max_size=100))
def test_what_follows_a_data_header_is_left_alone(
    before: list[Message], header: Message, trailing: bytes
) -> None:
    decoder = Decoder()
    frame = encode(header)
    assert len(frame) == codec.DATA_FRAME_BYTES
    wire = b"".join(encode(message) for message in before) + frame + trailing
    assert decoder.feed(wire) == [*before, header]
    assert decoder.take_trailing() == trailing


@given(st.binary(max_size=400))
def test_noise_gives_messages_or_a_remote_error_and_nothing_else(noise: bytes) -> None:
    decoder = Decoder()
    try:
        decoder.feed(noise)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            decoder.feed(b"")


@given(st.integers(1, 17), st.binary(max_size=200))
def test_any_payload_of_any_type_is_a_message_or_a_remote_error(kind: int, payload: bytes) -> None:
    frame = struct.pack(">IB", 1 + len(payload), kind) + payload
    try:
        (message,) = Decoder().feed(frame)
    except RemoteProtocolError:
        return
    assert encode(message) == frame  # canonical: one message has one encoding


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">IB", 1 + len(payload), kind) + payload


RAW = MANIFEST.raw


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack(">I", 0) + b"\0",
        struct.pack(">I", codec.FRAME_BYTES_MAX + 1) + b"\x05",
        frame(5, RAW[:31]),
        frame(5, RAW + b"\0"),
        frame(4, RAW + bytes(7)),
        frame(4, RAW + bytes(8)),  # a run of no pieces
        frame(4, RAW + struct.pack(">II", 0, 1) * (codec.HAVE_RUNS_MAX + 1)),
        frame(8, RAW + struct.pack(">II", 2**32 - 1, 1)),  # ends past the last possible piece
        frame(10, RAW + struct.pack(">IIB", 0, 1, 9)),
        frame(11, RAW + struct.pack(">I", 0)),
        frame(11, RAW + struct.pack(">I", codec.CREDIT_MAX + 1)),
        frame(12, b"\0"),
        frame(12, bytes([codec.OPEN_DATA_MAX + 1])),
        frame(2, RAW + RAW + struct.pack(">IB", 1, 2)),
        frame(13, RAW + b"\x01\xff" + bytes(18)),
        frame(13, RAW + b"\x01\n" + bytes(18)),
        frame(13, RAW + (b"\x01a" + bytes(18)) * (codec.PEERS_MAX + 1)),
    ],
)
def test_refused(wire: bytes) -> None:
    decoder = Decoder()
    with pytest.raises(RemoteProtocolError):
        decoder.feed(wire)
    with pytest.raises(RemoteProtocolError):
        decoder.feed(encode(Ping(1)))


def test_limits_themselves_pass() -> None:
    runs_max = HaveRuns(MANIFEST, (Run(0, 1),) * codec.HAVE_RUNS_MAX)
    peers_max = Peers(MANIFEST, (PeerAddress("h", 1, bytes(16)),) * codec.PEERS_MAX)
    for message in (runs_max, peers_max, Request(MANIFEST, 2**32 - 2, 1)):
        assert Decoder().feed(encode(message)) == [message]


def test_unknown_types_are_skipped() -> None:
    assert Decoder().feed(frame(200, b"later") + encode(Ping(7))) == [Ping(7)]


def test_our_own_mistakes_are_ours() -> None:
    for message in (
        HaveRuns(MANIFEST, (Run(0, 1),) * (codec.HAVE_RUNS_MAX + 1)),
        Peers(MANIFEST, (PeerAddress("x" * 254, 1, bytes(16)),)),
        Peers(MANIFEST, (PeerAddress("\n", 1, bytes(16)),)),
    ):
        with pytest.raises(LocalProtocolError):
            encode(message)
