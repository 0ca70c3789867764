"""Which temporary files a group of small files is written to: noted before the first of them is made.

A group has no sidecars that a later pull could resume. Whoever comes after a kill reads the note and removes what
the dead process left among the user's files.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.store.claim import is_own_file
from megalfs.store.files import map_os_errors, nonce, read_json, write_json
from megalfs.store.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megalfs.store.root import Root

__all__ = ["group_journal", "remove_left_behind"]


@contextmanager
def group_journal(root: Root, parts: Sequence[Path]) -> Iterator[None]:
    """Notes the files while a group is being written; they are gone when it ends."""
    path = root.groups / f"{nonce()}.json"
    with map_os_errors("cannot note which files are being written"):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(path, {"owner": root.owner().to_json(), "parts": [str(part) for part in parts]})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def remove_left_behind(root: Root) -> None:
    """Removes the temporary files of groups whose process is known to be dead."""
    here = root.owner()
    with suppress(FileNotFoundError):
        for path in list(root.groups.iterdir()):
            document = read_json(path) or {}
            owner, parts = Owner.from_json(document.get("owner")), document.get("parts")
            if owner is None or owner.is_alive(here) is not False or not isinstance(parts, list):
                continue
            for part in (Path(str(name)) for name in parts):
                if is_own_file(part.name):
                    with suppress(OSError):
                        part.unlink()
            path.unlink(missing_ok=True)
