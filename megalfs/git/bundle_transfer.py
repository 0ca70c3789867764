"""Bundles and states over links: what a node asks another one for, and what it answers.

`bundle` is the protocol of core/bundle_protocol.py. `state` answers with the states of a repository after the
number that the subject names (`did:repo:z...#7`), the oldest first, so that whoever was away can check the chain.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.core.bundle_protocol import (
    CHUNK_BYTES,
    BundleReceiver,
    Chunk,
    Done,
    Request,
    Start,
    decode,
    encode,
)
from megalfs.core.identity import NodeKey
from megalfs.core.repo_state import STATE_BYTES_MAX, BundleRef, SignedState
from megalfs.core.repoid import RepoId
from megalfs.errors import (
    IntegrityError,
    MegalfsError,
    NotFoundError,
    PolicyError,
    RemoteProtocolError,
    TemporaryError,
    UsageError,
)
from megalfs.git.bundle_partial import BundlePartial
from megalfs.net.link import FRAME_BYTES_MAX, Stream

if TYPE_CHECKING:
    from megalfs.node.p2p import P2p
    from megalfs.store.blobs import Store
    from megalfs.store.repos import Repos

__all__ = ["BundleTransfer"]

STATES_MAX = 65  # of one answer: all that a node keeps
ANSWER_S_MAX = 30.0
_END = b"\n"


class BundleTransfer:
    """Both sides of both services."""

    def __init__(self, store: Store, repos: Repos, p2p: P2p) -> None:
        self._store = store
        self._repos = repos
        self._p2p = p2p
        p2p.register("state", self._answer_states)
        p2p.register("bundle", self._answer_bundle)

    # --- asking ----------------------------------------------------------------------------------------------

    async def ask_states(self, peer: NodeKey, repo: RepoId, after: int) -> list[SignedState]:
        """The states of a repository after a number that `peer` has, the oldest first.

        Raises:
            PolicyError: one of them is not what its creator signed.
            RemoteProtocolError: malformed.
            MegalfsError: the peer cannot be reached, or has none.
        """
        remote = await self._p2p.open(peer, "state", f"{repo}#{after}")
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                return await _read_states(remote.stream, repo)
        except TimeoutError as error:
            raise TemporaryError(f"{peer.peer_id} took too long") from error
        except UsageError as error:
            raise RemoteProtocolError(f"{peer.peer_id} sent no state: {error}") from error
        finally:
            await remote.stream.finish()
            await remote.close()

    async def fetch_bundle(self, peer: NodeKey, repo: RepoId, bundle: BundleRef, path: Path) -> None:
        """Writes a bundle to `path`, which appears when all of it is there and is what was asked for.

        What came before a break is kept, and the next call goes on from there, with whichever peer. It is nobody's
        fault when that makes no bundle: then the peer is asked for all of it.

        Raises:
            IntegrityError: the peer sent other bytes.
            MegalfsError: the peer cannot be reached, has none, or broke off.
        """
        partial = BundlePartial(path, repo)
        if not await self._continue(peer, repo, bundle, partial):
            await self._continue(peer, repo, bundle, partial)
        partial.finish()

    async def _continue(self, peer: NodeKey, repo: RepoId, bundle: BundleRef, partial: BundlePartial) -> bool:
        """Adds what is missing; False when that makes another bundle, and some of it was here before."""
        receiver, is_resumed = BundleReceiver(bundle.oid, bundle.size), False
        remote = await self._p2p.open(peer, "bundle", str(repo))
        try:
            with closing(await asyncio.to_thread(partial.open, receiver, bundle.size)):
                is_resumed = receiver.received > 0
                await remote.stream.send(encode(receiver.request))
                while not receiver.is_done:
                    async with asyncio.timeout(ANSWER_S_MAX):
                        frame = await remote.stream.receive()
                    if not frame:
                        raise TemporaryError(f"{peer.peer_id} broke off after {receiver.received} bytes")
                    partial.append(receiver.feed(decode(frame)))
            await remote.stream.finish()
        except IntegrityError:
            partial.discard()
            if not is_resumed:
                raise
            return False
        except TimeoutError as error:
            raise TemporaryError(f"{peer.peer_id} took too long") from error
        finally:
            await remote.close()
        return True

    # --- answering -------------------------------------------------------------------------------------------

    async def _answer_states(self, stream: Stream) -> None:
        try:
            repo, after = _subject(stream.subject)
            states = await asyncio.to_thread(self._states, repo, after)
        except MegalfsError as error:
            await stream.refuse(error)
            return
        await stream.accept()
        for signed in states:
            text = signed.encode()
            for start in range(0, len(text), FRAME_BYTES_MAX):
                await stream.send(text[start : start + FRAME_BYTES_MAX])
            await stream.send(_END)
        await stream.finish()

    def _states(self, repo: RepoId, after: int) -> list[SignedState]:
        newest = self._repos.states(repo)
        if not newest:
            raise NotFoundError(f"no state of {repo} here")
        top = min(each.state.seq for each in newest)
        before = [
            each
            for seq in range(max(after + 1, top - STATES_MAX + 3), top)
            for each in self._repos.state_at(repo, seq)
        ]
        return [*before, *newest][-STATES_MAX:]

    async def _answer_bundle(self, stream: Stream) -> None:
        try:
            repo = RepoId.parse(stream.subject)
            states = await asyncio.to_thread(self._repos.states, repo)
        except MegalfsError as error:
            await stream.refuse(error)
            return
        offered = {bundle.oid: bundle for each in states for bundle in each.state.bundles}
        await stream.accept()
        request = decode(await stream.receive())
        if not isinstance(request, Request) or request.oid not in offered:
            raise RemoteProtocolError("asks for what is no bundle of this repository")
        await self._send_bundle(stream, request, states[0].state.name)
        await stream.finish()

    async def _send_bundle(self, stream: Stream, request: Request, name: str) -> None:
        with self._store.open(request.oid) as blob:
            size = os.fstat(blob.fileno()).st_size
            await stream.send(encode(Start(size, f"{name}.bundle")))
            starts = range(request.first * CHUNK_BYTES, size, CHUNK_BYTES)
            for index, start in enumerate(starts, request.first):
                await stream.send(encode(Chunk(index, os.pread(blob.fileno(), CHUNK_BYTES, start))))
            blob.check()  # it still is the file that was hashed
        await stream.send(encode(Done(request.oid)))


async def _read_states(stream: Stream, repo: RepoId) -> list[SignedState]:
    states: list[SignedState] = []
    text = b""
    while frame := await stream.receive():
        if frame != _END:
            text += frame
        elif len(states) < STATES_MAX:
            states.append(SignedState.parse(text, repo=repo))
            text = b""
        else:
            raise RemoteProtocolError("too many states")
        if len(text) > STATE_BYTES_MAX:
            raise RemoteProtocolError("a state that is too long")
    if text or not states:
        raise PolicyError("an answer without a whole state")
    return states


def _subject(text: str) -> tuple[RepoId, int]:
    repo, _, after = text.partition("#")
    if not (after.isascii() and after.isdecimal() and len(after) < 19):
        raise UsageError(f"not a state to begin at: {after[:32]!r}")
    return RepoId.parse(repo), int(after)
