"""Encodings that must never change: vectors/formats_v1.json was written once, by the first release.

A difference here means that published ids, signatures and links would no longer mean what they meant: make a
new version of the format instead of new vectors.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from test_manifest import publish

from megalfs.core.chunker import DEFAULT_PROFILE, Profile
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.link import HostPort, Link
from megalfs.core.manifest import Manifest
from megalfs.core.names import NameRecord, SignedName
from megalfs.core.signing import SigningKey, sign_manifest
from megalfs.core.tree import Tree, TreeEntry

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "formats_v1.json").read_text())
ME = SigningKey(bytes(range(32)))


def stream(size: int) -> bytes:
    """SHA-256 of 0, 1, 2, ...: bytes that anybody can make again."""
    return b"".join(hashlib.sha256(struct.pack("<Q", i)).digest() for i in range(-(-size // 32)))[:size]


def tensors(count: int, length: int) -> bytes:
    shape = f"[2,1,{length // 2}]"
    entries = [
        f'"t{i}":{{"dtype":"U8","shape":{shape},"data_offsets":[{i * length},{(i + 1) * length}]}}'
        for i in range(count)
    ]
    header = ("{" + ",".join(entries) + "}").encode()
    return struct.pack("<Q", len(header)) + header + stream(count * length)


def computed() -> dict[str, Any]:
    """Everything in the vectors, made by the code of today."""
    small = publish(b"megalfs")
    manifests = {
        "empty": publish(b""),
        "small": small,
        "plain 3 MiB": publish(stream(3 << 20)),
        "three tensors": publish(tensors(3, 700_000)),
        "three tensors, 8-32-128": publish(
            tensors(3, 700_000), Profile(min=8 << 10, avg=32 << 10, max=128 << 10)
        ),
    }
    record = NameRecord(
        name="org/model",
        oid=small.oid,
        size=small.size,
        manifest=small.id,
        kind="blob",
        seq=3,
        expires=2_000_000_000,
    )
    link = Link(
        oid=small.oid,
        name="a b.bin",
        size=7,
        manifest=small.id,
        key=ME.public,
        peers=(HostPort("::1", 7427), HostPort("node1", 7427)),
        trackers=("http://t:7427/",),
        origins=("https://o/{oid}",),
    )
    tree = Tree.of([TreeEntry("b/run", True, small.oid, 7), TreeEntry("a", False, Oid(bytes(32)), 0)])
    return {
        "manifest_ids": {name: str(manifest.id) for name, manifest in manifests.items()},
        "manifest_of_small": small.encode().hex(),
        "manifest_of_small_json": small.to_json().decode(),
        "signature_of_small": str(sign_manifest(ME, small.id)),
        "name": SignedName.sign(ME, record).encode().decode(),
        "tree": tree.encode().decode(),
        "link": str(link),
        "did": str(ME.public),
        "peer_id": ME.public.peer_id,
        "profile": DEFAULT_PROFILE.id,
    }


def test_todays_code_writes_the_vectors() -> None:
    made = computed()
    assert made.keys() == VECTORS.keys()
    for name, value in VECTORS.items():
        assert made[name] == value, name


def test_todays_code_reads_the_vectors() -> None:
    manifest = Manifest.decode(bytes.fromhex(VECTORS["manifest_of_small"]))
    assert manifest.id == ManifestId.parse(VECTORS["manifest_ids"]["small"])
    assert Manifest.from_json(VECTORS["manifest_of_small_json"].encode()) == manifest
    assert SignedName.parse(VECTORS["name"].encode()).record.manifest == manifest.id
    assert Tree.decode(VECTORS["tree"].encode()).entries[1].oid == manifest.oid
    assert Link.parse(VECTORS["link"]).manifest == manifest.id
