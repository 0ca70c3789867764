"""Many small files of one command at once: peers are asked for hundreds of blobs in a request, files written in groups.

A thread for each connection asks, checks every SHA-256 and hands the bytes over; one thread writes what has
come meanwhile as one group (store/write_group.py). What nobody had is left to the ordinary way, file by file,
which knows how to wait, to go on and to explain.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.bulk import BULK_BYTES_MAX, BulkPlan
from megalfs.core.ids import Oid
from megalfs.errors import IntegrityError, MegalfsError, SpaceError, TemporaryError
from megalfs.formats.hostport import HostPort
from megalfs.net.bulk import BULK_PATH, BulkConnection
from megalfs.node.sources import node_url
from megalfs.store.write_group import NewFile, write_group

if TYPE_CHECKING:
    from megalfs.node.node import Node

__all__ = ["BULK_BYTES_MAX", "BulkPull", "BulkTarget"]

log = logging.getLogger(__name__)

# Two connections hide the time in which a peer reads what was asked; more peers share the work.
CONNECTIONS_MIN = 2
CONNECTIONS_MAX = 8
# Of blobs that wait to be written. The group being written is as large at most.
READY_BYTES_MAX = 16 << 20
# A group is written when it is worth a wait for the disk, or when nothing came for so long.
GROUP_FILES_MIN = 512
GROUP_BYTES_MIN = 8 << 20
GATHER_S = 0.3
# How long a peer rests that had nothing of what it was asked for, or did not answer.
REST_S_MIN = 0.25
REST_S_MAX = 2.0


class BulkTarget(Struct, frozen=True):
    """One place where a blob goes; `done` is told the peer it came from, "" where another place has it already,
    or why it is not there.
    """

    path: Path
    is_executable: bool
    may_replace: Callable[[], bool]
    done: Callable[[str | MegalfsError], None]


class BulkPull:
    """Pulls `wanted` (each blob with its places) from `peers`."""

    def __init__(
        self,
        node: Node,
        peers: Sequence[HostPort],
        sizes: Mapping[Oid, int],
        wanted: Mapping[Oid, Sequence[BulkTarget]],
        wait_s: float,
    ) -> None:
        """
        Args:
            sizes: in bytes, of each blob.
            wait_s: for a peer that does not answer.
        """
        self.node = node
        self.peers = peers
        self.sizes = sizes
        self.wanted = wanted
        self.wait_s = wait_s
        self.rejected: dict[str, int] = {}
        self._plan = BulkPlan(sizes, peers[:CONNECTIONS_MAX])
        self._changed = threading.Condition()
        self._ready: list[tuple[Oid, bytes, HostPort]] = []
        self._ready_bytes = 0
        self._stop = threading.Event()
        self._connections: list[BulkConnection] = []
        self._full: SpaceError | None = None
        self._lost: dict[HostPort, TemporaryError] = {}

    @property
    def desertion(self) -> TemporaryError | None:
        """Why no peer answers any more, when none does."""
        if len(self._lost) < min(len(self.peers), CONNECTIONS_MAX):
            return None
        error = next(iter(self._lost.values()))
        return TemporaryError(f"no peer for {len(self._plan.leftover)} small files: {error}")

    async def run(self) -> list[Oid]:
        """Returns the blobs that nobody had. When cancelled, ends its threads first."""
        work = asyncio.ensure_future(asyncio.to_thread(self._run))
        try:
            await asyncio.shield(work)
        finally:
            if not work.done():
                self._end()
                await asyncio.gather(work, return_exceptions=True)
        return self._plan.leftover

    def _end(self) -> None:
        self._stop.set()
        for connection in self._connections:
            connection.cut()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        """Writes groups until all who ask have ended, in one thread."""
        each = max(1, CONNECTIONS_MIN // max(1, len(self._plan.peers)))
        askers = []
        for peer in list(self._plan.peers) * each:
            connection = self._connect(peer)
            self._connections.append(connection)
            askers.append(
                threading.Thread(
                    target=self._ask_all, args=(peer, connection), name="megalfs-bulk", daemon=True
                )
            )
        for asker in askers:
            asker.start()
        try:
            while group := self._next_group(askers):
                self._write(group)
        finally:
            self._end()
            for asker in askers:
                asker.join()
        if self._full is not None:
            self._fail_rest(self._full)

    def _connect(self, peer: HostPort) -> BulkConnection:
        http = self.node.peer_http
        headers = {} if str(peer) in http.strangers else http.own_headers()
        return BulkConnection(node_url(peer, BULK_PATH), headers, self.node.limits.all_down)

    # --- asking --------------------------------------------------------------------------------------------

    def _ask_all(self, peer: HostPort, connection: BulkConnection) -> None:
        rest_s, patient_until_s = REST_S_MIN, time.monotonic() + self.wait_s
        try:
            while oids := self._take(peer):
                try:
                    count = self._ask(peer, connection, oids)
                except TemporaryError as error:
                    log.info("%s: %s", peer, error)
                    if time.monotonic() > patient_until_s:
                        self._lost[peer] = error
                        return
                    count = 0
                if count:
                    rest_s, patient_until_s = REST_S_MIN, time.monotonic() + self.wait_s
                else:
                    self._rest(rest_s)
                    rest_s = min(2 * rest_s, REST_S_MAX)
        except IntegrityError as error:
            log.warning("%s", error)
            self.rejected[str(peer)] = self.rejected.get(str(peer), 0) + 1
        except MegalfsError as error:  # an older node, or one that refuses us
            log.info("%s: %s", peer, error)
        finally:
            connection.close()
            with self._changed:
                self._plan.gone(peer)
                self._changed.notify_all()

    def _take(self, peer: HostPort) -> list[Oid]:
        """What to ask next; nothing when all is done, or this peer is not needed any more."""
        with self._changed:
            while not self._stop.is_set() and not self._plan.is_done and peer in self._plan.peers:
                if oids := self._plan.take(peer):
                    return oids
                self._changed.wait()
        return []

    def _ask(self, peer: HostPort, connection: BulkConnection, oids: list[Oid]) -> int:
        """One exchange; returns how many blobs came."""
        count = 0
        try:
            for oid, content in connection.ask(oids):
                count += content is not None
                self._take_in(peer, oid, content)
        finally:
            with self._changed:
                self._plan.unanswered(oids)
                self._changed.notify_all()
        return count

    def _take_in(self, peer: HostPort, oid: Oid, content: bytes | None) -> None:
        with self._changed:
            # A blob of another size than we were told is the ordinary way's to explain.
            if content is None or len(content) != self.sizes[oid]:
                self._plan.refused(peer, oid)
                return
            self._changed.wait_for(lambda: self._ready_bytes < READY_BYTES_MAX or self._stop.is_set())
            self._plan.came(oid)
            self._ready.append((oid, content, peer))
            self._ready_bytes += len(content)
            if self._is_worth_writing():
                self._changed.notify_all()

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stop.is_set() or self._plan.is_done, seconds)

    # --- writing -------------------------------------------------------------------------------------------

    def _is_worth_writing(self) -> bool:
        return len(self._ready) >= GROUP_FILES_MIN or self._ready_bytes >= GROUP_BYTES_MIN

    def _next_group(self, askers: Sequence[threading.Thread]) -> list[tuple[Oid, bytes, HostPort]]:
        """What came; waits until it is worth a write, and returns nothing when no more will come."""
        with self._changed:
            while not self._is_worth_writing() and not self._stop.is_set():
                is_over = self._plan.is_done or not any(asker.is_alive() for asker in askers)
                if is_over or (not self._changed.wait(GATHER_S) and self._ready):
                    break
            group, self._ready, self._ready_bytes = self._ready, [], 0
            self._changed.notify_all()
        return [] if self._stop.is_set() else group

    def _write(self, group: Sequence[tuple[Oid, bytes, HostPort]]) -> None:
        files, targets = [], {}
        for oid, content, peer in group:
            for index, target in enumerate(self.wanted[oid]):
                try:
                    may_replace = target.may_replace()
                except MegalfsError as error:
                    target.done(error)
                    continue
                files.append(NewFile(target.path, oid, content, target.is_executable, may_replace))
                targets[target.path] = (target, "" if index else str(peer))
            self.node.totals.bytes_received += len(content)
        errors = write_group(self.node.store, files, durable=self.node.settings.durable)
        for path, (target, name) in targets.items():
            why = errors.get(path)
            target.done(name if why is None else why)
            if isinstance(why, SpaceError):
                self._full = why
                self._stop.set()

    def _fail_rest(self, error: SpaceError) -> None:
        """The disk is full: nobody else need be asked."""
        for targets in self.wanted.values():
            for target in targets:
                target.done(error)
        self._plan.leftover.clear()
