"""What repository sync decides, one decision at a time; tests/test_sim_sync.py has them all at work."""

from __future__ import annotations

import pytest

from megalfs.core.repo_state import RepoState, SignedState
from megalfs.core.signing import SigningKey
from megalfs.core.sync import (
    RETRY_S_MAX,
    Reaction,
    Rounds,
    Step,
    is_joined,
    next_step,
    react,
    succession,
    who_is_behind,
)

OWNER, PEER, OTHER = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3))
US = SigningKey(bytes([9]) * 32).public
HEAD = "refs/heads/main"


def state(*known: SignedState, text: str = "") -> SignedState:
    """What the owner signs next; `text` makes it another one."""
    seq, previous, conflicts = succession(known)
    record = RepoState(
        name="tiny", root="a" * 40, creator=OWNER.public, seq=seq, previous=previous, conflicts=conflicts,
        created=1, expires=2, branch=HEAD, refs={HEAD: f"{seq:040x}"}, bundles=(), description=text,
    )  # fmt: skip
    return SignedState.sign(OWNER, record)


ONE = state()
TWO = state(ONE)
THREE = state(TWO)
OTHER_TWO = state(ONE, text="another story")
BOTH = state(TWO, OTHER_TWO)


@pytest.mark.parametrize(
    ("known", "new", "reaction"),
    [
        ([], TWO, Reaction.KEEP),
        ([ONE], TWO, Reaction.KEEP),
        ([TWO], TWO, Reaction.NONE),
        ([TWO], ONE, Reaction.REFUSE),
        ([ONE], THREE, Reaction.ASK),
        ([TWO], OTHER_TWO, Reaction.PROVE),
        ([TWO, OTHER_TWO], THREE, Reaction.REFUSE),
        ([TWO, OTHER_TWO], BOTH, Reaction.KEEP),
    ],
)
def test_what_is_done_with_a_state(known: list[SignedState], new: SignedState, reaction: Reaction) -> None:
    assert react(known, new, US) is reaction


def test_what_we_signed_and_forgot_is_ours_again() -> None:
    assert react([], TWO, OWNER.public) is Reaction.KEEP
    assert react([ONE], THREE, OWNER.public) is Reaction.ADOPT
    assert react([TWO], ONE, OWNER.public) is Reaction.REFUSE


def test_a_chain_joins_without_a_break() -> None:
    assert is_joined(ONE, [TWO], THREE)
    assert is_joined(ONE, [ONE, TWO, THREE], THREE)
    assert not is_joined(ONE, [], THREE)
    assert not is_joined(ONE, [OTHER_TWO], THREE)
    assert not is_joined(OTHER_TWO, [TWO], THREE)


def test_what_a_copy_lacks() -> None:
    refs = TWO.state.refs
    assert next_step([], 0, None) is Step.WAIT
    assert next_step([], 1, None) is Step.ASK
    assert next_step([TWO], 3, refs) is Step.ASK
    assert next_step([TWO, OTHER_TWO], 0, refs) is Step.HOLD
    assert next_step([TWO], 2, None) is Step.FETCH
    assert next_step([TWO], 2, ONE.state.refs) is Step.FETCH
    assert next_step([TWO], 2, refs) is Step.NONE


def test_who_served_less_than_another_is_behind() -> None:
    peer, other = PEER.public, OTHER.public
    assert who_is_behind(1, {peer: ONE, other: TWO}) == [peer]
    assert (
        who_is_behind(2, {peer: ONE, other: TWO}) == []
    )  # we asked for what follows ours, and it has nothing
    assert who_is_behind(1, {peer: TWO, other: TWO}) == []
    assert who_is_behind(0, {}) == []


def test_rounds_spare_what_is_settled_and_put_off_what_failed() -> None:
    rounds, repo, now = Rounds(60.0), ONE.state.repo, 1000.0
    assert rounds.is_due(now, repo)
    rounds.settled(repo)
    assert not rounds.is_due(now, repo)
    rounds.changed(repo)
    assert rounds.is_due(now, repo)
    pauses = []
    for _ in range(12):
        rounds.failed(now, repo)
        assert not rounds.is_due(now, repo)
        pause = next(each for each in range(1, 10_000) if rounds.is_due(now + each, repo))
        assert rounds.pause_s(now) == min(60.0, pause)
        pauses.append(pause)
        now += pause
    assert pauses == [4, 8, 16, 32, 64, 128, 256, 512, *[RETRY_S_MAX] * 4]
    rounds.changed(repo)
    assert (rounds.is_due(now, repo), rounds.pause_s(now)) == (True, 60.0)
