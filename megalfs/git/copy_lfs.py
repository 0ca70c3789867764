"""Large files of copies: a node that keeps somebody's repository keeps what its branches name by git-lfs too.

History alone is no copy of a model. After each new state the pointers at the branch tips are read, what is missing
is pulled as an agent of git-lfs would have it pulled, and from then on this node seeds it. What the tips name no
longer is let go again, so a copy has one version of the large files, not all.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.sync import Rounds
from megalfs.errors import MegalfsError, NotFoundError, PolicyError, SpaceError
from megalfs.formats.pointer import POINTER_BYTES_MAX, Pointer
from megalfs.git.gitcmd import run_git
from megalfs.git.lfs_transfer import Transfer

if TYPE_CHECKING:
    from megalfs.core.repoid import RepoId
    from megalfs.git.lfs_downloads import Downloads
    from megalfs.git.lfs_objects import Objects
    from megalfs.node.node import Node
    from megalfs.store.repos import Repo, Repos

__all__ = ["CopyLfs", "Kept", "leaves_room", "tip_pointers"]

log = logging.getLogger(__name__)

BLOBS_AT_ONCE = 10_000  # of less than 1 KiB each
FREE_SHARE_MIN = 20  # a twentieth of a disk is left to its user, unless he asked


class Kept(Struct, frozen=True):
    """The large files of one copy that are here."""

    count: int
    size: int


class CopyLfs:
    """The large files of the copies of one node."""

    def __init__(self, node: Node, repos: Repos, downloads: Downloads, objects: Objects) -> None:
        self._node = node
        self._repos = repos
        self._downloads = downloads
        self._objects = objects
        self._rounds = Rounds(node.settings.sync_interval_s)
        self._waiting: dict[RepoId, None] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to look after what `copied` names."""
        self._task = asyncio.create_task(self._work_for_ever())

    async def close(self) -> None:
        """Ends what runs; partials stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def copied(self, repo: RepoId) -> None:
        """A copy is at a new state, or at what it was before this node started."""
        self._waiting[repo] = None
        self._rounds.changed(repo)
        self._wake.set()

    async def _work_for_ever(self) -> None:
        """One repository after the other, one object at a time: nobody waits for it, and others use the line."""
        while True:
            self._wake.clear()
            for repo in list(self._waiting):
                if self._rounds.is_due(self._node.now(), repo):
                    await self._try(repo)
            try:
                async with asyncio.timeout(self._rounds.pause_s(self._node.now())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _try(self, repo: RepoId) -> None:
        del self._waiting[repo]
        try:
            await self.keep(repo, is_asked=await asyncio.to_thread(self._repos.keeps_lfs, repo))
        except SpaceError as error:
            log.info("%s", error)  # so it stays until its next state, or until somebody asks
        except MegalfsError as error:
            log.info("%s", error)
            self._waiting[repo] = None
            self._rounds.failed(self._node.now(), repo)

    async def keep(self, repo: RepoId, *, is_asked: bool) -> Kept:
        """Returns when everything that the branches of a copy name is here.

        Raises:
            PolicyError: it is no copy of somebody else's.
            SpaceError: it is more than is kept unasked, or than there is room for.
            MegalfsError: nobody has one of the objects.
        """
        row = await asyncio.to_thread(self._repos.find, repo)
        if row is None or not row.path:
            raise NotFoundError(f"no copy of {repo} is here")
        if not row.is_external:
            raise PolicyError(
                f"{row.name!r} is shared from here: its large files are where git-lfs keeps them"
            )
        refs = await asyncio.to_thread(self._repos.refs, repo)
        wanted = await asyncio.to_thread(tip_pointers, Path(row.path), refs)
        missing = [each for each in wanted if not self._is_held(each)]
        self._check_room(row, wanted, missing, is_asked=is_asked)
        await self._fetch_all(row, missing)
        await asyncio.to_thread(self._let_go, repo, wanted)
        size = sum(each.size for each in wanted)
        if missing:
            log.info("%s: %d large files are here, %d bytes", row.name, len(wanted), size)
        return Kept(len(wanted), size)

    def _is_held(self, pointer: Pointer) -> bool:
        blob = self._node.store.find(pointer.oid)
        return blob is not None and blob.is_held

    def _check_room(
        self, row: Repo, wanted: list[Pointer], missing: list[Pointer], *, is_asked: bool
    ) -> None:
        """Unasked: within the bound, and the disk does not run low. What is asked for may fill it, as any pull may."""
        size, more = sum(each.size for each in wanted), sum(each.size for each in missing)
        if is_asked or not more:
            return
        hint = f"megalfs repo sync --repo-id {row.id} --lfs"
        if size > self._node.settings.sync_lfs_bytes_max:
            raise SpaceError(
                f"the large files of {row.name!r} have {size} bytes, more than sync_lfs_bytes_max: {hint}"
            )
        disk = os.statvfs(self._objects.directory)
        if not leaves_room(more, free=disk.f_bavail * disk.f_frsize, total=disk.f_blocks * disk.f_frsize):
            raise SpaceError(
                f"the disk would run low with {more} bytes of large files of {row.name!r}: {hint}"
            )

    async def _fetch_all(self, row: Repo, pointers: list[Pointer]) -> None:
        """What nobody has does not hold up the others; raises the last failure."""
        url = f"p2p://{row.creator.peer_id}/{row.id}.git"
        failure: MegalfsError | None = None
        for pointer in pointers:
            transfer = Transfer.from_remote(pointer.oid, pointer.size, self._objects.directory, url)
            try:
                await self._downloads.hold(transfer)
            except SpaceError:
                raise
            except MegalfsError as error:
                failure = error
            else:
                await asyncio.to_thread(self._repos.put_large_file, row.id, pointer.oid)
        if failure is not None:
            raise failure

    def _let_go(self, repo: RepoId, wanted: list[Pointer]) -> None:
        """What was fetched for this copy and is no longer named by a branch. Blocks."""
        for oid in self._repos.large_files(repo) - {each.oid for each in wanted}:
            if self._repos.forget_large_file(repo, oid):
                self._objects.release(oid)


def leaves_room(size: int, *, free: int, total: int) -> bool:
    """Whether a disk of `total` bytes has a twentieth free after `size` more; all in bytes."""
    return free - size >= total // FREE_SHARE_MIN


def tip_pointers(git_dir: Path, refs: Mapping[str, str]) -> list[Pointer]:
    """The pointers of git-lfs in the trees of all branches, each object once.

    Raises:
        StoreError: git failed.
    """
    tips = sorted({oid for name, oid in refs.items() if name.startswith("refs/heads/")})
    if not tips:
        return []
    listed = run_git(
        git_dir, "rev-list", "--objects", "--no-object-names", "--no-walk",
        f"--filter=blob:limit={POINTER_BYTES_MAX}", "--stdin", stdin="\n".join([*tips, ""]).encode(),
    ).split()  # fmt: skip
    found: dict[Pointer, None] = {}
    for start in range(0, len(listed), BLOBS_AT_ONCE):
        for content in _small_blobs(git_dir, listed[start : start + BLOBS_AT_ONCE]):
            if (pointer := Pointer.parse(content)) is not None:
                found[pointer] = None
    return list(found)


def _small_blobs(git_dir: Path, names: list[bytes]) -> Iterator[bytes]:
    """The contents of those of the objects that are blobs."""
    kinds = run_git(
        git_dir, "cat-file", "--batch-check=%(objecttype) %(objectname)", stdin=b"\n".join([*names, b""])
    )
    blobs = [line.split()[1] for line in kinds.splitlines() if line.startswith(b"blob ")]
    answer = run_git(git_dir, "cat-file", "--batch=%(objectsize)", stdin=b"\n".join([*blobs, b""]))
    at = 0
    for _ in blobs:
        end = answer.index(b"\n", at)
        size = int(answer[at:end])
        yield answer[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
