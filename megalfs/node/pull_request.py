"""What one pull is asked to do, and how far it is: plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct, field

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.manifest import Manifest
from megalfs.formats.hostport import HostPort

__all__ = ["PullCounts", "PullRequest"]


class Located(Struct, frozen=True):
    """Where one blob is known to be: URLs with the headers that go to each and to nobody else, and manifests of it."""

    origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    manifests: tuple[Manifest, ...] = ()


class PullRequest(Struct, frozen=True, kw_only=True):
    """What to pull and where to; `may_replace` is asked at the end whether a file at the target may go."""

    oid: Oid
    target: Path
    name: str
    size: int | None = None
    manifest: ManifestId | None = None
    keys: frozenset[NodeKey] = frozenset()
    peers: tuple[HostPort, ...] = ()
    trackers: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    located: Located = field(default_factory=Located)
    may_replace: Callable[[], bool] = lambda: False
    is_executable: bool = False
    wait_peers_s: float = 10.0
    is_shared: bool = True
    keeps_seeding: bool = True
    uses_lan: bool = False
    syncs: bool = True  # before the target has its name, where the settings say `durable`
    is_linked: bool = False  # another store will have a hard link of the target: see store.identity


class PullCounts(Struct):
    """Bytes by where they came from, pieces refused; added up over all attempts."""

    phase: str = "finding"
    bytes_total: int | None = None
    bytes_verified: int = 0
    bytes_reused: int = 0
    bytes_origin: int = 0
    by_peer: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    peer_count: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came over the network."""
        return sum(self.by_peer.values())
