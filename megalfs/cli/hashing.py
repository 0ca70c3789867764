"""Progress of work that only reads and hashes: publish, verify, repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from msgspec import Struct

from megalfs.cli.progress import Progress

if TYPE_CHECKING:
    from megalfs.cli.ui import Ui

__all__ = ["HashProgress"]


class _Hashed(Struct, frozen=True):
    name: str
    bytes_total: int
    bytes_verified: int
    phase: str = "hashing"
    bytes_fetched: int = 0
    bytes_reused: int = 0
    bytes_origin: int = 0
    peer_count: int = 0


class HashProgress:
    """Counts bytes hashed towards a total; use as a context manager."""

    def __init__(self, ui: Ui, verb: str, *, total: int) -> None:
        self.name = ""
        self._total = total
        self._done = 0
        # Programs were promised one object a result here, and nothing else.
        self._progress = None if ui.is_json else Progress(ui, verb)

    def set_name(self, name: str) -> None:
        """Says which file is read now."""
        self.name = name

    def add(self, count: int) -> None:
        """Counts `count` more bytes."""
        self._done += count
        if self._progress is not None:
            self._progress.update(_Hashed(self.name, self._total, self._done))

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)
