"""Long answers of the node as lines of JSON: progress while something runs, then how it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator

from aiohttp import web

from megalfs.errors import MegalfsError

__all__ = ["LINES_TYPE", "line_of", "respond"]

log = logging.getLogger(__name__)

LINES_TYPE = "application/x-ndjson"


async def respond(
    request: web.Request, replies: AsyncGenerator[dict[str, object], None]
) -> web.StreamResponse:
    """Sends replies as they come; whoever left ends the iteration, and so the transfer."""
    response = web.StreamResponse(headers={"Content-Type": LINES_TYPE})
    await response.prepare(request)
    try:
        async for reply in replies:
            await response.write(line_of(reply).encode())
    except MegalfsError as error:
        hint = f"; {error.hint}" if error.hint else ""
        await response.write(line_of({"error": f"{error}{hint}"}).encode())
    except ConnectionError:
        log.info("the other side of %s left", request.path)
        return response
    finally:
        await replies.aclose()
    await response.write_eof()
    return response


def line_of(document: object) -> str:
    """One object as one line."""
    return json.dumps(document) + "\n"
