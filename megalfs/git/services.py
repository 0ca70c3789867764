"""What this layer adds to a running node: the entry points hand it to `node.api.run_node`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megalfs.git.lfs_service import LfsService

if TYPE_CHECKING:
    from megalfs.node.service import ServiceFactory

__all__ = ["git_services"]


def git_services() -> Sequence[ServiceFactory]:
    """One factory for each service, in the order in which they start."""
    return (LfsService,)
