"""Serves fetch and push over links: git's own upload-pack and receive-pack, under our settings.

A repository is found by its name in our table; nothing that a peer says becomes a path or an argument. Fetch
shows branches and tags only. Push is for the creator and the keys that the owner lists, and runs no hooks but
ours, which tell the pusher and the log who pushed: the key that the link proved, and with `git push --signed`
the key that signed the list of changes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from megalfs.core.identity import NodeKey
from megalfs.errors import BusyError, MegalfsError, NotAuthorisedError, NotFoundError, PolicyError
from megalfs.git.gitcmd import Setting, start_git
from megalfs.git.pipes import LinkPipe, Pipe, StreamPipe, splice
from megalfs.git.push_log import push_log
from megalfs.net.link import Stream
from megalfs.store.files import write_atomic
from megalfs.store.repos import Repo, Repos
from megalfs.store.root import Root

__all__ = ["SERVICES", "GitServing", "ssh_public_key"]

log = logging.getLogger(__name__)

SERVICES = ("git-upload-pack", "git-receive-pack", "git-upload-archive")
SERVED_MAX = 32  # git processes at one time; each may take a core and the memory of its deltas
IDLE_S_MAX = 600  # upload-pack ends by itself when a client says nothing for so long
PUSH_BYTES_MAX = 16 << 30
NONCE_SLOP_S = 60  # the nonce of a signed push stays good for a second request
STDERR_BYTES_MAX = 4096

# Branches and tags, and nothing else that a work tree keeps (stash, remotes, notes of tools).
SHARED_REFS: tuple[Setting, ...] = (
    ("transfer.hideRefs", "refs/"),
    ("transfer.hideRefs", "!refs/heads/"),
    ("transfer.hideRefs", "!refs/tags/"),
    ("uploadpack.allowFilter", "true"),
    ("uploadpack.allowReachableSHA1InWant", "true"),
    ("uploadpack.advertiseBundleURIs", "false"),
)
# G alone says little: git calls the signature of any SSH key good, and names no signer for those not listed.
_PRE_RECEIVE = """#!/bin/sh
# Refuses what is signed by somebody else, and ref names that others stumble over.
set -f
if [ -n "$GIT_PUSH_CERT" ]; then
    listed=
    case "$GIT_PUSH_CERT_STATUS $GIT_PUSH_CERT_SIGNER" in
        "G did:key:z"*) grep -q -F -- "$GIT_PUSH_CERT_SIGNER namespaces=" "$MEGALFS_SIGNERS" && listed=yes ;;
    esac
    if [ -z "$listed" ]; then
        echo "megalfs: the push certificate is not signed by a key that may push here"
        exit 1
    fi
    case "$GIT_PUSH_CERT_NONCE_STATUS" in
        OK|SLOP) ;;
        *) echo "megalfs: the push certificate is old or replayed"; exit 1 ;;
    esac
fi
while read -r old new ref; do
    case "$ref" in
        */-*) echo "megalfs: the ref $ref is refused"; exit 1 ;;
    esac
done
"""
_POST_RECEIVE = """#!/bin/sh
# Says who has pushed what, on the pusher's terminal and in the owner's log.
set -f
who="$MEGALFS_PEER"
[ -n "$GIT_PUSH_CERT" ] && who="$who signed by $GIT_PUSH_CERT_SIGNER"
now="$(date -u +%Y-%m-%dT%H:%M:%SZ)"
while read -r old new ref; do
    printf '%s %s %s %s %s %s\\n' "$now" "$MEGALFS_REPO" "$ref" "$old" "$new" "$who" >> "$MEGALFS_PUSH_LOG"
