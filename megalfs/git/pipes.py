"""Bytes between git and a peer: what a subprocess, a local socket and a link's stream have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from megalfs.errors import MegalfsError, TemporaryError
from megalfs.net.link import FRAME_BYTES_MAX, Stream

__all__ = ["BUSY_S", "LinkPipe", "Pipe", "StreamPipe", "busily", "splice"]

BLOCK_BYTES = FRAME_BYTES_MAX  # the largest that a link carries: the fewest turns of the loop
BUSY_S = 5.0
T = TypeVar("T")


class Pipe(Protocol):
    """One end of a conversation."""

    async def read(self) -> bytes:
        """Some bytes; none at the end."""

    async def write(self, block: bytes) -> None:
        """Sends them, once there is room."""

    async def finish(self) -> None:
        """Nothing more follows."""


class LinkPipe:
    """A stream to a peer."""

    def __init__(self, stream: Stream) -> None:
        self.read = stream.receive
        self.write = stream.send
        self.finish = stream.finish


class StreamPipe:
    """A subprocess's or a socket's pair of asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """Some bytes; none at the end."""
        try:
            return await self._reader.read(BLOCK_BYTES)
        except OSError as error:
            raise TemporaryError(f"the pipe broke: {error}") from error

    async def write(self, block: bytes) -> None:
        """Sends them, once there is room."""
        try:
            self._writer.write(block)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise TemporaryError(f"the pipe broke: {error}") from error

    async def finish(self) -> None:
        """Half-closes."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._writer.can_write_eof():
                self._writer.write_eof()


async def busily(work: Awaitable[T], say: Callable[[], Awaitable[None]]) -> T:
    """What `work` gives; meanwhile `say` is called every few seconds, so that who waits knows that it goes on."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=BUSY_S))[0]:
            await say()
        return task.result()
    finally:
        task.cancel()


async def splice(client: Pipe, server: Pipe, *, sent: Callable[[int], None] | None = None) -> None:
    """Copies both ways until the server has no more to say; in git it always has the last word.

    Raises:
        TemporaryError: the server's side broke; what breaks on the client's way ends only that way.
    """
    upward = asyncio.create_task(_copy_to_server(client, server))
    try:
        while block := await server.read():
            await client.write(block)
            if sent is not None:
                sent(len(block))
        await client.finish()
    finally:
        upward.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await upward


async def _copy_to_server(client: Pipe, server: Pipe) -> None:
    with contextlib.suppress(MegalfsError):
        while block := await client.read():
            await server.write(block)
    with contextlib.suppress(MegalfsError):
        await server.finish()
