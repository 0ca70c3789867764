"""Blocking calls that may be left behind: a peer that never answers must not hold up the end of a process.

`asyncio.to_thread` uses threads that the interpreter waits for when it exits; these it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from megalfs.errors import CancelledByUserError

__all__ = ["StopSignal", "in_daemon_thread"]

P = ParamSpec("P")
T = TypeVar("T")


class StopSignal(threading.Event):
    """Set when the work of a thread that cannot be cancelled is not wanted any more."""

    def go_on(self, _count: int = 0) -> None:
        """For what reports its progress in bytes; raises CancelledByUserError once the signal is set."""
        if self.is_set():
            raise CancelledByUserError("stopped", exit_code=143)


async def in_daemon_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`; when cancelled, or when the loop ends, the call goes on for nobody.

    Only for calls that change nothing here: a question to a peer, not a write to a file.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # None only where T is

    def run() -> None:
        result, raised = None, None
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            raised = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(partial(settle, result, raised))

    threading.Thread(target=run, name="megalfs-ask", daemon=True).start()
    return await answer
