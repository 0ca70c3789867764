"""What a node does when told what happened: haves, grants, requests, silence, lies."""

from __future__ import annotations

import pytest
from sim.solo import MANIFEST, Solo

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.effects import Ban, Cancel, Completed, Fetch, PeerId, Send, Serve
from megalfs.core.messages import (
    CancelRequest,
    Credit,
    Granting,
    HaveAll,
    HaveRuns,
    Lost,
    Reject,
    RejectReason,
    Request,
)
from megalfs.core.topology import Tier
from megalfs.errors import RemoteProtocolError

ONE = {"run_bytes_initial": 1}


# -- haves


def test_first_words_tell_what_is_held() -> None:
    solo = Solo("xx x")
    peer = solo.join(1)
    assert solo.said(HaveRuns) == [(peer, HaveRuns(MANIFEST, (Run(0, 2), Run(3, 1))))]


def test_who_holds_nothing_says_so() -> None:
    solo = Solo("    ")
    solo.join(1)
    assert solo.said(HaveRuns)[0][1].runs == ()


def test_haves_go_out_together_and_soon() -> None:
    solo = Solo("    ")
    seeder, leecher = solo.join(1, "all"), solo.join(2, "    ")
    solo.effects(Send)
    solo.deliver(seeder, Run(0, 1))
    solo.deliver(seeder, Run(1, 1))
    assert solo.said(HaveRuns) == []
    solo.wait(0.005)
    assert solo.said(HaveRuns) == [(leecher, HaveRuns(MANIFEST, (Run(0, 2),)))]
    solo.wait(0.2)  # seeders only keep statistics
    assert solo.said(HaveRuns) == [(seeder, HaveRuns(MANIFEST, (Run(0, 2),)))]


def test_who_holds_a_piece_is_not_told_of_it() -> None:
    solo = Solo("    ")
    seeder, leecher = solo.join(1, "all"), solo.join(2, "x   ")
    solo.deliver(seeder, Run(0, 1))
    solo.effects(Send)
    solo.wait(0.15)
    assert [peer for peer, _ in solo.said(HaveRuns)] == []
    assert leecher not in {send.peer for send in solo.effects(Send)}


def test_a_piece_that_another_leecher_holds_is_told_a_little_later() -> None:
    solo = Solo("    ")
    holder, other = solo.join(1, "x   "), solo.join(2, "    ")
    solo.effects(Send)
    solo.wait(0.4)  # what the fetch takes
    solo.deliver(holder, Run(0, 1))
    solo.wait(0.15)
    assert solo.said(HaveRuns) == []
    solo.wait(0.05)
    assert solo.said(HaveRuns) == [(other, HaveRuns(MANIFEST, (Run(0, 1),)))]


def test_news_that_can_wait_goes_with_news_that_cannot() -> None:
    solo = Solo("    ")
    holder, seeder, other = solo.join(1, "x   "), solo.join(2, "all"), solo.join(3, "    ")
    fetches = solo.effects(Fetch)
    solo.wait(0.4)
    solo.deliver(holder, Run(0, 1))
    solo.wait(0.1)
    assert solo.said(HaveRuns) == []
    (asked,) = [Run(each.first, each.count) for each in fetches if each.peer == seeder]
    solo.deliver(seeder, asked)  # the first copy among leechers
    solo.wait(0.03)
    told = solo.said(HaveRuns)
    assert sorted(peer for peer, _ in told) == [holder, other]
    assert all(asked in message.runs for _, message in told)
    assert [Run(0, 1) in message.runs for peer, message in told if peer == other] == [True]
    solo.wait(0.1)
    assert solo.said(HaveRuns) == []


def test_where_some_leechers_are_dearer_than_others_all_news_is_urgent() -> None:
    solo = Solo("    ")
    holder, near = solo.join(1, "x   ", tier=Tier.FAR), solo.join(2, "    ", tier=Tier.RACK)
    solo.wait(0.4)
    solo.effects(Send)
    solo.deliver(holder, Run(0, 1))
    solo.wait(0.01)
    assert solo.said(HaveRuns) == [(near, HaveRuns(MANIFEST, (Run(0, 1),)))]


