"""The HTTP routes of DESIGN.md section 6: read-only, and only of what was published or pulled.

Ids are parsed here and nowhere later. Bulk goes out by `sendfile` from the file that the store opened; the
file's identity is checked before and after each range, and a changed file ends the connection instead of
ending the body.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from megalfs import __version__
from megalfs.core.identity import NodeKey
from megalfs.core.ids import ChunkId, ManifestId, Oid
from megalfs.core.manifest import Manifest
from megalfs.errors import (
    BusyError,
    MegalfsError,
    NotFoundError,
    PolicyError,
    RemoteProtocolError,
    StoreError,
    UsageError,
)
from megalfs.net.handshake import (
    NONCE_BYTES_MAX,
    NONCE_BYTES_MIN,
    NONCE_HEADER,
    PROTOCOL,
    UPGRADE_PATH,
)
from megalfs.node import status as node_status
from megalfs.node.bulk_route import BulkRoute
from megalfs.node.holdings import Holding, holding_of

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware

    from megalfs.node.http_guard import Guard
    from megalfs.node.node import Node

__all__ = ["MANIFEST_TYPE", "make_app"]

MANIFEST_TYPE = "application/vnd.megalfs.manifest"
SEND_BLOCK_BYTES = 4 << 20
TLS_BLOCK_BYTES = 1 << 20
ANNOUNCE_BYTES_MAX = 4 << 20
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})\Z")  # 2**63 has 19 digits
_STATUS = {
    UsageError: 400,
    NotFoundError: 404,
    RemoteProtocolError: 400,
    PolicyError: 403,
    BusyError: 503,
    StoreError: 503,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(node: Node) -> web.Application:
    """The application of one node."""
    routes = Routes(node)
    app = web.Application(middlewares=[_guarded(node.guard), _map_errors], client_max_size=ANNOUNCE_BYTES_MAX)
    app.add_routes(
        [
            web.get("/healthz", routes.healthz),
            web.get("/readyz", routes.readyz),
            web.get("/metrics", routes.metrics),
            web.get("/v1/status", routes.status),
            web.get("/v1/file/chunks/{digest}", routes.chunk),
            web.get("/v1/file/{oid}", routes.file),
            web.get("/v1/file/{oid}/chunks", routes.manifest),
            web.get("/v1/file/{oid}/manifests", routes.manifests),
            web.get("/v1/file/{oid}/have", routes.have),
            web.get("/v1/names", routes.names),
            web.get("/v1/names/{key}/{name:.+}", routes.name),
            web.post("/v1/announce", routes.announce),
            web.get("/v1/peers/{oid}", routes.peers),
            web.get(UPGRADE_PATH, routes.peer),
            *BulkRoute(node).routes(),
        ]
    )
    for service in node.services:
        app.add_routes(service.routes())
    return app


def _guarded(guard: Guard) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = guard.refusal(request)
        if refused is None:
            return await handler(request)
        status_code, why = refused
        return web.Response(status=status_code, text=f"megalfs: {why}\n")

    return check


@web.middleware
async def _map_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One line and the right status for every error of ours."""
    try:
        response = await handler(request)
    except MegalfsError as error:
        status_code = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        return web.Response(status=status_code, text=f"megalfs: {error}\n", headers={"Server": "megalfs"})
    if not response.prepared:
        response.headers["Server"] = f"megalfs/{__version__}"
    return response


