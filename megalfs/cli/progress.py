"""Progress of a transfer: a bar on a terminal, a line every 10 s elsewhere, JSON for programs.

The transfer only leaves its latest snapshot here. A thread shows it, because promised rhythms (JSON at least
twice a second) must hold while the event loop is busy.
"""

from __future__ import annotations

import shutil
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self

from msgspec import Struct

from megalfs.cli.ui import rate_text, share_text, size_text, time_text

if TYPE_CHECKING:
    from megalfs.cli.ui import Ui

__all__ = ["Progress", "Snapshot", "View", "make_view"]

JSON_INTERVAL_S = 0.4  # promised: at least twice a second
BAR_INTERVAL_S = 0.1
LINE_INTERVAL_S = 10.0
NAME_COLUMNS_MAX = 32
COLUMNS = 100  # of a terminal that does not say: serial consoles, some job runners


class Snapshot(Protocol):
    """What a view needs to know; `node.api.ProgressSnapshot` is one."""

    @property
    def name(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def bytes_total(self) -> int: ...
    @property
    def bytes_verified(self) -> int: ...
    @property
    def bytes_fetched(self) -> int: ...
    @property
    def bytes_reused(self) -> int: ...
    @property
    def bytes_origin(self) -> int: ...
    @property
    def peer_count(self) -> int: ...


class _Nothing(Struct, frozen=True):
    """Before the first snapshot."""

    name: str = ""
    phase: str = "finding"
    bytes_total: int = 0
    bytes_verified: int = 0
    bytes_fetched: int = 0
    bytes_reused: int = 0
    bytes_origin: int = 0
    peer_count: int = 0


class View(Protocol):
    """One way to show progress, asked every `interval_s`."""

    interval_s: float

    def show(self, now: Snapshot, seconds: float) -> None: ...
    def close(self) -> None: ...


class Progress:
    """Shows snapshots until closed; use as a context manager."""

    def __init__(self, ui: Ui, verb: str) -> None:
        """`verb` is what is being done: `pull`, `publish`."""
        self._view = make_view(ui, verb)
        self._latest: Snapshot = _Nothing()
        self._started_s = time.monotonic()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def update(self, now: Snapshot) -> None:
        """Remembers the latest state; cheap, from any thread."""
        self._latest = now

    def __enter__(self) -> Self:
        if self._view is not None:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Shows no more; calling it again does nothing."""
        if self._view is not None and not self._is_closed.is_set():
            self._is_closed.set()
            self._thread.join()
            self._view.close()

    def _run(self) -> None:
        view = self._view
        assert view is not None
        while not self._is_closed.wait(view.interval_s):
            view.show(self._latest, time.monotonic() - self._started_s)


def make_view(ui: Ui, verb: str) -> View | None:
    """How progress is shown here; None with `--quiet`."""
    if ui.is_json:
        return _JsonView(ui)
    if ui.is_quiet:
        return None
    return _BarView(ui) if ui.has_bars else _LineView(ui, verb)


class _JsonView:
    interval_s = JSON_INTERVAL_S

    def __init__(self, ui: Ui) -> None:
        self._ui = ui

    def show(self, now: Snapshot, seconds: float) -> None:
        self._ui.record(
            {
                "event": "progress",
                "name": now.name,
                "phase": now.phase,
                "bytes_total": now.bytes_total,
                "bytes_verified": now.bytes_verified,
                "bytes_fetched": now.bytes_fetched,
                "bytes_reused": now.bytes_reused,
                "bytes_origin": now.bytes_origin,
                "peers": now.peer_count,
                "seconds": round(seconds, 3),
            }
        )

    def close(self) -> None:
        """Nothing to take back."""


class _LineView:
    """`pull 41% 812/1980 MiB 6.2 GiB/s eta 3m12s peers=14 origin=3% reused=22%`."""

    interval_s = LINE_INTERVAL_S

    def __init__(self, ui: Ui, verb: str) -> None:
        self._ui = ui
        self._verb = verb
        self._pace = _Pace()

    def show(self, now: Snapshot, seconds: float) -> None:
        self._ui.note(f"{self._verb} {_line(now, self._pace.rate(now.bytes_verified, seconds))}")

    def close(self) -> None:
        """Nothing to take back."""


class _Pace:
    """Bytes per second since the last look."""

    def __init__(self) -> None:
        self._bytes = 0
        self._seconds = 0.0

    def rate(self, done: int, seconds: float) -> float:
        gained, passed = done - self._bytes, seconds - self._seconds
        self._bytes, self._seconds = done, seconds
        return max(gained, 0) / max(passed, 1e-3)


def _line(now: Snapshot, rate: float) -> str:
    total = size_text(now.bytes_total)
    parts = [
        share_text(now.bytes_verified, now.bytes_total),
        f"{_in_unit_of(now)}/{total}",
        rate_text(rate, 1.0),
    ]
    if rate > 0:
        parts.append(f"eta {time_text((now.bytes_total - now.bytes_verified) / rate)}")
    return " ".join([*parts, *(f"{name}={value}" for name, value in _facts(now))])


def _in_unit_of(now: Snapshot) -> str:
    """The verified bytes in the unit that the total is written in, without it."""
    unit = size_text(now.bytes_total).split()[1]
    scale = {"B": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}[unit]
    found = now.bytes_verified / 1024**scale
    return f"{found:.0f}" if scale == 0 or found >= 99.95 else f"{found:.1f}"


def _facts(now: Snapshot) -> list[tuple[str, str]]:
    """Peers, and shares of what is verified; a pull without an origin or reuse does not speak of them."""
    facts = [("peers", str(now.peer_count))] if now.peer_count else []
    if now.bytes_origin:
        facts.append(("origin", share_text(now.bytes_origin, now.bytes_total)))
    if now.bytes_reused:
        facts.append(("reused", share_text(now.bytes_reused, now.bytes_total)))
    if now.phase == "proving" or not now.bytes_total:  # the others are seen from the bytes
        facts.append(("phase", now.phase))
    return facts


class _BarView:
    """tqdm: bytes, rate, ETA, and the facts behind them."""

    interval_s = BAR_INTERVAL_S

    def __init__(self, ui: Ui) -> None:
        from tqdm import tqdm

        is_sized = shutil.get_terminal_size((0, 0)).columns > 0
        self._ui = ui
        self._bar = tqdm(
            total=0,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=ui.err,
            dynamic_ncols=is_sized,
            ncols=None if is_sized else COLUMNS,
            leave=False,
            mininterval=0.0,
        )
        ui.write_above_bar = lambda text: tqdm.write(text, file=ui.err)

    def show(self, now: Snapshot, seconds: float) -> None:  # noqa: ARG002 - tqdm has its own clock
        from megalfs.cli.ui import plain

        self._bar.total = now.bytes_total
        self._bar.n = now.bytes_verified
        columns = shutil.get_terminal_size((COLUMNS, 0)).columns
        name = plain(now.name)[: min(NAME_COLUMNS_MAX, columns // 4)]  # how far it is matters more
        self._bar.set_description_str(name or "megalfs", refresh=False)
        self._bar.set_postfix_str(" ".join(f"{name}={value}" for name, value in _facts(now)), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        self._ui.write_above_bar = None
        self._bar.close()
