"""`megalfs pull` in a git work tree: what `git lfs pull` does, without reading every byte twice.

The pull proves the SHA-256 of each file, so git need not: the object is linked into git-lfs's storage as it
is, and git's index gets the new stat data (lfs_index.py). Without that the next `git status` would hash every
file that was pulled.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.errors import MegalfsError, NotFoundError, StoreError
from megalfs.formats.pointer import POINTER_BYTES_MAX, Pointer
from megalfs.git.lfs_index import refresh
from megalfs.git.lfs_objects import Objects
from megalfs.git.lfs_setup import git
from megalfs.git.lfs_sources import CONFIG_NAME, Sources, find_sources
from megalfs.store.blobs import Place
from megalfs.store.files import map_os_errors
from megalfs.store.identity import ChangedError, Identity
from megalfs.store.links import link_file

if TYPE_CHECKING:
    from megalfs.config import Settings
    from megalfs.core.ids import Oid
    from megalfs.node.pull_request import Located
    from megalfs.store.blobs import Store

__all__ = ["Filter", "WorkTree", "WorkTreePull"]

_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


class Filter(Struct, frozen=True):
    """Which paths are wanted, by patterns as git-lfs reads them: a directory means everything in it."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def is_wanted(self, path: str) -> bool:
        """Whether a path below the top of the work tree is to be pulled."""
        is_included = not self.include or any(_is_match(each, path) for each in self.include)
        return is_included and not any(_is_match(each, path) for each in self.exclude)


def _is_match(pattern: str, path: str) -> bool:
    bare = pattern.strip("/")
    regex = "".join(_GLOB.get(token) or re.escape(token) for token in _TOKENS.findall(bare))
    anywhere = "" if "/" in pattern.rstrip("/") else "(?:.*/)?"
    return re.fullmatch(f"{anywhere}{regex}(?:/.*)?", path) is not None


