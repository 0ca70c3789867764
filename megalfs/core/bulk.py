"""Many small blobs in one exchange: what is asked and answered, and which peer is asked for which.

    request   oid, oid, ...                32 bytes each
    answer    size, bytes, size, bytes ... in the order asked; u32 big-endian, NOT_HERE for what is not here

An answer may end early, when it has grown to `ANSWER_BYTES_MAX`: what is behind its end was not answered.
`BulkPlan` is what a puller asks of whom. A peer that pulls the same files has some of them by now and more of
them later, so it is asked for a few at a time and rests after it had none, while the others go on; who does
not have a blob is not asked for it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from megalfs.core.ids import DIGEST_BYTES, Oid
from megalfs.errors import RemoteProtocolError, UsageError

__all__ = [
    "ANSWER_BYTES_MAX",
    "BULK_BYTES_MAX",
    "NOT_HERE",
    "OIDS_MAX",
    "SIZE_BYTES",
    "BulkPlan",
    "decode_oids",
    "encode_oids",
    "encode_size",
    "read_size",
]

# A larger blob has several chunks, and gains more from a swarm than it loses by being asked for alone.
BULK_BYTES_MAX = 1 << 20
OIDS_MAX = 256
ANSWER_BYTES_MAX = 4 << 20  # one more blob of BULK_BYTES_MAX may lie behind it
SIZE_BYTES = 4
NOT_HERE = (1 << 32) - 1

Peer = TypeVar("Peer", bound=Hashable)


def encode_oids(oids: Sequence[Oid]) -> bytes:
    """The body of a request."""
    assert len(oids) <= OIDS_MAX
    return b"".join(oid.raw for oid in oids)


def decode_oids(body: bytes) -> list[Oid]:
    """Reads `encode_oids`; raises UsageError."""
    if not body or len(body) % DIGEST_BYTES or len(body) > OIDS_MAX * DIGEST_BYTES:
        raise UsageError(f"a request of {len(body)} bytes: not 1 to {OIDS_MAX} oids")
    return [Oid(body[start : start + DIGEST_BYTES]) for start in range(0, len(body), DIGEST_BYTES)]


def encode_size(size: int | None) -> bytes:
    """What stands before the bytes of a blob; None: it is not here."""
    return (NOT_HERE if size is None else size).to_bytes(SIZE_BYTES, "big")


def read_size(field_bytes: bytes) -> int | None:
    """Reads `encode_size`.

    Raises:
        RemoteProtocolError: a blob that is too large to be sent so.
    """
    size = int.from_bytes(field_bytes, "big")
    if size == NOT_HERE:
        return None
    if size > BULK_BYTES_MAX:
        raise RemoteProtocolError(f"a blob of {size} bytes among small ones")
    return size


class BulkPlan(Generic[Peer]):
    """Which blobs are still to be had, and who may have them. `sizes` are in bytes."""

    def __init__(self, sizes: Mapping[Oid, int], peers: Iterable[Peer]) -> None:
        self.sizes = sizes
        self.peers = set(peers)
        self.leftover: list[Oid] = []  # nobody has these
        self._waiting: deque[Oid] = deque()
        self._refused: dict[Oid, set[Peer]] = {}
        self._asked: set[Oid] = set()
        self._put_back(sizes)

    @property
    def is_done(self) -> bool:
        """Whether everything came, or cannot come."""
        return not self._waiting and not self._asked

    def take(self, peer: Peer) -> list[Oid]:
        """What to ask this peer for next; nothing when it is gone or lacks all that is waiting."""
        taken: list[Oid] = []
        passed: list[Oid] = []
        size = 0
        while peer in self.peers and self._waiting and len(taken) < OIDS_MAX and size < ANSWER_BYTES_MAX:
            oid = self._waiting.popleft()
            if peer in self._refused.get(oid, ()):
                passed.append(oid)
            else:
                taken.append(oid)
                size += self.sizes[oid]
        self._waiting.extendleft(reversed(passed))
        self._asked.update(taken)
        return taken

    def came(self, oid: Oid) -> None:
        """A blob that was asked for is here, and right."""
        self._asked.discard(oid)

    def refused(self, peer: Peer, oid: Oid) -> None:
        """The peer does not have it, or not as it should be."""
        self._refused.setdefault(oid, set()).add(peer)
        self.unanswered([oid])

    def unanswered(self, oids: Iterable[Oid]) -> None:
        """What was asked for and not answered waits again; it comes last, where others may be quicker."""
        back = [oid for oid in oids if oid in self._asked]
        self._asked.difference_update(back)
        self._put_back(back)

    def gone(self, peer: Peer) -> None:
        """The peer is not asked any more."""
        self.peers.discard(peer)
        waiting, self._waiting = self._waiting, deque()
        self._put_back(waiting)

    def _put_back(self, oids: Iterable[Oid]) -> None:
        for oid in oids:
            is_hopeless = self.peers <= self._refused.get(oid, set())
            (self.leftover if is_hopeless else self._waiting).append(oid)
