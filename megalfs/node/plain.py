"""Without a manifest: the blob as one stream from one HTTP source after another, its SHA-256 as the only proof.

For small blobs (one chunk, no manifest worth asking for), for an origin that nobody has chunked yet, and as
the last resort when every manifest offered was refuted: the bytes may be right where the manifest lied. A
broken connection is resumed with Range; wrong bytes cost the source, and the next one starts afresh.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from megalfs.core.ids import Oid
from megalfs.errors import (
    IntegrityError,
    MegalfsError,
    NotAuthorisedError,
    NotFoundError,
    OriginRefusedError,
    RemoteProtocolError,
    TemporaryError,
)
from megalfs.net.limiter import Limiter
from megalfs.net.webseed import Origin, blocks
from megalfs.store.partial import Partial

__all__ = ["PlainPull", "PlainSource", "worst"]

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
ROUNDS_MAX = 5
RETRY_S = 0.5
# A source that sends less than this in such a time is left for the next one; a byte a second never times out.
PACE_S = 5.0
PACE_BYTES_MIN = 4 << 10


class SizeError(IntegrityError):
    """The blob has another size than who asks for it says."""


class OtherSizeError(IntegrityError):
    """A source says that it has another size: no byte of it was taken, and the pointer may be what is wrong."""


class TooSlowError(TemporaryError):
    """It sends, but would take forever."""


class PlainSource(Struct, frozen=True):
    """One URL that may have the whole blob."""

    name: str
    url: str
    is_origin: bool
    headers: Mapping[str, str] = field(default_factory=dict)
    may_redirect: bool = True


class PlainPull(Struct):
    """Tries sources in order into one partial. Counters may be read while it runs."""

    oid: Oid
    size: int | None
    partial: Partial
    proxies: Mapping[str, str]
    limiter: Limiter
    arrived: Callable[[PlainSource, int], None]
    stop: threading.Event = field(default_factory=threading.Event)
    rejected: dict[str, int] = field(default_factory=dict)
    verified: int = 0
    _origin: Origin | None = None

    async def run(self, sources: Sequence[PlainSource]) -> None:
        """Returns when the partial holds the blob, proven.

        Raises:
            MegalfsError: no source had it; the one that says most to the user.
        """
        errors: dict[str, MegalfsError] = {}
        hopeful = list(sources)
        for round_number in range(ROUNDS_MAX):
            if round_number and hopeful:
                await asyncio.sleep(RETRY_S * round_number)
            for source in list(hopeful):
                try:
                    await self._in_thread(source)
                except SizeError:
                    raise
                except IntegrityError as error:
                    if not isinstance(error, OtherSizeError):
                        self.rejected[source.name] = self.rejected.get(source.name, 0) + 1
                    log.warning("%s", error)
                    errors[source.url] = error
                    hopeful.remove(source)
                except (NotFoundError, OriginRefusedError, NotAuthorisedError, RemoteProtocolError) as error:
                    log.info("%s", error)
                    errors[source.url] = error
                    hopeful.remove(source)
                except TemporaryError as error:  # the others first, then once more
                    log.info("%s", error)
                    errors[source.url] = error
                else:
                    return
        raise worst(list(errors.values()))

    async def _in_thread(self, source: PlainSource) -> None:
        """Pulls from one source; when cancelled, ends the thread first: the file it writes is about to be closed."""
        work = asyncio.ensure_future(asyncio.to_thread(self._pull, source))
        try:
            await asyncio.shield(work)
        finally:
            if not work.done():
                self.stop.set()
                if self._origin is not None:
                    self._origin.cut()
                await asyncio.gather(work, return_exceptions=True)

    def _pull(self, source: PlainSource) -> None:
        """One source, in a thread; a connection that breaks is taken up again where it broke."""
        is_fresh = False
        while True:
            hasher, offset = self._kept()
            if offset and hasher.digest() == self.oid.raw:
                return self._check_size(offset)
            is_fresh = is_fresh or offset == 0
            self._origin = Origin(
                source.url,
                proxies=self.proxies if source.is_origin else {},
                headers=source.headers,
                may_redirect=source.may_redirect,
            )
            try:
                hasher = self._stream(self._origin, source, hasher, offset)
            except TooSlowError:
                raise
            except TemporaryError:
                if self.verified <= offset or self.stop.is_set():
                    raise
                continue
            finally:
                self._origin.close()
            if hasher.digest() == self.oid.raw:
                return self._check_size(self.verified)
            self._start_over()
            if is_fresh:
                raise IntegrityError(f"{source.name} has other bytes than {self.oid}")
            # The bytes kept from before may be the wrong ones: this source once more, without them.
            is_fresh = True

    def _check_size(self, size: int) -> None:
        """Nobody who sends the blob is to blame for a pointer that contradicts itself."""
        if self.size not in {None, size}:
            raise SizeError(f"{self.oid} has {size} bytes, not the {self.size} that are asked for")

    def _kept(self) -> tuple[hashlib._Hash, int]:
        """The hash and length of what an earlier source or run left; nothing when that cannot be a beginning."""
        hasher, offset = self.partial.rehash_prefix(self._go_on)
        if self.size is not None and offset >= self.size and hasher.digest() != self.oid.raw:
            self._start_over()
            hasher, offset = hashlib.sha256(), 0
        self.verified = offset
        return hasher, offset

    def _stream(
        self, origin: Origin, source: PlainSource, hasher: hashlib._Hash, offset: int
    ) -> hashlib._Hash:
        response, start = origin.fetch_from(offset)
        if self.size is not None and response.length not in {None, self.size - start}:
            raise OtherSizeError(f"{source.name} has {start + (response.length or 0)} bytes, not {self.size}")
        if start != offset:  # the server ignores Range: from the beginning
            hasher, offset = hashlib.sha256(), 0
            self._start_over()
        pace_at, paced = time.monotonic(), offset
        for block in blocks(response, source.name, BLOCK_BYTES):
            self._go_on()
            self.limiter.wait(len(block), self.stop)
            if self.size is not None and offset + len(block) > self.size:
                self._start_over()
                raise IntegrityError(f"{source.name} sends more than {self.size} bytes for {self.oid}")
            self.partial.write(offset, block)
            hasher.update(block)
            offset += len(block)
            self.verified = offset
            self.arrived(source, len(block))
            if (now := time.monotonic()) - pace_at > PACE_S:
                if offset - paced < PACE_BYTES_MIN:
                    raise TooSlowError(f"{source.name} sends too slowly")
                pace_at, paced = now, offset
        if self.size is not None and offset < self.size:
            raise TemporaryError(f"{source.name} ended after {offset} of {self.size} bytes")
        return hasher

    def _go_on(self, _: int = 0) -> None:
        if self.stop.is_set():
            raise TemporaryError("stopped")

    def _start_over(self) -> None:
        os.ftruncate(self.partial.fd, 0)
        self.verified = 0


def worst(errors: Sequence[MegalfsError]) -> MegalfsError:
    """Of several sources' errors the one that tells the user most: wrong bytes, refusal, trouble, absence."""
    for kind in (IntegrityError, NotAuthorisedError, OriginRefusedError, TemporaryError, RemoteProtocolError):
        for error in errors:
            if isinstance(error, kind):
                return error
    return errors[-1] if errors else TemporaryError("no source")
