"""Runs one coroutine as a command: signals ask it to stop, a second signal kills, logs become messages."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec import Struct

from megalfs.errors import CancelledByUserError, MegalfsError

if TYPE_CHECKING:
    from megalfs.cli.ui import Ui

__all__ = ["Outcome", "run_until_signal"]

T = TypeVar("T")


class Outcome(Struct, Generic[T], frozen=True):
    """What came out, and the signal that ended it early, if one did."""

    value: T
    signal: signal.Signals | None

    @property
    def exit_code(self) -> int:
        """0, or 128 and the signal's number."""
        return 0 if self.signal is None else 128 + self.signal


def run_until_signal(ui: Ui, work: Callable[[asyncio.Event], Awaitable[T]]) -> Outcome[T]:
    """Runs `work`, whose event is set by SIGINT or SIGTERM; it then ends in its own time."""
    _send_logs_to(ui)
    threading.excepthook = lambda args: ui.unexpected(args.exc_value or args.exc_type())
    gc.freeze()  # what was imported stays: the collector need not walk it while lanes wait for the GIL
    return asyncio.run(_run(work))


async def _run(work: Callable[[asyncio.Event], Awaitable[T]]) -> Outcome[T]:
    stop = asyncio.Event()
    received: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def receive(number: signal.Signals) -> None:
        received.append(number)
        stop.set()
        for each in (signal.SIGINT, signal.SIGTERM):  # whoever asks twice is in a hurry
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, receive, each)
    try:
        value = await work(stop)
    except MegalfsError as error:
        if not received:
            raise
        raise CancelledByUserError(_word(received[0]), exit_code=128 + received[0]) from error
    return Outcome(value, received[0] if received else None)


def _word(number: signal.Signals) -> str:
    return "interrupted" if number == signal.SIGINT else "terminated"


class _Messages(logging.Handler):
    """Warnings are for people, the rest for `--verbose`."""

    def __init__(self, ui: Ui) -> None:
        super().__init__()
        self._ui = ui

    def emit(self, record: logging.LogRecord) -> None:
        show = self._ui.warn if record.levelno >= logging.WARNING else self._ui.detail
        show(record.getMessage())


def _send_logs_to(ui: Ui) -> None:
    root = logging.getLogger()
    root.addHandler(_Messages(ui))
    logging.getLogger("megalfs").setLevel(logging.DEBUG if ui.is_verbose else logging.WARNING)
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # strangers' malformed requests are not our news
