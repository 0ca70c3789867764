"""One manifest of a blob, tried: its swarm, the partial it fills, what this disk already has, and the proof.

An attempt ends in one of four ways: the file is whole and proven, the manifest is refuted, nobody offers what
is missing, or this machine fails. Only the first touches the target. The partial outlives an attempt, so the
next manifest keeps every piece that both name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.manifest import Manifest
from megalfs.core.messages import PeerAddress
from megalfs.core.params import SwarmParams
from megalfs.core.topology import Tier
from megalfs.errors import BusyError, MegalfsError
from megalfs.formats.hostport import HostPort
from megalfs.node.candidates import Candidate
from megalfs.node.driver import SwarmDriver
from megalfs.node.prover import Prover
from megalfs.node.serving import PartialSource
from megalfs.store.partial import Partial
from megalfs.store.reuse import ReusePlan, copy, plan

if TYPE_CHECKING:
    from megalfs.node.node import Node

__all__ = ["Attempt", "Outcome"]

log = logging.getLogger(__name__)

# A kill loses what came since the last flush: at most 2 % of what a steady pull has, and 0.2 s of it.
FLUSH_INTERVAL_S_MIN = 0.02
FLUSH_INTERVAL_S_MAX = 0.2
FLUSH_SHARE = 0.02
# How long peers have to say what they hold before an origin is asked.
ORIGIN_PATIENCE_S = 1.0
LET_DIAL_S = 1.0
EXCHANGED_MAX = 200
RECONNECT_S_MIN = 0.5
RECONNECT_S_MAX = 30.0


class Outcome(Enum):
    """How an attempt ended."""

    PROVEN = "proven"
    REFUTED = "refuted"
    STARVED = "starved"


class _Dial(Struct):
    """Our efforts to keep one peer in the swarm."""

    task: asyncio.Task[None] | None = None
    pause_s: float = RECONNECT_S_MIN
    not_before: float = 0.0


class _PartialSink:
    """What lanes see of the partial; a write error ends the attempt, not the lane's peer.

    One lane writes at a time: the kernel lets no two write one file either, and has the second spin meanwhile.
    After `close` nothing is written any more: the descriptor may belong to another file by then.
    """

    def __init__(self, manifest: Manifest, partial: Partial, failed: Callable[[MegalfsError], None]) -> None:
        assert partial.proofs is not None
        self.manifest = manifest
        self.proofs = partial.proofs
        self._partial = partial
        self._failed = failed
        self._writing = threading.Lock()
        self._is_closed = False
        self._error: MegalfsError | None = None

    def write(self, offset: int, buffer: memoryview) -> None:
        """Writes verified bytes; drops them when the pull has ended."""
        with self._writing:
            if self._error is not None:
                raise self._error
            if self._is_closed:
                return
            try:
                self._partial.write(offset, buffer)
            except MegalfsError as error:
                self._error, self._is_closed = error, True
                self._failed(error)
                raise

    def is_closed(self) -> bool:
        """Whether the pull has ended."""
        return self._is_closed

    def close(self) -> None:
        """Waits for a write that has begun, which is at most a granule."""
        self._is_closed = True
        with self._writing:
            pass


class Attempt:
    """Runs on the event loop; `changed` is called whenever `outcome` may have another answer."""

    def __init__(
        self,
        node: Node,
        candidate: Candidate,
        manifest: Manifest,
        partial: Partial,
        *,
        is_shared: bool,
        callers: Collection[bytes] = (),
        changed: Callable[[], None],
    ) -> None:
        """
        Args:
            callers: instance ids of nodes that have the blob and dial us: we join the sessions that they opened.
        """
        self.candidate = candidate
        self.manifest = manifest
        self.partial = partial
        self.error: MegalfsError | None = None
        self._node = node
        self._callers = callers
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._local: threading.Thread | None = None
        self._sink = _PartialSink(manifest, partial, self._failed)
        self.source = PartialSource(partial.fd)
        self.exchanged: list[HostPort] = []  # peers of this swarm that others told us of
        self._dials: dict[HostPort, _Dial] = {}
        self._origins: set[str] = set()
        self._flusher: asyncio.Task[None] | None = None
        self._started_at = self._progress_at = self._loop.time()
        is_trusted = candidate.trusted_by is not None and node.settings.proof == "auto"
        self.prover = None if is_trusted else Prover(manifest, self.source.fileno, self._settled)
        self.driver = SwarmDriver(
            node.hub,
            manifest,
            have=Bitfield(manifest.parts.count),
            source=self.source,
            labels=node.labels,
            params=SwarmParams(
                from_end=candidate.trusted_by is None,
                upload_slots=node.settings.upload_slots if is_shared else 0,
            ),
            rng=node.make_rng(),
            sink=self._sink,
            arrival=self,
            withdrawn=node.withdrawn,
            exchanges=node.settings.discover,
        )

    async def start(self, extra_paths: Sequence[Path]) -> None:
        """Looks what this disk has, reserves it, and takes part in the swarm."""
        if self.prover is not None:
            self.prover.start()
        kept, claimed, begun = self.partial.have.runs(), self.partial.candidates.runs(), self.partial.begun()
        wanted = Bitfield.full(self.manifest.piece_count)
        for first, count in (*kept, *claimed):
            wanted.remove(first, count)
        for run in begun:
            for stretch in self.manifest.parts.within_chunks(*run):
                wanted.remove(stretch.chunk, 1)
        reuse = await asyncio.to_thread(
            plan,
            self.manifest,
            self._node.store,
            extra_paths,
            wanted=wanted,
            should_stop=self._stop.is_set,
        )
        of_chunks = self.manifest.parts.of_chunks
        for run in begun:
            self.driver.swarm.reserve(*run)
        for run in (*claimed, *reuse.pieces.runs()):
            self.driver.swarm.reserve(*of_chunks(*run))
        for run in kept:
            self.driver.found(*of_chunks(*run))
        if begun or claimed or reuse.pieces.count:
            self._local = threading.Thread(
                target=self._bring_local, args=(begun, reuse), name="megalfs-local", daemon=True
            )
            self._local.start()
        self._flusher = asyncio.create_task(self._flush())
        self._node.add_pull(self.driver, self.source)
        if self.manifest.piece_count == 0 and self.prover is None:
            self._changed()

    def _bring_local(self, begun: list[Run], reuse: ReusePlan) -> None:
        """In a thread: first what an earlier run left in the partial, then chunks of other files."""
        of_chunks = self.manifest.parts.of_chunks

        def tell(is_good: bool, run: Run) -> None:
            self._post(self.driver.found if is_good else self.driver.not_found, *run)

        try:
            for run, is_good in self.partial.recheck(should_stop=self._stop.is_set):
                tell(is_good, of_chunks(*run))
            for run, is_good in self.partial.recheck_parts(begun):
                tell(is_good, run)
            copy(
                reuse,
                self.partial,
                on_verified=lambda first, count: tell(True, of_chunks(first, count)),
                on_failed=lambda first, count: tell(False, of_chunks(first, count)),
                should_stop=self._stop.is_set,
            )
        except MegalfsError as error:
            if not self._stop.is_set():
                self._failed(error)

    # --- what others report ------------------------------------------------------------------------------

    def stored(self, first: int, count: int) -> None:
        """Pieces are verified and in the partial; the prover hears of the chunks that they made whole."""
        parts, have = self.manifest.parts, self.driver.swarm.have
        for stretch in parts.stretches(first, count):
            if stretch.chunks:
                self._stored_chunks(stretch.chunk, stretch.chunks)
            elif have.has_all(*parts.of_chunks(stretch.chunk, 1)):
                self._stored_chunks(stretch.chunk, 1)
            else:
                self.partial.mark_parts(stretch)
        self._progress_at = self._loop.time()

    def _stored_chunks(self, first: int, count: int) -> None:
        self.partial.mark(first, count)
        if self.prover is not None:
            self.prover.on_disk(first, count, is_last=self.partial.is_complete)

    def completed(self) -> None:
        """Every piece is in the partial."""
        self._changed()

    def source_lost(self) -> None:
        """A source went away."""
        self._changed()

    def _settled(self) -> None:
        self._post(self._changed)

    def _failed(self, error: MegalfsError) -> None:
        self._post(self._fail, error)

    def _fail(self, error: MegalfsError) -> None:
        self.error = self.error or error
        self._changed()

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    async def _flush(self) -> None:
        started_at = self._loop.time()
        while True:
            pause_s = FLUSH_SHARE * (self._loop.time() - started_at)
            await asyncio.sleep(min(max(pause_s, FLUSH_INTERVAL_S_MIN), FLUSH_INTERVAL_S_MAX))
            self._node.hub.catch_up()
            try:
                await asyncio.to_thread(self.partial.flush)
            except BusyError as error:
                self._fail(error)
                return

    # --- sources -------------------------------------------------------------------------------------------

    def recruit(self, peers: Sequence[HostPort], *, origins: Mapping[str, Mapping[str, str]]) -> None:
        """Brings every peer that offers this manifest into the swarm, and back when it was lost; adds origins.

        Args:
            origins: the headers that go with each URL.
        """
        for session in list(self._node.hub.sessions.values()):
            if session.hello.instance in self._callers:
                self.driver.join(session)
        now = self._loop.time()
        for address in (*peers, *self.exchanged):
            dial = self._dials.setdefault(address, _Dial())
            if dial.task is None and now >= dial.not_before:
                dial.task = asyncio.create_task(self._join(address, dial))
        if not self.driver.swarm.is_complete:
            self.driver.expect(sum(dial.task is not None for dial in self._dials.values()))
        if peers and not self._has_heard_peers(now):
            return
        for url, headers in origins.items():
            if url not in self._origins:
                self._origins.add(url)
                self.driver.add_origin(
                    url,
                    proxies=self._node.proxies,
                    limiter=self._node.limits.down(Tier.ORIGIN),
                    headers=headers,
                )

    def told(self, peers: Sequence[PeerAddress]) -> None:
        """Peer exchange named others of this swarm: of each two, the one with the lower instance id dials.

        The other one dials too when that has brought no session within a second: the first may not have heard.
        """
        now = self._loop.time()
        for peer in peers:
            address = HostPort(peer.host, peer.port)
            if address not in self._dials and len(self.exchanged) < EXCHANGED_MAX:
                is_ours = self._node.hub.instance < peer.instance
                self._dials[address] = _Dial(not_before=now if is_ours else now + LET_DIAL_S)
                self.exchanged.append(address)
        self._changed()

    def _has_heard_peers(self, now: float) -> bool:
        """Whether origins may come in: they are asked for what no peer has, so peers speak first."""
        if now - self._started_at > ORIGIN_PATIENCE_S:
            return True
        return all(dial.task is None for dial in self._dials.values())

    async def _join(self, address: HostPort, dial: _Dial) -> None:
        """Keeps one peer: dials, joins, and waits until it takes part no longer before it tries again."""
        try:
            session = await self._node.hub.connect(address.host, address.port)
            joined_at = self._loop.time()
            await self.driver.join(session).wait()
            if self._loop.time() - joined_at > dial.pause_s:  # else it was no better than nobody
                dial.pause_s = RECONNECT_S_MIN
        except MegalfsError as error:
            log.info("peer %s: %s", address, error)
        finally:
            dial.task = None
            dial.not_before = self._loop.time() + dial.pause_s
            dial.pause_s = min(2 * dial.pause_s, RECONNECT_S_MAX)
            self._changed()

    @property
    def is_dialling(self) -> bool:
        """Whether some peer is still being reached."""
        return any(dial.task is not None for dial in self._dials.values()) and not self.driver.source_count

    @property
    def is_local_busy(self) -> bool:
        """Whether this disk is still being read for pieces."""
        return self._local is not None and self._local.is_alive()

    @property
    def idle_s(self) -> float:
        """How long no piece has come from anywhere."""
        return self._loop.time() - self._progress_at

    # --- the end -----------------------------------------------------------------------------------------------

    def outcome(self, *, switch_after_s: float) -> Outcome | None:
        """How the attempt has ended, or None while it goes on.

        Raises:
            MegalfsError: this machine failed (disk full, an I/O error).
        """
        if self.error is not None:
            raise self.error
        if self.prover is not None:
            if self.prover.error is not None:
                raise self.prover.error
            if self.prover.proof.is_condemned:
                return Outcome.REFUTED
        if self.driver.swarm.is_complete:
            return Outcome.PROVEN if self.prover is None or self.prover.proof.is_proven else None
        if not self.is_local_busy and self.idle_s > switch_after_s:
            return Outcome.STARVED
        return None

    async def stop_writing(self) -> None:
        """No more writes to file or sidecar: the partial is about to be renamed."""
        self._sink.close()
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)

    async def close(self) -> None:
        """Leaves the swarm and stops every thread; the partial stays as it is."""
        self._stop.set()
        self._sink.close()
        tasks = [dial.task for dial in self._dials.values() if dial.task is not None]
        if self._flusher is not None:
            tasks.append(self._flusher)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._local is not None:
            await asyncio.to_thread(self._local.join)
        if self.prover is not None:
            await asyncio.to_thread(self.prover.close)
