"""Feeds every parser of bytes from strangers with mutations of what it writes.

Invariant: no matter what comes, a parser either returns or raises a MegalfsError, never any other error.

    python tests/fuzz/fuzz_parsers.py [--seconds 60] [--seed N]
"""

from __future__ import annotations

import argparse
import itertools
import random
import secrets
import time
from array import array
from collections.abc import Callable

import megalfs_ext
from megalfs.core.announcements import FileBody, NodeBody, announce, parse_announcement
from megalfs.core.bitfield import Run
from megalfs.core.bundle_protocol import Chunk, Start
from megalfs.core.bundle_protocol import decode as decode_bundle
from megalfs.core.bundle_protocol import encode as encode_bundle
from megalfs.core.chunker import DEFAULT_PROFILE, plan_layout
from megalfs.core.codec import Decoder, encode
from megalfs.core.gossip_frames import Announce, Want
from megalfs.core.gossip_frames import decode as decode_gossip
from megalfs.core.gossip_frames import encode as encode_gossip
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.link import Link
from megalfs.core.manifest import Manifest
from megalfs.core.messages import HaveRuns, Request
from megalfs.core.names import SignedName
from megalfs.core.repo_state import BundleRef, RepoState, SignedState
from megalfs.core.repoid import RepoId, RepoUrl
from megalfs.core.signing import SigningKey, sign
from megalfs.core.tracker import Announcement
from megalfs.core.tree import Tree, TreeEntry
from megalfs.errors import MegalfsError
from megalfs.formats import strict_json
from megalfs.formats.hostport import HostPort
from megalfs.formats.layout import Plain
from megalfs.formats.manifest_fields import encode_manifest
from megalfs.formats.pointer import Pointer
from megalfs.git.lfs_links import parse_offer

OID = Oid(bytes(range(32)))


def manifest() -> bytes:
    """An encoded manifest of a small blob."""
    content = bytes(range(256)) * 600
    ends = megalfs_ext.cut_points(content, 64 << 10, 256 << 10, 1 << 20)
    lengths = [int(ends[0]), *(int(b - a) for a, b in itertools.pairwise(ends))]
    return encode_manifest(
        oid=Oid(megalfs_ext.sha256(content)),
        size=len(content),
        profile=DEFAULT_PROFILE.id,
        layout=Plain("no-header"),
        lengths=array("I", lengths).tobytes(),
        blake3=megalfs_ext.blake3_many(content, ends),
        sha256=megalfs_ext.sha256_many(content, ends),
        states=b"",
    )


def json_of(parse: Callable[[object], object]) -> Callable[[bytes], object]:
    """A parser of values as one of bytes; what is no JSON is refused before."""

    def parser(data: bytes) -> object:
        try:
            value = strict_json.parse(data)
        except strict_json.JsonFault:
            return None
        return parse(value)

    return parser


PRIVATE = SigningKey(b"f" * 32)


def state() -> bytes:
    """A signed state of a repository."""
    root = "a" * 40
    made = RepoState(
        name="tiny", root=root, creator=PRIVATE.public, seq=1, previous=None, created=0, expires=1,
        branch="refs/heads/main", refs={"refs/heads/main": root}, bundles=(BundleRef(OID, 7),),
    )  # fmt: skip
    return SignedState.sign(PRIVATE, made).encode()


def between_nodes() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """What comes over links; mutated announcements are signed again, so that their parser is reached."""
    body = NodeBody("far", (HostPort("10.0.0.1", 9000),), (), "full", "0.1", "0" * 64)
    file = FileBody(OID, 5, RepoId.of("a" * 40, PRIVATE.public), 7)
    announced = [announce(PRIVATE, 1, each) for each in (body, file)]
    gossip = [Announce(16, announced[0].signature, announced[0].payload), Want((PRIVATE.public,))]
    return {
        "gossip": (decode_gossip, [encode_gossip(each) for each in gossip]),
        "node announcement": (
            lambda data: parse_announcement(data, sign(PRIVATE, "gossip", data)),
            [each.payload for each in announced],
        ),
        "state": (SignedState.parse, [state()]),
        "bundle": (
            decode_bundle,
            [encode_bundle(each) for each in (Start(5, "a.bundle"), Chunk(0, b"hello"))],
        ),
        "repository url": (
            lambda data: RepoUrl.parse(data.decode("latin-1")),
            [f"p2p://{PRIVATE.public}/tiny.git?addr=127.0.0.1:9&via=quic".encode()],
        ),
        "lfs offer": (parse_offer, [b'{"oid":"%s","size":5,"http":["127.0.0.1:7427"]}' % str(OID).encode()]),
    }


def targets() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """Every parser with inputs that it accepts."""
    mid = ManifestId(bytes(32))
    frames = encode(HaveRuns(mid, (Run(0, 5), Run(9, 2)))) + encode(Request(mid, 3, 4))
    header = b'{"w":{"dtype":"BF16","shape":[2,8],"data_offsets":[0,32]}}'
    safetensors = len(header).to_bytes(8, "little") + header + bytes(32)
    announcement = (
        b'{"host":"","port":7427,"instance":"' + b"0" * 32 + b'","labels":{"host":"","rack":"","zone":""},'
        b'"blobs":[{"oid":"' + str(OID).encode() + b'","complete":true}],"leaving":false}'
    )
    return {
        "codec": (lambda data: Decoder().feed(data), [frames]),
        "manifest": (Manifest.decode, [manifest()]),
        "manifest json": (Manifest.from_json, [Manifest.decode(manifest()).to_json()]),
        "layout": (
            lambda data: plan_layout(data, len(data), DEFAULT_PROFILE),
            [safetensors, b"GGUF" + bytes(60)],
        ),
        "tree": (Tree.decode, [Tree.of([TreeEntry("a/b.bin", False, OID, 7)]).encode()]),
        "link": (
            lambda data: Link.parse(data.decode("latin-1")),
            [f"megalfs:{OID}?name=a&size=7&peer=h:1&tracker=http://t:1".encode()],
        ),
        "pointer": (Pointer.parse, [Pointer(OID, 12).encode()]),
        "name": (SignedName.parse, [b'{"key":"did:key:z6Mk","record":{},"signature":""}']),
        "announcement": (
            json_of(lambda value: Announcement.from_json(value, remote="10.0.0.1")),
            [announcement],
        ),
        **between_nodes(),
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or made extreme."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(mutated) + 1)
        match rng.randrange(5):
            case 0 if at < len(mutated):
                mutated[at] = rng.randrange(256)
            case 1:
                del mutated[at : at + rng.randint(1, 16)]
            case 2:
                mutated[at:at] = mutated[at : at + rng.randint(1, 64)]
            case 3:
                mutated[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"9999"])
            case _:
                mutated = mutated[:at]
    return bytes(mutated)


def main() -> None:
    """Mutates until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    found = targets()
    for parse, inputs in found.values():
        for data in inputs[:1]:
            try_one(parse, data)
    deadline, count = time.monotonic() + args.seconds, 0
    while time.monotonic() < deadline:
        name = rng.choice(list(found))
        parse, inputs = found[name]
        data = mutate(rng.choice(inputs), rng)
        try:
            try_one(parse, data)
        except Exception:
            print(f"seed {args.seed}, input {count}: {name} fails on {data.hex()}")
            raise
        count += 1
    print(f"{count} inputs, seed {args.seed}: every one parsed, or refused with an error of ours")


def try_one(parse: Callable[[bytes], object], data: bytes) -> None:
    """Our errors are fine."""
    try:
        parse(data)
    except MegalfsError:
        return


if __name__ == "__main__":
    main()
