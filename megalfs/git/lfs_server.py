"""A node as an LFS server, for people without megalfs: Batch API, basic transfer, verify, locks.

`http://NODE/<repo>.git/info/lfs`, as git-lfs derives it from a git URL. Objects are the node's blobs: a
download leads to `/v1/file/<oid>`, which knows Range; an upload becomes a blob that is served at once. Who
has megalfs is offered the `megalfs` transfer, with peers in a header, and lets the node pull what it lacks
instead of sending all of it. Reading is as open as `/v1`; writing and locking want a token, unless the node
listens on loopback only. In allow-list mode everything wants one, and a token is as good as a listed key.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md, basic-transfers.md, locking.md
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from megalfs.core.ids import Oid
from megalfs.errors import (
    IntegrityError,
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    SpaceError,
    UsageError,
)
from megalfs.git.lfs_downloads import Downloads
from megalfs.git.lfs_incoming import read_offer, receive
from megalfs.git.lfs_lines import respond
from megalfs.git.lfs_locks import LockedError, Locks
from megalfs.git.lfs_objects import Objects
from megalfs.git.lfs_shared import SharedLfs
from megalfs.git.lfs_transfer import PEERS_HEADER
from megalfs.git.lfs_users import Users, basic_login

if TYPE_CHECKING:
    from megalfs.node.node import Node

__all__ = ["LfsServer"]

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/vnd.git-lfs+json"
PREFIX = r"/{repo:[A-Za-z0-9][A-Za-z0-9._/-]*}.git/info/lfs"
_OURS = re.compile(r"/.+\.git/info/lfs/.+")
_DOWNLOAD = re.compile(r"/v1/file/[0-9a-f]{64}")
OBJECTS_MAX = 1000  # git-lfs asks for 100 at a time
PEERS_TOLD_MAX = 8
_STATUS = {UsageError: 422, NotFoundError: 404, IntegrityError: 422, SpaceError: 507, NotAuthorisedError: 403}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LoginNeededError(Exception):
    """Writing without a good token."""


def _answers(handler: Handler) -> Handler:
    """Errors as the API wants them: JSON with a message, which git-lfs shows."""

    async def run(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except LoginNeededError:
            headers = {
                "LFS-Authenticate": 'Basic realm="megalfs"',
                "WWW-Authenticate": 'Basic realm="megalfs"',
            }
            return _json({"message": "a token is needed: megalfs lfs token NAME, on the node"}, 401, headers)
        except MegalfsError as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 503)
            return _json({"message": f"megalfs: {error}"}, status)

    return run


def _json(document: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=json.dumps(document).encode(),
        status=status,
        headers={**(headers or {}), "Content-Type": MEDIA_TYPE},
    )


class LfsServer:
    """The routes; see the top of this file."""

    def __init__(self, node: Node, downloads: Downloads, objects: Objects, shared: SharedLfs) -> None:
        self._node = node
        self._downloads = downloads
        self._objects = objects
        self._shared = shared
        self._users = Users(node.store.root)
        self._locks = Locks(objects.directory / "locks.sqlite")
        node.guard.logins.append(self._is_let_in)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        """As `node.service.Service`."""
        found: list[web.AbstractRouteDef] = []
        for method, path, handler in (
            ("POST", "/objects/batch", self._batch),
            ("PUT", "/objects/{oid}", self._upload),
            ("POST", "/objects/{oid}/pull", self._pull),
            ("POST", "/verify", self._verify),
            ("GET", "/locks", self._list_locks),
            ("POST", "/locks", self._lock),
            ("POST", "/locks/verify", self._verify_locks),
            ("POST", "/locks/{id}/unlock", self._unlock),
        ):
            found.append(web.route(method, PREFIX + path, _answers(handler)))
        return found

    # --- who ---------------------------------------------------------------------------------------------------

    def _is_let_in(self, request: web.Request) -> bool:
        """Past the allow-list: our own routes, which ask for a token, and a download with one."""
        if _OURS.fullmatch(request.path):
            return True
        is_download = request.method in {"GET", "HEAD"} and _DOWNLOAD.fullmatch(request.path)
        return bool(is_download) and self._user(request) is not None

    def _user(self, request: web.Request) -> str | None:
        """Whose good token came along."""
        name, token = basic_login(request.headers.get("Authorization", ""))
        return name if token and self._users.is_token_of(name, token) else None

    def _writer(self, request: web.Request) -> str:
        """The name of who may write.

        Raises:
            LoginNeededError: nobody who may.
        """
        user = self._user(request)
        if user is None and (self._node.guard.allow_keys or not self._is_loopback()):
            raise LoginNeededError
        return user or basic_login(request.headers.get("Authorization", ""))[0] or "local"

    def _check_reader(self, request: web.Request) -> None:
        """Reading is open, but for a node that answers only to whom it knows; raises LoginNeededError."""
        if self._node.guard.allow_keys:
            self._writer(request)

    def _is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self._node.host).is_loopback
        except ValueError:
            return False

    # --- objects -----------------------------------------------------------------------------------------------

    async def _batch(self, request: web.Request) -> web.Response:
        body = await _body(request)
        match body:
            case {"operation": "download" | "upload" as operation, "objects": list(objects)}:
                pass
            case _:
                raise UsageError("not a batch request")
        if len(objects) > OBJECTS_MAX:
            return _json({"message": f"at most {OBJECTS_MAX} objects in a request"}, 413)
        if body.get("hash_algo", "sha256") != "sha256":
            return _json({"message": "only sha256"}, 409)
        self._check_reader(request)
        if operation == "upload":
            self._writer(request)
        else:
            await asyncio.to_thread(self._take_shared, request.match_info["repo"], objects)
        transfers = body.get("transfers") or ["basic"]
        is_ours = isinstance(transfers, list) and "megalfs" in transfers
        answers = [self._object(request, entry, str(operation), is_ours=is_ours) for entry in objects]
        transfer = "megalfs" if is_ours else "basic"
        return _json({"transfer": transfer, "objects": answers, "hash_algo": "sha256"})

    def _take_shared(self, repo: str, objects: list[object]) -> None:
        """Objects of a repository that this node shares are served from now on."""
        for entry in objects:
            match entry:
                case {"oid": str(text)}:
                    with suppress(MegalfsError):
                        self._shared.take_in(repo, Oid.parse(text))
                case _:
                    pass  # the answer says so

    def _object(
        self, request: web.Request, entry: object, operation: str, *, is_ours: bool
    ) -> dict[str, object]:
        match entry:
            case {"oid": str(text), "size": int(size)} if size >= 0:
                pass
            case _:
                raise UsageError("an object has an oid and a size")
        answer: dict[str, object] = {"oid": text, "size": size, "authenticated": True}
        try:
            oid = Oid.parse(text)
        except UsageError as error:
            return {"oid": text, "size": size, "error": {"code": 422, "message": str(error)}}
        blob = self._node.store.find(oid)
        is_held = blob is not None and blob.is_held
        if is_held and blob is not None and blob.size != size:
            return {"oid": text, "size": size, "error": {"code": 422, "message": f"it has {blob.size} bytes"}}
        if operation == "download" and not is_held:
            return {"oid": text, "size": size, "error": {"code": 404, "message": "not at this node"}}
        if operation == "download" or not is_held:
            answer["actions"] = self._actions(request, oid, operation, is_ours=is_ours)
        return answer

    def _actions(
        self, request: web.Request, oid: Oid, operation: str, *, is_ours: bool
    ) -> dict[str, dict[str, object]]:
        origin = f"{request.scheme}://{request.host}"
        base = f"{origin}/{request.match_info['repo']}.git/info/lfs"
        login = request.headers.get("Authorization")
        headers = {"Authorization": login} if login else {}
        if operation == "download":
            if is_ours:
                headers[PEERS_HEADER] = self._peers(request, oid)
            return {"download": {"href": f"{origin}/v1/file/{oid}", "header": headers}}
        return {
            "upload": {"href": f"{base}/objects/{oid}", "header": headers},
            "verify": {"href": f"{base}/verify", "header": headers},
        }

    def _peers(self, request: web.Request, oid: Oid) -> str:
        """This node as the client reached it, and others that announced the object here."""
        listed = self._node.announcer.peers_of(oid)["peers"]
        others = [f"{peer['host']}:{peer['port']}" for peer in listed] if isinstance(listed, list) else []
        return ", ".join([request.host, *others][:PEERS_TOLD_MAX])

    async def _upload(self, request: web.Request) -> web.Response:
        self._writer(request)
        oid = Oid.parse(request.match_info["oid"])
        await receive(request.content, oid, self._objects, size=request.content_length)
        self._node.announcer.wake()
        return _json({})

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        """Instead of an upload: the client hands its manifest over, and the node pulls the chunks that it lacks.

        They come over a peer session that the client dialled, so it may be behind NAT; what came before it
        went away is kept, as of any pull.
        """
        self._writer(request)
        manifest, signatures, caller = await read_offer(request)
        return await respond(request, self._downloads.fetch(manifest, signatures, caller=caller))

    async def _verify(self, request: web.Request) -> web.Response:
        self._check_reader(request)
        body = await _body(request)
        oid = Oid.parse(str(body.get("oid")))
        blob = await asyncio.to_thread(self._node.store.find, oid)
        if blob is None or not blob.is_held or blob.size != body.get("size"):
            raise NotFoundError(f"no object {oid} of {body.get('size')} bytes here")
        return _json({"oid": str(oid), "size": blob.size})

    # --- locks -------------------------------------------------------------------------------------------------

    async def _lock(self, request: web.Request) -> web.Response:
        owner, repo, body = self._writer(request), request.match_info["repo"], await _body(request)
        try:
            lock = await asyncio.to_thread(self._locks.create, repo, str(body.get("path", "")), owner)
        except LockedError as error:
            return _json({"lock": error.lock.to_json(), "message": f"locked by {error.lock.owner}"}, 409)
        return _json({"lock": lock.to_json()}, 201)

    async def _list_locks(self, request: web.Request) -> web.Response:
        self._check_reader(request)
        repo, query = request.match_info["repo"], request.query

        def find() -> web.Response:
            found, cursor = self._locks.find(
                repo,
                path=query.get("path", ""),
                lock_id=query.get("id", ""),
                cursor=query.get("cursor", ""),
                limit=_limit(query.get("limit")),
            )
            return _json({"locks": [lock.to_json() for lock in found], "next_cursor": cursor})

        return await asyncio.to_thread(find)

    async def _verify_locks(self, request: web.Request) -> web.Response:
        owner, repo, body = self._writer(request), request.match_info["repo"], await _body(request)
        found, cursor = await asyncio.to_thread(
            lambda: self._locks.find(
                repo, cursor=str(body.get("cursor") or ""), limit=_limit(body.get("limit"))
            )
        )
        ours = [lock.to_json() for lock in found if lock.owner == owner]
        theirs = [lock.to_json() for lock in found if lock.owner != owner]
        return _json({"ours": ours, "theirs": theirs, "next_cursor": cursor})

    async def _unlock(self, request: web.Request) -> web.Response:
        owner, repo, body = self._writer(request), request.match_info["repo"], await _body(request)
        lock_id, is_forced = request.match_info["id"], body.get("force") is True
        lock = await asyncio.to_thread(lambda: self._locks.remove(repo, lock_id, owner, force=is_forced))
        return _json({"lock": lock.to_json()})


async def _body(request: web.Request) -> dict[str, object]:
    try:
        document = json.loads(await request.text())
    except ValueError as error:
        raise UsageError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError("a JSON object is expected")
    return document


def _limit(value: object) -> int:
    text = str(value or "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 100
