"""Slots and turns of an uploader."""

from __future__ import annotations

from megalfs.core.bitfield import Run
from megalfs.core.effects import PeerId
from megalfs.core.params import SwarmParams
from megalfs.core.uploads import Uploads

A, B, C = PeerId(1), PeerId(2), PeerId(3)


def make(**params: int) -> Uploads:
    return Uploads(SwarmParams(**params))  # type: ignore[arg-type]


def start_next(uploads: Uploads, now: float, *, per_peer: int = 1) -> tuple[PeerId, Run] | None:
    chosen = uploads.next(per_peer=per_peer)
    if chosen is not None:
        uploads.start(*chosen, now=now)
    return chosen


def test_peers_take_turns_in_the_order_they_came() -> None:
    uploads = make()
    for peer, first in ((A, 0), (A, 1), (B, 2), (C, 3)):
        assert uploads.request(peer, Run(first, 1))
    order = [uploads.next(per_peer=1) for _ in range(5)]
    assert order == [(A, Run(0, 1)), (B, Run(2, 1)), (C, Run(3, 1)), (A, Run(1, 1)), None]


def test_one_run_per_peer_at_a_time() -> None:
    uploads = make()
    uploads.request(A, Run(0, 1))
    uploads.request(A, Run(1, 1))
    assert start_next(uploads, 0.0) == (A, Run(0, 1))
    assert start_next(uploads, 0.0) is None
    assert start_next(uploads, 0.0, per_peer=2) == (A, Run(1, 1))


def test_slots_are_few_and_slow_ones_stop_counting() -> None:
    uploads = make(upload_slots=2)
    for peer in (A, B):
        uploads.start(peer, Run(0, 1), now=0.0)
    assert not uploads.has_room(0.0)
    slow_at = uploads.next_slow_at(0.0)
    assert slow_at is not None
    assert uploads.has_room(slow_at)
    assert uploads.next_slow_at(slow_at) is None


def test_the_mean_moves_what_slow_means() -> None:
    uploads = make(upload_slots=1)
    uploads.start(A, Run(0, 1), now=0.0)
    assert uploads.end(A, Run(0, 1), now=1.0, ok=True)
    uploads.start(B, Run(0, 1), now=1.0)
    assert not uploads.has_room(4.9)
    assert uploads.has_room(5.0)


def test_a_queue_is_bounded_per_peer() -> None:
    uploads = make(requests_per_peer_max=2)
    assert [uploads.request(A, Run(at, 1)) for at in range(3)] == [True, True, False]
    assert uploads.request(B, Run(0, 1))


def test_cancel_takes_what_has_not_begun_even_parts() -> None:
    uploads = make()
    uploads.request(A, Run(0, 10))
    assert uploads.cancel(A, Run(4, 2)) == [Run(4, 2)]
    assert uploads.next(per_peer=1) == (A, Run(0, 4))
    uploads.cancel(A, Run(0, 100))
    assert uploads.cancel(B, Run(0, 100)) == []
    assert uploads.next(per_peer=1) is None


def test_withdraw_returns_the_requests_that_touch_a_run() -> None:
    uploads = make()
    uploads.request(A, Run(0, 4))
    uploads.request(B, Run(8, 4))
    assert uploads.withdraw(Run(3, 2)) == [(A, Run(0, 4))]
    assert uploads.next(per_peer=1) == (B, Run(8, 4))


def test_a_gone_peer_frees_its_slots() -> None:
    uploads = make(upload_slots=1)
    uploads.start(A, Run(0, 1), now=0.0)
    uploads.request(A, Run(1, 1))
    uploads.forget(A)
    assert uploads.has_room(0.0)
    assert uploads.next(per_peer=1) is None
    assert not uploads.end(A, Run(0, 1), now=1.0, ok=True)