def test_complete_is_said_once_and_to_all() -> None:
    solo = Solo("xxx ")
    seeder, leecher = solo.join(1, "all"), solo.join(2, "    ")
    solo.effects(Send)
    solo.deliver(seeder, Run(3, 1))
    effects = solo.swarm.effects()
    assert Completed() in effects
    assert {Send(seeder, HaveAll(MANIFEST)), Send(leecher, HaveAll(MANIFEST))} <= set(effects)
    assert solo.swarm.missing_bytes == 0


def test_found_on_this_disk_completes_too() -> None:
    solo = Solo("xx  ")
    solo.swarm.verified(None, 2, 2, now=0.0)
    assert solo.effects(Completed) == [Completed()]


def test_what_several_peers_brought_is_reported_together() -> None:
    """Each is asked again once, after all is known, and haves go out as for one report."""
    solo = Solo(" " * 400, run_bytes_initial=100_000)
    one, two, leecher = solo.join(1, "all"), solo.join(2, "all"), solo.join(3, " " * 400)
    parts = [(fetch.peer, fetch.first, fetch.count) for fetch in solo.effects(Fetch)]
    assert {peer for peer, _, _ in parts} == {one, two}
    for part in parts:
        assert solo.swarm.receiving(*part, now=0.0)
    solo.now = 0.01
    solo.swarm.verified_many([*parts, (None, 399, 1)], now=0.01)
    assert solo.swarm.have == Bitfield.from_runs(400, [*(part[1:] for part in parts), (399, 1)])
    assert {fetch.peer for fetch in solo.effects(Fetch)} == {one, two}
    solo.wait(0.01)
    assert solo.said(HaveRuns) == [(leecher, HaveRuns(MANIFEST, tuple(solo.swarm.have.runs())))]
    by_peer = {peer.peer: peer.bytes_in for peer in solo.swarm.peers(0.1)}
    assert by_peer == {
        who: sum(count * 100_000 for peer, _, count in parts if peer == who) for who in (one, two, leecher)
    }


def test_a_report_of_a_peer_that_has_left_counts() -> None:
    solo = Solo("    ")
    seeder = solo.join(1, "all")
    (peer, first, count), *_ = [(fetch.peer, fetch.first, fetch.count) for fetch in solo.effects(Fetch)]
    assert solo.swarm.receiving(peer, first, count, now=0.0)
    solo.swarm.disconnected(seeder, now=0.0)
    solo.swarm.verified_many([(seeder, first, count)], now=0.0)
    assert solo.swarm.have.runs() == [Run(first, count)]


def test_the_last_report_completes_once() -> None:
    solo = Solo("    ")
    solo.swarm.verified_many([(None, 0, 2), (None, 1, 3), (None, 3, 1)], now=0.0)
    assert solo.effects(Completed) == [Completed()]
    assert solo.swarm.missing_bytes == 0


def test_withdrawn_pieces_are_told_and_fetched_again() -> None:
    solo = Solo("xxxx")
    leecher, seeder = solo.join(1, "    "), solo.join(2, "all")
    solo.hear(leecher, Request(MANIFEST, 0, 1))
    solo.hear(leecher, Request(MANIFEST, 1, 1))
    solo.effects(Send)
    solo.swarm.withdraw([(0, 2)], now=0.0)
    effects = solo.swarm.effects()
    assert Send(seeder, Lost(MANIFEST, (Run(0, 2),))) in effects
    assert [effect.peer for effect in effects if isinstance(effect, Fetch)] == [seeder]
    assert not solo.swarm.is_complete
    solo.hear(leecher, Request(MANIFEST, 1, 1))
    assert solo.said(Reject)[0][1].reason is RejectReason.NOT_HELD


def test_a_peer_that_lost_pieces_is_not_asked_for_them() -> None:
    solo = Solo("    ", **ONE)
    peer = solo.join(1)
    solo.hear(peer, HaveAll(MANIFEST))
    for fetch in solo.effects(Fetch):
        solo.hear(peer, Reject(MANIFEST, fetch.first, fetch.count, RejectReason.WITHDRAWN))
    solo.wait(60)
    assert solo.effects(Fetch) == []


