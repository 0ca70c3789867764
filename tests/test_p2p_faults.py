"""A peer of our own making, which lies: older and forged states, two states at once, bundles cut and changed."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from helpers_p2p import P2pNode
from msgspec.structs import replace
from processes import wait_until

from megalfs.core.announcements import FileBody, NodeBody, announce, announce_state, parse_announcement
from megalfs.core.bundle_protocol import CHUNK_BYTES, Chunk, Done, Request, Start, decode, encode
from megalfs.core.gossip_frames import Announce, Digest
from megalfs.core.gossip_frames import decode as decode_frame
from megalfs.core.gossip_frames import encode as encode_frame
from megalfs.core.identity import NodeKey
from megalfs.core.ids import Oid
from megalfs.core.repo_state import BundleRef, RepoState, SignedState
from megalfs.core.signing import SigningKey
from megalfs.errors import MegalfsError
from megalfs.formats.hostport import HostPort
from megalfs.net.certificates import write_certificate
from megalfs.net.link import Stream
from megalfs.net.link_tls import TlsCarrier, TlsLink, TlsListener

WAIT_S = 60.0


class FakePeer:
    """Speaks the protocols of a node, truthfully or not; the answers are the test's."""

    def __init__(self, directory: Path, seed: bytes) -> None:
        self.private = SigningKey(hashlib.sha256(seed).digest())
        self.key = self.private.public
        self.states: list[bytes] = []
        self.bundle = b""
        self.cut_at: int | None = None
        self.flip_at: int | None = None
        self.asked: list[str] = []
        self.firsts: list[int] = []  # the chunks at which bundles were asked for
        self._gossip: Stream | None = None
        self._links: list[TlsLink] = []
        self._carrier = TlsCarrier(self.private, certificate=write_certificate(self.private, directory))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listener = self._do(self._carrier.listen(HostPort("127.0.0.1", 0), self._handle))
        assert isinstance(listener, TlsListener)
        self._listener = listener

    @property
    def addr(self) -> HostPort:
        return self._listener.address

    def _do(self, work: Awaitable[object]) -> object:
        async def run() -> object:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def join(self, node: P2pNode) -> None:
        """Becomes a neighbour, and says where it listens."""
        self._do(self._join(node))
        body = NodeBody("fake", (self.addr,), (), "full", "0", "0" * 64)
        self.say(announce(self.private, int(time.time() * 1000), body))

    async def _join(self, node: P2pNode) -> None:
        host, _, port = node.addr.rpartition(":")
        link = await self._carrier.dial(HostPort(host, int(port)), NodeKey.parse(str(node.key)))
        self._links.append(link)
        self._gossip = await link.open("gossip")

    def hear(self, count: int) -> list[object]:
        """The next frames that the neighbour sends."""

        async def receive() -> list[object]:
            assert self._gossip is not None
            return [decode_frame(await self._gossip.receive()) for _ in range(count)]

        heard = self._do(receive())
        assert isinstance(heard, list)
        return heard

    def say(self, announcement: object) -> None:
        frame = Announce(16, announcement.signature, announcement.payload)  # type: ignore[attr-defined]
        assert self._gossip is not None
        self._do(self._gossip.send(encode_frame(frame)))

    def claim(self, signed: SignedState, *, seq: int = 99) -> None:
        """Says that it holds a bundle of the repository."""
        body = FileBody(Oid(b"x" * 32), 1, signed.state.repo, seq)
        self.say(announce(self.private, int(time.time() * 1000), body))

    async def _handle(self, stream: Stream) -> None:
        self.asked.append(stream.service)
        await stream.accept()
        if stream.service == "state":
            for text in self.states:
                await stream.send(text)
                await stream.send(b"\n")
        elif stream.service == "bundle":
            request = decode(await stream.receive())
            assert isinstance(request, Request)
            self.firsts.append(request.first)
            await self._send_bundle(stream, request.first)
        await stream.finish()

    async def _send_bundle(self, stream: Stream, first: int) -> None:
        content = bytearray(self.bundle)
        if self.flip_at is not None:
            content[self.flip_at] ^= 1
        await stream.send(encode(Start(len(content), "../../evil")))
        for index, start in enumerate(range(first * CHUNK_BYTES, len(content), CHUNK_BYTES), first):
            if self.cut_at is not None and start >= self.cut_at:
                raise MegalfsError("cut")
            await stream.send(encode(Chunk(index, bytes(content[start : start + CHUNK_BYTES]))))
        await stream.send(encode(Done(Oid(hashlib.sha256(content).digest()))))

    async def _close(self) -> None:
        for link in self._links:
            await link.close()
        await self._listener.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        await asyncio.sleep(0.1)  # transports that are closing get to say goodbye

    def close(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[P2pNode]:
    node = P2pNode(tmp_path / "victim")
    yield node
    node.close()


@pytest.fixture
def make_peer(tmp_path: Path) -> Iterator[Callable[[str], FakePeer]]:
    made: list[FakePeer] = []

    def make(name: str) -> FakePeer:
        made.append(FakePeer(tmp_path / name, name.encode()))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def signed_repo(owner: FakePeer, node: P2pNode, **changes: object) -> SignedState:
    """A repository of the fake owner, with its one bundle."""
    path = node.directory / "theirs"
    if not path.exists():
        node.repository("theirs")
        (path / "big.bin").write_bytes(Random(1).randbytes(300_000))
        node.commit(path, "last.txt", "x")
        node.git("bundle", "create", "-q", node.directory / "theirs.bundle", "--branches", "--tags", cwd=path)
    owner.bundle = (node.directory / "theirs.bundle").read_bytes()
    refs = dict(
        reversed(line.split())
        for line in node.git("for-each-ref", "--format=%(objectname) %(refname)", cwd=path).out.splitlines()
    )
    state = RepoState(
        name="theirs",
        root=node.git("rev-list", "--max-parents=0", "HEAD", cwd=path).out.strip(),
        creator=owner.key,
        seq=1,
        previous=None,
        created=int(time.time()),
        expires=int(time.time()) + 86400,
        branch="refs/heads/main",
        refs=refs,  # type: ignore[arg-type]
        bundles=(BundleRef(Oid(hashlib.sha256(owner.bundle).digest()), len(owner.bundle)),),
    )
    return SignedState.sign(owner.private, replace(state, **changes))  # type: ignore[arg-type]


def faults(node: P2pNode) -> dict[str, str]:
    return {str(each["peer"]): str(each["reason"]) for each in node.repos()["theirs"]["faults"]}  # type: ignore[attr-defined]


def test_who_serves_an_older_or_forged_state_is_named(
    victim: P2pNode, make_peer: Callable[[str], FakePeer]
) -> None:
    owner, older, forger = make_peer("owner"), make_peer("older"), make_peer("forger")
    victim.start("--bootstrap-node", f"{owner.key}@{owner.addr}")
    one = signed_repo(owner, victim)
    two = signed_repo(owner, victim, seq=2, previous=one.hash, description="newer")
    owner.states = [one.encode(), two.encode()]
    owner.join(victim)
    owner.say(announce_state(one))
    owner.say(announce_state(two))
    victim.until("theirs", seq=2, here=True)
    for peer, texts in ((older, [one.encode()]), (forger, [two.encode().replace(b"newer", b"never")])):
        peer.states = texts
        peer.join(victim)
        peer.claim(two)
    wait_until(lambda: len(victim.megalfs.ok("node", "list").out.splitlines()) >= 4, "all are known")
    wait_until(lambda: _sync_asks(victim, one, older, forger), "both were asked")
    assert faults(victim)[str(older.key)] == "served an older state"
    assert faults(victim)[str(forger.key)].startswith("served a forged state")
    assert str(owner.key) not in faults(victim)
    record = victim.repos()["theirs"]
    assert (record["seq"], record["description"]) == (2, "newer")
    # A rollback by gossip is refused as well.
    older.say(announce_state(one))
    victim.megalfs.ok("repo", "sync")
    assert victim.repos()["theirs"]["seq"] == 2


def _sync_asks(victim: P2pNode, signed: SignedState, *peers: FakePeer) -> bool:
    victim.megalfs.ok("repo", "sync", "--repo-id", signed.state.repo)
    return all("state" in peer.asked for peer in peers)


def test_equivocation_is_kept_shown_and_ended_by_a_state_that_names_both(
    victim: P2pNode, make_peer: Callable[[str], FakePeer]
) -> None:
    owner = make_peer("owner")
    victim.start("--bootstrap-node", f"{owner.key}@{owner.addr}")
    left = signed_repo(owner, victim)
    right = signed_repo(owner, victim, description="another story")
    owner.states = [left.encode()]
    owner.join(victim)
    owner.say(announce_state(left))
    victim.until("theirs", here=True)
    owner.say(announce_state(right))
    wait_until(lambda: len(victim.repos()["theirs"]["equivocation"]) == 2, "the proof is shown")  # type: ignore[arg-type]
    assert victim.repos()["theirs"]["equivocation"] == sorted([left.hash, right.hash])
    assert faults(victim)[str(owner.key)] == "signed two states that contradict each other"
    assert "EQUIVOCATION" in victim.megalfs.ok("repo", "list").out
    # Neither is followed, nor what follows only one; it survives a restart.
    owner.say(announce_state(signed_repo(owner, victim, seq=2, previous=left.hash, description="on")))
    victim.stop()
    victim.start()
    assert victim.repos()["theirs"]["description"] == ""
    assert len(victim.repos()["theirs"]["equivocation"]) == 2  # type: ignore[arg-type]
    owner.join(victim)
    both = (left.hash, right.hash)
    owner.say(announce_state(signed_repo(owner, victim, seq=3, previous=left.hash, conflicts=both)))
    victim.until("theirs", seq=3, equivocation=[])


def test_a_gap_is_followed_only_with_the_chain(victim: P2pNode, make_peer: Callable[[str], FakePeer]) -> None:
    owner = make_peer("owner")
    victim.start("--bootstrap-node", f"{owner.key}@{owner.addr}")
    one = signed_repo(owner, victim)
    two = signed_repo(owner, victim, seq=2, previous=one.hash)
    three = signed_repo(owner, victim, seq=3, previous=two.hash)
    other = signed_repo(owner, victim, seq=2, previous="0" * 64)
    owner.states = [one.encode()]
    owner.join(victim)
    owner.say(announce_state(one))
    victim.until("theirs", seq=1, here=True)
    owner.states = [other.encode()]  # no chain from one to three
    owner.say(announce_state(three))
    wait_until(lambda: "state" in owner.asked, "it asks for what is between")
    assert victim.repos()["theirs"]["seq"] == 1
    four = signed_repo(owner, victim, seq=4, previous=three.hash)
    owner.states = [two.encode(), three.encode(), four.encode()]
    owner.say(announce_state(four))
    victim.until("theirs", seq=4)


@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_bad_bundle_is_not_kept_and_a_good_one_is_fetched_later(
    victim: P2pNode, make_peer: Callable[[str], FakePeer], fault: str
) -> None:
    owner = make_peer("owner")
    signed = signed_repo(owner, victim)
    owner.cut_at, owner.flip_at = (CHUNK_BYTES, None) if fault == "cut" else (None, len(owner.bundle) // 2)
    owner.states = [signed.encode()]
    victim.start("--bootstrap-node", f"{owner.key}@{owner.addr}")
    owner.join(victim)
    owner.say(announce_state(signed))
    victim.until("theirs", seq=1, here=False)
    done = victim.megalfs.run("repo", "sync", "--repo-id", signed.state.repo)
    assert done.code in {4, 5}, done.err
    bundles = victim.megalfs.root / "repos" / "bundles"
    assert [path for path in bundles.iterdir() if path.suffix == ".bundle"] == []
    assert not list(victim.directory.rglob("evil*"))
    if fault == "flipped":
        assert "not the one of the state" in faults(victim)[str(owner.key)]
    owner.cut_at = owner.flip_at = None
    victim.megalfs.ok("repo", "sync", "--repo-id", signed.state.repo)
    record = victim.until("theirs", here=True)
    victim.git("fsck", "--strict", cwd=Path(str(record["path"])))
    # Good once, never fetched again.
    count = owner.asked.count("bundle")
    victim.megalfs.ok("repo", "sync")
    assert owner.asked.count("bundle") == count


def hears_of_it_from_a_bad_owner(
    victim: P2pNode,
    make_peer: Callable[[str], FakePeer],
    *,
    cut_at: int | None = None,
    flip_at: int | None = None,
) -> tuple[FakePeer, FakePeer]:
    """The victim has a copy at the end: it asks the owner first, who is bad, and then somebody honest."""
    owner, honest = make_peer("owner"), make_peer("honest")
    signed = signed_repo(owner, victim)
    honest.bundle = owner.bundle
    owner.cut_at, owner.flip_at = cut_at, flip_at
    for peer in (owner, honest):
        peer.states = [signed.encode()]
    victim.start("--bootstrap-node", f"{owner.key}@{owner.addr}")
    honest.join(victim)
    honest.claim(signed)
    wait_until(
        lambda: len(victim.megalfs.ok("node", "list").out.splitlines()) >= 2, "the honest one is known"
    )
    owner.join(victim)
    owner.say(announce_state(signed))
    record = victim.until("theirs", here=True)
    victim.git("fsck", "--strict", cwd=Path(str(record["path"])))
    return owner, honest


def test_a_lying_peer_comes_first_and_another_one_is_used(
    victim: P2pNode, make_peer: Callable[[str], FakePeer]
) -> None:
    owner, _ = hears_of_it_from_a_bad_owner(victim, make_peer, flip_at=1000)
    assert "bundle" in owner.asked, "who was asked first"
    assert faults(victim) == {str(owner.key): "sent a bundle that is not the one of the state"}


@pytest.mark.parametrize("is_right", [True, False])
def test_a_cut_bundle_goes_on_with_another_peer(
    victim: P2pNode, make_peer: Callable[[str], FakePeer], is_right: bool
) -> None:
    """From where the first one left, or from the beginning where what he had sent was wrong; the second is no liar."""
    owner, honest = hears_of_it_from_a_bad_owner(
        victim, make_peer, cut_at=2 * CHUNK_BYTES, flip_at=None if is_right else CHUNK_BYTES
    )
    assert owner.firsts == [0]
    assert honest.firsts == ([2] if is_right else [2, 0])
    assert faults(victim) == {}
    bundles = victim.megalfs.root / "repos" / "bundles"
    assert [path.suffix for path in bundles.iterdir()] == [".bundle"]


def test_a_node_says_something_every_interval(victim: P2pNode, make_peer: Callable[[str], FakePeer]) -> None:
    """Its digests tell how often, as configured (`FAST`); each liveness announcement is newer than the last."""
    peer = make_peer("peer")
    victim.start("--no-discover")
    peer.join(victim)
    frames = peer.hear(count=12)
    digests = [each for each in frames if isinstance(each, Digest)]
    assert len(digests) >= 3
    assert {each.interval_ms for each in digests} == {500}
    alive = [
        parse_announcement(each.payload, each.signature) for each in frames if isinstance(each, Announce)
    ]
    times = [each.time for each in alive if each.kind == "node"]
    assert len(times) >= 3
    assert times == sorted(set(times))


def test_a_state_whose_refs_are_not_in_its_bundles_changes_nothing(
    victim: P2pNode, make_peer: Callable[[str], FakePeer]
) -> None:
    owner = make_peer("owner")
    good = signed_repo(owner, victim)
    bad = signed_repo(
        owner, victim, seq=2, previous=good.hash, refs={**good.state.refs, "refs/heads/zzz": "1" * 40}
    )
    owner.states = [good.encode(), bad.encode()]
    victim.start("--bootstrap-node", f"{owner.key}@{owner.addr}")
    owner.join(victim)
    owner.say(announce_state(good))
    record = victim.until("theirs", here=True)
    owner.say(announce_state(bad))
    victim.until("theirs", seq=2, here=False)
    done = victim.megalfs.run("repo", "sync", "--repo-id", good.state.repo)
    assert done.code == 4, done.err
    listed = victim.git("for-each-ref", "refs/heads", cwd=Path(str(record["path"]))).out
    assert "zzz" not in listed
    assert "main" in listed
