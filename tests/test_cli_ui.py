"""What people see: sizes and times as text, escapes, progress as a bar, a line or JSON."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from processes import Megalfs

from megalfs.cli.progress import LINE_INTERVAL_S, Progress, make_view
from megalfs.cli.ui import Ui, plain, rate_text, share_text, size_text, time_text
from megalfs.errors import IntegrityError

MIB = 2**20


@dataclass
class Snapshot:
    name: str = "model"
    phase: str = "fetching"
    bytes_total: int = 0
    bytes_verified: int = 0
    bytes_fetched: int = 0
    bytes_reused: int = 0
    bytes_origin: int = 0
    peer_count: int = 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1024, "1.0 KiB"),
        (99 * 1024, "99.0 KiB"),
        (100 * 1024, "100 KiB"),
        (1023 * 1024, "1023 KiB"),
        (MIB, "1.0 MiB"),
        (90_868_376, "86.7 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (5 * 2**50, "5120 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00s"), (9.99, "9.99s"), (10, "10s"), (59.9, "59s"), (192, "3m12s"), (7500, "2h05m")],
)
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_shares_never_say_all_too_early() -> None:
    assert [share_text(part, 1000) for part in (0, 9, 999, 1000)] == ["0%", "0%", "99%", "100%"]
    assert share_text(0, 0) == "0%"


def test_rate_of_no_time() -> None:
    assert rate_text(0, 0) == "0 B/s"
    assert rate_text(2 * MIB, 2) == "1.0 MiB/s"


@pytest.mark.parametrize(
    "hostile", ["\x1b[2J", "a\nmegalfs: b", "\u202egnp", "\x00", "\udcff", "a\rb", "\x9b1m"]
)
def test_what_a_terminal_would_obey_is_escaped(hostile: str) -> None:
    shown = plain(f"name {hostile}")
    assert shown.isprintable()
    assert shown.isascii()
    out, err = io.StringIO(), io.StringIO()
    ui = Ui(out=out, err=err)
    ui.result(hostile)
    ui.note(hostile)
    ui.error(IntegrityError(hostile, hint=hostile))
    assert len(out.getvalue().splitlines()) == 1
    assert len(err.getvalue().splitlines()) == 3
    assert "\x1b" not in out.getvalue() + err.getvalue()


def test_ordinary_names_stay_as_they_are() -> None:
    assert plain("größe 模型 \\ 'x'") == "größe 模型 \\ 'x'"


def test_quiet_keeps_errors_and_warnings() -> None:
    err = io.StringIO()
    ui = Ui(is_quiet=True, err=err, out=io.StringIO())
    ui.note("note")
    ui.warn("warning")
    ui.error(IntegrityError("error", hint="hint"))
    assert err.getvalue() == "megalfs: warning\nmegalfs: error\n"


def test_error_with_json_names_the_liars() -> None:
    out = io.StringIO()
    error = IntegrityError("no right bytes")
    error.rejected = {"10.0.0.1:7427": 3}
    Ui(is_json=True, out=out, err=io.StringIO()).error(error)
    assert json.loads(out.getvalue()) == {
        "event": "error",
        "code": 4,
        "message": "no right bytes",
        "rejected": {"10.0.0.1:7427": 3},
    }


def test_line_view() -> None:
    err = io.StringIO()
    view = make_view(Ui(err=err, out=io.StringIO()), "pull")
    assert view is not None
    assert view.interval_s == LINE_INTERVAL_S
    view.show(Snapshot(bytes_total=990 * MIB), 10.0)
    now = Snapshot(
        bytes_total=990 * MIB,
        bytes_verified=406 * MIB,
        bytes_origin=30 * MIB,
        bytes_reused=220 * MIB,
        peer_count=14,
    )
    view.show(now, 20.0)
    first, second = err.getvalue().splitlines()
    assert first == "megalfs: pull 0% 0.0/990 MiB 0 B/s"
    assert second == "megalfs: pull 41% 406/990 MiB 40.6 MiB/s eta 14s peers=14 origin=3% reused=22%"


def test_line_view_before_anything_is_known() -> None:
    err = io.StringIO()
    view = make_view(Ui(err=err, out=io.StringIO()), "pull")
    assert view is not None
    view.show(Snapshot(phase="finding"), 10.0)
    assert err.getvalue() == "megalfs: pull 0% 0/0 B 0 B/s phase=finding\n"


def test_json_view() -> None:
    out = io.StringIO()
    view = make_view(Ui(is_json=True, out=out, err=io.StringIO()), "pull")
    assert view is not None
    assert view.interval_s < 0.5
    view.show(Snapshot(bytes_total=10, bytes_verified=5, bytes_fetched=3, bytes_reused=2), 1.0)
    assert json.loads(out.getvalue()) == {
        "event": "progress",
        "name": "model",
        "phase": "fetching",
        "bytes_total": 10,
        "bytes_verified": 5,
        "bytes_fetched": 3,
        "bytes_reused": 2,
        "bytes_origin": 0,
        "peers": 0,
        "seconds": 1.0,
    }


def test_quiet_shows_no_progress() -> None:
    ui = Ui(is_quiet=True, out=io.StringIO(), err=io.StringIO())
    assert make_view(ui, "pull") is None
    with Progress(ui, "pull") as progress:
        progress.update(Snapshot())


def test_bar_on_a_terminal(new_node: Callable[[str], Megalfs]) -> None:
    seeder, leecher = new_node("seeder"), new_node("leecher")
    (seeder.directory / "model.bin").write_bytes(os.urandom(3_000_000))
    server = seeder.seed("model.bin")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    argv = ["--root", str(leecher.root), "pull", server.link, "--no-discover", "--limit-down", "2M"]
    with subprocess.Popen(
        [sys.executable, "-m", "megalfs", *argv],
        cwd=leecher.directory,
        env=leecher.environ,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = read_all(ours)
        assert process.stdout is not None
        assert process.stdout.read().decode() == f"{leecher.directory / 'model.bin'}\n"
    assert process.returncode == 0
    assert re.search(r"model\.bin: +\d+%\|.*\[.*B/s, peers=1\]", shown), shown
    assert "megalfs: pulled 1 file" in shown


def read_all(terminal: int) -> str:
    """Until the other side is closed, which Linux reports as an I/O error."""
    parts = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError:
        pass
    finally:
        os.close(terminal)
    return b"".join(parts).decode()
