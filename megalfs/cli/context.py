"""What a command is given: its arguments, the printer, and the root and settings they lead to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from megalfs.cli.ui import Ui
    from megalfs.config import Settings
    from megalfs.store.blobs import Store
    from megalfs.store.root import Root

__all__ = ["Context"]


class Context(Struct, frozen=True):
    """One invocation of megalfs."""

    args: argparse.Namespace
    environ: Mapping[str, str]
    ui: Ui

    @property
    def root_path(self) -> Path:
        """`--root`, else `$MEGALFS_ROOT`, else `$MEGAENGINE_ROOT`, else `~/.megalfs`."""
        given: Path | None = self.args.root
        if given is not None:
            return given
        named = self.environ.get("MEGALFS_ROOT") or self.environ.get("MEGAENGINE_ROOT")
        return Path(named).expanduser() if named else Path.home() / ".megalfs"

    def root(self, *, create: bool) -> Root:
        """Opens the root.

        Raises:
            NotFoundError: there is none and `create` is false.
        """
        from megalfs.store.root import Root

        return Root.open(self.root_path, create=create)

    def store(self, *, create: bool) -> Store:
        """Opens the store of the root."""
        from megalfs.store.blobs import Store

        return Store(self.root(create=create))

    def proxies(self) -> dict[str, str]:
        """`HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in either case; for origins only, peers never use them."""
        found = {}
        for scheme in ("http", "https", "no"):
            value = self.environ.get(f"{scheme}_proxy") or self.environ.get(f"{scheme.upper()}_PROXY")
            if value:
                found[scheme] = value
        return found

    def settings(self) -> Settings:
        """Flag, else `MEGALFS_*`, else the user's file, else the system's."""
        from megalfs.config import load

        given = vars(self.args)
        flags: dict[str, object] = {
            name: given.get(name)
            for name in ("listen", "advertise", "limit_up", "limit_down", "addr", "alias")
        }
        flags["trackers"] = tuple(given["tracker"]) if given.get("tracker") else None
        flags["bootstrap_nodes"] = tuple(given["bootstrap_node"]) if given.get("bootstrap_node") else None
        flags["discover"] = False if given.get("no_discover") else None
        flags["share"] = False if given.get("no_share") else None
        return load(flags=flags, environ=self.environ)