# -- requests


def test_what_is_asked_is_served() -> None:
    solo = Solo("xxxx")
    leecher = solo.join(1, "    ")
    solo.hear(leecher, Request(MANIFEST, 1, 2))
    assert solo.effects(Serve) == [Serve(leecher, 1, 2)]
    solo.swarm.served(leecher, 1, 2, ok=True, now=0.1)
    assert solo.swarm.peers(0.1)[0].bytes_out == 200_000


def test_what_is_not_held_is_rejected() -> None:
    solo = Solo("x   ")
    leecher = solo.join(1, "    ")
    solo.hear(leecher, Request(MANIFEST, 0, 2))
    assert solo.said(Reject) == [(leecher, Reject(MANIFEST, 0, 2, RejectReason.NOT_HELD))]


def test_a_flood_is_rejected_and_then_banned() -> None:
    solo = Solo("xxxx", requests_per_peer_max=4, strikes_max=10)
    leecher = solo.join(1, "    ")
    for _ in range(100):
        solo.hear(leecher, Request(MANIFEST, 0, 1))
    effects = solo.swarm.effects()
    rejects = [one for one in effects if isinstance(one, Send) and isinstance(one.message, Reject)]
    assert len(rejects) == 11
    assert [effect.peer for effect in effects if isinstance(effect, Ban)] == [leecher]


def test_a_cancelled_request_is_not_served() -> None:
    solo = Solo("xxxx", upload_slots=1)
    leecher = solo.join(1, "    ")
    solo.hear(leecher, Request(MANIFEST, 0, 1))
    solo.hear(leecher, Request(MANIFEST, 1, 1))
    solo.hear(leecher, CancelRequest(MANIFEST, 1, 1))
    solo.swarm.served(leecher, 0, 1, ok=True, now=0.0)
    assert solo.effects(Serve) == [Serve(leecher, 0, 1)]


@pytest.mark.parametrize(
    "message",
    [
        Request(MANIFEST, 4, 1),
        Request(MANIFEST, 0, 5),
        Request(MANIFEST, 0, 0),
        CancelRequest(MANIFEST, 3, 2),
        HaveRuns(MANIFEST, (Run(0, 1), Run(3, 2))),
        Lost(MANIFEST, (Run(4, 1),)),
        Reject(MANIFEST, 5, 1, RejectReason.BUSY),
    ],
)
def test_pieces_that_do_not_exist_break_the_protocol(message: Request) -> None:
    solo = Solo("xxxx")
    leecher = solo.join(1, "    ")
    with pytest.raises(RemoteProtocolError):
        solo.hear(leecher, message)


def test_an_origin_says_nothing() -> None:
    solo = Solo("    ")
    origin = solo.join(1, origin=True)
    with pytest.raises(RemoteProtocolError):
        solo.hear(origin, HaveAll(MANIFEST))


# -- grants


def granting(
    pieces: int = 100, leechers: int = 3, *, lengths: list[int] | None = None, **params: float
) -> tuple[Solo, list[PeerId]]:
    solo = Solo("x" * pieces, lengths=lengths, **{**ONE, **params})
    peers = [solo.join(number, " " * pieces) for number in range(1, leechers + 1)]
    for peer in peers:
        solo.hear(peer, Credit(MANIFEST, 4))
    return solo, peers


def test_a_lone_leecher_may_ask_for_everything() -> None:
    solo = Solo("xxxx")
    leecher = solo.join(1, "    ")
    assert solo.said(HaveAll) == [(leecher, HaveAll(MANIFEST))]
    assert not solo.swarm.is_granting


def test_two_leechers_are_granted() -> None:
    solo = Solo("xxxx")
    one = solo.join(1, "    ")
    solo.effects(Send)
    two = solo.join(2, "    ")
    assert [peer for peer, _ in solo.said(Granting)] == [one, two]
    assert solo.swarm.is_granting


def test_every_leecher_gets_another_piece_first() -> None:
    solo, peers = granting()
    serves = solo.effects(Serve)
    pieces = [(serve.first, serve.count) for serve in serves]
    assert len(pieces) == len(set(pieces))
    assert {serve.peer for serve in serves} == set(peers)