done
echo "megalfs: pushed by $who"
"""


class GitServing:
    """The git services of one node."""

    def __init__(
        self, root: Root, repos: Repos, own: NodeKey, *, pushed: Callable[[Repo], Awaitable[None]]
    ) -> None:
        self._repos = repos
        self._own = own
        self._pushed = pushed
        self._hooks = root.host / "hooks"
        self._log = push_log(root)
        self._nonce_seed = root.token()
        self._running = 0
        self._write_hooks()

    def _write_hooks(self) -> None:
        self._hooks.mkdir(mode=0o700, exist_ok=True)
        for name, script in (("pre-receive", _PRE_RECEIVE), ("post-receive", _POST_RECEIVE)):
            write_atomic(self._hooks / name, script.encode(), mode=0o700)

    async def handle(self, stream: Stream) -> None:
        """Answers one stream of the link."""
        try:
            repo = self._repos.served(stream.subject)
            self.check_place(repo)
            if stream.service == "git-receive-pack":
                self.check_push(repo, stream.peer)
            if self._running >= SERVED_MAX:
                raise BusyError(f"this node serves {SERVED_MAX} git clients already")
        except MegalfsError as error:
            await stream.refuse(error)
            return
        await stream.accept()
        self._running += 1
        try:
            await self.serve(repo, stream.service, LinkPipe(stream), peer=stream.peer)
        finally:
            self._running -= 1
        if stream.service == "git-receive-pack":
            await self._pushed(repo)

    def check_place(self, repo: Repo) -> Path:
        """The repository's directory, where it was when it was added.

        Raises:
            NotFoundError: it is gone, or somebody put a link in its place.
        """
        path = Path(repo.path)
        if not (path / "HEAD").is_file() or path.resolve() != path:
            raise NotFoundError(f"the repository {repo.name!r} is not at its place")
        return path

    def check_push(self, repo: Repo, peer: NodeKey) -> None:
        """Raises PolicyError or NotAuthorisedError when a key may not push to a repository."""
        if repo.is_external:
            raise PolicyError(
                f"this node only keeps a copy of {repo.name!r}; push to its creator {repo.creator.peer_id}"
            )
        if peer != repo.creator and peer not in self._repos.writers(repo.id):
            raise NotAuthorisedError(
                f"{peer} may not push to {repo.name!r}; its owner can: megalfs repo allow {repo.name} {peer}"
            )

    async def serve(self, repo: Repo, service: str, client: Pipe, *, peer: NodeKey) -> None:
        """Runs one service of git on a repository, its streams spliced to `client`."""
        words = {
            "git-upload-pack": ("upload-pack", "--strict", f"--timeout={IDLE_S_MAX}", "."),
            "git-receive-pack": ("receive-pack", "."),
            "git-upload-archive": ("upload-archive", "."),
        }[service]
        settings = SHARED_REFS
        more = {
            "GIT_PROTOCOL": "version=2"
        }  # git does not tell its helper; the client takes what comes first
        if service == "git-receive-pack":
            settings = (*SHARED_REFS, *self._push_settings(repo))
            more |= {"MEGALFS_PEER": str(peer), "MEGALFS_PUSH_LOG": str(self._log)}
            more |= {"MEGALFS_REPO": str(repo.id), "MEGALFS_SIGNERS": str(self._signers(repo))}
        process = await start_git(self.check_place(repo), *words, settings=settings, more=more)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said = asyncio.create_task(_drain(process.stderr))
        try:
            await splice(client, StreamPipe(process.stdout, process.stdin))
            code = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            process.stdin.close()
            complaint = await said
        if code and complaint:
            log.info("%s of %s for %s: %s", service, repo.name, peer, complaint)

    def _signers(self, repo: Repo) -> Path:
        return self._hooks / f"signers-{repo.id.digest.hex()}"

    def _push_settings(self, repo: Repo) -> list[Setting]:
        signers = self._signers(repo)
        keys = dict.fromkeys([repo.creator, *self._repos.writers(repo.id)])
        lines = [f'{key} namespaces="git" {ssh_public_key(key)}\n' for key in keys]
        write_atomic(signers, "".join(lines).encode())
        return [
            ("core.hooksPath", str(self._hooks)),
            ("receive.fsckObjects", "true"),
            ("receive.autogc", "false"),
            ("receive.maxInputSize", str(PUSH_BYTES_MAX)),
            ("receive.advertisePushOptions", "true"),
            ("receive.advertiseAtomic", "true"),
            ("receive.denyCurrentBranch", "refuse"),
            ("receive.certNonceSeed", self._nonce_seed),
            ("receive.certNonceSlop", str(NONCE_SLOP_S)),
            ("gpg.ssh.allowedSignersFile", str(signers)),
            ("gpg.format", "ssh"),
        ]


def ssh_public_key(key: NodeKey) -> str:
    """`ssh-ed25519 AAAA...`: the same 32 bytes as OpenSSH writes them (RFC 8709)."""
    kind = b"ssh-ed25519"
    blob = len(kind).to_bytes(4, "big") + kind + len(key.raw).to_bytes(4, "big") + key.raw
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


async def _drain(reader: asyncio.StreamReader) -> str:
    """What git complained about: its last line."""
    kept = b""
    while block := await reader.read(STDERR_BYTES_MAX):
        kept = (kept + block)[-STDERR_BYTES_MAX:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
