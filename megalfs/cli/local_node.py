"""Asks the node that runs on this root, with the token that only this user can read."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

from megalfs.errors import NotFoundError, TemporaryError
from megalfs.formats.hostport import HostPort

if TYPE_CHECKING:
    from megalfs.store.root import Root, RunningNode

__all__ = ["ask_node", "post_node", "running_node"]

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 64 << 20
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def running_node(root: Root) -> RunningNode:
    """The live node of a root.

    Raises:
        NotFoundError: there is none.
    """
    running = root.read_node()
    if running is None:
        raise NotFoundError(f"no node runs on {str(root.path)!r}", hint="megalfs node start")
    return running


def ask_node(root: Root, running: RunningNode, path: str) -> dict[str, object]:
    """The JSON object that the node answers on `path`.

    Raises:
        TemporaryError: it does not answer, or with something else.
    """
    return _request(root, running, "GET", path, TIMEOUT_S)


def post_node(
    root: Root, running: RunningNode, path: str, *, timeout_s: float = TIMEOUT_S, body: object = None
) -> dict[str, object]:
    """As `ask_node`, for what the node is to do; `body` is sent as JSON."""
    return _request(root, running, "POST", path, timeout_s, json.dumps(body).encode() if body else None)


def _request(
    root: Root,
    running: RunningNode,
    method: str,
    path: str,
    timeout_s: float,
    body: bytes | None = None,
) -> dict[str, object]:
    host = HostPort.parse(running.listen).host
    connection = http.client.HTTPConnection(_ANY.get(host, host), running.http_port, timeout=timeout_s)
    try:
        connection.request(method, path, body=body, headers={"Authorization": f"Bearer {root.token()}"})
        response = connection.getresponse()
        answer = json.loads(response.read(ANSWER_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TemporaryError(
            f"the node of this root (pid {running.owner.pid}) does not answer: {error}"
        ) from error
    finally:
        connection.close()
    if response.status != http.client.OK or not isinstance(answer, dict):
        raise TemporaryError(f"the node of this root answered {response.status}")
    return answer