def test_no_piece_goes_out_twice_before_all_are_out_once() -> None:
    solo, _ = granting(pieces=12)
    seen: list[int] = []
    while solo.swarm.is_granting:
        serves = solo.effects(Serve)
        assert serves
        for serve in serves:
            seen.append(serve.first)
            solo.now += 0.01
            solo.swarm.served(serve.peer, serve.first, 1, ok=True, now=solo.now)
            solo.hear(serve.peer, HaveRuns(MANIFEST, (Run(serve.first, 1),)))
            for other in (1, 2):  # it spreads
                if other != serve.peer:
                    solo.hear(PeerId(other), HaveRuns(MANIFEST, (Run(serve.first, 1),)))
            solo.hear(serve.peer, Credit(MANIFEST, 1))
    seen += [serve.first for serve in solo.effects(Serve)]
    assert sorted(seen) == list(range(12))


def test_leechers_are_given_as_many_bytes_each() -> None:
    lengths = [500_000] + [50_000] * 11  # in turns, one of twelve would relay nearly half of everything
    lengths *= 40
    solo, peers = granting(len(lengths), 12, lengths=lengths)
    given = dict.fromkeys(peers, 0)
    while solo.swarm.is_granting:
        for serve in solo.effects(Serve):
            given[serve.peer] += sum(lengths[serve.first : serve.first + serve.count])
            solo.now += 0.01
            solo.swarm.served(serve.peer, serve.first, serve.count, ok=True, now=solo.now)
            for peer in peers:
                solo.hear(peer, HaveRuns(MANIFEST, (Run(serve.first, serve.count),)))
            solo.hear(serve.peer, Credit(MANIFEST, 1))
    assert max(given.values()) < 2 * min(given.values())


def test_credit_bounds_what_is_granted() -> None:
    solo = Solo("x" * 100, **ONE)
    for number in (1, 2):
        solo.join(number, " " * 100)
    assert solo.effects(Serve) == []
    solo.hear(PeerId(1), Credit(MANIFEST, 1))
    assert [serve.peer for serve in solo.effects(Serve)] == [1]


def test_a_grant_returns_when_its_leecher_leaves() -> None:
    solo, peers = granting(pieces=2, leechers=3)
    first, second = solo.effects(Serve)
    assert first.first != second.first
    assert not solo.swarm.is_granting  # everything is out once
    solo.swarm.disconnected(first.peer, now=0.1)
    assert solo.swarm.is_granting
    for peer in peers:
        solo.hear(peer, Credit(MANIFEST, 1))
    again = solo.effects(Serve)
    assert [serve.first for serve in again] == [first.first]
    assert again[0].peer != first.peer


def take_all(solo: Solo, *takers: PeerId) -> list[int]:
    """The pieces granted until none is left; the takers hold what they get and take more, others say nothing."""
    pieces: list[int] = []
    while (serves := solo.effects(Serve)) or solo.swarm.is_granting:
        for serve in serves:
            pieces += range(serve.first, serve.first + serve.count)
            solo.swarm.served(serve.peer, serve.first, serve.count, ok=True, now=solo.now)
            if serve.peer in takers:
                solo.hear(serve.peer, HaveRuns(MANIFEST, (Run(serve.first, serve.count),)))
                solo.hear(serve.peer, Credit(MANIFEST, 1))
        solo.wait(0.05)
        assert solo.now < 60.0
    return pieces


def test_a_grant_that_does_not_arrive_goes_out_again() -> None:
    solo, (one, _) = granting(pieces=40, leechers=2)
    pieces = take_all(solo, one)
    assert set(pieces) == set(range(40))
    assert len(pieces) > 40


def test_what_does_not_spread_is_granted_once_and_then_asked_for() -> None:
    solo, peers = granting(pieces=200, leechers=3)
    assert sorted(take_all(solo, *peers)) == list(range(200))
    assert solo.now < 200 / 3 * 0.05 * 1.5  # nobody was waited for


