"""All files of one command: targets resolved, trees unfolded, a few pulled at a time, the figures added up."""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.ids import Oid
from megalfs.core.pathrules import name_fault, work_tree_fault
from megalfs.core.tree import TREE_BYTES_MAX, Tree
from megalfs.errors import MegalfsError, NotFoundError, PartialError, PolicyError, UsageError
from megalfs.node.pull import Pull, PullCounts, PullRequest
from megalfs.node.pull_job import Job
from megalfs.node.pull_request import Located
from megalfs.node.resolve import NameSources, Wanted, resolve
from megalfs.node.small_jobs import SmallJobs, is_small
from megalfs.node.threads import StopSignal
from megalfs.store.claim import is_begun
from megalfs.store.files import map_os_errors, mode_with_x
from megalfs.store.identity import ChangedError
from megalfs.store.links import link_file
from megalfs.store.shards import shard_notes
from megalfs.store.target import check_target, make_parent
from megalfs.store.verify import identity_holding

if TYPE_CHECKING:
    from megalfs.node.api import ProgressSnapshot, PullOptions, PullSummary
    from megalfs.node.node import Node

__all__ = ["PullSet"]

log = logging.getLogger(__name__)

# Enough to hide the round trips of small files; one large file fills the machine alone.
PULLS_AT_ONCE = 4


