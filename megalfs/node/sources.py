"""Who may have a blob: peers named, told by trackers, or exchanged; and what each offers when asked.

Every peer is asked once over HTTP which manifests it has (`GET /v1/file/<oid>/manifests`). The answers are
counted by kind, because "nobody can be reached" (try again) and "everybody says no" (it does not exist) end
in different exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from enum import Enum

from msgspec import Struct, field

from megalfs.core.ids import ManifestId, Oid
from megalfs.core.manifest import MANIFEST_BYTES_MAX, Manifest
from megalfs.core.signing import ManifestSignature
from megalfs.errors import IntegrityError, MegalfsError, NotFoundError, RemoteProtocolError, TemporaryError
from megalfs.formats.hostport import HostPort
from megalfs.net.http import HttpClient, check_status
from megalfs.node.threads import in_daemon_thread

__all__ = ["Offer", "PeerAnswer", "Sources", "node_url"]

log = logging.getLogger(__name__)

# Peers asked at the same time, and in all for one blob: a tracker answers with 50, exchange brings more.
ASKED_AT_ONCE_MAX = 16
PEERS_MAX = 200
OFFERS_PER_PEER_MAX = 8
HEDGE_S = 2.0
RETRY_S_MIN = 1.0
RETRY_S_MAX = 30.0


class PeerAnswer(Enum):
    """What became of asking one peer."""

    ASKING = "asking"
    OFFERS = "offers"
    NOT_FOUND = "not found"
    UNREACHABLE = "unreachable"


class Offer(Struct, frozen=True):
    """One manifest at one peer; `size` and `is_complete` are only its word."""

    manifest_id: ManifestId
    peer: HostPort
    size: int
    signatures: tuple[ManifestSignature, ...]
    has_states: bool
    is_complete: bool


class _Peer(Struct):
    address: HostPort
    answer: PeerAnswer = PeerAnswer.ASKING
    offers: list[Offer] = field(default_factory=list)
    error: MegalfsError | None = None
    retry_s: float = RETRY_S_MIN


def node_url(peer: HostPort, path: str) -> str:
    """The URL of a route at a node."""
    return f"http://{peer}{path}"


class Sources:
    """The peers of one blob and their offers. `changed` is called on the loop whenever an answer came."""

    def __init__(self, oid: Oid, http: HttpClient, *, changed: Callable[[], None]) -> None:
        self.oid = oid
        self._http = http
        self._changed = changed
        self._peers: dict[HostPort, _Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(ASKED_AT_ONCE_MAX)
        self._is_closed = False

    def add(self, peers: Sequence[HostPort]) -> None:
        """Asks peers that were not known yet."""
        for address in peers:
            if address not in self._peers and len(self._peers) < PEERS_MAX and not self._is_closed:
                self._peers[address] = _Peer(address)
                self._start(self._peers[address], delay_s=0.0)

    @property
    def is_asking(self) -> bool:
        """Whether some first answer is still to come."""
        return any(peer.answer is PeerAnswer.ASKING for peer in self._peers.values())

    def offers(self) -> list[Offer]:
        """Everything offered by now."""
        return [offer for peer in self._peers.values() for offer in peer.offers]

    def peers(self) -> list[HostPort]:
        """Everybody known, whatever they answered."""
        return list(self._peers)

    def count(self, answer: PeerAnswer) -> int:
        """How many peers gave this answer."""
        return sum(peer.answer is answer for peer in self._peers.values())

    def answer(self, address: HostPort) -> PeerAnswer:
        """What became of asking this peer."""
        return self._peers[address].answer

    def signatures(self, manifest_id: ManifestId) -> set[ManifestSignature]:
        """Every signature that came with this manifest, unchecked."""
        return {
            signature
            for offer in self.offers()
            if offer.manifest_id == manifest_id
            for signature in offer.signatures
        }

    def last_error(self) -> MegalfsError | None:
        """Why the last unreachable peer was not reached."""
        errors = [peer.error for peer in self._peers.values() if peer.error is not None]
        return errors[-1] if errors else None

    def _start(self, peer: _Peer, *, delay_s: float) -> None:
        task = asyncio.create_task(self._ask(peer, delay_s=delay_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, peer: _Peer, *, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with self._slots:
            try:
                peer.offers = await in_daemon_thread(ask_offers, self._http, peer.address, self.oid)
                peer.answer, peer.error = PeerAnswer.OFFERS, None
            except NotFoundError as error:
                peer.answer, peer.error = PeerAnswer.NOT_FOUND, error
            except MegalfsError as error:
                log.info("peer %s: %s", peer.address, error)
                peer.answer, peer.error = PeerAnswer.UNREACHABLE, error
        if self._is_closed:
            return
        self._changed()
        if peer.answer is not PeerAnswer.OFFERS:
            # Peers come up, and learn of blobs, while a pull waits for them.
            self._start(peer, delay_s=peer.retry_s)
            peer.retry_s = min(2 * peer.retry_s, RETRY_S_MAX)

    async def fetch_manifest(self, manifest_id: ManifestId, *, size_max: int | None) -> Manifest:
        """Fetches one manifest from whoever offers it, and checks that it is the one.

        Raises:
            IntegrityError: what came under its id was something else, from everybody.
            TemporaryError: nobody answered.
        """
        last: MegalfsError = TemporaryError(f"nobody offers manifest {manifest_id}")
        peers = [offer.peer for offer in self.offers() if offer.manifest_id == manifest_id]
        asked: set[asyncio.Task[Manifest]] = set()
        try:
            while peers or asked:
                if peers:
                    call = in_daemon_thread(
                        fetch_manifest, self._http, peers.pop(0), self.oid, manifest_id, size_max=size_max
                    )
                    asked.add(asyncio.create_task(call))
                # The next peer is asked as well when this one takes its time.
                done, asked = await asyncio.wait(
                    asked, timeout=HEDGE_S if peers else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    try:
                        return task.result()
                    except MegalfsError as error:
                        log.warning("manifest %s: %s", manifest_id, error)
                        last = error
        finally:
            for task in asked:
                task.cancel()
        raise last

    async def close(self) -> None:
        """Stops asking."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task


