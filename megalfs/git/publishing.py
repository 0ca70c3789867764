"""What the owner does when refs moved: a bundle of what is new, a signed state that names it, both kept.

A crash between the steps costs nothing: the next look finds the refs still unlike the last state.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from megalfs.core.identity import NodeKey
from megalfs.core.repo_state import BundleRef, RepoState, SignedState
from megalfs.core.sync import succession
from megalfs.errors import BusyError
from megalfs.git.bundles import has_objects, make_bundle
from megalfs.git.repos import Snapshot, snapshot
from megalfs.store.ingest import publish
from megalfs.store.repos import Repo, Repos

if TYPE_CHECKING:
    from megalfs.store.blobs import Store

__all__ = ["publish_repository"]

log = logging.getLogger(__name__)

STATE_LIFE_S = 366 * 86400  # a repository that nobody touches is followed for a year
RENEW_S = 30 * 86400
BUNDLES_MAX = 16  # then one of everything again
SNAPSHOTS_MAX = 5  # refs that move while the bundle is made


def publish_repository(store: Store, repos: Repos, repo: Repo) -> SignedState | None:
    """Signs a new state when the repository is no longer as its last one says; None when it is.

    Raises:
        BusyError: its refs do not stand still.
        StoreError: git or the disk failed.
    """
    known = repos.states(repo.id)
    last = known[0].state if known else None
    git_dir = Path(repo.path)
    now = int(time.time())  # noqa: TID251 - a record's dates are read on other machines
    found = snapshot(git_dir)
    writers = tuple(repos.writers(repo.id))
    if last is not None and len(known) == 1 and _is_current(last, repo, found, writers, now):
        if repos.refs(repo.id) != found.refs:
            repos.set_copy(repo.id, git_dir, found.refs)
        return None
    seq, previous, conflicts = succession(known)
    found, bundles = _bundle(store, repos, repo, last, found, seq)
    state = RepoState(
        name=repo.name,
        description=repo.description,
        root=repo.root,
        creator=repo.creator,
        seq=seq,
        previous=previous,
        conflicts=conflicts,
        created=now,
        expires=now + STATE_LIFE_S,
        branch=found.branch,
        delegates=writers,
        refs=found.refs,
        bundles=bundles,
    )
    private = store.root.load_or_create_key()
    signed = SignedState.sign(private, state)
    repos.put_state(signed)
    repos.learn(signed)
    repos.set_copy(repo.id, git_dir, found.refs)
    return signed


def _is_current(last: RepoState, repo: Repo, found: Snapshot, writers: tuple[NodeKey, ...], now: int) -> bool:
    same = replace(last, name=repo.name, description=repo.description, branch=found.branch, refs=found.refs)
    return same == last and set(writers) == set(last.delegates) and now < last.expires - RENEW_S


def _bundle(
    store: Store, repos: Repos, repo: Repo, last: RepoState | None, found: Snapshot, seq: int
) -> tuple[Snapshot, tuple[BundleRef, ...]]:
    """The bundles that bring a newcomer to the snapshot, with a new one when the last ones do not."""
    git_dir = Path(repo.path)
    for _ in range(SNAPSHOTS_MAX):
        bundles = last.bundles if last else ()
        # Objects that were thrown away since (a forced push, then gc) are no basis any more.
        basis = has_objects(git_dir, sorted(set(last.refs.values()))) if last else []
        if len(bundles) >= BUNDLES_MAX or _is_heavy(bundles):
            bundles, basis = (), []
        path = repos.bundle_path(f"{repo.id.digest.hex()}-{seq}")
        has_new = bool(found.refs) and make_bundle(git_dir, path, sorted(found.refs), basis)
        after = snapshot(git_dir)
        if after == found:
            if has_new:
                blob = publish(store, path, is_signed=True)
                log.info("made the bundle %s of %s: %d bytes", blob.oid, repo.id, blob.size)
                bundles = (*bundles, BundleRef(blob.oid, blob.size))
            return found, bundles
        found = after
    raise BusyError(f"the refs of {repo.name!r} do not stand still")


def _is_heavy(bundles: tuple[BundleRef, ...]) -> bool:
    """Whether the increments outweigh the whole: a newcomer would fetch most of it twice."""
    return len(bundles) > 1 and sum(bundle.size for bundle in bundles[1:]) > bundles[0].size + (1 << 20)