class PullSet:
    """The pulls of one command on one node."""

    def __init__(self, node: Node, options: PullOptions, cwd: Path, *, uses_lan: bool) -> None:
        self._node = node
        self._options = options
        self._cwd = cwd
        self._uses_lan = uses_lan
        self._jobs: list[Job] = []
        self._turns: dict[Oid, asyncio.Lock] = {}
        self._unknown: list[tuple[str, MegalfsError]] = []  # targets that nobody could tell the files of
        self._trees: list[tuple[Path, Tree]] = []
        self._helpers: list[Pull] = []
        self._small: SmallJobs | None = None
        self._stop = StopSignal()
        self._notes: list[str] = []

    # --- running -----------------------------------------------------------------------------------------

    async def run(self, targets: Sequence[str], names: NameSources) -> None:
        """Pulls every target.

        Raises:
            MegalfsError: of the only file that failed; PartialError when some of several did.
        """
        try:
            await self._plan(await self._resolve(targets, names))
            await self._run_all()
            for directory, tree in self._trees:
                paths = [entry.path for entry in tree.entries]
                self._notes += await asyncio.to_thread(shard_notes, directory, paths)
        finally:
            self._stop.set()  # threads that copy or hash are not cancelled with us
        self._raise_failures()

    async def _resolve(self, targets: Sequence[str], names: NameSources) -> list[Wanted]:
        wanted: list[Wanted] = []
        for target in targets:
            try:
                found = await asyncio.to_thread(
                    resolve, target, cwd=self._cwd, store=self._node.store, names=names
                )
            except UsageError:
                raise
            except MegalfsError as error:
                self._unknown.append((target, error))
                continue
            if not found:
                self._notes.append(f"{target}: no pointer files there, nothing to do")
            wanted += found
        return wanted

    async def _run_all(self) -> None:
        slots = asyncio.Semaphore(PULLS_AT_ONCE)
        small = [job for job in self._jobs if is_small(job)]
        work = [self._run_small(small, slots)] if len(small) > 1 else []
        work += [self._run(job, slots) for job in self._jobs if not work or not is_small(job)]
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MegalfsError):
                raise result

    def _raise_failures(self) -> None:
        failed = self._unknown + [(str(job.target), job.error) for job in self._jobs if job.error is not None]
        if not failed:
            return
        count, errors = len(self._unknown) + len(self._jobs), [error for _, error in failed]
        if count == 1:
            raise errors[0]
        for name, error in failed:
            log.warning("%s: %s", name, error)
        if len(failed) == count and len({error.exit_code for error in errors}) == 1:
            raise errors[0]
        partial = PartialError(f"{len(failed)} of {count} files could not be pulled: {errors[0]}")
        partial.files = [job.facts() for job in self._jobs if job.error is None]
        raise partial

    async def _plan(self, wanted: Sequence[Wanted]) -> None:
        """Makes the jobs; a tree is pulled first and unfolded."""
        dest = self._options.dest
        is_directory = dest is not None and (self._cwd / dest).is_dir()
        if dest is not None and not is_directory and len(wanted) > 1:
            raise UsageError(
                f"-o {str(dest)!r} is not a directory, and there are {len(wanted)} files to pull"
            )
        for each in wanted:
            if each.note is not None:
                self._notes.append(each.note)
            target = self._target(each, dest, is_directory=is_directory)
            if each.kind == "tree":
                try:
                    await self._unfold(each, target, begun=self._cwd / dest if dest is not None else None)
                except MegalfsError as error:
                    self._unknown.append((each.name, error))
                continue
            needed = dest if dest is not None and self._options.is_dest_directory else target.parent
            if not (self._cwd / needed).is_dir():
                raise NotFoundError(f"no such directory: {str(needed)!r}", hint="mkdir -p makes it")
            self._jobs.append(Job(each, target, is_pointer=each.target is not None))

    def _target(self, wanted: Wanted, dest: Path | None, *, is_directory: bool) -> Path:
        if wanted.target is not None and dest is None:
            return wanted.target
        fault = name_fault(wanted.name)
        if fault is not None:
            raise PolicyError(f"the name of {wanted.oid} is refused: {fault}", hint="give one with -o")
        if dest is None:
            return self._cwd / wanted.name
        where = self._cwd / dest
        return where / wanted.name if is_directory else where

    async def _unfold(self, wanted: Wanted, directory: Path, *, begun: Path | None) -> None:
        """Pulls the tree blob into the root, then makes a job for each of its files.

        Args:
            begun: a directory that the same command made, if it was interrupted: it goes on there, not below.
        """
        store = self._node.store
        path = store.root.blob_path(wanted.oid)
        if store.at(path) is None:
            pull = Pull(self._node, self._request(wanted, path, is_pointer=True))
            self._helpers.append(pull)
            await pull.run()
        tree = Tree.decode(await asyncio.to_thread(store.read_bytes, wanted.oid, bytes_max=TREE_BYTES_MAX))
        if (
            begun is not None
            and not directory.exists()
            and await asyncio.to_thread(self._is_begun, tree, begun)
        ):
            directory = begun
        is_work_tree = any(
            (parent / ".git").exists() for parent in (directory.absolute(), *directory.absolute().parents)
        )
        with map_os_errors(f"cannot make the directory {str(directory)!r}"):
            directory.mkdir(parents=True, exist_ok=True)
        jobs = []
        for entry in tree.entries:
            fault = work_tree_fault(entry.path) if is_work_tree else None
            if fault is not None:
                raise PolicyError(f"the tree {wanted.name} is refused in a git work tree: {fault}")
            each = Wanted(
                oid=entry.oid,
                name=Path(entry.path).name,
                size=entry.size,
                key=wanted.key,
                peers=wanted.peers,
                trackers=wanted.trackers,
                origins=tuple(origin for origin in wanted.origins if "{" in origin or origin.endswith("/")),
            )
            target = make_parent(directory, entry.path)
            jobs.append(
                Job(each, target, is_pointer=False, is_executable=entry.is_executable, tree=wanted.oid)
            )
        self._jobs += jobs  # all of them or none
        self._trees.append((directory, tree))

    def _is_begun(self, tree: Tree, directory: Path) -> bool:
        """Whether this tree's files, or their partials, lie in a directory."""
        store = self._node.store
        files = ((directory / entry.path, entry.oid) for entry in tree.entries)
        return any(
            is_begun(path, oid) or ((blob := store.at(path)) is not None and blob.oid == oid)
            for path, oid in files
        )

    async def _run_small(self, jobs: Sequence[Job], slots: asyncio.Semaphore) -> None:
        """Together, as far as somebody has them; the rest as any other file."""
        self._small = SmallJobs(self._node, self._settle, self._request_of)
        try:
            left = await self._small.run(jobs)
        except MegalfsError as error:  # of this machine: its index, its disk
            for job in jobs:
                job.error = job.error if job.is_settled else error
            return
        await asyncio.gather(*(self._run(job, slots) for job in left))

    def _settle(self, job: Job) -> bool:
        """Whether a job is done without the network, or cannot be done. Blocks."""
        try:
            if not self._is_here(job):
                return False
            self._fit_mode(job)
        except MegalfsError as error:
            job.error = error
        return True

    async def _run(self, job: Job, slots: asyncio.Semaphore) -> None:
        # Two targets of one blob: the second finds it on this disk.
        async with self._turns.setdefault(job.wanted.oid, asyncio.Lock()), slots:
            try:
                if await asyncio.to_thread(self._settle, job):
                    return
                job.pull = Pull(self._node, self._request_of(job))
                await job.pull.run()
                job.size = job.target.stat().st_size
            except MegalfsError as error:
                job.error = error
            finally:
                if job.pull is not None:
                    job.final = job.pull.counts()
                    job.final.phase = "done"
                    if job.error is None:
                        job.final.bytes_total = job.final.bytes_verified = job.size

    def _request_of(self, job: Job) -> PullRequest:
        is_executable = job.is_executable is True
        return self._request(job.wanted, job.target, is_pointer=job.is_pointer, is_executable=is_executable)

    def _request(
        self, wanted: Wanted, target: Path, *, is_pointer: bool, is_executable: bool = False
    ) -> PullRequest:
        options, settings = self._options, self._node.settings
        keys = options.keys | settings.trusted_keys | ({wanted.key} if wanted.key is not None else set())
        return PullRequest(
            oid=wanted.oid,
            target=target,
            name=wanted.name,
            size=wanted.size,
            manifest=wanted.manifest,
            keys=frozenset(keys),
            peers=tuple(dict.fromkeys((*wanted.peers, *options.peers, *settings.peers))),
            trackers=tuple(dict.fromkeys((*wanted.trackers, *options.trackers, *settings.trackers))),
            origins=tuple(dict.fromkeys((*wanted.origins, *options.origins, *settings.origins))),
            located=options.located.get(wanted.oid, Located()),
            uses_lan=self._uses_lan and not (wanted.peers or wanted.trackers or wanted.origins),
            may_replace=lambda: is_pointer or options.force or self._node.store.may_replace(target),
            is_executable=is_executable,
            wait_peers_s=options.wait_peers_s,
            is_shared=options.share,
        )

    def _is_here(self, job: Job) -> bool:
        """Whether the target needs no network: it is right already, or the blob lies elsewhere on this disk."""
        store, target, oid = self._node.store, job.target, job.wanted.oid
        is_link = self._options.link == "sym" and target.is_symlink()  # of ours, when it leads to the blob
        at = store.at(target.resolve() if is_link else target)
        if at is not None and at.oid == oid:
            return self._found_here(job, at.size)
        stands = check_target(target)
        if stands and not (job.is_pointer or self._options.force or store.may_replace(target)):
            if job.wanted.size in {None, target.stat().st_size} and self._holds(target, oid):
                return self._found_here(job, target.stat().st_size)
            raise PolicyError(
                f"{str(target)!r} exists and was never published or pulled", hint="--force replaces it"
            )
        blob = store.find(oid)
        if blob is None or not blob.is_held or not blob.manifests:
            return False
        try:
            with store.open(oid) as opened:
                source = opened.path
        except (NotFoundError, ChangedError):
            return False  # it was here when somebody last looked
        # Outside the root somebody may write into the file: it must not be one inode with what is published.
        is_ours = target.is_relative_to(store.root.path)
        link_file(
            source,
            target,
            mode=self._options.link,
            to_work_tree=not is_ours,
            replace=stands,
            durable=self._node.settings.durable,
            progress=self._stop.go_on,
        )
        if not target.is_symlink():
            store.adopt(target, store.load_manifest(blob.manifests[0], oid))
        return self._found_here(job, blob.size)

    def _fit_mode(self, job: Job) -> None:
        """Gives a file that was on this disk already the x bits that its tree names."""
        target = job.target
        with map_os_errors(f"cannot set the mode of {str(target)!r}"):
            found = target.lstat()
            is_wrong = job.is_executable not in {None, bool(found.st_mode & stat.S_IXUSR)}
            if not is_wrong or found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):
                return  # an inode that others share keeps its mode
            target.chmod(mode_with_x(stat.S_IMODE(found.st_mode), is_executable=bool(job.is_executable)))
        self._node.store.adopt_bare(target, job.wanted.oid)  # its ctime is another one now

    def _holds(self, target: Path, oid: Oid) -> bool:
        """Hashes a file that nobody vouches for; when it is right after all, it is taken up."""
        identity = identity_holding(target, oid, progress=self._stop.go_on)
        if identity is None:
            return False
        self._node.store.adopt_bare(target, oid, identity=identity)
        return True

    @staticmethod
    def _found_here(job: Job, size: int) -> bool:
        job.size = size
        job.final = PullCounts("done", size, size, size)
        return True

    # --- figures ---------------------------------------------------------------------------------------------

    def rejected(self) -> dict[str, int]:
        """Pieces that came with wrong bytes, by source."""
        return _sum([*(job.counts().rejected for job in self._jobs), self._rejected_small()])

    def _rejected_small(self) -> Mapping[str, int]:
        return {} if self._small is None else self._small.rejected

    def snapshot(self) -> ProgressSnapshot:
        """How far all files are together."""
        from megalfs.node.api import ProgressSnapshot

        counts = [job.counts() for job in self._jobs]
        phases = [each.phase for each in counts if each.phase != "done"]
        current = next((job for job in self._jobs if job.final is None and job.pull is not None), None)
        name = (
            current.wanted.name if current is not None else (self._jobs[-1].wanted.name if self._jobs else "")
        )
        return ProgressSnapshot(
            name=name,
            bytes_total=sum(each.bytes_total or 0 for each in counts),
            bytes_verified=sum(each.bytes_verified for each in counts),
            bytes_fetched=sum(each.bytes_fetched for each in counts),
            bytes_reused=sum(each.bytes_reused for each in counts),
            bytes_origin=sum(each.bytes_origin for each in counts),
            peer_count=max((each.peer_count for each in counts), default=0),
            phase="fetching" if "fetching" in phases else (phases or ["done" if counts else "finding"])[0],
        )

    def summary(self, seconds: float) -> PullSummary:
        """What was done, once everything is."""
        from megalfs.node.api import PulledFile, PullSummary

        counts = [job.counts() for job in self._jobs] + [helper.counts() for helper in self._helpers]
        return PullSummary(
            files=[PulledFile(job.wanted.oid, job.target, job.size) for job in self._jobs],
            bytes_fetched=sum(each.bytes_fetched for each in counts),
            bytes_reused=sum(each.bytes_reused for each in counts),
            bytes_origin=sum(each.bytes_origin for each in counts),
            bytes_by_peer=_sum(each.by_peer for each in counts),
            seconds=seconds,
            rejected=_sum([*(each.rejected for each in counts), self._rejected_small()]),
            notes=[*self._notes, *(note for each in counts for note in each.notes)],
        )


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total
