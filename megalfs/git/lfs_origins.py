"""Where the servers of a repository have an object: LFS servers and buckets, as origins of a pull."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from megalfs.errors import MegalfsError, NotFoundError
from megalfs.git.lfs_s3 import Bucket
from megalfs.git.lfs_sources import S3_SCHEME
from megalfs.node.pull_request import Located

if TYPE_CHECKING:
    from megalfs.core.ids import Oid
    from megalfs.formats.pointer import Pointer
    from megalfs.git.lfs_client import LfsClient
    from megalfs.git.lfs_transfer import Action

__all__ = ["ask_servers", "locate"]

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 8


async def ask_servers(
    client: LfsClient, servers: Sequence[str], oid: Oid, size: int, *, action: Action | None = None
) -> tuple[Located, list[str]]:
    """Where an object is, and what those said that did not answer the question.

    Args:
        action: where git-lfs itself was told to get it.
    """
    origins: dict[str, Mapping[str, str]] = {}
    manifests, troubles = [], []
    # A node that gave us hints is itself a peer, but one in allow-list mode knows our token and not our key.
    if action is not None and action.href and (not action.hints or "Authorization" in action.headers):
        origins[action.href] = action.headers
    for server in servers:
        try:
            if server.startswith(S3_SCHEME):
                url, manifest = await Bucket.open(server).find(oid, size)
                origins[url] = {}
                manifests += [manifest] if manifest is not None else []
            else:
                found = await client.find(server, oid, size)
                origins[found.href] = found.headers
        except NotFoundError as error:
            log.info("%s: %s", server, error)
        except MegalfsError as error:
            log.info("%s: %s", server, error)
            troubles.append(f"{error}; {error.hint}" if error.hint else str(error))
    return Located(origins, tuple(manifests)), troubles


async def locate(
    client: LfsClient, servers: Sequence[str], pointers: Iterable[Pointer]
) -> tuple[dict[Oid, Located], list[str]]:
    """As `ask_servers`, for many objects at once."""
    slots = asyncio.Semaphore(ASKED_AT_ONCE)

    async def one(pointer: Pointer) -> tuple[Located, list[str]]:
        async with slots:
            return await ask_servers(client, servers, pointer.oid, pointer.size)

    wanted = {pointer.oid: pointer for pointer in pointers} if servers else {}
    answers = dict(zip(wanted, await asyncio.gather(*map(one, wanted.values())), strict=True))
    troubles = [text for _, texts in answers.values() for text in texts]
    return {oid: located for oid, (located, _) in answers.items()}, list(dict.fromkeys(troubles))