class Routes:
    """The handlers; each parses, asks the node or its store, and answers."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # --- state -----------------------------------------------------------------------------------------

    async def healthz(self, _: web.Request) -> web.Response:
        """Alive: the event loop answers."""
        return web.Response(text="ok\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """Ready: everything named at start is published, and we are not draining."""
        if self._node.is_ready:
            return web.Response(text="ready\n")
        return web.Response(status=503, text="draining\n" if self._node.is_draining else "starting\n")

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus text."""
        text = node_status.metrics(self._node)
        return web.Response(
            body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def status(self, request: web.Request) -> web.Response:
        """JSON state; which files, only to who holds the local token."""
        return web.json_response(node_status.state(self._node, with_files=self._node.guard.is_local(request)))

    # --- files -----------------------------------------------------------------------------------------

    async def file(self, request: web.Request) -> web.StreamResponse:
        """The blob, or a range of it; a partial holder serves the ranges it has verified."""
        oid = Oid.parse(request.match_info["oid"])
        with holding_of(self._node, oid) as holding:
            wanted = _range_of(request, holding.size, etag=f'"{oid}"')
            start, stop = wanted or (0, holding.size)
            if wanted is not None and start >= stop:
                raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{holding.size}"})
            if not holding.holds(start, stop - start):
                raise NotFoundError(f"bytes {start}-{stop - 1} of {oid} are not here yet")
            headers = {
                "Accept-Ranges": "bytes",
                "ETag": f'"{oid}"',
                "Content-Type": "application/octet-stream",
                "Cache-Control": "public, max-age=31536000, immutable",
            }
            if wanted is not None:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{holding.size}"
            return await self._send(
                request, holding, start, stop, status_code=200 if wanted is None else 206, headers=headers
            )

    async def chunk(self, request: web.Request) -> web.StreamResponse:
        """One chunk by its SHA-256, or by its chunk id after `blake3:`."""
        digest = request.match_info["digest"]
        store = self._node.store
        if digest.startswith("blake3:"):
            chunk_id = ChunkId.parse(digest.removeprefix("blake3:"))
            found = await asyncio.to_thread(lambda: store.find_chunk(blake3=chunk_id))
        else:
            oid = Oid.parse(digest)
            found = await asyncio.to_thread(lambda: store.find_chunk(sha256=oid))
        if found is None:
            raise NotFoundError(f"no chunk {digest} here")
        blob, offset, length = found
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{digest}"'}
        with holding_of(self._node, blob.oid) as holding:
            return await self._send(
                request, holding, offset, offset + length, status_code=200, headers=headers
            )

    async def _send(
        self,
        request: web.Request,
        holding: Holding,
        start: int,
        stop: int,
        *,
        status_code: int,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        holding.source.check()
        response = web.StreamResponse(
            status=status_code, headers={**headers, "Server": f"megalfs/{__version__}"}
        )
        response.content_length = stop - start
        await response.prepare(request)
        transport = request.transport
        if request.method == "HEAD" or start == stop or transport is None:
            await response.write_eof()
            return response
        try:
            await self._send_file(transport, response, holding, start, stop)
        except StoreError:
            transport.abort()
            raise
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            transport.abort()
            holding.source.spoil()
            holding.source.check()
        await response.write_eof()
        return response

    async def _send_file(
        self,
        transport: asyncio.Transport,
        response: web.StreamResponse,
        holding: Holding,
        start: int,
        stop: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        is_tls = transport.get_extra_info("sslcontext") is not None
        offset = start
        with os.fdopen(os.dup(holding.source.fileno()), "rb") as file:
            while offset < stop:
                size = min(TLS_BLOCK_BYTES if is_tls else SEND_BLOCK_BYTES, stop - offset)
                await asyncio.sleep(self._node.limits.all_up.debt_s(size))
                if is_tls:
                    # asyncio's own TLS fallback of sendfile reads 16 KiB a hop and crawls at 0.1 GB/s.
                    block = await asyncio.to_thread(os.pread, file.fileno(), size, offset)
                    holding.source.check()
                    await response.write(block)
                    sent = len(block)
                else:
                    if offset + size == stop:
                        holding.source.check()  # while the last block is still ours to hold back
                    sent = await loop.sendfile(transport, file, offset, size)
                if sent == 0:
                    raise StoreError("the file ended before its pieces did")
                offset += sent
                self._node.totals.bytes_served_http += sent
        holding.source.check()

    # --- manifests -------------------------------------------------------------------------------------

    async def manifest(self, request: web.Request) -> web.Response:
        """The manifest of a blob, binary or JSON; `?manifest=<id>` chooses one of several."""
        oid = Oid.parse(request.match_info["oid"])
        wanted = request.query.get("manifest")
        manifest = await asyncio.to_thread(self._manifest, oid, ManifestId.parse(wanted) if wanted else None)
        headers = {"Megalfs-Manifest": str(manifest.id), "ETag": f'"{manifest.id}"', "Vary": "Accept"}
        signatures = self._node.signatures(manifest.id, oid)
        if signatures:
            headers["Megalfs-Signature"] = ", ".join(signatures)
        if MANIFEST_TYPE in request.headers.get("Accept", ""):
            body, kind = await asyncio.to_thread(manifest.encode), MANIFEST_TYPE
        else:
            body, kind = await asyncio.to_thread(manifest.to_json), "application/json"
        return web.Response(body=body, headers={**headers, "Content-Type": kind})

    def _manifest(self, oid: Oid, wanted: ManifestId | None) -> Manifest:
        for driver in self._node.drivers_of(oid):
            if wanted in {None, driver.manifest.id}:
                return driver.manifest
        for manifest_id in self._node.store.manifests(oid):
            if wanted in {None, manifest_id}:
                return self._node.store.load_manifest(manifest_id, oid)
        raise NotFoundError(f"no manifest of {oid} here")

    async def manifests(self, request: web.Request) -> web.Response:
        """Which manifests of a blob this node has, with signatures, and whether it holds all of the blob."""
        oid = Oid.parse(request.match_info["oid"])
        entries = await asyncio.to_thread(self._node.offers, oid)
        if not entries:
            raise NotFoundError(f"no blob {oid} here")
        return web.json_response({"oid": str(oid), "manifests": entries})

    async def have(self, request: web.Request) -> web.Response:
        """The pieces held, one bit each, the first in the highest bit; under the manifest that a header names."""
        oid = Oid.parse(request.match_info["oid"])
        with holding_of(self._node, oid) as holding:
            if holding.have is None or holding.manifest_id is None:
                raise NotFoundError(f"no manifest of {oid} here")
            headers = {"Megalfs-Manifest": str(holding.manifest_id), "Megalfs-Pieces": str(holding.have.size)}
            return web.Response(
                body=holding.have.to_bytes(), headers=headers, content_type="application/octet-stream"
            )

    # --- names -------------------------------------------------------------------------------------------

    async def name(self, request: web.Request) -> web.Response:
        """One signed name record."""
        key = NodeKey.parse(request.match_info["key"])
        record = self._node.name_record(key, request.match_info["name"])
        if record is None:
            raise NotFoundError("no such name here")
        return web.Response(body=record, content_type="application/json")

    async def names(self, request: web.Request) -> web.Response:
        """Every record of one name, whatever its key."""
        records = self._node.name_records(request.query.get("name", ""))
        return web.Response(body=b"[" + b",".join(records) + b"]", content_type="application/json")

    # --- tracker and peers -------------------------------------------------------------------------------

    async def announce(self, request: web.Request) -> web.Response:
        """A node tells what it has and what it wants; the answer names peers."""
        body = await _json_of(request)
        remote = (request.remote or "").removeprefix("::ffff:")
        return web.json_response(self._node.announcer.announced(body, remote))

    async def peers(self, request: web.Request) -> web.Response:
        """Who announced a blob."""
        oid = Oid.parse(request.match_info["oid"])
        return web.json_response(self._node.announcer.peers_of(oid))

    async def peer(self, request: web.Request) -> web.StreamResponse:
        """Turns this connection into the peer protocol; from here on it is the hub's."""
        try:
            nonce = bytes.fromhex(request.headers.get(NONCE_HEADER, ""))
        except ValueError:
            nonce = b""
        if (
            request.headers.get("Upgrade", "").lower() != PROTOCOL
            or not NONCE_BYTES_MIN <= len(nonce) <= NONCE_BYTES_MAX
        ):
            raise web.HTTPUpgradeRequired(headers={"Upgrade": PROTOCOL})
        transport = request.transport
        if transport is None or self._node.is_draining:
            raise web.HTTPServiceUnavailable
        if transport.get_extra_info("sslcontext") is not None:
            raise web.HTTPNotImplemented(text="megalfs: the peer protocol runs on plain TCP\n")
        # The dup shares the connection: closing the server's descriptor sends nothing to the peer, which waits
        # for our 101 before it says a word, so the server's parser holds no byte of it either.
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        transport.abort()
        self._node.hub.accept(sock, nonce)
        return web.Response()


async def _json_of(request: web.Request) -> object:
    try:
        return await request.json()
    except (ValueError, RecursionError) as error:
        raise UsageError("the body is not JSON") from error


def _range_of(request: web.Request, size: int, *, etag: str) -> tuple[int, int] | None:
    """Start and stop of the single Range that is wanted, or None for all: RFC 9110 section 14.2.

    What cannot be read, several ranges, and one of another version (If-Range) are answered with the whole.
    """
    if request.headers.get("If-Range", etag) != etag:
        return None
    match = _RANGE.match(request.headers.get("Range", "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
