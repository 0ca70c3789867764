"""The client's side of the Batch API: where an LFS server has an object, and how it gets one.

For the repository's home, which a push must reach, and for the LFS server that a repository had before it
had megalfs, which is an origin like any other. Logins come from `git credential`, asked only when a server
wants one; they go to that server and nowhere else, since redirects are not followed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from msgspec import Struct
from msgspec.structs import replace

from megalfs.errors import (
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    RemoteProtocolError,
    TemporaryError,
)
from megalfs.git.lfs_transfer import Action
from megalfs.net.http import RETRY_AFTER_S_MAX, retry_after_s

if TYPE_CHECKING:
    from pathlib import Path

    from megalfs.core.ids import Oid

__all__ = ["LfsClient", "Upload", "blocks_of"]

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/vnd.git-lfs+json"
CONNECT_S_MAX = 10.0
ANSWER_S_MAX = 60.0
ANSWER_BYTES_MAX = 4 << 20
BLOCK_BYTES = 1 << 20
CREDENTIAL_S_MAX = 60.0  # a helper may ask the user
RETRY_S = (1.0, 2.0, 4.0, 8.0)  # after an answer of 429 or 503 without Retry-After

SILENT_S = 30.0  # a server that did not answer does not hold up the next objects, which peers may have

# A node has no terminal to ask on.
_LOGIN_HINT = (
    "git's credential helper has no login for it: "
    "printf 'url={}\\nusername=NAME\\npassword=TOKEN\\n' | git credential approve"
)

Body = Callable[[], bytes | AsyncIterator[bytes]]  # made anew for each try


class Upload(Struct, frozen=True):
    """Where an object goes; `is_node` when the server is one of us and can pull it."""

    put: Action
    verify: Action | None
    is_node: bool


class LfsClient:
    """One session for all servers. Use `close`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._logins: dict[str, str] = {}
        self._silent_until: dict[str, float] = {}

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def find(self, endpoint: str, oid: Oid, size: int) -> Action:
        """Where an LFS server has an object.

        Raises:
            NotFoundError: it has not.
            MegalfsError: it did not say.
        """
        loop = asyncio.get_running_loop()
        if self._silent_until.get(endpoint, 0.0) > loop.time():
            raise TemporaryError(f"{endpoint} did not answer a moment ago")
        try:
            _, actions = await self._batch(endpoint, "download", oid, size)
        except _SilentError:
            self._silent_until[endpoint] = loop.time() + SILENT_S
            raise
        action = Action.parse(actions.get("download"))
        if action is None:
            raise NotFoundError(f"{endpoint} has no object {oid}")
        return action

    async def upload_to(self, endpoint: str, oid: Oid, size: int) -> Upload | None:
        """How an LFS server takes an object; None when it has it."""
        transfer, actions = await self._batch(endpoint, "upload", oid, size)
        put = Action.parse(actions.get("upload"))
        if put is None:
            return None
        login = self._logins.get(endpoint)
        headers = (
            {"Authorization": login, **put.headers} if login and _is_same(endpoint, put.href) else put.headers
        )
        return Upload(
            replace(put, headers=headers), Action.parse(actions.get("verify")), is_node=transfer == "megalfs"
        )

    async def put(
        self, upload: Upload, oid: Oid, size: int, path: Path, *, reached: Callable[[int], None]
    ) -> None:
        """Sends a whole object, and asks the server to verify where it wants that; raises MegalfsError."""
        headers = {
            "Content-Type": "application/octet-stream",
            **upload.put.headers,
            "Content-Length": str(size),
        }
        await self._request("PUT", upload.put.href, lambda: blocks_of(path, reached), headers, None)
        if upload.verify is not None:
            body = {"oid": str(oid), "size": size}
            headers = {**upload.put.headers, **upload.verify.headers}
            await self._json("POST", upload.verify.href, body, headers)

    async def lines(
        self, url: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncGenerator[dict[str, object], None]:
        """Posts to a node and yields the objects that it answers, line by line, as they come.

        Raises:
            TemporaryError: the connection broke; the node says nothing for longer than `ANSWER_S_MAX`.
            MegalfsError: it refused.
        """
        async with self._answer("POST", url, lambda: body, headers, ANSWER_S_MAX) as response:
            async for line in response.content:
                found = _document(line, url)
                if found:
                    yield found

    async def _batch(
        self, endpoint: str, operation: str, oid: Oid, size: int
    ) -> tuple[str, Mapping[str, object]]:
        transfers = ["megalfs", "basic"] if operation == "upload" else ["basic"]
        body = {"operation": operation, "transfers": transfers, "objects": [{"oid": str(oid), "size": size}]}
        answer = await self._with_login(endpoint, f"{endpoint.rstrip('/')}/objects/batch", body)
        objects = answer.get("objects")
        if not isinstance(objects, list) or len(objects) != 1 or not isinstance(objects[0], dict):
            raise RemoteProtocolError(f"{endpoint} answers with something that is no batch")
        error = objects[0].get("error")
        if isinstance(error, dict):
            raise NotFoundError(f"{endpoint}: {str(error.get('message'))[:200]} ({error.get('code')})")
        actions = objects[0].get("actions")
        return str(answer.get("transfer", "basic")), actions if isinstance(actions, dict) else {}

    async def _with_login(self, endpoint: str, url: str, body: object) -> dict[str, object]:
        """Asks as nobody, or as who was accepted last; then as whom `git credential` says."""
        login = self._logins.get(endpoint)
        try:
            return await self._json("POST", url, body, {"Authorization": login} if login else {})
        except NotAuthorisedError as error:
            self._logins.pop(endpoint, None)
            found = await asyncio.to_thread(_credential, "fill", f"url={endpoint}\n\n")
            if not found:
                raise NotAuthorisedError(str(error), hint=_LOGIN_HINT.format(endpoint)) from None
            refusal = error
        fields = dict(line.partition("=")[::2] for line in found.splitlines())
        pair = f"{fields.get('username', '')}:{fields.get('password', '')}"
        login = "Basic " + base64.b64encode(pair.encode()).decode()
        try:
            answer = await self._json("POST", url, body, {"Authorization": login})
        except NotAuthorisedError:
            await asyncio.to_thread(_credential, "reject", found)
            raise refusal from None
        await asyncio.to_thread(_credential, "approve", found)
        self._logins[endpoint] = login
        return answer

    # --- requests ------------------------------------------------------------------------------------------------

    async def _json(
        self, method: str, url: str, body: object, headers: Mapping[str, str]
    ) -> dict[str, object]:
        sent = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE, **headers}
        content = json.dumps(body).encode()
        return _document(await self._request(method, url, lambda: content, sent, ANSWER_S_MAX), url)

    async def _request(
        self, method: str, url: str, body: Body, headers: Mapping[str, str], patience_s: float | None
    ) -> bytes:
        """One answer; a server that is busy is asked again when it says, or after a while."""
        for pause_s in RETRY_S:
            try:
                async with self._answer(method, url, body, headers, patience_s) as response:
                    return await response.content.read(ANSWER_BYTES_MAX)
            except _LaterError as error:
                wait_s = min(error.after_s if error.after_s is not None else pause_s, RETRY_AFTER_S_MAX)
                log.info("%s; asked again in %.0f s", error, wait_s)
                await asyncio.sleep(wait_s)
        async with self._answer(method, url, body, headers, patience_s) as response:
            return await response.content.read(ANSWER_BYTES_MAX)

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, body: Body, headers: Mapping[str, str], patience_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX, sock_read=patience_s)
        try:
            async with self._session.request(
                method, url, data=body(), headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if not 200 <= response.status < 300:
                    raise _refusal(url, response, await response.content.read(ANSWER_BYTES_MAX))
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _SilentError(f"{url} did not answer: {str(error) or type(error).__name__}") from error


class _SilentError(TemporaryError):
    """Nobody answered."""


class _LaterError(TemporaryError):
    """The server is busy; `after_s` is when it wants to be asked again, if it said."""

    after_s: float | None = None


def _refusal(url: str, response: aiohttp.ClientResponse, body: bytes) -> MegalfsError:
    if response.status in {401, 403}:
        return NotAuthorisedError(f"{url} refused ({response.status}): {_message(body)}")
    if response.status == 404:
        return NotFoundError(f"{url} does not exist")
    said = f"{url} answered {response.status}: {_message(body)}"
    if response.status in {429, 503}:
        later = _LaterError(said)
        later.after_s = retry_after_s(response.headers.get("Retry-After"))
        return later
    return TemporaryError(said)


def _document(text: bytes, url: str) -> dict[str, object]:
    try:
        answer = json.loads(text or b"{}")
    except ValueError as error:
        raise RemoteProtocolError(f"{url} answers with something that is not JSON") from error
    return answer if isinstance(answer, dict) else {}


def _message(body: bytes) -> str:
    try:
        document = json.loads(body)
    except ValueError:
        return "no reason given"
    return str(document.get("message", ""))[:300] if isinstance(document, dict) else ""


async def blocks_of(path: Path, reached: Callable[[int], None]) -> AsyncIterator[bytes]:
    count = 0
    with path.open("rb") as file:
        while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
            yield block
            count += len(block)
            reached(count)


def _is_same(one: str, other: str) -> bool:
    return urlsplit(one)[:2] == urlsplit(other)[:2]


def _credential(verb: str, text: str) -> str:
    """`git credential`; empty when it has nothing to say. Blocks."""
    environ = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # noqa: TID251 - git finds its configuration there
    try:
        done = subprocess.run(
            ["git", "credential", verb],
            input=text.encode(),
            env=environ,
            capture_output=True,
            timeout=CREDENTIAL_S_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
