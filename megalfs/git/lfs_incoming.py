"""What comes as the body of a request: an object, hashed before it gets its name, or the manifest of one."""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import TYPE_CHECKING, Protocol

from megalfs.core.ids import Oid
from megalfs.core.manifest import MANIFEST_BYTES_MAX, Manifest
from megalfs.core.signing import parse_signatures
from megalfs.errors import IntegrityError, SpaceError, UsageError
from megalfs.store.files import map_os_errors, write_all

if TYPE_CHECKING:
    from aiohttp import web

    from megalfs.core.signing import ManifestSignature
    from megalfs.git.lfs_objects import Objects

__all__ = ["CALLER_HEADER", "SIGNATURES_HEADER", "read_offer", "receive"]

BLOCK_BYTES = 1 << 20
SILENCE_S_MAX = 60.0
CALLER_HEADER = "Megalfs-Instance"  # which of our peer sessions leads to the sender
SIGNATURES_HEADER = "Megalfs-Signature"
RESERVE_BYTES = 64 << 20  # left free for others, as a pull leaves it


class Body(Protocol):
    """Of a request, or of a stream between nodes."""

    async def read(self, count_max: int, /) -> bytes:
        """Some bytes; none at the end."""


async def receive(content: Body, oid: Oid, objects: Objects, *, size: int | None) -> None:
    """Takes a body in.

    Raises:
        IntegrityError: it is not the object that it should be, or ends early.
        SpaceError: there is no room for it.
    """
    path = objects.directory / f".{oid}.{secrets.token_hex(4)}.incoming"
    with map_os_errors("cannot take an upload"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        await _write(content, fd, size)
        os.close(fd)
        fd = -1
        await asyncio.to_thread(objects.take_over, path, oid)
    except (TimeoutError, ConnectionError) as error:
        raise IntegrityError(f"the upload of {oid} broke off") from error
    finally:
        if fd >= 0:
            os.close(fd)
        path.unlink(missing_ok=True)


async def read_offer(request: web.Request) -> tuple[Manifest, tuple[ManifestSignature, ...], bytes]:
    """The manifest that a node hands over, who signed it, and the node's instance id.

    Raises:
        UsageError: it is no manifest of the object that the path names.
    """
    oid = Oid.parse(request.match_info["oid"])
    try:
        caller = bytes.fromhex(request.headers.get(CALLER_HEADER, ""))
    except ValueError as error:
        raise UsageError(f"the header {CALLER_HEADER} is not hexadecimal") from error
    body = bytearray()
    async for block in request.content.iter_chunked(BLOCK_BYTES):
        body += block
        if len(body) > MANIFEST_BYTES_MAX:
            raise UsageError(f"a manifest of more than {MANIFEST_BYTES_MAX} bytes")
    manifest = Manifest.decode(bytes(body), oid=oid)
    return manifest, parse_signatures(request.headers.get(SIGNATURES_HEADER, "")), caller


async def _write(content: Body, fd: int, size: int | None) -> None:
    _check_space(fd, size or 0)
    offset = 0
    while True:
        block = await asyncio.wait_for(content.read(BLOCK_BYTES), SILENCE_S_MAX)
        if not block:
            break
        if size is None:
            _check_space(fd, len(block))
        await asyncio.to_thread(_write_block, fd, block, offset)
        offset += len(block)
    if size is not None and offset != size:
        raise IntegrityError(f"an upload of {offset} bytes instead of {size}")


def _write_block(fd: int, block: bytes, offset: int) -> None:
    with map_os_errors("cannot take an upload"):
        write_all(fd, block, offset)


def _check_space(fd: int, size: int) -> None:
    free = os.fstatvfs(fd)
    if size + RESERVE_BYTES > free.f_bavail * free.f_frsize:
        raise SpaceError(f"no space for an upload of {size} bytes")
