"""Taking away what nobody can use: records of files that are gone, orphaned manifests, stale partials.

Users' files are never removed. The bytes reported are those the file system gives back: a file that has
another hard link frees nothing, and is reported as such (Dragonfly's collector, which counted them, freed
nothing for years: research/eco.md 6.3, case 48).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from megalfs.core.ids import Oid
from megalfs.store.claim import PART_SUFFIX, STATE_SUFFIX, is_abandoned, silence_s
from megalfs.store.group_journal import remove_left_behind
from megalfs.store.partial_state import read_state

if TYPE_CHECKING:
    from megalfs.store.blobs import Store

__all__ = ["PARTIAL_AGE_S", "GcReport", "collect"]

PARTIAL_AGE_S = 7 * 86400.0  # an abandoned partial is worth resuming for a week


class GcReport(Struct):
    """What was, or with `is_dry` would be, removed."""

    is_dry: bool
    forgotten: list[Oid] = field(default_factory=list)  # blobs whose files are all gone
    places: list[Path] = field(default_factory=list)  # files that are gone, of any blob
    partials: list[Path] = field(default_factory=list)
    freed_bytes: int = 0
    still_linked_bytes: int = 0  # removed, but another hard link keeps the blocks

    def remove(self, path: Path) -> None:
        """Removes one file of ours and counts what that gives back."""
        with suppress(FileNotFoundError):
            found = path.lstat()
            if found.st_nlink > 1:
                self.still_linked_bytes += found.st_blocks * 512
            else:
                self.freed_bytes += found.st_blocks * 512
            if not self.is_dry:
                path.unlink()


def collect(store: Store, *, is_dry: bool = False, partial_age_s: float = PARTIAL_AGE_S) -> GcReport:
    """Collects the garbage of one root.

    Args:
        is_dry: only say what would go.
        partial_age_s: how long an abandoned partial is kept for a resume.
    """
    report = GcReport(is_dry)
    if not is_dry:
        remove_left_behind(store.root)
    _forget_gone_files(store, report)
    _remove_orphans(store, report)
    for directory in _partial_directories(store):
        _remove_partials(store, directory, report, partial_age_s)
    return report


def _forget_gone_files(store: Store, report: GcReport) -> None:
    for blob in store.blobs():
        gone = [place.path for place in blob.places if not os.path.lexists(place.path)]
        report.places += gone
        if not report.is_dry:
            for path in gone:
                store.drop_place(blob.oid, path)
        if len(gone) == len(blob.places) and not blob.is_pinned:
            report.forgotten.append(blob.oid)
            if not report.is_dry:
                report.freed_bytes += store.forget(blob.oid)


def _remove_orphans(store: Store, report: GcReport) -> None:
    """Manifests and small blobs that no place record of any host of this root names."""
    for oid in store.orphans():
        if store.find(oid) is None:
            for path in store.sidecars.files_of(oid):
                if path.suffix != ".refuted":  # no bytes, and a liar must not be believed again
                    report.remove(path)
            if not report.is_dry:
                with suppress(OSError):
                    (store.root.manifests / str(oid)).rmdir()


def _partial_directories(store: Store) -> list[Path]:
    found = []
    for entry in store.root.partials.iterdir():
        with suppress(OSError):
            directory = Path(os.fsdecode(entry.read_bytes()))
            if directory.is_absolute() and directory.is_dir():
                found.append(directory)
            else:
                entry.unlink()
    return found


def _remove_partials(store: Store, directory: Path, report: GcReport, age_s: float) -> None:
    here = store.root.owner()
    for state_path in directory.glob(f".*{STATE_SUFFIX}"):
        with suppress(OSError):
            if is_abandoned(state_path, read_state(state_path), here) and silence_s(state_path) >= age_s:
                part = state_path.with_name(state_path.name.removesuffix(STATE_SUFFIX) + PART_SUFFIX)
                report.partials.append(part)
                report.remove(part)
                report.remove(state_path)
    for part in directory.glob(f".*{PART_SUFFIX}"):  # its sidecar is gone: a crash between two removals
        state_path = part.with_name(part.name.removesuffix(PART_SUFFIX) + STATE_SUFFIX)
        with suppress(OSError):
            if not state_path.exists() and silence_s(part) >= age_s:
                report.partials.append(part)
                report.remove(part)
