"""Repository sync on a virtual clock: discovery, requests every minute, back-off, new commits, the owner gone."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "sim"))

from gossip_world import INTERVAL_S
from sync_world import BUNDLE_S, SYNC_S, SyncWorld

from megalfs.core.repoid import RepoId
from megalfs.core.sync import RETRY_S_MAX

SEEDS = range(6)
OWNER, SECOND, THIRD, LATE = range(4)
FLOOD_S = 2.0  # an announcement over a few slow links


@pytest.fixture(params=SEEDS, ids=lambda seed: f"seed{seed}")
def world(request: pytest.FixtureRequest) -> SyncWorld:
    """owner - second - third - late; the second one follows the owner, the others nobody."""
    seed: int = request.param
    print(f"seed {seed}")
    world = SyncWorld(4, seed=seed, follows={SECOND: [OWNER]})
    for number in range(3):
        world.link(number, number + 1)
    return world


def until(world: SyncWorld, seconds: float, *, number: int, repo: RepoId, seq: int) -> float:
    """Runs until a node is at a state; fails when that takes longer than `seconds`, returns how long it took."""
    start = world.now
    while world.seq(number, repo) != seq:
        assert world.now - start <= seconds, f"node {number} is at {world.seq(number, repo)}, not {seq}"
        world.run(0.5)
    return world.now - start


def test_the_whole_scenario(world: SyncWorld) -> None:
    second = world.syncs[SECOND]
    # Discovery: the owner's node sees the repository within a minute, the second one fetches it at once.
    repo = world.commit(OWNER)
    until(world, SYNC_S + FLOOD_S + BUNDLE_S, number=SECOND, repo=repo, seq=1)
    assert len(second.requests) == 1
    assert repo in world.syncs[THIRD].repos, "who follows nobody lists it"
    assert world.seq(THIRD, repo) == 0, "and has no copy"
    # Every minute it looks, and asks for nothing that it has.
    looked = len(second.looks)
    world.run(10 * SYNC_S)
    pauses = [after - before for before, after in pairwise(second.looks[looked:])]
    assert max(pauses) <= SYNC_S
    assert len(second.requests) == 1
    # New commits: only the new bundle is asked for.
    for seq in (2, 3, 4):
        world.commit(OWNER)
        until(world, SYNC_S + FLOOD_S + BUNDLE_S, number=SECOND, repo=repo, seq=seq)
        assert len(second.requests) == seq
    # The owner is gone: somebody who only hears of it now gets it from the copy, at exactly the signed refs.
    world.crash(OWNER)
    world.clone(LATE, repo)
    until(world, 8 * BUNDLE_S + 60, number=LATE, repo=repo, seq=4)
    assert world.syncs[LATE].repos[repo].refs == second.repos[repo].refs
    # With the copy gone as well the late one serves the third.
    world.link(THIRD, LATE)
    world.run(2 * INTERVAL_S)
    world.crash(SECOND)
    world.clone(THIRD, repo)
    until(world, 8 * BUNDLE_S + 60, number=THIRD, repo=repo, seq=4)


def test_what_fails_is_tried_ever_less_often_and_at_once_when_the_owner_is_back(world: SyncWorld) -> None:
    second = world.syncs[SECOND]
    repo = world.commit(OWNER)
    until(world, SYNC_S + FLOOD_S + BUNDLE_S, number=SECOND, repo=repo, seq=1)
    # The owner announces a state and is gone before its bundle is.
    world.commit(OWNER)
    while world.syncs[SECOND].repos[repo].states[0].state.seq < 2:
        world.run(0.05)
    asked = len(second.requests)
    world.crash(OWNER)
    world.run(2 * 3600)
    tries = [at for at, _ in second.requests[asked:]]
    pauses = [after - before for before, after in pairwise(tries)]
    assert 10 < len(tries) < 2 * 3600 / SYNC_S / 2
    assert pauses[0] < 10
    assert all(after > 1.5 * before or after > RETRY_S_MAX - 60 for before, after in pairwise(pauses))
    assert max(pauses) <= RETRY_S_MAX + SYNC_S
    assert world.seq(SECOND, repo) == 1, "what it has stays as it was"
    world.restart(OWNER)
    world.link(OWNER, SECOND)
    until(world, 2 * INTERVAL_S + SYNC_S, number=SECOND, repo=repo, seq=2)


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_first_then_everybody_is_at_the_newest_state(seed: int) -> None:
    """Eight nodes, three owners, everybody follows them; loss, crashes, commits; then none, and all are alike."""
    print(f"seed {seed}")
    count, owners = 8, (0, 1, 2)
    world = SyncWorld(count, seed=seed, follows=dict.fromkeys(range(count), owners))
    world.random_graph(4)
    graph = [sorted(node.links) for node in world.nodes]
    repos = {owner: world.commit(owner) for owner in owners}
    world.loss = 0.1
    for _ in range(20):
        world.run(world.rng.uniform(5, 90))
        world.commit(world.rng.choice(owners))
        number = world.rng.randrange(count)
        if world.nodes[number].is_up:
            world.crash(number)
        for other in range(count):
            if not world.nodes[other].is_up and world.rng.random() < 0.5:
                world.restart(other)
                for peer in graph[other]:
                    if world.nodes[peer].is_up:
                        world.link(other, peer)
        for (
            owner,
            repo,
        ) in repos.items():  # safety: nobody is ahead of an owner, or at refs that he did not sign
            signed = [each.state.refs for each in world.syncs[owner].repos[repo].history]
            for sync in world.syncs:
                copy = sync.repos.get(repo)
                if copy is not None and copy.refs is not None and sync is not world.syncs[owner]:
                    assert copy.refs in signed
    world.loss = 0.0
    for number in range(count):
        if not world.nodes[number].is_up:
            world.restart(number)
    for number, peers in enumerate(graph):
        for peer in peers:
            world.link(number, peer)
    world.run(RETRY_S_MAX + 4 * SYNC_S)
    for owner, repo in repos.items():
        newest = world.syncs[owner].repos[repo].states[0].state.seq
        assert [world.seq(number, repo) for number in range(count)] == [newest] * count
        assert all(len(sync.repos[repo].states) == 1 for sync in world.syncs), "nobody contradicted himself"
