"""Where bundles come from: who says that he has them, and the swarm first, links second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.identity import NodeKey
from megalfs.core.repo_state import BundleRef
from megalfs.core.repoid import RepoId
from megalfs.core.sync import holders
from megalfs.errors import IntegrityError, MegalfsError, RemoteProtocolError, TemporaryError
from megalfs.formats.hostport import HostPort
from megalfs.node.pull import Pull, PullRequest

if TYPE_CHECKING:
    from megalfs.git.bundle_transfer import BundleTransfer
    from megalfs.node.node import Node
    from megalfs.node.p2p import P2p
    from megalfs.store.repos import Repos

__all__ = ["BundleSources"]

log = logging.getLogger(__name__)

SWARM_WAIT_S = 5.0
Blame = Callable[[NodeKey, RepoId, str], Awaitable[None]]


class BundleSources:
    """The bundles that this node holds, and who holds others."""

    def __init__(self, node: Node, repos: Repos, p2p: P2p, transfer: BundleTransfer, blame: Blame) -> None:
        self._node = node
        self._repos = repos
        self._p2p = p2p
        self._transfer = transfer
        self._blame = blame

    def holders(self, repo: RepoId) -> list[NodeKey]:
        """Who says that he has a repository: its owner first, then those with the newest bundles."""
        row = self._repos.find(repo)
        return holders(self._p2p.gossip.gossip, repo, row.creator if row else None, self._p2p.key)

    def swarm_of(self, repo: RepoId) -> tuple[HostPort, ...]:
        """Their swarm addresses."""
        return self.addresses(self.holders(repo))

    def addresses(self, keys: Iterable[NodeKey]) -> tuple[HostPort, ...]:
        """Swarm addresses of nodes, as they announce them."""
        http = {node.key: node.http for node in self._p2p.nodes()}
        return tuple(dict.fromkeys(address for key in keys for address in http.get(key, ())))

    def is_held(self, bundle: BundleRef) -> bool:
        """Whether all of it is here."""
        blob = self._node.store.find(bundle.oid)
        return blob is not None and blob.is_held

    def place_of(self, bundle: BundleRef) -> Path:
        """The file; raises TemporaryError when it is not here."""
        blob = self._node.store.find(bundle.oid)
        if blob is None or not blob.places:
            raise TemporaryError(f"the bundle {bundle.oid} is not here")
        return blob.places[0].path

    async def fetch(self, repo: RepoId, bundle: BundleRef) -> None:
        """A bundle from the swarm; where no swarm port is reached, over a link from whoever has it.

        Raises:
            MegalfsError: of the last one who was asked.
        """
        log.info("asks for the bundle %s of %s", bundle.oid, repo)
        await self._fetch(repo, bundle)
        log.info("has the bundle %s of %s: %d bytes", bundle.oid, repo, bundle.size)

    async def _fetch(self, repo: RepoId, bundle: BundleRef) -> None:
        path = self._repos.bundle_path(str(bundle.oid))
        peers = self.holders(repo)
        request = PullRequest(
            oid=bundle.oid,
            target=path,
            name=path.name,
            size=bundle.size,
            peers=self.addresses(peers),
            trackers=self._node.settings.trackers,
            may_replace=lambda: True,
            wait_peers_s=SWARM_WAIT_S,
        )
        failure: MegalfsError = TemporaryError(f"nobody who has {path.name} is known")
        if request.peers or request.trackers:
            try:
                await Pull(self._node, request).run()
                return
            except MegalfsError as error:
                failure = error
        for peer in peers:
            try:
                await self._transfer.fetch_bundle(peer, repo, bundle, path)
            except (IntegrityError, RemoteProtocolError) as error:
                await self._blame(peer, repo, "sent a bundle that is not the one of the state")
                failure = error
            except MegalfsError as error:
                failure = error
            else:
                await asyncio.to_thread(self._node.store.adopt_bare, path, bundle.oid)
                return
        raise failure
