"""`POST /v1/files`: many small blobs in one answer, of those that the store holds whole. See core/bulk.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from megalfs import __version__
from megalfs.core.bulk import ANSWER_BYTES_MAX, BULK_BYTES_MAX, decode_oids, encode_size
from megalfs.errors import MegalfsError
from megalfs.net.bulk import BULK_PATH

if TYPE_CHECKING:
    from megalfs.core.ids import Oid
    from megalfs.node.node import Node
    from megalfs.store.blobs import Store

__all__ = ["BulkRoute"]

# Answers in memory at a time, of ANSWER_BYTES_MAX each.
ANSWERS_AT_ONCE = 8
SEND_BYTES = 256 << 10


class BulkRoute:
    """The route of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._slots = asyncio.Semaphore(ANSWERS_AT_ONCE)

    def routes(self) -> list[web.RouteDef]:
        """For the application."""
        return [web.post(BULK_PATH, self.files)]

    async def files(self, request: web.Request) -> web.StreamResponse:
        """Reads, then sends, no faster than the node may."""
        oids = decode_oids(await request.read())
        async with self._slots:
            answer = await asyncio.to_thread(read_blobs, self._node.store, oids)
            headers = {"Content-Type": "application/octet-stream", "Server": f"megalfs/{__version__}"}
            response = web.StreamResponse(headers=headers)
            response.content_length = len(answer)
            await response.prepare(request)
            for start in range(0, len(answer), SEND_BYTES):
                part = answer[start : start + SEND_BYTES]
                await asyncio.sleep(self._node.limits.all_up.debt_s(len(part)))
                await response.write(part)
                self._node.totals.bytes_served_http += len(part)
            await response.write_eof()
        self._node.totals.bulk_answers += 1
        return response


def read_blobs(store: Store, oids: Sequence[Oid]) -> memoryview:
    """The answer to these oids, as far as `ANSWER_BYTES_MAX` lets it."""
    answer = bytearray()
    for oid in oids:
        content = None
        with suppress(MegalfsError):  # it is not here, or changed, or is none for this route
            content = store.read_bytes(oid, bytes_max=BULK_BYTES_MAX)
        answer += encode_size(None if content is None else len(content))
        answer += content or b""
        if len(answer) >= ANSWER_BYTES_MAX:
            break
    return memoryview(answer)
