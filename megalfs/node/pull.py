"""One pull: from an oid to a proven file at its target, whatever the sources turn out to be worth.

    ask peers what they offer -> rank the manifests -> attempt the best -> refuted or starved: the next one
    -> none left: the blob as a plain stream -> rename, record, seed on

The loop is level-triggered: whatever happens wakes it, it looks at the whole state and decides what is next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from megalfs.core.ids import ManifestId
from megalfs.core.manifest import Manifest
from megalfs.core.topology import Tier
from megalfs.errors import IntegrityError, MegalfsError, NotFoundError, PolicyError, TemporaryError
from megalfs.net.http import HttpClient, shown_url
from megalfs.net.webseed import origin_url
from megalfs.node.attempt import Attempt, Outcome
from megalfs.node.candidates import Candidate, rank
from megalfs.node.decide import find_liars
from megalfs.node.plain import PlainPull, PlainSource
from megalfs.node.pull_request import PullCounts, PullRequest
from megalfs.node.sources import PeerAnswer, Sources, fetch_origin_manifest, node_url
from megalfs.node.threads import StopSignal
from megalfs.store.blobs import Place
from megalfs.store.identity import Identity
from megalfs.store.ingest import publish
from megalfs.store.partial import Partial
from megalfs.store.verify import identity_holding

if TYPE_CHECKING:
    from megalfs.core.signing import ManifestSignature
    from megalfs.node.node import Node

__all__ = ["Pull", "PullCounts", "PullRequest"]

log = logging.getLogger(__name__)

# A blob of at most one minimal chunk: the manifest would say no more than the oid does (DESIGN.md 4.1).
SMALL_BYTES = 64 * 1024
TICK_S = 1.0
# How long other offers may still come in once there is one that nothing speaks against.
GATHER_S = 0.5
TRACKER_INTERVAL_S = 5.0
LAN_S = 3.0
DRY_S = 1.0
# Sources are connected, nothing comes, and there is nothing to switch to: given up after this many times the
# patience that a switch takes (60 s by default).
STALL_SWITCHES_MAX = 2


class Pull:
    """Runs one request on a node."""

    def __init__(self, node: Node, request: PullRequest) -> None:
        self.request = request
        self._node = node
        self._base = PullCounts(bytes_total=request.size)
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._sources = Sources(request.oid, node.peer_http, changed=self._wake.set)
        self._attempt: Attempt | None = None
        self._partial: Partial | None = None
        self._plain: PlainPull | None = None
        self._refuted: set[ManifestId] = set()
        self._starved: set[ManifestId] = set()
        self._compared: set[ManifestId] = set()
        self._manifests = {manifest.id: manifest for manifest in request.located.manifests}
        self._callers: set[bytes] = set()
        self._handed: set[ManifestSignature] = set()
        self._has_asked_origins = False
        self._tracker_task: asyncio.Task[None] | None = None
        self._stop = StopSignal()
        self._started_at = self._loop.time()
        self._origins: dict[str, Mapping[str, str]] = {
            origin_url(each, oid=request.oid, name=request.name): {} for each in request.origins
        } | dict(request.located.origins)

    # --- what others see ---------------------------------------------------------------------------------

    def counts(self) -> PullCounts:
        """How far the pull is."""
        base, attempt = self._base, self._attempt
        counts = replace(
            base, by_peer=dict(base.by_peer), rejected=dict(base.rejected), notes=list(base.notes)
        )
        if attempt is not None:
            totals, swarm = attempt.driver.totals, attempt.driver.swarm
            counts.bytes_total = attempt.manifest.size
            counts.bytes_verified = attempt.manifest.size - swarm.missing_bytes
            counts.bytes_reused += totals.bytes_local
            counts.bytes_origin += totals.bytes_origin
            _add(counts.by_peer, totals.by_peer)
            _add(counts.rejected, totals.rejected)
            counts.peer_count = attempt.driver.source_count
            counts.phase = "proving" if swarm.is_complete else "fetching"
        elif self._plain is not None:
            counts.bytes_verified = self._plain.verified
            _add(counts.rejected, self._plain.rejected)
        return counts

    def offer(self, manifest: Manifest, signatures: Iterable[ManifestSignature], *, caller: bytes) -> None:
        """A node handed this manifest over; `caller` is its instance id: it serves over the session it dialled."""
        self._manifests.setdefault(manifest.id, manifest)
        self._handed.update(signatures)
        self._callers.add(caller)
        self._wake.set()

    # --- running -------------------------------------------------------------------------------------------

    async def run(self) -> Path:
        """Returns the target once it holds the blob.

        Raises:
            MegalfsError: `exit_code` says what kind of failure; nothing is visible at the target.
        """
        is_small = self.request.size is not None and self.request.size <= SMALL_BYTES
        self._sources.add(self.request.peers)
        if not is_small:  # whom only a repository named is asked first, as a stranger
            strangers = self._node.peer_http.strangers
            self._node.hub.expect([peer for peer in self.request.peers if str(peer) not in strangers])
        if self.request.uses_lan:
            self._node.neighbours.listen(self._sources.add)
        if self.request.trackers:
            self._tracker_task = asyncio.create_task(self._ask_trackers())
        try:
            if is_small and self._plain_sources():
                await self._stream_whole()
            else:
                await self._run_attempts()
            return self.request.target
        finally:
            await self._close()

    async def _run_attempts(self) -> None:
        while (candidate := await self._next_candidate()) is not None:
            try:
                manifest = await self._manifest(candidate)
            except MegalfsError as error:
                log.warning("manifest %s: %s", candidate.manifest_id, error)
                self._refuted.add(candidate.manifest_id)
                continue
            outcome = await self._attempt_manifest(candidate, manifest)
            if outcome is Outcome.PROVEN:
                return
            if outcome is Outcome.REFUTED:
                self._note(f"manifest {candidate.manifest_id} is false and was dropped")
                self._refuted.add(candidate.manifest_id)
                await asyncio.to_thread(self._node.store.refute, candidate.manifest_id, self.request.oid)
            else:
                self._starved.add(candidate.manifest_id)
        await self._stream_whole()

    async def _attempt_manifest(self, candidate: Candidate, manifest: Manifest) -> Outcome:
        partial = await asyncio.to_thread(self._partial_for, manifest)
        attempt = Attempt(
            self._node,
            candidate,
            manifest,
            partial,
            is_shared=self.request.is_shared,
            callers=self._callers,
            changed=self._wake.set,
        )
        self._attempt = attempt
        self._node.peer_listeners[manifest.id] = attempt.told
        outcome = None
        try:
            await attempt.start([self.request.target])
            outcome = await self._drive(attempt)
            if outcome is Outcome.PROVEN:
                await self._commit(attempt)
            return outcome
        finally:
            self._base = self.counts()
            self._attempt = None
            self._node.peer_listeners.pop(manifest.id, None)
            if outcome is not Outcome.PROVEN:
                self._sources.add(attempt.exchanged)
            await attempt.close()
            if outcome is not Outcome.PROVEN or not self.request.keeps_seeding:
                self._node.remove_swarm(manifest.id)
                attempt.driver.close()

    async def _drive(self, attempt: Attempt) -> Outcome:
        """Until the attempt has ended, or something better is to be had."""
        while True:
            outcome = attempt.outcome(switch_after_s=self._node.settings.manifest_switch_s)
            if outcome in {Outcome.PROVEN, Outcome.REFUTED}:
                assert outcome is not None
                return outcome
            ranked = self._ranked()
            mine = next(
                (each for each in ranked if each.manifest_id == attempt.manifest.id), attempt.candidate
            )
            attempt.recruit(mine.peers, origins=self._origins)
            if attempt.idle_s > DRY_S:  # whoever takes part in this swarm may know other manifests
                self._sources.add(attempt.exchanged)
            others = [each for each in ranked if each.manifest_id != attempt.manifest.id]
            is_dry = not (attempt.driver.source_count or attempt.is_dialling or attempt.is_local_busy)
            if others and (outcome is Outcome.STARVED or (is_dry and attempt.idle_s > DRY_S)):
                return Outcome.STARVED
            if is_dry and not self._sources.is_asking and attempt.idle_s > self._patience_s(attempt):
                return Outcome.STARVED
            if (
                attempt.idle_s > STALL_SWITCHES_MAX * self._node.settings.manifest_switch_s
                and not attempt.is_local_busy
                and not attempt.driver.swarm.is_complete
            ):
                return Outcome.STARVED
            await self._sleep(TICK_S)

    def _patience_s(self, attempt: Attempt) -> float:
        # A peer that lied and one that is banned will not come back: waiting is for peers that may.
        return DRY_S if attempt.driver.totals.rejected else max(DRY_S, self.request.wait_peers_s)

    # --- manifests -------------------------------------------------------------------------------------------

    def _ranked(self) -> list[Candidate]:
        """The manifests worth trying, best first; those that starved come last."""
        ranked = rank(
            self._sources.offers(),
            refuted=self._refuted,
            named=self.request.manifest,
            trusted_keys=self.request.keys,
            size=self.request.size,
        )
        return [each for each in ranked if each.manifest_id not in self._starved]

    async def _next_candidate(self) -> Candidate | None:
        """The best manifest once it is clear which; None when there is none to be had."""
        deadline = self._loop.time() + self.request.wait_peers_s
        gathered_at: float | None = None
        while True:
            ranked = self._ranked()
            now = self._loop.time()
            if ranked and ranked[0].trusted_by is not None:
                return ranked[0]
            gathered_at = gathered_at or (now if ranked else None)
            is_gathered = gathered_at is not None and now - gathered_at >= GATHER_S
            if ranked and (is_gathered or not self._sources.is_asking):
                if await self._drop_liars(ranked):
                    continue
                return ranked[0]
            if not ranked:
                if (local := await asyncio.to_thread(self._local_candidate)) is not None:
                    return local
                is_hopeless = not self._sources.is_asking and (
                    self._refuted or self._starved or self._origins
                )
                if is_hopeless or now >= deadline or self._is_nobody_left():
                    return None
            await self._sleep(min(TICK_S, GATHER_S))

    def _is_nobody_left(self) -> bool:
        """Every peer answered, and every answer was no; waiting is for those that do not answer yet."""
        is_certain = self._sources.count(PeerAnswer.NOT_FOUND) == len(self._sources.peers()) > 0
        # The first neighbour to answer is not the last: a LAN has some seconds.
        is_early = self.request.uses_lan and self._loop.time() - self._started_at < LAN_S
        return is_certain and not is_early and not self.request.trackers and not self._sources.is_asking

    def _local_candidate(self) -> Candidate | None:
        """A manifest that this root knows, a caller handed over or an origin has, when no peer offers one."""
        if not self._origins and not self._callers:
            return None
        if not self._has_asked_origins:
            self._has_asked_origins = True
            client = HttpClient(proxies=self._node.proxies)
            for url in self._origins:
                if (found := fetch_origin_manifest(client, url, self.request.oid)) is not None:
                    self._manifests[found.id] = found
        for manifest_id, manifest in self._manifests.items():
            if manifest_id not in self._refuted | self._starved:
                return Candidate(manifest_id, (), manifest.size, None, manifest.has_states)
        for manifest_id in self._node.store.manifests(self.request.oid):
            if manifest_id not in self._refuted | self._starved:
                with contextlib.suppress(NotFoundError):
                    manifest = self._node.store.load_manifest(manifest_id, self.request.oid)
                    self._manifests[manifest_id] = manifest
                    return Candidate(manifest_id, (), manifest.size, None, manifest.has_states)
        return None

    async def _manifest(self, candidate: Candidate) -> Manifest:
        known = self._manifests.get(candidate.manifest_id)
        if known is None:
            known = await self._sources.fetch_manifest(candidate.manifest_id, size_max=self.request.size)
            self._manifests[candidate.manifest_id] = known
        return known

    async def _drop_liars(self, ranked: Sequence[Candidate]) -> bool:
        """Compares the manifests that nobody trusted signed, once each; True when some were found false."""
        fresh = [each for each in ranked if each.manifest_id not in self._compared]
        if len(ranked) < 2 or not fresh:
            return False
        self._compared.update(each.manifest_id for each in ranked)
        liars = await find_liars(ranked, self._manifest, self._node.peer_http)
        for manifest_id in liars:
            self._note(f"manifest {manifest_id} is false and was dropped")
            self._refuted.add(manifest_id)
            await asyncio.to_thread(self._node.store.refute, manifest_id, self.request.oid)
        return bool(liars)

    # --- ends --------------------------------------------------------------------------------------------------

    def _partial_for(self, manifest: Manifest | None) -> Partial:
        """The partial of this pull, under this manifest; made, resumed, or carried over from the last attempt."""
        if self._partial is not None and manifest is not None:
            self._partial.rebase(manifest)
        elif self._partial is not None:
            self._partial.discard()
            self._partial = None
        if self._partial is None:
            request = self.request
            self._partial = Partial.create_or_resume(
                request.target, manifest, root=self._node.store.root, oid=request.oid, size=request.size
            )
        return self._partial

    async def _commit(self, attempt: Attempt) -> None:
        request, store = self.request, self._node.store
        partial, manifest = attempt.partial, attempt.manifest
        signatures = [
            signature
            for signature in self._sources.signatures(manifest.id) | self._handed
            if signature.is_genuine(manifest.id)
        ]

        def finish() -> None:
            identity = self._give_name(partial)
            own = Identity.of_fd(attempt.source.fileno())
            attempt.source.settle(identity if own.ino == identity.ino else own)
            store.adopt(request.target, manifest, identity=identity, signatures=signatures)

        await attempt.stop_writing()
        await asyncio.to_thread(finish)
        self._partial = None
        self._node.keep_seeding(manifest.id)
        self._node.announcer.wake()

    async def _stream_whole(self) -> None:
        """The last resort, and the first for small blobs."""
        sources = self._plain_sources()
        if not sources:
            raise self._nobody()
        partial = await asyncio.to_thread(self._partial_for, None)
        self._base.phase = "fetching"

        def arrived(source: PlainSource, size: int) -> None:
            self._base.by_peer[source.name] = self._base.by_peer.get(source.name, 0) + size
            if source.is_origin:
                self._base.bytes_origin += size

        self._plain = PlainPull(
            self.request.oid,
            self.request.size,
            partial,
            self._node.proxies,
            self._node.limits.down(Tier.ORIGIN),
            arrived,
        )
        try:
            await self._plain.run(sources)
        except MegalfsError as error:
            raise self._explained(error) from error
        finally:
            self._base = self.counts()
            self._plain.stop.set()
            self._plain = None
        await asyncio.to_thread(self._commit_plain, partial)

    def _commit_plain(self, partial: Partial) -> None:
        request = self.request
        identity = self._give_name(partial)
        self._partial = None
        if request.keeps_seeding:
            publish(self._node.store, request.target, progress=self._stop.go_on)
            if request.is_linked:
                self._node.store.record(Place(request.target, identity), request.oid, None)

    def _give_name(self, partial: Partial) -> Identity:
        """Renames the proven file to its target; the very same file there, of another pull, is as good."""
        request = self.request
        try:
            identity = partial.commit(
                replace=request.may_replace(),
                executable=request.is_executable,
                durable=self._node.settings.durable and request.syncs,
            )
        except PolicyError:
            found = identity_holding(request.target, request.oid, progress=self._stop.go_on)
            if found is None:
                raise
            partial.discard()
            identity = found
        return identity.linked() if request.is_linked else identity

    def _plain_sources(self) -> list[PlainSource]:
        origins = [
            PlainSource(shown_url(url), url, is_origin=True, headers=headers)
            for url, headers in self._origins.items()
        ]
        path, headers = f"/v1/file/{self.request.oid}", self._node.peer_headers()
        strangers = self._node.peer_http.strangers
        peers = [
            PlainSource(
                str(peer),
                node_url(peer, path),
                is_origin=False,
                headers={} if str(peer) in strangers else headers,
                may_redirect=str(peer) not in strangers,
            )
            for peer in self._sources.peers()
            if self._sources.answer(peer) in {PeerAnswer.ASKING, PeerAnswer.OFFERS}
        ]
        return origins + peers

    def _nobody(self) -> MegalfsError:
        """Why there is no source at all."""
        sources = self._sources
        name, oid = self.request.name, str(self.request.oid)
        shown = oid if name == oid else f"{name} ({oid[:12]}...)"
        if self._base.rejected or self._refuted:
            return self._explained(IntegrityError(f"no source has the right bytes of {shown}"))
        asked = len(sources.peers())
        if asked and sources.count(PeerAnswer.NOT_FOUND) == asked:
            return NotFoundError(f"{shown} is at none of the peers asked ({asked})")
        last = sources.last_error()
        why = f": {last}" if last is not None else ""
        hint = None if asked else "name one with --peer HOST:PORT, --tracker URL or --origin URL"
        return TemporaryError(f"no peer for {shown}{why}", hint=hint)

    def _explained(self, error: MegalfsError) -> MegalfsError:
        """Wrong bytes seen anywhere outrank a source that merely went away."""
        rejected = self.counts().rejected
        if (rejected or self._refuted) and not isinstance(error, IntegrityError):
            error = IntegrityError(f"no source has the right bytes of {self.request.name}: {error}")
        if rejected:
            who = ", ".join(f"{name} ({count})" for name, count in sorted(rejected.items()))
            error = IntegrityError(f"{error}; wrong bytes came from {who}")
        return error

    # --- helpers -------------------------------------------------------------------------------------------------

    async def _ask_trackers(self) -> None:
        while True:
            for tracker in self.request.trackers:
                try:
                    self._sources.add(await self._node.announcer.ask(tracker, self.request.oid))
                except MegalfsError as error:
                    log.info("tracker %s: %s", tracker, error)
            self._wake.set()
            await asyncio.sleep(TRACKER_INTERVAL_S)

    async def _sleep(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        self._wake.clear()

    def _note(self, text: str) -> None:
        log.info("%s", text)
        self._base.notes.append(text)

    async def _close(self) -> None:
        self._stop.set()
        if self._tracker_task is not None:
            self._tracker_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tracker_task
        await self._sources.close()
        if self._plain is not None:
            self._plain.stop.set()
        if self._partial is not None:
            if self._has_kept(self._partial):
                self._partial.close()
            else:
                self._partial.discard()

    @staticmethod
    def _has_kept(partial: Partial) -> bool:
        """Whether a later pull could go on with what is there; without a manifest every byte may be a beginning."""
        if partial.manifest is None:
            return os.fstat(partial.fd).st_size > 0
        return bool(partial.have.count or partial.candidates.count)


def _add(into: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        into[name] = into.get(name, 0) + count
