"""Gossip on a virtual clock: safety under whatever a neighbour sends, then that everybody learns everything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parent / "sim"))

from gossip_world import INTERVAL_S, START_S, GossipWorld

from megalfs.core.announcements import (
    PAYLOAD_BYTES_MAX,
    Announcement,
    FileBody,
    NodeBody,
    RepoBody,
    announce,
    announce_state,
    parse_announcement,
)
from megalfs.core.gossip import AGE_S_MAX, FAULTS_MAX, FUTURE_S_MAX, Gossip, GossipParams, Learned, Send
from megalfs.core.gossip_frames import Announce, Digest, Have, Want, decode, encode
from megalfs.core.gossip_limits import Bucket
from megalfs.core.ids import Oid
from megalfs.core.repo_state import RepoState, SignedState
from megalfs.core.repoid import RepoId
from megalfs.core.signing import SigningKey
from megalfs.errors import MegalfsError, PolicyError, RemoteProtocolError
from megalfs.formats.hostport import HostPort

US, PEER, FAR, OTHER = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3, 4))
ROOT = "a" * 40
NOW = START_S


def node_body(alias: str = "far") -> NodeBody:
    return NodeBody(alias, (HostPort("10.0.0.1", 9000),), (), "full", "0.1", "0" * 64)


def repo_body(private: SigningKey, seq: int = 1) -> RepoBody:
    return RepoBody(RepoId.of(ROOT, private.public), "tiny", "Tiny", ROOT, seq, f"{seq:064x}")


def ann(body: object, *, private: SigningKey = FAR, at: float = NOW) -> Announcement:
    return announce(private, int(at * 1000), body)  # type: ignore[arg-type]


def frame(announcement: Announcement, ttl: int = 16) -> bytes:
    return encode(Announce(ttl, announcement.signature, announcement.payload))


@pytest.fixture
def gossip() -> Gossip:
    gossip = Gossip(US.public, GossipParams())
    for private in (PEER, OTHER):
        gossip.connected(NOW, private.public)
    return gossip


def sends(effects: list[object]) -> list[Send]:
    return [each for each in effects if isinstance(each, Send)]


def learned(effects: list[object]) -> list[Learned]:
    return [each for each in effects if isinstance(each, Learned)]


# --- announcements ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        node_body(),
        repo_body(FAR),
        replace(repo_body(FAR), is_removed=True),
        FileBody(Oid(b"o" * 32), 5, None, 0),
        FileBody(Oid(b"o" * 32), 5, RepoId.of(ROOT, US.public), 7),
    ],
)
def test_announcements_round_trip(body: object) -> None:
    made = ann(body)
    assert parse_announcement(made.payload, made.signature) == made


def test_an_announcement_is_of_its_key_only() -> None:
    made = ann(node_body())
    with pytest.raises(PolicyError):
        parse_announcement(made.payload.replace(b"far", b"fat"), made.signature)
    forged = made.payload.replace(str(FAR.public).encode(), str(PEER.public).encode())
    with pytest.raises(PolicyError):
        parse_announcement(forged, made.signature)


def test_a_repository_is_announced_by_its_creator_only() -> None:
    stolen = ann(repo_body(FAR), private=PEER)
    with pytest.raises(PolicyError, match="not its own"):
        parse_announcement(stolen.payload, stolen.signature)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"kind":"node"', b'"kind":"nope"'),
        (b'{"body"', b'{ "body"'),
        (b'"alias":"far"', b'"alias":"f\\u001br"'),
        (b'"alias":"far"', b'"alias":"far","extra":1'),
        (b"10.0.0.1:9000", b"10.0.0.1:99999"),
        (b'"time":1', b'"time":-1'),
        (b'"node_type":"full",', b""),
    ],
)
def test_malformed_announcements(old: bytes, new: bytes) -> None:
    made = ann(node_body())
    assert old in made.payload
    with pytest.raises(MegalfsError):
        parse_announcement(made.payload.replace(old, new), made.signature)


def test_frames_round_trip_and_refuse() -> None:
    for each in (
        Announce(16, bytes(64), b"{}"),
        Digest(b"d" * 32, 10_000),
        Have(((FAR.public, b"d" * 32),)),
        Want((FAR.public, PEER.public)),
    ):
        assert decode(encode(each)) == each
    assert decode(b"\xf0whatever") is None
    for bad in (b"", b"\1\0", b"\1\0" + bytes(64), b"\1\xff" + bytes(65), b"\2" + bytes(35), b"\3", b"\3" + bytes(63),
                b"\4" + bytes(33), b"\4" + bytes(32 * 513), b"\1\1" + bytes(64 + PAYLOAD_BYTES_MAX + 1)):  # fmt: skip
        with pytest.raises(RemoteProtocolError):
            decode(bad)


# --- what is dropped, and counted --------------------------------------------------------------------------------


def test_news_are_relayed_once_with_one_hop_less(gossip: Gossip) -> None:
    made = ann(repo_body(FAR))
    effects = gossip.receive(NOW, PEER.public, frame(made, ttl=9))
    assert [each.announcement for each in learned(effects)] == [made]
    assert [(each.peer, each.frame) for each in sends(effects)] == [(OTHER.public, frame(made, ttl=8))]
    assert gossip.receive(NOW, OTHER.public, frame(made, ttl=16)) == []
    assert gossip.counters["duplicate"] == 1


def test_the_last_hop_is_not_relayed(gossip: Gossip) -> None:
    effects = gossip.receive(NOW, PEER.public, frame(ann(repo_body(FAR)), ttl=0))
    assert learned(effects)
    assert not sends(effects)


@pytest.mark.parametrize("later_s", [299.0, 301.0, 3599.0, 3601.0, 86400.0])
def test_a_replay_is_refused_within_and_after_the_window(gossip: Gossip, later_s: float) -> None:
    old, new = ann(node_body("old")), ann(node_body("new"), at=NOW + 1)
    for each in (old, new):
        assert learned(gossip.receive(NOW + 1, PEER.public, frame(each)))
    gossip.tick(NOW + later_s)
    for each in (old, new):
        assert gossip.receive(NOW + later_s, OTHER.public, frame(each)) == []
    refused = gossip.counters["duplicate"] + gossip.counters["replayed"] + gossip.counters["expired"]
    assert refused == 2


def test_too_old_and_too_new(gossip: Gossip) -> None:
    for at, counter in ((NOW - AGE_S_MAX - 1, "expired"), (NOW + FUTURE_S_MAX + 1, "future")):
        assert gossip.receive(NOW, PEER.public, frame(ann(node_body(), at=at))) == []
        assert gossip.counters[counter] == 1


def test_ours_coming_back_is_counted(gossip: Gossip) -> None:
    copy = ann(node_body(), private=US)
    assert gossip.receive(NOW, PEER.public, frame(copy)) == []
    assert gossip.counters["looped"] == 1


def test_forged_oversized_and_malformed_are_counted_and_end_the_link(gossip: Gossip) -> None:
    made = ann(node_body())
    forged = encode(Announce(16, bytes(64), made.payload))
    oversized = b"\1\1" + bytes(64 + PAYLOAD_BYTES_MAX + 1)
    assert gossip.receive(NOW, PEER.public, forged) == []
    assert gossip.receive(NOW, PEER.public, oversized) == []
    assert gossip.receive(NOW, PEER.public, b"") == []
    counters = gossip.counters
    assert (counters["forged"], counters["oversized"], counters["malformed"]) == (1, 1, 1)
    for number in range(FAULTS_MAX - 4):
        assert gossip.receive(NOW, PEER.public, b"\2" + bytes([number])) == []
    (drop,) = gossip.receive(NOW, PEER.public, b"\2")
    assert drop.peer == PEER.public  # type: ignore[union-attr]
    # A forged copy does not shut out the true one.
    assert learned(gossip.receive(NOW, OTHER.public, frame(made)))


def test_rates_are_bounded(gossip: Gossip) -> None:
    digest = encode(Digest(gossip.digest, 10_000))
    for _ in range(30_000):
        gossip.receive(NOW, PEER.public, digest)
    assert gossip.counters["too_many"] == 10_000
    gossip.receive(NOW + 60, PEER.public, digest)
    assert gossip.counters["too_many"] == 10_000


def test_bucket() -> None:
    bucket = Bucket.full(2.0, 10.0, NOW)
    assert bucket.take(NOW, 10)
    assert not bucket.take(NOW, 1)
    assert not bucket.take(NOW - 100, 1)
    assert bucket.take(NOW - 100 + 0.5, 1)


# --- states --------------------------------------------------------------------------------------------------------


def state(seq: int, previous: str | None = None, **changes: object) -> SignedState:
    made = RepoState(
        name="tiny", root=ROOT, creator=FAR.public, seq=seq, previous=previous, created=0, expires=1,
        branch="refs/heads/main", refs={"refs/heads/main": ROOT}, bundles=(),
    )  # fmt: skip
    return SignedState.sign(FAR, replace(made, **changes))  # type: ignore[arg-type]


def test_states_are_ordered_by_number_and_never_too_old(gossip: Gossip) -> None:
    one = state(1)
    two = state(2, one.hash)
    assert learned(gossip.receive(NOW, PEER.public, frame(announce_state(one))))
    assert learned(gossip.receive(NOW, PEER.public, frame(announce_state(two))))
    gossip.tick(NOW + 1e7)
    assert gossip.receive(NOW + 1e7, OTHER.public, frame(announce_state(one))) == []
    assert gossip.counters["rollback"] == 1
    assert [each.body for each in gossip.known("state")] == [two]


def test_both_sides_of_an_equivocation_are_kept_and_passed_on(gossip: Gossip) -> None:
    left, right = state(1), state(1, description="another")
    gossip.receive(NOW, PEER.public, frame(announce_state(left)))
    effects = gossip.receive(NOW, PEER.public, frame(announce_state(right)))
    assert learned(effects)[0].contradicts == left
    assert [each.peer for each in sends(effects)] == [OTHER.public]
    assert gossip.counters["equivocation"] == 1
    assert len(gossip.known("state")) == 2
    third = state(1, description="a third")
    assert gossip.receive(NOW, PEER.public, frame(announce_state(third))) == []
    end = state(2, left.hash, conflicts=(left.hash, right.hash))
    assert learned(gossip.receive(NOW, PEER.public, frame(announce_state(end))))
    assert [each.body for each in gossip.known("state")] == [end]


# --- many nodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1])
def test_200_nodes_learn_every_repository(seed: int) -> None:
    print(f"seed {seed}")
    world = GossipWorld(200, seed=seed)
    world.random_graph(4)
    repos = {world.own_repo(number, f"repo{number}") for number in range(0, 200, 4)}
    world.run(3.0)
    for number, node in enumerate(world.nodes):
        known = {each.body.repo for each in node.gossip.known("repo")}  # type: ignore[union-attr]
        assert known == repos, f"seed {seed}: node {number} knows {len(known)} of {len(repos)}"
    before = [node.received for node in world.nodes]
    world.run(INTERVAL_S)
    for number, node in enumerate(world.nodes):
        # One interval: 200 nodes say that they are there, over each link at most once, and digests.
        per_interval = node.received - before[number]
        assert per_interval <= (200 + 4) * len(node.links), f"seed {seed}: node {number}: {per_interval}"
        assert node.gossip.counters["learned"] <= 50 + 200 * 4
        assert not node.drops
    world.run(2.0)
    assert {len(node.gossip.known("node")) for node in world.nodes} == {200}


@pytest.mark.parametrize("seed", range(2))
def test_loss_and_crashes_then_everybody_learns_all_the_same(seed: int) -> None:
    print(f"seed {seed}")
    world = GossipWorld(30, seed=seed)
    world.random_graph(4)
    world.loss = 0.4
    repos = {world.own_repo(number, f"repo{number}") for number in range(30)}
    world.run(5.0)
    for number in world.rng.sample(range(30), 3):
        others = [each for each in world.nodes[number].links if world.nodes[each].is_up]
        world.crash(number)
        for other in others[1:]:
            world.link(others[0], other)
    world.run(20.0)
    world.loss = 0.0
    world.run(12 * INTERVAL_S)
    lost = repos - {
        each.body.repo  # type: ignore[union-attr]
        for node in world.nodes
        if node.is_up
        for each in node.gossip.known("repo")
    }
    for number, node in enumerate(world.nodes):
        if node.is_up:
            known = {each.body.repo for each in node.gossip.known("repo")}  # type: ignore[union-attr]
            assert known == repos - lost, f"seed {seed}: node {number} lacks {len(repos - lost - known)}"


@pytest.mark.parametrize("seed", range(3))
def test_ten_nodes_take_each_announcement_once(seed: int) -> None:
    """Whatever the graph: learned once by every other node, sent over each link at most once each way."""
    print(f"seed {seed}")
    world = GossipWorld(10, seed=seed)
    world.random_graph(4)
    repos = [world.own_repo(number, f"repo{number}") for number in range(10)]
    world.run(INTERVAL_S - 0.01)
    for number, node in enumerate(world.nodes):
        taken = [each.announcement.subject for each in node.learned if each.announcement.kind == "repo"]
        assert sorted(taken) == sorted(str(repo) for repo in repos if repo != repos[number])
        assert not node.drops


def test_sixteen_relays_end_the_flood_and_neighbours_fill_the_gap() -> None:
    world = GossipWorld(21, seed=7)
    world.line()
    world.own_repo(0, "far")
    world.run(4.0)
    counts = [len(node.gossip.known("repo")) for node in world.nodes]
    assert counts == [1] * 18 + [0] * 3, "the 18th hears of it, by sixteen relays; the 19th does not"
    world.run(6 * INTERVAL_S)
    assert all(len(node.gossip.known("repo")) == 1 for node in world.nodes)


def test_a_newcomer_learns_what_an_absent_owner_said() -> None:
    world = GossipWorld(4, seed=3)
    world.link(0, 1)
    world.own_repo(0, "left")
    world.run(1.0)
    world.crash(0)
    world.run(60.0)
    world.link(1, 2)
    world.run(2.0)
    assert [each.subject for each in world.nodes[2].gossip.known("repo")]


def test_an_hour_later_an_absent_owner_is_forgotten() -> None:
    world = GossipWorld(3, seed=3)
    world.line()
    world.own_repo(0, "left")
    world.run(1.0)
    world.crash(0)
    world.run(AGE_S_MAX + 2 * INTERVAL_S)
    for node in world.nodes[1:]:
        assert not node.gossip.known("repo")
        assert len(node.gossip.known("node")) == 2


def test_idle_neighbours_say_little_however_much_they_know() -> None:
    """1,000 repositories: an interval costs a digest and the news of who is there."""
    world = GossipWorld(2, seed=5)
    for number in range(1000):
        root = f"{number:040x}"
        body = RepoBody(RepoId.of(root, world.key(0)), f"r{number}", "", root, 1, "0" * 64)
        made = announce(world.nodes[0].private, int(world.now * 1000), body)
        world.nodes[0].gossip.publish(world.now, made)
    world.link(0, 1)
    world.run(3.0)
    assert len(world.nodes[1].gossip.known("repo")) == 1000
    before = [(node.received, node.octets) for node in world.nodes]
    world.run(10 * INTERVAL_S)
    for node, (received, octets) in zip(world.nodes, before, strict=True):
        assert node.received - received <= 2 * 10 + 2
        assert node.octets - octets < 10_000


def test_a_removed_repository_is_gone_everywhere() -> None:
    world = GossipWorld(5, seed=6)
    world.line()
    world.own_repo(0, "tiny")
    world.run(5.0)
    world.own_repo(0, "tiny", seq=2, is_removed=True)
    world.run(5.0)
    for node in world.nodes:
        (only,) = node.gossip.known("repo")
        assert only.body.is_removed  # type: ignore[union-attr]
