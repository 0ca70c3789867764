"""The only place that prints. Results go to stdout, what people read meanwhile to stderr.

Lower case, no full stop, `megalfs:` in front of every message. Names come from strangers: whatever a terminal
could obey (escape codes, newlines, direction marks) is written as an escape, in every line, here.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TextIO

from megalfs.errors import MegalfsError

__all__ = ["Ui", "count_text", "plain", "rate_text", "share_text", "size_text", "time_text"]

PREFIX = "megalfs: "
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Ui:
    """Where one command prints; the four questions are the flags of the same names."""

    def __init__(
        self,
        *,
        is_json: bool = False,
        is_quiet: bool = False,
        is_verbose: bool = False,
        is_debug: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.is_json = is_json
        self.is_quiet = is_quiet
        self.is_verbose = is_verbose
        self.is_debug = is_debug
        self._lock = threading.Lock()
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        # A bar on the terminal puts its own writer here, so that a message does not tear it.
        self.write_above_bar: Callable[[str], None] | None = None

    @property
    def has_bars(self) -> bool:
        """Whether progress is drawn: a terminal, and nobody asked for silence or JSON."""
        return self.err.isatty() and not self.is_quiet and not self.is_json

    def result(self, line: str) -> None:
        """One line of the answer, on stdout."""
        self._write(self.out, plain(line))

    def record(self, document: Mapping[str, object]) -> None:
        """One line of JSON on stdout, flushed, so that a program sees it at once."""
        self._write(self.out, json.dumps(document, separators=(",", ":")))

    def answer(self, document: Mapping[str, object], line: str) -> None:
        """One part of the answer: the line for people, the object with `--json`."""
        if self.is_json:
            self.record(document)
        else:
            self.result(line)

    def clear_screen(self) -> None:
        """Starts a fresh page, where stdout is a terminal."""
        if self.out.isatty():
            self.out.write("\x1b[H\x1b[2J")

    def note(self, line: str) -> None:
        """Something nice to know, on stderr; not with `--quiet`."""
        if not self.is_quiet:
            self._message(line)

    def detail(self, line: str) -> None:
        """Something that only `--verbose` wants to know."""
        if self.is_verbose:
            self._message(line)

    def warn(self, line: str) -> None:
        """Something that must be known, on stderr, `--quiet` or not."""
        self._message(line)

    def error(self, error: MegalfsError) -> None:
        """The line of an error, and its hint on a second one; one JSON object too, with `--json`."""
        self._message(str(error))
        if error.hint and not self.is_quiet:
            self._message(f"hint: {error.hint}")
        self._trace(error)
        if self.is_json:
            facts: dict[str, object] = {"code": error.exit_code, "message": str(error)}
            facts["rejected"] = error.rejected
            if error.files:
                facts["files"] = error.files
            # The reader of stdout may be what failed: the exit code still says it.
            with suppress(OSError):
                self.record({"event": "error", **facts})

    def unexpected(self, error: BaseException) -> None:
        """The line of a bug."""
        self._message(f"unexpected {type(error).__name__}: {error}")
        if not self.is_debug:
            self._message("hint: --debug shows where")
        self._trace(error)

    def _trace(self, error: BaseException) -> None:
        """A traceback, as it is, for whoever asked for one."""
        if self.is_debug:
            import traceback

            traceback.print_exception(error, file=self.err)

    def _message(self, line: str) -> None:
        text = PREFIX + plain(line)
        with suppress(OSError):  # a closed stderr must not hide the exit code
            if self.write_above_bar is not None:
                self.write_above_bar(text)
            else:
                self._write(self.err, text)

    def _write(self, stream: TextIO, line: str) -> None:
        """One line, whole: a progress thread and the main one print to the same streams."""
        with self._lock:
            stream.write(line + "\n")
            stream.flush()


def plain(text: str) -> str:
    """The text with everything a terminal could obey written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def count_text(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size_text(size: float) -> str:
    """`812 B`, `86.7 MiB`: three digits and the unit."""
    for unit in _UNITS[:-1]:
        if size < 1000 or (unit != "B" and size < 1024):
            return _three_digits(size, unit)
        size /= 1024
    return _three_digits(size, _UNITS[-1])


def _three_digits(size: float, unit: str) -> str:
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def rate_text(size: float, seconds: float) -> str:
    """`6.2 GiB/s`; nothing measurable took no time."""
    return f"{size_text(size / max(seconds, 1e-6))}/s"


def share_text(part: int, whole: int) -> str:
    """`22%`; 0 of 0 is 0 %. Rounded down: 100 % is said only of all."""
    return f"{100 * part // whole if whole else 0}%"


def time_text(seconds: float) -> str:
    """`0.42s`, `7s`, `3m12s`, `2h05m`."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    minutes, left = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
