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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
from megalfs.net.limiter import RateLimiter
from megalfs.net.webseed import Origin, blocks
from megalfs.store.partial import Partial

__all__ = ["PlainPull", "PlainSource", "worst"]

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
TRIES_MAX = 5
RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class PlainSource:
    """One URL that may have the whole blob."""

    name: str
    url: str
    is_origin: bool
    headers: Mapping[str, str] = field(default_factory=dict)
    may_redirect: bool = True


@dataclass(slots=True)
class PlainPull:
    """Tries sources in order into one partial. Counters may be read while it runs."""

    oid: Oid
    size: int | None
    partial: Partial
    proxies: Mapping[str, str]
    limiter: RateLimiter
    arrived: Callable[[PlainSource, int], None]
    stop: threading.Event = field(default_factory=threading.Event)
    rejected: dict[str, int] = field(default_factory=dict)
    verified: int = 0

    async def run(self, sources: Sequence[PlainSource]) -> None:
        """Returns when the partial holds the blob, proven.

        Raises:
            MegalfsError: no source had it; the one that says most to the user.
        """
        errors: list[MegalfsError] = []
        for source in sources:
            try:
                await asyncio.to_thread(self._pull, source)
            except IntegrityError as error:
                self.rejected[source.name] = self.rejected.get(source.name, 0) + 1
                log.warning("%s", error)
                errors.append(error)
            except (
                TemporaryError,
                NotFoundError,
                OriginRefusedError,
                NotAuthorisedError,
                RemoteProtocolError,
            ) as error:
                log.info("%s", error)
                errors.append(error)
            else:
                return
        raise worst(errors)

    def _pull(self, source: PlainSource) -> None:
        """One source, in a thread; a connection that breaks is taken up again where it broke."""
        hasher, offset = self.partial.rehash_prefix()
        self.verified = offset
        tries = 0
        while True:
            if offset and offset == self.size and hasher.digest() == self.oid.raw:
                return
            origin = Origin(
                source.url,
                proxies=self.proxies if source.is_origin else {},
                headers=source.headers,
                may_redirect=source.may_redirect,
            )
            before = offset
            try:
                hasher, offset = self._stream(origin, source, hasher, offset)
                break
            except TemporaryError:
                offset = self.verified
                tries = 0 if offset > before else tries + 1
                if tries >= TRIES_MAX or self.stop.wait(RETRY_S * tries):
                    raise
            finally:
                origin.close()
        if hasher.digest() != self.oid.raw:
            self._start_over()
            raise IntegrityError(f"{source.name} has other bytes than {self.oid}")

    def _stream(
        self, origin: Origin, source: PlainSource, hasher: hashlib._Hash, offset: int
    ) -> tuple[hashlib._Hash, int]:
        response, start = origin.fetch_from(offset)
        if start != offset:  # the server ignores Range: from the beginning
            hasher, offset = hashlib.sha256(), 0
            self._start_over()
        for block in blocks(response, source.url, BLOCK_BYTES):
            if self.stop.is_set():
                raise TemporaryError("stopped")
            self.limiter.wait(len(block), self.stop)
            if self.size is not None and offset + len(block) > self.size:
                self._start_over()
                raise IntegrityError(f"{source.name} sends more than {self.size} bytes for {self.oid}")
            self.partial.write(offset, block)
            hasher.update(block)
            offset += len(block)
            self.verified = offset
            self.arrived(source, len(block))
        length = response.headers.get("Content-Length")
        if self.size is not None and offset < self.size:
            raise TemporaryError(f"{source.name} ended after {offset} of {self.size} bytes")
        if length is not None and length.isdigit() and offset - start < int(length):
            raise TemporaryError(f"{source.name} ended early")
        return hasher, offset

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