def test_a_leecher_gives_credit_and_takes_what_it_is_granted() -> None:
    solo = Solo("    ")
    seeder = solo.join(1)
    solo.hear(seeder, Granting(MANIFEST))
    assert solo.said(Credit) == [(seeder, Credit(MANIFEST, 4))]
    assert solo.effects(Fetch) == []
    solo.deliver(seeder, Run(2, 1))
    assert solo.said(Credit) == [(seeder, Credit(MANIFEST, 1))]
    assert solo.swarm.have.has(2)


def test_grants_end_with_have_all_but_late_ones_are_welcome() -> None:
    solo = Solo(" " * 50, **ONE)
    seeder = solo.join(1)
    solo.hear(seeder, Granting(MANIFEST))
    solo.hear(seeder, HaveAll(MANIFEST))
    assert len(solo.effects(Fetch)) == 4
    for at in range(40, 44):
        assert solo.swarm.receiving(seeder, at, 1, now=0.0)
    assert not solo.swarm.receiving(seeder, 44, 1, now=0.0)


# -- lies, silence, failure


def test_data_that_nobody_asked_for_is_refused_and_then_banned() -> None:
    solo = Solo("    ")
    peer = solo.join(1, "xx  ")
    solo.effects(Fetch)
    answers = [solo.swarm.receiving(peer, 3, 1, now=0.0) for _ in range(5)]
    assert answers == [False] * 5
    assert [ban.peer for ban in solo.effects(Ban)] == [peer]


def test_more_than_was_asked_for_is_refused() -> None:
    solo = Solo("    ", **ONE)
    solo.join(2, "    ")
    peer = solo.join(1, "xxxx")
    (fetch,) = solo.effects(Fetch)
    assert not solo.swarm.receiving(peer, 0, 4, now=0.0)
    assert solo.swarm.receiving(peer, fetch.first, 1, now=0.0)


def test_wrong_bytes_ban_the_liar_and_are_fetched_elsewhere() -> None:
    solo = Solo("    ", **ONE)
    liar, honest = solo.join(1, "all"), solo.join(2, "all")
    asked = [fetch for fetch in solo.effects(Fetch) if fetch.peer == liar]
    solo.swarm.corrupt(liar, [asked[0].first], now=0.0)
    effects = solo.swarm.effects()
    assert [effect.peer for effect in effects if isinstance(effect, Ban)] == [liar]
    again = {effect.first for effect in effects if isinstance(effect, Fetch)}
    assert again <= {fetch.first for fetch in asked}
    assert solo.swarm.counters.corrupt_pieces == 1
    assert [status.peer for status in solo.swarm.peers(0.0)] == [honest]


def test_a_silent_peer_is_snubbed_and_its_runs_asked_elsewhere() -> None:
    solo = Solo(" " * 8, **ONE)
    silent = solo.join(1, "all")
    lost = {fetch.first for fetch in solo.effects(Fetch)}
    good = solo.join(2, "all")
    while not solo.swarm.is_complete and solo.now < 20:
        for fetch in solo.effects(Fetch):
            if fetch.peer == good:
                solo.now += 0.01
                solo.deliver(good, Run(fetch.first, fetch.count))
        solo.wait(0.05)
    assert lost
    assert solo.swarm.is_complete
    assert solo.now < 4  # a stalled peer costs a few seconds at most
    assert solo.swarm.peers(solo.now)[0].peer == silent


