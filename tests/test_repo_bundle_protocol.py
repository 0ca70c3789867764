"""Request, Start, Chunk, Done: in this order, these bytes, or nothing."""

from __future__ import annotations

import hashlib

import pytest

from megalfs.core.bundle_protocol import (
    CHUNK_BYTES,
    BundleReceiver,
    Chunk,
    Done,
    Message,
    Request,
    Start,
    decode,
    encode,
)
from megalfs.core.ids import Oid
from megalfs.errors import IntegrityError, MegalfsError, RemoteProtocolError


def transfer(content: bytes) -> list[Message]:
    starts = range(0, len(content), CHUNK_BYTES)
    chunks = [Chunk(index, content[start : start + CHUNK_BYTES]) for index, start in enumerate(starts)]
    return [Start(len(content), "tiny.bundle"), *chunks, Done(Oid(hashlib.sha256(content).digest()))]


def receive(messages: list[Message], content: bytes, kept: bytes = b"") -> bytes:
    receiver = BundleReceiver(Oid(hashlib.sha256(content).digest()), len(content))
    receiver.resume(kept)
    got = b"".join(receiver.feed(decode(encode(each))) for each in messages)
    if not receiver.is_done:
        raise RemoteProtocolError("cut")
    return got


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_what_is_sent_arrives(size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    assert receive(transfer(content), content) == content


@pytest.mark.parametrize("size", [CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7])
def test_what_was_cut_goes_on_from_any_full_chunk(size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    start, *chunks, done = transfer(content)
    for first in range(size // CHUNK_BYTES + 1):
        kept = content[: first * CHUNK_BYTES]
        receiver = BundleReceiver(Oid(hashlib.sha256(content).digest()), size)
        receiver.resume(kept)
        assert decode(encode(receiver.request)) == Request(Oid(hashlib.sha256(content).digest()), first)
        assert kept + receive([start, *chunks[first:], done], content, kept) == content


def test_what_was_kept_is_proven_with_the_rest() -> None:
    content = bytes(range(256)) * 600
    start, *chunks, done = transfer(content)
    with pytest.raises(IntegrityError):
        receive([start, *chunks[1:], done], content, kept=bytes(CHUNK_BYTES))
    with pytest.raises(RemoteProtocolError):  # from the beginning after all
        receive([start, *chunks, done], content, kept=content[:CHUNK_BYTES])
    with pytest.raises(RemoteProtocolError):
        receive([start, *chunks[2:], done], content, kept=content[:CHUNK_BYTES])


def test_every_fault_is_refused() -> None:
    content = bytes(range(256)) * 600
    good = transfer(content)
    assert len(good) == 5
    flipped = Chunk(1, b"x" + good[2].content[1:])  # type: ignore[union-attr]
    faults = {
        "no start": good[1:],
        "twice": [good[0], *good],
        "unsolicited": [good[-1]],
        "missing chunk": [good[0], good[1], good[3], good[4]],
        "out of order": [good[0], good[2], good[1], good[3], good[4]],
        "one more": [*good[:4], Chunk(3, b"x"), good[4]],
        "cut in the middle": good[:3],
        "short chunk": [good[0], Chunk(0, b"x"), *good[2:]],
        "another size": [Start(len(content) + 1, ""), *good[1:]],
        "after the end": [*good, good[1]],
        "a request": [Request(Oid(b"o" * 32)), *good],
        "flipped": [good[0], good[1], flipped, good[3], good[4]],
        "and a hash that fits it": [good[0], good[1], flipped, good[3], Done(Oid(b"x" * 32))],
    }
    for name, messages in faults.items():
        print(name)
        with pytest.raises(MegalfsError):
            receive(messages, content)
    with pytest.raises(IntegrityError):
        receive(faults["flipped"], content)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0",
        b"\5",
        b"\1" + bytes(31),
        b"\1" + bytes(33),
        b"\1" + bytes(37),
        b"\2" + bytes(7),
        b"\2" + bytes(8 + 256),
        b"\3" + bytes(4),
        b"\3" + bytes(5 + CHUNK_BYTES),
        b"\4" + bytes(33),
    ],
)
def test_hostile_frames(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(frame)
