"""Sharded models of a directory whose index names files that are not there: said before a loader finds out."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from megalfs.core.pathrules import escape_for_terminal
from megalfs.formats.weight_index import INDEX_BYTES_MAX, INDEX_SUFFIX, missing_shards

__all__ = ["shard_notes"]

SHOWN_MAX = 3


def shard_notes(directory: Path, names: Collection[str]) -> list[str]:
    """One line for each index below `directory` that names files which are not among `names`, its files."""
    notes, known = [], frozenset(names)
    for name in names:
        path = directory / name
        if not name.endswith(INDEX_SUFFIX):
            continue
        with suppress(OSError):
            if path.stat().st_size > INDEX_BYTES_MAX:
                continue
            missing = missing_shards(name, path.read_bytes(), known)
            if missing:
                shown = ", ".join(f"'{escape_for_terminal(shard[:100])}'" for shard in missing[:SHOWN_MAX])
                more = ", ..." if len(missing) > SHOWN_MAX else ""
                notes.append(
                    f"{name} names {len(missing)} files that are not in {directory.name}: {shown}{more}"
                )
    return notes
