"""Single git objects of shared repositories, as git stores them: `type SP size NUL content`, whose hash names them.

Only what shared refs reach is served. Which objects those are is listed once for every set of refs and kept as
one sorted string of names, 20 bytes each (32 of SHA-256): a million of them are 20 MB.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.refs import SHA1_BYTES, format_refs, object_format, object_name, parse_commit
from megalfs.core.repoid import RepoUrl
from megalfs.errors import (
    IntegrityError,
    MegalfsError,
    NotFoundError,
    RemoteProtocolError,
    SpaceError,
    UsageError,
)
from megalfs.git.gitcmd import run_git
from megalfs.git.repos import shared_refs
from megalfs.net.dialling import open_stream
from megalfs.net.link import FRAME_BYTES_MAX, Stream

if TYPE_CHECKING:
    from megalfs.store.repos import Repo, Repos
    from megalfs.store.root import Root

__all__ = ["ObjectList", "SharedObjects", "fetch_object"]

OBJECT_BYTES_MAX = 1 << 30
LISTS_MAX = 16  # repositories whose objects are listed in memory


class ObjectList:
    """Sorted names, searched by halving."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = b"".join(bytes.fromhex(name) for name in sorted(names))
        self._name_bytes = len(names[0]) // 2 if names else SHA1_BYTES

    def __len__(self) -> int:
        return len(self._names) // self._name_bytes

    def __contains__(self, name: str) -> bool:
        return self.after(name, 1, is_included=True) == [name]

    def after(self, name: str, count: int, *, is_included: bool = False) -> list[str]:
        """At most `count` names that follow `name`."""
        wanted = bytes.fromhex(name) if name else b""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            found = self._at(middle)
            if found < wanted or (found == wanted and not is_included):
                low = middle + 1
            else:
                high = middle
        return [self._at(index).hex() for index in range(low, min(low + count, len(self)))]

    def _at(self, index: int) -> bytes:
        return self._names[index * self._name_bytes : (index + 1) * self._name_bytes]


class SharedObjects:
    """The objects of the repositories that a node shares. Every method may block: call it in a thread."""

    def __init__(self, repos: Repos) -> None:
        self._repos = repos
        self._lock = threading.Lock()
        self._lists: dict[str, tuple[str, ObjectList]] = {}

    def list_of(self, repo: Repo) -> ObjectList:
        """Everything that the shared refs of a repository reach, as `git rev-list --objects --all` lists it."""
        refs = shared_refs(Path(repo.path))
        at = hashlib.sha256(format_refs(refs).encode()).hexdigest()
        with self._lock:
            known = self._lists.get(repo.path)
            if known is not None and known[0] == at:
                return known[1]
            names = self._names(repo, refs)
            self._lists.pop(repo.path, None)
            while len(self._lists) >= LISTS_MAX:
                del self._lists[next(iter(self._lists))]
            self._lists[repo.path] = at, names
            return names

    def _names(self, repo: Repo, refs: dict[str, str]) -> ObjectList:
        if not refs:
            return ObjectList([])
        stdin = "".join(f"{oid}\n" for oid in sorted(set(refs.values()))).encode()
        listed = run_git(
            Path(repo.path), "rev-list", "--objects", "--no-object-names", "--stdin", stdin=stdin
        )
        return ObjectList(listed.decode().split())

    def read(self, name: str) -> bytes:
        """One object as git stores it.

        Raises:
            UsageError: no object name.
            NotFoundError: no shared ref of any repository here reaches such an object.
        """
        parse_commit(name)
        for repo in self._repos.all():
            if repo.path and (Path(repo.path) / "HEAD").is_file() and name in self.list_of(repo):
                return _read(Path(repo.path), name)
        raise NotFoundError(f"no object {name} in what is shared here")

    async def handle(self, stream: Stream) -> None:
        """The service `object` of a link; the subject is the object's name."""
        try:
            content = await asyncio.to_thread(self.read, stream.subject)
        except MegalfsError as error:
            await stream.refuse(error)
            return
        await stream.accept()
        for start in range(0, len(content), FRAME_BYTES_MAX):
            await stream.send(content[start : start + FRAME_BYTES_MAX])
        await stream.finish()


def _read(git_dir: Path, name: str) -> bytes:
    answer = run_git(
        git_dir, "cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin=name.encode() + b"\n"
    )
    kind, _, size = answer.decode().strip().partition(" ")
    if not size.isdecimal() or int(size) > OBJECT_BYTES_MAX:
        raise SpaceError(f"the object {name} has {size} bytes; the limit is {OBJECT_BYTES_MAX}")
    return f"{kind} {size}\0".encode() + run_git(git_dir, "cat-file", kind, name)


async def fetch_object(root: Root, repos: Repos, text: str) -> bytes:
    """The object that a URL names, from its peer, checked against its name.

    Raises:
        UsageError: not a URL of an object.
        NotFoundError: the peer has none, or nobody told us where the peer is.
        IntegrityError: the peer sent another one.
    """
    url = RepoUrl.parse(text)
    if url.kind != "object":
        raise UsageError(f"not the URL of an object: {text[:200]!r}", hint="p2p://KEY/object/NAME")
    node = repos.node(url.peer)
    private = root.load_or_create_key()
    addresses = [*url.addresses, *(node.addresses if node else ())]
    remote = await open_stream(private, url.peer, "object", url.repo, addresses=addresses, via=url.via)
    try:
        content = b""
        while frame := await remote.stream.receive():
            content += frame
            if len(content) > OBJECT_BYTES_MAX + 64:
                raise RemoteProtocolError("an object that is too long")
        await remote.stream.finish()
    finally:
        await remote.close()
    if object_name(content, object_format(url.repo)) != url.repo:
        raise IntegrityError(f"{url.peer.peer_id} sent another object than {url.repo}")
    return content
