"""Requests waiting here and runs being sent: a few slots, one run per peer and lane, first come first served.

Peers take turns in the order in which they came; a slot that crawls stops counting, so that one dead or
slow peer does not cost the others a slot.
"""

from __future__ import annotations

from collections import deque

from megalfs.core.bitfield import Run
from megalfs.core.effects import PeerId
from megalfs.core.params import SwarmParams

__all__ = ["Upload", "Uploads"]

MEAN_WEIGHT = 0.1  # of the newest send time in the running mean


class Upload:
    """A run being sent."""

    def __init__(self, peer: PeerId, run: Run, started_at: float) -> None:
        self.peer = peer
        self.run = run
        self.started_at = started_at


class Uploads:
    """The queue and the slots of one swarm on this node."""

    def __init__(self, params: SwarmParams) -> None:
        self._params = params
        self._waiting: dict[PeerId, deque[Run]] = {}  # in the order of turns
        self._active: list[Upload] = []
        self._mean_s: float | None = None

    @property
    def active_count(self) -> int:
        """Runs being sent, slow ones included."""
        return len(self._active)

    @property
    def mean_s(self) -> float:
        """How long sending a run took lately; 0.0 before the first."""
        return self._mean_s or 0.0

    def request(self, peer: PeerId, run: Run) -> bool:
        """Queues a request; False when this peer has too many already."""
        queue = self._waiting.setdefault(peer, deque())
        if len(queue) >= self._params.requests_per_peer_max:
            return False
        queue.append(run)
        return True

    def cancel(self, peer: PeerId, run: Run) -> list[Run]:
        """What of the run is still queued for the peer is not sent, and is returned."""
        queue = self._waiting.get(peer)
        gone = [part for queued in queue or () if (part := queued.overlap(run)) is not None]
        if queue is None or not gone:
            return []
        left = deque([part for queued in queue for part in queued.minus(run)])
        if left:
            self._waiting[peer] = left
        else:
            del self._waiting[peer]
        return gone

    def forget(self, peer: PeerId) -> None:
        """The peer is gone, with its requests and its slots."""
        self._waiting.pop(peer, None)
        self._active = [upload for upload in self._active if upload.peer != peer]

    def active_for(self, peer: PeerId) -> int:
        """Runs being sent to this peer."""
        return sum(upload.peer == peer for upload in self._active)

    def receivers(self) -> list[PeerId]:
        """Whom runs are being sent to, each as often as it has some."""
        return [upload.peer for upload in self._active]

    def has_room(self, now: float) -> bool:
        """Whether another run may be sent."""
        slow_s = self._slow_s()
        counted = sum(upload.started_at + slow_s > now for upload in self._active)
        return counted < self._params.upload_slots

    def next(self, *, per_peer: int) -> tuple[PeerId, Run] | None:
        """Takes the request whose turn it is, of a peer with fewer than `per_peer` runs on the way."""
        for peer, queue in self._waiting.items():
            if self.active_for(peer) < per_peer:
                run = queue.popleft()
                del self._waiting[peer]
                if queue:
                    self._waiting[peer] = queue  # behind the others
                return peer, run
        return None

    def start(self, peer: PeerId, run: Run, *, now: float) -> None:
        """A run is being sent from now on."""
        self._active.append(Upload(peer, run, now))

    def end(self, peer: PeerId, run: Run, *, now: float, ok: bool) -> bool:
        """Sending has ended; False when no such run was being sent."""
        for upload in self._active:
            if upload.peer == peer and upload.run == run:
                self._active.remove(upload)
                if ok:
                    self._learn(now - upload.started_at)
                return True
        return False

    def withdraw(self, run: Run) -> list[tuple[PeerId, Run]]:
        """Takes the queued requests that touch a run we no longer hold."""
        refused = []
        for peer, queue in list(self._waiting.items()):
            for queued in list(queue):
                if queued.overlap(run):
                    queue.remove(queued)
                    refused.append((peer, queued))
            if not queue:
                del self._waiting[peer]
        return refused

    def next_slow_at(self, now: float) -> float | None:
        """When the next slot stops counting."""
        slow_s = self._slow_s()
        times = [upload.started_at + slow_s for upload in self._active]
        return min([time for time in times if time > now], default=None)

    def _slow_s(self) -> float:
        return max(self._params.slow_slot_s_min, self._params.slow_slot_factor * self.mean_s)

    def _learn(self, sent_s: float) -> None:
        mean = sent_s if self._mean_s is None else self._mean_s
        self._mean_s = mean + MEAN_WEIGHT * (sent_s - mean)
