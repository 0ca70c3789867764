"""Gossip: what anybody announces reaches everybody, over any links, and nobody can be made to repeat himself.

    announced -> relayed to every neighbour but the one it came from, with one hop less to go
    neighbours compare one digest an interval; where it differs, one per key, then what is missing

The first is quick, the second is sure: it reaches who was away, and who is more hops away than an announcement
travels. Told what happened, with the time (seconds since 1970, as announcements carry it), it returns what to do.

Liveness must be newer than the last of its key, kind and subject, and no older than an hour: a replay fails the
one or the other, whenever it comes. States are ordered by their numbers and kept; two that contradict each
other are both passed on, since the proof of a lie is for all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable

from msgspec import Struct, field

from megalfs.core.announcements import Announcement, Kind, parse_announcement
from megalfs.core.gossip_frames import KEYS_MAX, Announce, Digest, Have, Want, decode, encode
from megalfs.core.gossip_limits import Bucket
from megalfs.core.identity import NodeKey
from megalfs.core.repo_state import SignedState, Verdict, judge
from megalfs.errors import PolicyError, RemoteProtocolError, UsageError

__all__ = ["Drop", "Effect", "Gossip", "GossipParams", "Learned", "Send"]

FUTURE_S_MAX = 600.0  # clocks that nobody set
AGE_S_MAX = 3600.0  # liveness is forgotten then; owners renew it thrice as often
ASK_AGAIN_S = 60.0  # for what a neighbour said it had and did not give
INTERVAL_S_MAX = 600.0  # who says less often than that is asked to say it elsewhere
ORIGINS_MAX = 10_000
SUBJECTS_MAX = 5_000  # of one key and kind
SEEN_MAX = 200_000
PEER_MESSAGES_S, PEER_MESSAGES_BURST = 500.0, 20_000.0
PEER_BYTES_S, PEER_BYTES_BURST = float(1 << 20), float(32 << 20)
ORIGIN_MESSAGES_S, ORIGIN_MESSAGES_BURST = 50.0, 10_000.0
FAULTS_MAX = 16  # malformed or forged, in a row of none good: then the link is no use


class GossipParams(Struct, frozen=True, kw_only=True):
    """What the config can set."""

    ttl: int = 16
    seen_s: float = 300.0
    interval_s: float = 10.0


class Send(Struct, frozen=True):
    """A frame for a neighbour."""

    peer: NodeKey
    frame: bytes


class Learned(Struct, frozen=True):
    """Something new, and which neighbour brought it. A state that contradicts another one names it."""

    announcement: Announcement
    peer: NodeKey
    contradicts: SignedState | None = None


class Drop(Struct, frozen=True):
    """A neighbour that breaks the protocol."""

    peer: NodeKey
    reason: str


Effect = Send | Learned | Drop
Parse = Callable[[bytes, bytes], Announcement]


class _Peer(Struct):
    messages: Bucket
    octets: Bucket
    gifts: Bucket
    interval_s: float = 10.0
    faults: int = 0
    asked: dict[tuple[NodeKey, bytes], float] = field(default_factory=dict)


class _Origin(Struct):
    """What is known of one key. States that contradict each other stand side by side."""

    bucket: Bucket
    known: dict[tuple[Kind, str], list[Announcement]] = field(default_factory=dict)
    counts: Counter[Kind] = field(default_factory=Counter)
    digest: bytes | None = None


class Gossip:
    """The gossip of one node."""

    def __init__(self, own: NodeKey, params: GossipParams, parse: Parse = parse_announcement) -> None:
        self.counters: Counter[str] = Counter()
        self._own = own
        self._params = params
        self._parse = parse
        self._peers: dict[NodeKey, _Peer] = {}
        self._origins: dict[NodeKey, _Origin] = {}
        self._seen: dict[bytes, float] = {}
        self._digest: bytes | None = None

    # --- questions -----------------------------------------------------------------------------------------

    @property
    def peers(self) -> tuple[NodeKey, ...]:
        """The neighbours."""
        return tuple(self._peers)

    def interval_of(self, peer: NodeKey) -> float:
        """How often a neighbour says something."""
        return self._peers[peer].interval_s

    def known(self, kind: Kind) -> list[Announcement]:
        """The newest announcements of one kind, of all keys and subjects."""
        return [
            each
            for origin in self._origins.values()
            for (of, _), announcements in origin.known.items()
            if of == kind
            for each in announcements
        ]

    def about(self, kind: Kind, subject: str) -> list[Announcement]:
        """As `known`, of one subject."""
        return [each for origin in self._origins.values() for each in origin.known.get((kind, subject), ())]

    def inventory(self, key: NodeKey) -> bytes:
        """The digest of what is known of a key, but for its being there."""
        origin = self._origins.get(key)
        return _digest_of(origin) if origin is not None else bytes(32)

    @property
    def digest(self) -> bytes:
        """The digest of what is known of all keys."""
        if self._digest is None:
            parts = sorted((key.raw, self.inventory(key)) for key in self._origins)
            self._digest = hashlib.sha256(b"".join(key + part for key, part in parts if any(part))).digest()
        return self._digest

    # --- what happened ---------------------------------------------------------------------------------------

    def connected(self, now: float, peer: NodeKey) -> list[Effect]:
        """A new neighbour; it hears our digest, and who we know to be there."""
        self._peers[peer] = _Peer(
            Bucket.full(PEER_MESSAGES_S, PEER_MESSAGES_BURST, now),
            Bucket.full(PEER_BYTES_S, PEER_BYTES_BURST, now),
            Bucket.full(PEER_MESSAGES_S, PEER_MESSAGES_BURST, now),
        )
        effects: list[Effect] = [Send(peer, self._digest_frame())]
        effects += [Send(peer, _frame(each, ttl=0)) for each in self.known("node")]
        return effects

    def disconnected(self, peer: NodeKey) -> None:
        """A neighbour left."""
        self._peers.pop(peer, None)

    def publish(self, now: float, announcement: Announcement) -> list[Effect]:
        """Something of our own, or a state from our disk: kept, and told to all neighbours when it is news."""
        if self._keep(now, announcement) is None:
            return []
        self._seen[announcement.id] = now
        return [Send(peer, _frame(announcement, ttl=self._params.ttl)) for peer in self._peers]

    def tick(self, now: float) -> list[Effect]:
        """An interval passed: what is too old is forgotten, neighbours hear our digest."""
        self._seen = {each: at for each, at in self._seen.items() if now - at < self._params.seen_s}
        self._forget(now)
        frame = self._digest_frame()
        self.counters["sent"] += len(self._peers)
        return [Send(peer, frame) for peer in self._peers]

    def receive(self, now: float, peer: NodeKey, frame: bytes) -> list[Effect]:  # noqa: PLR0911 - a table
        """A neighbour's frame. Too much, malformed, forged, old or known: counted and dropped."""
        state = self._peers.get(peer)
        if state is None:
            return []
        self.counters["received"] += 1
        if not state.messages.take(now, 1) or not state.octets.take(now, len(frame)):
            self.counters["too_many"] += 1
            return []
        try:
            message = decode(frame)
            match message:
                case Announce():
                    return self._announced(now, peer, message)
                case Digest(digest, interval_ms):
                    state.interval_s = min(interval_ms / 1000, INTERVAL_S_MAX)
                    return self._compare(peer, digest)
                case Have(digests):
                    return self._ask(now, peer, state, digests)
                case Want(keys):
                    return self._give(now, peer, state, keys)
                case None:
                    return []
        except RemoteProtocolError as error:
            self.counters["oversized" if len(frame) > (48 << 10) else "malformed"] += 1
            return self._blame(peer, state, str(error))
        except PolicyError as error:
            self.counters["forged"] += 1
            return self._blame(peer, state, str(error))
        except UsageError as error:
            self.counters["malformed"] += 1
            return self._blame(peer, state, str(error))

    def _blame(self, peer: NodeKey, state: _Peer, reason: str) -> list[Effect]:
        state.faults += 1
        return [Drop(peer, reason)] if state.faults >= FAULTS_MAX else []

    # --- announcements -----------------------------------------------------------------------------------------

    def _announced(self, now: float, peer: NodeKey, message: Announce) -> list[Effect]:
        name = hashlib.sha256(message.payload).digest()
        if name in self._seen:  # before the signature is checked: this is the common case
            self.counters["duplicate"] += 1
            return []
        announcement = self._parse(message.payload, message.signature)
        self._peers[peer].faults = 0
        if len(self._seen) < SEEN_MAX:
            self._seen[name] = now
        if announcement.key == self._own and announcement.kind != "state":
            self.counters["looped"] += 1
            return []
        kept = self._keep(now, announcement)
        if kept is None:
            return []
        self.counters["learned"] += 1
        effects: list[Effect] = [Learned(announcement, peer, kept[0] if kept else None)]
        if message.ttl:
            others = [each for each in self._peers if each != peer]
            self.counters["sent"] += len(others)
            effects += [Send(each, _frame(announcement, ttl=message.ttl - 1)) for each in others]
        return effects

    def _keep(self, now: float, new: Announcement) -> list[SignedState] | None:  # noqa: PLR0911 - reasons
        """Puts it in the place of what it follows; None when it is refused, a state that it contradicts else."""
        age = now - new.time / 1000
        if new.kind != "state" and not -FUTURE_S_MAX <= age <= AGE_S_MAX:
            self.counters["expired" if age > 0 else "future"] += 1
            return None
        origin = self._origin(now, new.key)
        if origin is None:
            self.counters["too_many"] += 1
            return None
        place = (new.kind, new.subject)
        known = origin.known.get(place, [])
        if not known and origin.counts[new.kind] >= SUBJECTS_MAX:
            self.counters["too_many"] += 1
            return None
        contradicted: list[SignedState] = []
        if isinstance(new.body, SignedState):
            states = [each.body for each in known if isinstance(each.body, SignedState)]
            match judge(states, new.body):
                case Verdict.SAME:
                    self.counters["duplicate"] += 1
                    return None
                case Verdict.OLDER:
                    self.counters["rollback"] += 1
                    return None
                case Verdict.FORK:
                    self.counters["equivocation"] += 1
                    contradicted = states[:1]
                case Verdict.FOLLOWS | Verdict.GAP:
                    known = []
        elif known and new.time <= known[0].time:
            self.counters["replayed"] += 1
            return None
        else:
            known = []
        if not origin.bucket.take(now, 1):
            self.counters["too_many"] += 1
            return None
        if place not in origin.known:
            origin.counts[new.kind] += 1
        origin.known[place] = [*known, new]
        if new.kind != "node":
            origin.digest = self._digest = None
        return contradicted

    def _origin(self, now: float, key: NodeKey) -> _Origin | None:
        origin = self._origins.get(key)
        if origin is None and len(self._origins) < ORIGINS_MAX:
            origin = _Origin(Bucket.full(ORIGIN_MESSAGES_S, ORIGIN_MESSAGES_BURST, now))
            self._origins[key] = origin
        return origin

    def _forget(self, now: float) -> None:
        for key, origin in list(self._origins.items()):
            for place, announcements in list(origin.known.items()):
                if place[0] != "state" and now - announcements[0].time / 1000 > AGE_S_MAX:
                    del origin.known[place]
                    origin.counts[place[0]] -= 1
                    origin.digest = self._digest = None
            if not origin.known and key != self._own:
                del self._origins[key]
                self._digest = None

    def _digest_frame(self) -> bytes:
        return encode(Digest(self.digest, int(self._params.interval_s * 1000)))

    # --- comparing with a neighbour ----------------------------------------------------------------------------

    def _compare(self, peer: NodeKey, digest: bytes) -> list[Effect]:
        if digest == self.digest:
            return []
        digests = [(key, self.inventory(key)) for key in self._origins]
        found = [each for each in digests if any(each[1])]
        if not found:  # we know nothing: whatever the neighbour has is news, and it hears that by our silence
            return []
        return [Send(peer, encode(Have(part))) for part in _parts(found)]

    def _ask(
        self, now: float, peer: NodeKey, state: _Peer, digests: Iterable[tuple[NodeKey, bytes]]
    ) -> list[Effect]:
        state.asked = {each: at for each, at in state.asked.items() if now - at < ASK_AGAIN_S}
        missing = [
            (key, digest)
            for key, digest in digests
            if digest != self.inventory(key) and (key, digest) not in state.asked
        ]
        state.asked |= dict.fromkeys(missing, now)
        return [Send(peer, encode(Want(tuple(key for key, _ in part)))) for part in _parts(missing)]

    def _give(self, now: float, peer: NodeKey, state: _Peer, keys: Iterable[NodeKey]) -> list[Effect]:
        """Everything of some keys, not to be relayed: who else lacks it asks for itself."""
        given = [
            each
            for key in dict.fromkeys(keys)
            if key in self._origins
            for (kind, _), announcements in self._origins[key].known.items()
            if kind != "node"
            for each in announcements
        ]
        if not state.gifts.take(now, len(given)):
            self.counters["too_many"] += 1
            return []
        self.counters["sent"] += len(given)
        return [Send(peer, _frame(each, ttl=0)) for each in given]


def _frame(announcement: Announcement, *, ttl: int) -> bytes:
    return encode(Announce(ttl, announcement.signature, announcement.payload))


def _digest_of(origin: _Origin) -> bytes:
    if origin.digest is None:
        ids = sorted(each.id for (kind, _), known in origin.known.items() if kind != "node" for each in known)
        origin.digest = hashlib.sha256(b"".join(ids)).digest() if ids else bytes(32)
    return origin.digest


def _parts(pairs: list[tuple[NodeKey, bytes]]) -> list[tuple[tuple[NodeKey, bytes], ...]]:
    return [tuple(pairs[start : start + KEYS_MAX]) for start in range(0, len(pairs), KEYS_MAX)]
