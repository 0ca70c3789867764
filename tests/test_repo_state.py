"""Signed states: one encoding, one voice, and what a client does with every other one it is shown."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from megalfs.core.ids import Oid
from megalfs.core.repo_state import STATE_BYTES_MAX, BundleRef, RepoState, SignedState, Verdict, judge
from megalfs.core.signing import SigningKey
from megalfs.errors import MegalfsError, PolicyError, UsageError

OWNER, STRANGER = SigningKey(b"o" * 32), SigningKey(b"s" * 32)
FIRST = RepoState(
    name="tiny",
    description="Tiny",
    root="1" * 40,
    creator=OWNER.public,
    seq=1,
    previous=None,
    created=1_790_000_000,
    expires=1_821_536_000,
    branch="refs/heads/main",
    delegates=(STRANGER.public,),
    refs={"refs/heads/main": "1" * 40, "refs/tags/v1": "2" * 40},
    bundles=(BundleRef(Oid(b"b" * 32), 12345),),
)


def after(known: SignedState, **changes: object) -> SignedState:
    state = replace(known.state, seq=known.state.seq + 1, previous=known.hash)
    return SignedState.sign(OWNER, replace(state, **changes))  # type: ignore[arg-type]


def test_round_trip() -> None:
    signed = SignedState.sign(OWNER, FIRST)
    assert SignedState.parse(signed.encode(), repo=FIRST.repo) == signed
    assert signed.state == FIRST


def test_the_encoding_is_frozen() -> None:
    lines = SignedState.sign(OWNER, FIRST).encode().decode().splitlines()
    assert lines[0] == "megalfs-state-v1"
    assert lines[1] == f"repo {FIRST.repo}"
    assert lines[-3:-1] == [f"ref {'1' * 40} refs/heads/main", f"ref {'2' * 40} refs/tags/v1"]
    assert SignedState.sign(OWNER, FIRST).hash == (
        "cf328ffbc3c6d719b8e3878c3f3739d6723d7b19c85ec640c66bad7c7e58763b"
    )


def test_every_flipped_bit_is_refused() -> None:
    text = bytearray(SignedState.sign(OWNER, FIRST).encode())
    for index in range(0, len(text), 7):
        text[index] ^= 1
        with pytest.raises(MegalfsError):
            SignedState.parse(bytes(text))
        text[index] ^= 1
    SignedState.parse(bytes(text))


def test_every_prefix_and_anything_after_is_refused() -> None:
    text = SignedState.sign(OWNER, FIRST).encode()
    for size in range(0, len(text), 11):
        with pytest.raises(MegalfsError):
            SignedState.parse(text[:size])
    with pytest.raises(UsageError):
        SignedState.parse(text + b"\n")
    with pytest.raises(UsageError, match="limit"):
        SignedState.parse(b"x" * (STATE_BYTES_MAX + 1))


def test_a_stranger_cannot_sign_for_the_creator() -> None:
    from megalfs.core.signing import encode_signature, sign

    record = FIRST.encode()
    forged = record + f"signature {encode_signature(sign(STRANGER, 'repo-state', record))}\n".encode()
    with pytest.raises(PolicyError, match="does not fit"):
        SignedState.parse(forged)


def test_a_stranger_cannot_take_the_id() -> None:
    """His own signature makes another repository; the id of ours over his root and key is refused."""
    theirs = SignedState.sign(STRANGER, replace(FIRST, creator=STRANGER.public))
    assert theirs.state.repo != FIRST.repo
    with pytest.raises(PolicyError, match="instead of"):
        SignedState.parse(theirs.encode(), repo=FIRST.repo)
    grafted = theirs.encode().replace(str(theirs.state.repo).encode(), str(FIRST.repo).encode())
    with pytest.raises(PolicyError, match="do not make"):
        SignedState.parse(grafted)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name tiny", "name ../tiny"),
        ("branch refs/heads/main", "branch refs/heads/-h"),
        ("refs/tags/v1", "refs/tags/v1.lock"),
        ("seq 1", "seq 01"),
        ("seq 1", "seq -1"),
        ("description Tiny", "description Tiny\x1b[2J"),
        ("seq 1\n", ""),
        ("seq 1\n", "seq 1\nseq 1\n"),
        ("bundle ", "unknown "),
    ],
)
def test_malformed_records(old: str, new: str) -> None:
    text = SignedState.sign(OWNER, FIRST).encode().decode()
    assert old in text
    with pytest.raises(UsageError):
        SignedState.parse(text.replace(old, new, 1).encode())


def test_object_names_of_two_kinds_do_not_mix() -> None:
    with pytest.raises(UsageError, match="two kinds"):
        SignedState.sign(OWNER, replace(FIRST, refs={**FIRST.refs, "refs/heads/other": "a" * 64}))


def test_order() -> None:
    one = SignedState.sign(OWNER, FIRST)
    two = after(one)
    three = after(two)
    assert judge([], two) is Verdict.FOLLOWS
    assert judge([one], one) is Verdict.SAME
    assert judge([one], two) is Verdict.FOLLOWS
    assert judge([two], one) is Verdict.OLDER
    assert judge([one], three) is Verdict.GAP


def test_equivocation_is_ended_only_by_a_record_that_names_both() -> None:
    one = SignedState.sign(OWNER, FIRST)
    left, right = after(one, name="left"), after(one, name="right")
    assert judge([left], right) is Verdict.FORK
    # Found one record later too: the next one does not follow what we have.
    assert judge([left], after(right)) is Verdict.FORK
    both = [left, right]
    assert judge(both, after(left)) is Verdict.OLDER
    assert judge(both, after(left, conflicts=(left.hash, right.hash))) is Verdict.FOLLOWS
    assert judge(both, left) is Verdict.SAME


def test_expiry_is_a_question_not_a_refusal() -> None:
    assert not FIRST.is_expired(FIRST.expires - 1)
    assert FIRST.is_expired(FIRST.expires)
