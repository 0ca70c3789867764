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
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from megalfs.errors import (
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    RemoteProtocolError,
    TemporaryError,
)
from megalfs.git.lfs_transfer import Action

if TYPE_CHECKING:
    from pathlib import Path

    from megalfs.core.ids import Oid

__all__ = ["LfsClient", "Upload"]

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/vnd.git-lfs+json"
CONNECT_S_MAX = 10.0
ANSWER_S_MAX = 60.0
ANSWER_BYTES_MAX = 4 << 20
BLOCK_BYTES = 1 << 20
CREDENTIAL_S_MAX = 60.0  # a helper may ask the user


@dataclass(frozen=True, slots=True)
class Upload:
    """Where an object goes; `is_node` when the server is one of us and can pull it."""

    put: Action
    verify: Action | None
    is_node: bool


class LfsClient:
    """One session for all servers. Use `close`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._logins: dict[str, str] = {}

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
        _, actions = await self._batch(endpoint, "download", oid, size)
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

    async def deliver(self, upload: Upload, oid: Oid, size: int, path: Path, *, port: int) -> None:
        """Brings an object to a server and returns when that has it, verified.

        A node is asked to pull it from us, so that only chunks travel that it lacks; any other server, and a
        node that cannot reach us, gets all of it.

        Raises:
            MegalfsError: it did not take it.
        """
        if upload.is_node:
            try:
                body = {"size": size, "port": port, "peers": []}
                await self._json("POST", f"{upload.put.href}/pull", body, upload.put.headers)
            except NotAuthorisedError:
                raise
            except MegalfsError as error:
                log.info("%s cannot pull from us: %s", upload.put.href, error)
            else:
                return
        await self._put(upload.put, path, size)
        if upload.verify is not None:
            body = {"oid": str(oid), "size": size}
            await self._json(
                "POST", upload.verify.href, body, {**upload.put.headers, **upload.verify.headers}
            )

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
                raise
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
        # A node that pulls answers when it has everything: only connecting has a limit there.
        patience_s = None if url.endswith("/pull") else ANSWER_S_MAX
        text = await self._request(method, url, json.dumps(body).encode(), sent, patience_s)
        try:
            answer = json.loads(text or b"{}")
        except ValueError as error:
            raise RemoteProtocolError(f"{url} answers with something that is not JSON") from error
        return answer if isinstance(answer, dict) else {}

    async def _put(self, action: Action, path: Path, size: int) -> None:
        headers = {"Content-Type": "application/octet-stream", **action.headers, "Content-Length": str(size)}
        await self._request("PUT", action.href, _blocks(path), headers, None)

    async def _request(
        self,
        method: str,
        url: str,
        data: bytes | AsyncIterator[bytes],
        headers: Mapping[str, str],
        patience_s: float | None,
    ) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX, sock_read=patience_s)
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                body = await response.content.read(ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TemporaryError(f"{url} did not answer: {str(error) or type(error).__name__}") from error
        if response.status in {401, 403}:
            raise NotAuthorisedError(f"{url} refused ({response.status}): {_message(body)}")
        if response.status == 404:
            raise NotFoundError(f"{url} does not exist")
        if not 200 <= response.status < 300:
            raise TemporaryError(f"{url} answered {response.status}: {_message(body)}")
        return body


def _message(body: bytes) -> str:
    try:
        document = json.loads(body)
    except ValueError:
        return "no reason given"
    return str(document.get("message", ""))[:300] if isinstance(document, dict) else ""


async def _blocks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
            yield block


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
