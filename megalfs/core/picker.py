"""Which run to ask of a peer: policy only, nothing here changes anything.

Rarest first among what the peer holds, ties at random, when others fetch too: that is what keeps every
leecher interesting to every other (97-100 % of the bound with fresh haves, research/swarm.md 3). In file
order when nobody else fetches: disks and readers like it. A peer is never asked for what a cheaper one
offers, and an origin only for what no peer can give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

import numpy as np

from megalfs.core.bitfield import Bits, Run
from megalfs.core.params import SwarmParams
from megalfs.core.pieces import Pieces
from megalfs.core.session import PeerKind, Session
from megalfs.core.state import SwarmState

__all__ = ["depth", "pick", "relay_bytes_max", "run_bytes", "wanted_bytes"]

WHOLE_MAX = 4096
"""Pieces all compared for rarity, in 20 us: 1 GiB. Exactness over 560,000 pieces would cost 2 ms a decision."""
SAMPLES = (1024, 16 * 1024)
"""Of a bigger blob, whose rarity is spread evenly: so many pieces at a random place; more if none of them will do."""

COPIES_MAX = np.uint16(0xFFFF)  # stands for a piece that may not be asked for; no swarm has so many peers


def pick(state: SwarmState, session: Session, size: int, now: float) -> Run | None:
    """The run of about `size` bytes to ask of this peer now, or None if it has nothing for us."""
    pieces, availability = state.pieces, state.availability
    if not pieces.unasked or availability.is_full_nearer(session.tier):
        return None
    if session.kind is PeerKind.ORIGIN:
        return _stretch(state, session, size, now)
    if state.leechers:
        return _rarest(state, session, size, now)
    return _in_order(state, session, size, now)


def run_bytes(state: SwarmState, *, rate: float, rate_total: float, sources: int) -> int:
    """How large a run should be for a peer that sends `rate`, while all together send `rate_total`."""
    params = state.params
    size = float(params.run_bytes_initial)
    if rate > 0:
        size = max(rate * params.run_s, rate_total / params.runs_per_s)
    # Towards the end runs shrink, so that all sources finish together (guided self-scheduling).
    rest = state.pieces.unasked_bytes / (2 * max(1, sources) * params.lanes)
    return int(max(1.0, min(size, rest, params.run_bytes_max, relay_bytes_max(state))))


def relay_bytes_max(state: SwarmState) -> float:
    """The largest run that still spreads well: what is relayed must be small against the file."""
    if not state.leechers:
        return math.inf
    hops = math.ceil(math.log2(state.leechers + 2))  # N counts this node too
    return state.pieces.bytes_total / (state.params.relay_parts * hops)


def depth(params: SwarmParams, session: Session, *, rate: float, size: int, is_alone: bool) -> int:
    """How many runs of `size` may be outstanding at a peer, however short they are.

    One while others fetch too and links are slow: what is queued deep is chosen too early. Nobody else
    fetches: each lane busy and one run queued behind it.
    """
    run_s = size / rate if rate > 0 else params.run_s
    queue_s = max(params.queue_s, session.delay_s or 0.0)
    runs = 1 + int(queue_s / run_s + 0.5)
    if is_alone:
        runs = max(runs, 2 * params.lanes)
    return min(runs, params.depth_max)


def wanted_bytes(
    params: SwarmParams, session: Session, *, rate: float, rate_total: float, size: int
) -> float:
    """The bytes outstanding at a peer that sends `rate`, in runs of `size`, below which it is asked for one more.

    In bytes, not in runs, since runs end where the next piece is not wanted. The time until the first byte comes is
    filled: the shortest, which is the round trip, and as much of the usual one as the peer sends of all that comes.
    Queues of the network can be long where one peer sends most, and where many send, those of the peers are.
    """
    share = rate / rate_total if rate_total > 0 else 0.0
    usual_s = min(share * session.delay_mean_s, params.delay_s_max)
    return size / 2 + rate * max(params.queue_s, session.delay_s or 0.0, usual_s)


def _candidates(state: SwarmState, session: Session, low: int, high: int, now: float) -> Bits:
    """What may be asked of the peer: wanted, held by it, neither held nor expected by a cheaper one, and left
    to us by those of our rack that it was for to ask."""
    bits = state.pieces.wanted[low:high]
    if session.holds is not None:
        bits = bits & session.holds.bits[low:high]
    hidden = state.availability.nearer(session.tier, low, high)
    promised = state.promises.nearer(session.tier, low, high)
    if promised is not None:
        hidden = promised if hidden is None else hidden | promised
    if hidden is not None:
        bits = bits & ~hidden
    if session.kind is PeerKind.ORIGIN:
        return state.pieces.provable(bits)
    return state.gateways.open_to(session.tier, low, bits, hidden, now)


def _rarest(state: SwarmState, session: Session, size: int, now: float) -> Run | None:
    pieces, availability, rng = state.pieces, state.availability, state.rng
    for low, high in _windows(pieces.count, rng):
        bits = _candidates(state, session, low, high, now)
        # Without a branch: numpy's `where` takes twice as long.
        copies = availability.counts(low, high, tier=session.tier) | ~bits * COPIES_MAX
        fewest = copies[copies.argmin()]
        if fewest != COPIES_MAX:
            break
    else:
        return None
    rarest = (copies == fewest).nonzero()[0]
    at = int(rarest[_draw(rng, len(rarest), from_end=state.params.from_end)])
    return _forward(pieces, bits, _aligned(pieces, bits, at, low, size), low, size)


def _windows(count: int, rng: Random) -> Iterator[tuple[int, int]]:
    """Where to look, one place after the other: whole, or samples of growing size."""
    for size in SAMPLES if count > WHOLE_MAX else ():
        if size < count:
            low = rng.randrange(count - size + 1)
            yield low, low + size
    yield 0, count


def _aligned(pieces: Pieces, bits: Bits, at: int, low: int, size: int) -> int:
    """Moves a start back to a multiple of the run's length, as far as bits are true.

    Random starts would cut what is left into ever shorter runs; on a grid it stays in whole ones.
    """
    start = max(0, pieces.grid(low + at, size) - low)
    if start == at:
        return at
    gaps = (~bits[start:at]).nonzero()[0]
    return start + int(gaps[-1]) + 1 if len(gaps) else start


def _draw(rng: Random, count: int, *, from_end: bool) -> int:
    # The better of two draws leans to the end, yet leaves peers different from each other.
    at = int(rng.random() * count)
    return max(at, int(rng.random() * count)) if from_end else at


def _in_order(state: SwarmState, session: Session, size: int, now: float) -> Run | None:
    pieces = state.pieces
    bits = _candidates(state, session, 0, pieces.count, now)
    if state.params.from_end:
        end = pieces.count - int(bits[::-1].argmax())
        return _backward(pieces, bits, end, size) if bits[end - 1] else None
    first = int(bits.argmax())
    return _forward(pieces, bits, first, 0, size) if bits[first] else None


def _stretch(state: SwarmState, session: Session, size: int, now: float) -> Run | None:
    """Where the last run from this origin ended, else anywhere: each leecher reads another stretch."""
    pieces = state.pieces
    bits = _candidates(state, session, 0, pieces.count, now)
    at = session.last_end
    if not (0 < at < pieces.count and bits[at]):
        open_ = np.flatnonzero(bits)
        if not len(open_):
            return None
        at = int(open_[state.rng.randrange(len(open_))])
    return pieces.provable_run(_forward(pieces, bits, at, 0, size))


def _forward(pieces: Pieces, bits: Bits, at: int, low: int, size: int) -> Run:
    """The run of true bits from `at` on that fits `size`; `bits` begins at piece `low`."""
    fits = bits[at : at + pieces.fit(low + at, size)]
    stop = int(fits.argmin())
    return Run(low + at, stop if not fits[stop] else len(fits))


def _backward(pieces: Pieces, bits: Bits, end: int, size: int) -> Run:
    """The run of true bits that ends before `end` and fits `size`."""
    fits = bits[end - pieces.fit_before(end, size) : end][::-1]
    stop = int(fits.argmin())
    count = stop if not fits[stop] else len(fits)
    return Run(end - count, count)