def fetch_origin_manifest(http: HttpClient, url: str, oid: Oid) -> Manifest | None:
    """The manifest of a blob at an origin that is a node (its URL ends in `/v1/file/<oid>`). Blocks.

    So a node behind TLS is a full source: its manifest from here, its pieces as from any web seed.
    """
    if not url.endswith(f"/v1/file/{oid}"):
        return None
    try:
        reply = http.get(
            f"{url}/chunks",
            bytes_max=MANIFEST_BYTES_MAX,
            headers={"Accept": "application/vnd.megalfs.manifest"},
        )
        check_status(reply.status, url)
        return Manifest.decode(reply.body, oid=oid)
    except MegalfsError as error:
        log.info("no manifest at %s: %s", url, error)
        return None


def ask_offers(http: HttpClient, peer: HostPort, oid: Oid) -> list[Offer]:
    """Asks one peer which manifests of a blob it has. Blocks.

    Raises:
        NotFoundError: it does not have the blob.
        TemporaryError, RemoteProtocolError: it did not answer, or with nonsense.
    """
    url = node_url(peer, f"/v1/file/{oid}/manifests")
    reply = http.get(url)
    check_status(reply.status, url)
    body = reply.json()
    if not isinstance(body, dict) or not isinstance(body.get("manifests"), list):
        raise RemoteProtocolError(f"{peer} answers with something that is no list of manifests")
    return [_offer(peer, entry) for entry in body["manifests"][:OFFERS_PER_PEER_MAX]]


def _offer(peer: HostPort, entry: object) -> Offer:
    match entry:
        case {
            "manifest": str(manifest),
            "size": int(size),
            "signatures": list(signatures),
            "has_states": bool(has_states),
            "is_complete": bool(is_complete),
        } if size >= 0:
            parsed = tuple(ManifestSignature.parse(text) for text in signatures[:8] if isinstance(text, str))
            return Offer(ManifestId.parse(manifest), peer, size, parsed, has_states, is_complete)
    raise RemoteProtocolError(f"{peer} offers something that is no manifest")


def fetch_manifest(
    http: HttpClient, peer: HostPort, oid: Oid, manifest_id: ManifestId, *, size_max: int | None
) -> Manifest:
    """Fetches and checks one manifest from one peer. Blocks."""
    url = node_url(peer, f"/v1/file/{oid}/chunks?manifest={manifest_id}")
    reply = http.get(
        url, bytes_max=MANIFEST_BYTES_MAX, headers={"Accept": "application/vnd.megalfs.manifest"}
    )
    check_status(reply.status, url)
    manifest = Manifest.decode(reply.body, oid=oid)
    if manifest.id != manifest_id:
        raise IntegrityError(f"{peer} sent another manifest than {manifest_id}")
    if size_max is not None and manifest.size != size_max:
        raise IntegrityError(f"a manifest of {manifest.size} bytes where {size_max} are expected")
    return manifest
