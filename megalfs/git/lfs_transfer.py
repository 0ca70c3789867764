"""One object that an agent asks the node for, or hands it: parsed once, at the node's door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from megalfs.core.ids import Oid
from megalfs.errors import UsageError
from megalfs.formats.hostport import HostPort
from megalfs.git.lfs_sources import Sources, find_sources

if TYPE_CHECKING:
    from megalfs.config import Settings

__all__ = ["PEERS_HEADER", "Action", "Transfer"]

# Our LFS server tells in this header of an action who has the object; other servers send nothing like it.
PEERS_HEADER = "Megalfs-Peers"
HINTS_MAX = 16


class Action(Struct, frozen=True):
    """Where an LFS server has an object, or wants it: only in hybrid mode."""

    href: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: object) -> Action | None:
        """Reads what the Batch API said; None when there is nothing."""
        if not isinstance(document, dict) or not isinstance(document.get("href"), str):
            return None
        headers = document.get("header")
        found = headers if isinstance(headers, dict) else {}
        return cls(document["href"], {str(name): str(value) for name, value in found.items()})

    @property
    def hints(self) -> list[HostPort]:
        """Peers that have the object, by the server's word."""
        text = next((v for name, v in self.headers.items() if name.lower() == PEERS_HEADER.lower()), "")
        return [HostPort.parse(part.strip()) for part in text.split(",")[:HINTS_MAX] if part.strip()]


class Transfer(Struct, frozen=True):
    """What the agent knows."""

    oid: Oid
    size: int
    storage: Path
    path: Path | None
    action: Action | None
    session: str
    git: Mapping[str, Sequence[str]]
    text: str
    where: str
    remote: str = ""

    @classmethod
    def from_peers(cls, oid: Oid, size: int, storage: Path, peers: Sequence[HostPort]) -> Transfer:
        """One that a node does for itself: the object comes from `peers`."""
        action = Action("", {PEERS_HEADER: ", ".join(map(str, peers))})
        return cls(oid, size, storage, None, action, session="", git={}, text="", where="")

    @classmethod
    def from_remote(cls, oid: Oid, size: int, storage: Path, url: str) -> Transfer:
        """One that a node does for itself: the object comes from whoever holds the repository of a p2p:// URL."""
        return cls(oid, size, storage, None, None, session="", git={}, text="", where="", remote=url)

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> Transfer:
        """Reads an agent's request.

        Raises:
            UsageError: it is none.
        """
        match body:
            case {
                "oid": str(oid),
                "size": int(size),
                "storage": str(storage),
                "session": str(session),
                "git": dict(git),
                "text": str(text),
                "where": str(where),
            } if size >= 0 and storage.startswith("/"):
                path = body.get("path")
                return cls(
                    oid=Oid.parse(oid),
                    size=size,
                    storage=Path(storage),
                    path=Path(path) if isinstance(path, str) and path.startswith("/") else None,
                    action=Action.parse(body.get("action")),
                    session=session,
                    git=git,
                    text=text,
                    where=where,
                    remote=str(body.get("remote") or ""),
                )
        raise UsageError(f"not a transfer: {str(dict(body))[:200]}")

    def remote_url(self, *, is_push: bool) -> str:
        """The URL of the git remote: git-lfs tells its name, or the URL itself where it has none."""
        keys = ([f"remote.{self.remote}.pushurl"] if is_push else []) + [f"remote.{self.remote}.url"]
        return next((self.git[key][-1] for key in keys if self.git.get(key)), self.remote)

    def sources(self, settings: Settings, told: Sequence[HostPort] = ()) -> Sources:
        """Whom to ask for it; `told` are those of a p2p:// remote. Blocks; raises UsageError."""
        hints = self.action.hints if self.action is not None else []
        return find_sources(settings, self.git, self.text, self.where, hints=hints, told=told)