class WorkTree(Struct, frozen=True):
    """One work tree, and where its LFS objects are: linked work trees share them."""

    top: Path
    storage: Path

    @classmethod
    def find(cls, path: Path) -> WorkTree | None:
        """The work tree that a file or directory is in."""
        directory = path if path.is_dir() else path.parent
        try:
            answer = git("rev-parse", "--show-toplevel", "--git-common-dir", cwd=directory).splitlines()
        except MegalfsError:
            return None
        if len(answer) != 2 or not answer[0]:
            return None  # a bare repository, or inside .git
        top, common = Path(answer[0]), directory / answer[1]
        storage = _config(top, "lfs.storage")
        return cls(top, Path(os.path.normpath(common / (Path(storage).expanduser() if storage else "lfs"))))

    def sources(self, settings: Settings) -> Sources:
        """Whom to ask, as the agent finds it. Raises UsageError."""
        values: dict[str, list[str]] = {}
        with suppress(StoreError):
            listed = git("config", "--null", "--get-regexp", r"^megalfs\.", cwd=self.top)
            for entry in listed.split("\0")[:-1]:
                key, _, value = entry.partition("\n")
                values.setdefault(key, []).append(value)
        path = self.top / CONFIG_NAME
        if path.is_file() and not path.is_symlink():
            return find_sources(settings, values, path.read_text("utf-8"), f"{CONFIG_NAME} in the work tree")
        for revision, where in ((":", "in the index"), ("HEAD:", "at HEAD")):
            with suppress(StoreError):
                text = git("cat-file", "-p", revision + CONFIG_NAME, cwd=self.top)
                return find_sources(settings, values, text, f"{CONFIG_NAME} {where}")
        return find_sources(settings, values, "", "")

    def remote(self) -> str:
        """The URL of the remote that the current branch follows, or of `origin`; empty when there is none."""
        branch = _config(self.top, "branch." + _branch(self.top) + ".remote") or "origin"
        return _config(self.top, f"remote.{branch}.url")

    def filter(self, include: Sequence[str], exclude: Sequence[str]) -> Filter:
        """The patterns given, else those of git's configuration or `.lfsconfig`."""
        given = include or _patterns([_config(self.top, "lfs.fetchinclude", lfsconfig=True)])
        refused = exclude or _patterns([_config(self.top, "lfs.fetchexclude", lfsconfig=True)])
        return Filter(tuple(_patterns(given)), tuple(_patterns(refused)))

    def pointers(self, path: Path, wanted: Filter) -> Iterator[tuple[Path, Pointer]]:
        """The pointer files at or below a path that the filter wants; those of submodules are theirs."""
        for file in [path] if path.is_file() else _files_below(path):
            pointer = _pointer_at(file)
            if pointer is not None and wanted.is_wanted(self.name_of(file)):
                yield file, pointer

    def name_of(self, path: Path) -> str:
        """A path as git names it."""
        return (path.parent.resolve() / path.name).relative_to(self.top.resolve()).as_posix()

    def object_path(self, oid: Oid) -> Path:
        """Where git-lfs keeps an object."""
        name = str(oid)
        return self.storage / "objects" / name[:2] / name[2:4] / name

    def prunable(self) -> list[str]:
        """The objects that nothing here needs, by git-lfs's own rules."""
        listed = git("lfs", "prune", "--dry-run", "--verbose", cwd=self.top)
        return sorted(set(re.findall(r"\* ([0-9a-f]{64}) ", listed)))

    def take_in(self, store: Store, pointers: Iterable[Pointer]) -> None:
        """Publishes what git-lfs has already, so that it is not fetched; what is damaged there is left alone."""
        objects = Objects(store)
        for pointer in pointers:
            path = self.object_path(pointer.oid)
            if store.find(pointer.oid) is None and path.is_file():
                with suppress(MegalfsError):
                    objects.take_in(path, pointer.oid)

    def settle(self, store: Store, files: Iterable[tuple[Path, Oid]]) -> None:
        """After a pull: objects into git-lfs's storage by link, and the files' new state into git's index.

        Args:
            files: those that were wanted; what did not arrive is passed over.

        Raises:
            StoreError: the disk, or git, refused.
        """
        objects, arrived = Objects(store), {}
        for path, oid in files:
            blob = store.at(path)
            if blob is None or blob.oid != oid:
                continue
            arrived[self.name_of(path)] = oid
            target = self.object_path(oid)
            if not target.exists() and (out := objects.hand_over(oid, self.storage)) is not None:
                with map_os_errors(f"cannot hand {oid} to git-lfs"):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    out.rename(target)
        # Only where the index names the very object that was proven may git skip looking at the file.
        proven = [name for name, oid in self._index_pointers(store, arrived) if arrived[name] == oid]
        if proven:
            answer = git(
                "rev-parse", "--git-path", "index", "--show-object-format", cwd=self.top
            ).splitlines()
            paths = {os.fsencode(name): self.top / name for name in proven}
            refresh(self.top / answer[0], paths, oid_bytes=20 if answer[1] == "sha1" else 32)

    def _index_pointers(self, store: Store, names: Mapping[str, Oid]) -> Iterator[tuple[str, Oid]]:
        """The objects that the index names at these paths; the x-bit of the index is given to the files."""
        listed = self._git("ls-files", "--stage", "-z").decode("utf-8", "surrogateescape")
        entries = [entry.partition("\t")[::2] for entry in listed.split("\0")[:-1]]
        wanted = [(name, *fields.split()[:2]) for fields, name in entries if name in names]
        contents = self._git("cat-file", "--batch", given="".join(f"{blob}\n" for _, _, blob in wanted))
        for name, mode, _ in wanted:
            header, _, contents = contents.partition(b"\n")
            size = int(header.split()[2])
            pointer, contents = Pointer.parse(contents[:size]), contents[size + 1 :]
            if pointer is not None:
                if mode == "100755":
                    self._make_executable(store, self.top / name, pointer.oid)
                yield name, pointer.oid

    @staticmethod
    def _make_executable(store: Store, path: Path, oid: Oid) -> None:
        found = path.lstat()
        if not found.st_mode & 0o100:
            path.chmod(found.st_mode | (found.st_mode & 0o444) >> 2)
            store.record(Place(path, Identity.of(path.lstat())), oid, None)

    def _git(self, *argv: str, given: str = "") -> bytes:
        done = subprocess.run(
            ["git", *argv],
            cwd=self.top,
            input=given.encode("utf-8", "surrogateescape"),
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise StoreError(f"git {argv[0]}: {done.stderr.decode('utf-8', 'replace').strip()[:200]}")
        return done.stdout


class WorkTreePull(Struct, frozen=True):
    """Pointer files of one work tree that are to be replaced, and whom to ask."""

    tree: WorkTree
    files: tuple[tuple[Path, Pointer], ...]
    sources: Sources
    durable: bool

    @classmethod
    def plan(
        cls, targets: Sequence[str], *, include: Sequence[str], exclude: Sequence[str], settings: Settings
    ) -> WorkTreePull | None:
        """What the targets mean when all are paths of one work tree; None for anything else.

        Raises:
            UsageError: what the repository or git's configuration says is no peer or URL.
        """
        paths = [Path(target).absolute() for target in targets]
        if not paths or not all(path.exists() for path in paths):
            return None
        tree = WorkTree.find(paths[0])
        if tree is None or any(WorkTree.find(path) != tree for path in paths[1:]):
            return None
        wanted = tree.filter(include, exclude)
        files = tuple(dict.fromkeys(found for path in paths for found in tree.pointers(path, wanted)))
        if not files and wanted == Filter():
            return None  # nothing here is a pointer; what else it may be is not git's business
        return cls(tree, files, tree.sources(settings), settings.durable)

    @property
    def targets(self) -> list[str]:
        """One file for each object; `settle` makes the others from it."""
        first: dict[Oid, Path] = {}
        for path, pointer in self.files:
            first.setdefault(pointer.oid, path)
        return [str(path) for path in first.values()]

    async def locate(self) -> tuple[dict[Oid, Located], list[str]]:
        """Where the repository's LFS servers and buckets have the objects, and what they refused."""
        from megalfs.git.lfs_client import LfsClient
        from megalfs.git.lfs_origins import locate

        client = LfsClient()
        try:
            return await locate(client, self.sources.servers, (pointer for _, pointer in self.files))
        finally:
            await client.close()

    def prepare(self, store: Store) -> None:
        """Takes up what git-lfs has already."""
        self.tree.take_in(store, (pointer for _, pointer in self.files))

    def settle(self, store: Store) -> None:
        """As `WorkTree.settle`, for what arrived."""
        for path, pointer in self.files:
            blob = store.at(path)
            if blob is None and str(path) not in self.targets and _pointer_at(path) == pointer:
                with suppress(NotFoundError, ChangedError), store.open(pointer.oid) as opened:
                    link_file(
                        opened.path, path, mode="auto", to_work_tree=True, replace=True, durable=self.durable
                    )
                    store.record(Place(path, Identity.of(path.lstat())), pointer.oid, None)
        self.tree.settle(store, ((path, pointer.oid) for path, pointer in self.files))


def _files_below(directory: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(directory):
        is_other = Path(folder) != directory
        if is_other and ".git" in (*folders, *files):
            folders.clear()  # a submodule, or another repository
            continue
        folders[:] = sorted(name for name in folders if name != ".git")
        yield from (Path(folder) / name for name in sorted(files))


def _pointer_at(path: Path) -> Pointer | None:
    with suppress(OSError):
        if not path.is_symlink() and path.stat().st_size <= POINTER_BYTES_MAX:
            return Pointer.parse(path.read_bytes())
    return None


def _patterns(texts: Iterable[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _branch(top: Path) -> str:
    with suppress(StoreError):
        return git("symbolic-ref", "--short", "-q", "HEAD", cwd=top).rstrip("\n")
    return ""


def _config(top: Path, key: str, *, lfsconfig: bool = False) -> str:
    """One value of git's configuration; of `.lfsconfig` when git has none."""
    for where in ([], *([["--file", ".lfsconfig"]] if lfsconfig else [])):
        with suppress(StoreError):
            return git("config", *where, "--get", key, cwd=top).rstrip("\n")
    return ""
