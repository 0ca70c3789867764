"""Proves a file's SHA-256 while it arrives, in a thread beside the lanes.

With chaining states any segment can be checked as soon as its bytes are there, many at once on one core, last
ones first (`core/proof.py` keeps the books). Without states the file is hashed in order, as far as it is
there. What is read back comes from the page cache: a moment ago a lane wrote it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable

import numpy as np

import megalfs_ext
from megalfs.core.manifest import SEGMENT_BYTES, Manifest
from megalfs.core.proof import Proof, Segment, SerialProof, open_proof
from megalfs.errors import StoreError

__all__ = ["Prover"]

# Segments checked in one call: sixteen lanes of AVX-512 want sixteen, two lanes of SHA-NI fewer wake-ups.
BATCH_SEGMENTS = 16
# How long pieces may wait for a batch to fill: at 100 MB/s that is what one takes, and on a slow link the thread
# wakes five times a second instead of once a piece, which was an eighth of the CPU of a node at 50 Mbit/s.
GATHER_S = 0.2


class Prover:
    """One proof and its thread. `settled` is called from the thread: proven, or condemned, or it failed."""

    def __init__(self, manifest: Manifest, fileno: Callable[[], int], settled: Callable[[], None]) -> None:
        self.proof: Proof | SerialProof = open_proof(manifest)
        self.error: StoreError | None = None
        self._manifest = manifest
        self._fileno = fileno
        self._settled = settled
        self._news: list[tuple[int, int]] = []
        self._news_pieces = 0
        mean_bytes = manifest.size / max(1, manifest.piece_count)
        self._batch_pieces = BATCH_SEGMENTS * SEGMENT_BYTES / max(1.0, mean_bytes)
        self._is_urgent = False  # a batch has come, or the last piece
        self._wake = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="megalfs-prover", daemon=True)

    def start(self) -> None:
        """Starts proving."""
        self._thread.start()

    def on_disk(self, first: int, count: int, *, is_last: bool) -> None:
        """Pieces are verified and can be read back. From any thread.

        Args:
            is_last: nothing is missing now.
        """
        with self._wake:
            self._news.append((first, count))
            self._news_pieces += count
            self._is_urgent = self._is_urgent or is_last or self._news_pieces >= self._batch_pieces
            if self._is_urgent or len(self._news) == 1:
                self._wake.notify()

    def close(self) -> None:
        """Stops the thread and waits for it: it reads from a descriptor that is about to be closed."""
        with self._wake:
            self._is_stopped = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            if isinstance(self.proof, SerialProof):
                is_settled = self._hash_all(self.proof)
            else:
                is_settled = self._check_all(self.proof)
            if not is_settled:
                return
        except OSError as error:
            self.error = StoreError(f"cannot read back what was written: {error.strerror or error}")
        self._settled()

    def _gather(self) -> bool:
        """Until there is a batch, or something to check after GATHER_S; False when the pull has ended."""
        while self._hear():
            if self.proof.ready_count or self.proof.is_all_on_disk:
                return True
        return False

    def _hear(self) -> bool:
        """Takes up the news, and waits for them where there is no batch without; False when the pull has ended."""
        ready_count = self.proof.ready_count
        with self._wake:
            if ready_count < BATCH_SEGMENTS and not self.proof.is_all_on_disk:
                if not ready_count:
                    self._wake.wait_for(lambda: bool(self._news) or self._is_stopped)
                self._wake.wait_for(lambda: self._is_urgent or self._is_stopped, GATHER_S)
            if self._is_stopped:
                return False
            news, self._news = self._news, []
            self._news_pieces, self._is_urgent = 0, False
        if news:
            self.proof.on_disk(news)
        return True

    def _hash_all(self, proof: SerialProof) -> bool:
        """One SHA-256 in order; False when the pull has ended before."""
        hasher = hashlib.sha256()
        buffer = bytearray(min(SEGMENT_BYTES, self._manifest.size))
        while not proof.is_all_taken:
            if not self._gather():
                return False
            for segment in proof.take(BATCH_SEGMENTS):
                view = memoryview(buffer)[: segment.length]
                if os.preadv(self._fileno(), [view], segment.offset) != segment.length:
                    raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
                hasher.update(view)
        proof.finish(hasher.digest())
        return True

    def _check_all(self, proof: Proof) -> bool:
        """Every link, in whatever order its bytes come; False when the pull has ended before."""
        while not (proof.is_proven or proof.is_condemned):
            if not self._gather():
                return False
            self._check_batch(proof)
        return True

    def _check_batch(self, proof: Proof) -> None:
        """Checks what is ready, up to a batch, wherever in the file it lies, in one call."""
        batch: list[Segment] = []
        before, after = bytearray(), bytearray()
        while group := proof.take(BATCH_SEGMENTS - len(batch)):
            states = proof.states_of(group)
            if group[0].k == len(self._manifest.states):
                states += self._manifest.oid.raw  # behind the last segment
            batch += reversed(group)
            before += states[:-32]
            after += states[32:]
        offsets = np.array([segment.offset for segment in batch], np.uint64)
        bad = megalfs_ext.verify_file_links(self._fileno(), self._manifest.size, offsets, before, after)
        for index, segment in enumerate(batch):
            proof.settle(segment, holds=index not in bad)
