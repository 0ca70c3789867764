"""Proves a file's SHA-256 while it arrives, in a thread beside the lanes.

With chaining states any segment can be checked as soon as its bytes are there, two at a time on one core,
last ones first (`core/proof.py` keeps the books). Without states the file is hashed in order, as far as it
is there. What is read back comes from the page cache: a moment ago a lane wrote it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable

import megalfs_ext
from megalfs.core.manifest import SEGMENT_BYTES, Manifest
from megalfs.core.proof import Proof, Segment, SerialProof, open_proof
from megalfs.errors import StoreError

__all__ = ["Prover"]

# Segments checked in one call: two lanes need two, and four halve the wake-ups.
BATCH_SEGMENTS = 4


class Prover:
    """One proof and its thread. `settled` is called from the thread: proven, or condemned, or it failed."""

    def __init__(self, manifest: Manifest, fileno: Callable[[], int], settled: Callable[[], None]) -> None:
        self.proof: Proof | SerialProof = open_proof(manifest)
        self.error: StoreError | None = None
        self._manifest = manifest
        self._fileno = fileno
        self._settled = settled
        self._news: list[tuple[int, int]] = []
        self._wake = threading.Condition()
        self._is_stopped = False
        self._serial = hashlib.sha256()
        self._buffer = memoryview(bytearray(BATCH_SEGMENTS * SEGMENT_BYTES))
        self._thread = threading.Thread(target=self._run, name="megalfs-prover", daemon=True)

    def start(self) -> None:
        """Starts proving."""
        self._thread.start()

    def on_disk(self, first: int, count: int) -> None:
        """Pieces are verified and can be read back. From any thread."""
        with self._wake:
            self._news.append((first, count))
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
            while not (self.proof.is_proven or self.proof.is_condemned):
                segments = self.proof.take(BATCH_SEGMENTS)
                if segments:
                    self._check(segments)
                elif isinstance(self.proof, SerialProof) and self.proof.is_all_taken:
                    self.proof.finish(self._serial.digest())
                elif not self._hear():
                    return
        except OSError as error:
            self.error = StoreError(f"cannot read back what was written: {error.strerror or error}")
        except StoreError as error:
            self.error = error
        self._settled()

    def _hear(self) -> bool:
        """Waits for news; False when the pull has ended."""
        with self._wake:
            self._wake.wait_for(lambda: bool(self._news) or self._is_stopped)
            if self._is_stopped:
                return False
            news, self._news = self._news, []
        for first, count in news:
            self.proof.on_disk(first, count)
        return True

    def _check(self, segments: tuple[Segment, ...]) -> None:
        low = min(segments, key=lambda segment: segment.k)
        size = sum(segment.length for segment in segments)
        view = self._buffer[:size]
        if os.preadv(self._fileno(), [view], low.offset) != size:
            raise StoreError("the partial is shorter than what was written")
        if isinstance(self.proof, SerialProof):
            self._serial.update(view)
        else:
            self._check_links(self.proof, segments, view)

    def _check_links(self, proof: Proof, segments: tuple[Segment, ...], view: memoryview) -> None:
        ascending = segments[::-1]
        states = proof.states_of(segments)
        is_last = ascending[-1].k == len(self._manifest.states)
        whole = len(ascending) - is_last
        bad: set[int] = set()
        if whole:
            bad.update(megalfs_ext.verify_segments(view[: whole * SEGMENT_BYTES], states[: 32 * (whole + 1)]))
        if is_last:
            tail = view[whole * SEGMENT_BYTES :]
            digest = megalfs_ext.finish_segment(
                states[32 * whole : 32 * whole + 32], tail, self._manifest.size
            )
            if digest != self._manifest.oid.raw:
                bad.add(whole)
        for index, segment in reversed(list(enumerate(ascending))):
            proof.settle(segment, holds=index not in bad)