def test_one_byte_a_second_is_silence_but_a_slow_peer_lives() -> None:
    for bytes_per_s, snubs in ((1, True), (40_000, False)):
        solo = Solo("  ", **ONE)
        peer = solo.join(1, "all")
        for _ in range(40):
            solo.swarm.progressed(peer, bytes_per_s // 4, now=solo.now)
            solo.wait(0.25)
        assert (solo.swarm.counters.snubs > 0) is snubs


def test_a_peer_that_always_fails_is_asked_less_and_less() -> None:
    solo = Solo(" " * 10, **ONE)
    peer = solo.join(1, "all")
    asked = 0
    while solo.now < 100:
        for fetch in solo.effects(Fetch):
            asked += 1
            solo.swarm.failed(peer, fetch.first, fetch.count, now=solo.now)
        solo.wait(0.05)
    assert 4 <= asked <= 60


def test_the_only_source_is_asked_again_after_its_pause() -> None:
    solo = Solo(" ")
    peer = solo.join(1, "all")
    assert solo.effects(Fetch)
    solo.wait(3.0)
    assert solo.effects(Cancel) == [Cancel(peer, 0, 1)]
    solo.wait(3.0)
    assert solo.effects(Fetch)


def test_bytes_that_come_after_a_cancel_are_still_taken() -> None:
    solo = Solo(" ")
    peer = solo.join(1, "all")
    solo.wait(3.5)
    solo.deliver(peer, Run(0, 1))
    assert solo.swarm.is_complete
    assert solo.effects(Ban) == []


# -- taking back what waits


def waiting() -> tuple[Solo, PeerId, PeerId]:
    """A run waits at the first peer; the second, which holds it too, is idle and was asked to take it over."""
    solo = Solo("    ", **ONE)
    busy, idle = solo.join(1, "x   "), solo.join(2)
    assert solo.effects(Fetch) == [Fetch(busy, 0, 1)]
    solo.wait(0.4)  # longer than a run is thought to take
    solo.hear(idle, HaveRuns(MANIFEST, (Run(0, 1),)))
    return solo, busy, idle


def test_a_run_that_waits_is_taken_back_and_asked_of_an_idle_peer() -> None:
    solo, busy, idle = waiting()
    assert [effect for effect in solo.swarm.effects() if not isinstance(effect, Send)] == [Cancel(busy, 0, 1)]
    solo.hear(busy, Reject(MANIFEST, 0, 1, RejectReason.RECALLED))
    assert solo.effects(Fetch) == [Fetch(idle, 0, 1)]


def test_a_run_that_has_begun_meanwhile_is_not_fetched_twice() -> None:
    solo, busy, _ = waiting()
    solo.deliver(busy, Run(0, 1))
    solo.wait(1.0)
    assert solo.effects(Fetch) == []
    assert solo.swarm.counters.duplicate_bytes == 0


def test_a_run_taken_back_for_a_peer_that_left_is_asked_again() -> None:
    solo, busy, idle = waiting()
    solo.swarm.disconnected(idle, now=solo.now)
    solo.hear(busy, Reject(MANIFEST, 0, 1, RejectReason.RECALLED))
    assert solo.effects(Fetch) == [Fetch(busy, 0, 1)]


def test_who_cancels_hears_what_had_not_begun() -> None:
    solo = Solo("xxx", upload_slots=1)
    leecher = solo.join(1, "   ")
    for index in range(3):
        solo.hear(leecher, Request(MANIFEST, index, 1))
    assert solo.effects(Serve) == [Serve(leecher, 0, 1)]
    for index in range(3):
        solo.hear(leecher, CancelRequest(MANIFEST, index, 1))
    told = [Reject(MANIFEST, index, 1, RejectReason.RECALLED) for index in (1, 2)]
    assert solo.said(Reject) == [(leecher, reject) for reject in told]


def test_strangers_are_ignored() -> None:
    solo = Solo("    ")
    gone = PeerId(9)
    solo.hear(gone, HaveAll(MANIFEST))
    solo.swarm.failed(gone, 0, 1, now=0.0)
    solo.swarm.served(gone, 0, 1, ok=True, now=0.0)
    solo.swarm.corrupt(gone, [0], now=0.0)
    solo.swarm.disconnected(gone, now=0.0)
    assert not solo.swarm.receiving(gone, 0, 1, now=0.0)
    assert solo.swarm.effects() == []


def test_an_empty_blob_is_complete() -> None:
    solo = Solo("")
    solo.join(1, "")
    assert solo.swarm.is_complete
    assert solo.swarm.availability().rarest is None


def test_availability_is_summed_up() -> None:
    solo = Solo("    ")
    for number, holds in enumerate(["xx x", "x  x", "all"], start=1):
        solo.join(number, holds)
    summary = solo.swarm.availability()
    assert (summary.copies_min, summary.copies_median, summary.rarest) == (1, 2.5, 2)
