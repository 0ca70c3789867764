"""A manifest is not trusted because somebody served it: each part of one forged, each way to meet it.

The true bytes arrive whenever anybody has them, the forged manifest goes, and no honest peer is blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from adversaries import (
    FORGERIES,
    MIB,
    Stage,
    adopt,
    error_of,
    litter,
    make_model,
    manifest_of,
    pull,
    pulled,
    serve_forgery,
    serve_odd,
)
from msgspec.structs import replace
from processes import Megalfs, Running, wait_until
from proxy import proxy

from megalfs.core.link import Link
from megalfs.core.manifest import Manifest
from megalfs.core.signing import ManifestSignature, sign_manifest
from megalfs.formats.digests import digests_from_bytes
from megalfs.formats.hostport import HostPort
from megalfs.store.blobs import Store
from megalfs.store.root import Root

SPLICED = {"splice", "splice and states"}


@dataclass(frozen=True)
class Scene:
    """The model, an honest seeder of it, and forgers that are started when first asked for."""

    stage: Stage
    model: Path
    content: bytes
    true: Manifest
    seeder: Running
    forgers: dict[str, tuple[Manifest, Running]]

    def forger(self, kind: str) -> tuple[Manifest, str]:
        """The forged manifest of one kind, and the address of the node that serves it."""
        if kind not in self.forgers:
            forgery = FORGERIES[kind](self.true, self.content)
            assert forgery.manifest.id != self.true.id
            running = serve_forgery(self.stage.node(f"forger {kind}"), forgery)
            self.forgers[kind] = (forgery.manifest, running)
        manifest, running = self.forgers[kind]
        return manifest, running.address

    def link(self, manifest: Manifest, *peers: str) -> Link:
        """A link that names this manifest, and these peers in this order."""
        return Link(
            oid=self.true.oid,
            size=self.true.size,
            manifest=manifest.id,
            peers=tuple(HostPort.parse(peer) for peer in peers),
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("forged")
    stage = Stage(directory)
    model = make_model(directory, size=8 * MIB)
    seeder = stage.node("seeder").seed(model)
    yield Scene(stage, model, model.read_bytes(), manifest_of(model), seeder, {})
    stage.close()


def for_each(scene: Scene, kinds: Iterable[str], check: Callable[[Megalfs, Manifest, str], None]) -> None:
    """Runs one check for several kinds of forgery at once: they wait more than they compute."""
    cases = [
        (kind, scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1"), *scene.forger(kind))
        for kind in kinds
    ]
    with ThreadPoolExecutor(len(cases)) as pool:
        running = {kind: pool.submit(check, *rest) for kind, *rest in cases}
    failed = {kind: error for kind, future in running.items() if (error := future.exception()) is not None}
    assert not failed


def test_beside_a_true_one(scene: Scene) -> None:
    def check(leecher: Megalfs, manifest: Manifest, forger: str) -> None:
        summary = pulled(leecher, scene.link(manifest, forger, scene.seeder.address))
        assert (leecher.directory / "got.bin").read_bytes() == scene.content
        assert set(summary["rejected"]) <= {forger}
        assert litter(leecher.directory) == []

    for_each(scene, FORGERIES, check)


def test_first(scene: Scene) -> None:
    """The honest peer answers only when the pull has begun with the forged manifest."""

    def check(leecher: Megalfs, manifest: Manifest, forger: str) -> None:
        with proxy(scene.seeder.address, is_closed=True) as late:
            argv = [scene.link(manifest, forger, late.address), "--limit-down", "4M"]
            pulling = leecher.start("pull", *argv, "-o", "got.bin", "--no-discover", "--json")
            wait_for_bytes(pulling)
            late.open()
            done = pulling.wait()
        assert done.code == 0, done.err
        assert (leecher.directory / "got.bin").read_bytes() == scene.content
        assert set(done.records[-1]["rejected"]) <= {forger}  # type: ignore[call-overload]
        assert litter(leecher.directory) == []

    for_each(scene, FORGERIES, check)


def wait_for_bytes(pulling: Running) -> None:
    """Until some bytes of a running pull have come, or it found out that it is lied to."""

    def has_begun() -> bool:
        records = pulling.records
        return any(int(str(r.get("bytes_fetched", 0))) or r["event"] != "progress" for r in records) or (
            "wrong bytes" in pulling.err or "false" in pulling.err
        )

    wait_until(has_begun, "the pull has begun")


def test_alone_with_the_true_bytes(scene: Scene) -> None:
    """The manifest lies, the bytes behind it do not: they arrive, proven as a whole."""

    def check(leecher: Megalfs, manifest: Manifest, forger: str) -> None:
        pulled(leecher, scene.link(manifest, forger))
        assert (leecher.directory / "got.bin").read_bytes() == scene.content

    for_each(scene, sorted(set(FORGERIES) - SPLICED), check)


def test_alone_with_false_bytes(scene: Scene) -> None:
    def check(leecher: Megalfs, manifest: Manifest, forger: str) -> None:
        error = error_of(pull(leecher, scene.link(manifest, forger)), 4)
        assert forger in error["message"] or forger in error["rejected"]
        assert not (leecher.directory / "got.bin").exists()

    for_each(scene, sorted(SPLICED), check)


def test_a_withheld_piece_beside_a_true_one(scene: Scene) -> None:
    """A forged id that is never served cannot be blamed: the pull leaves that manifest when nothing comes."""
    blake3 = scene.true.blake3.copy()
    blake3[3] ^= 0xFF
    # Without states it cannot be compared with the true one beforehand; the link names it, so it goes first.
    forged = replace(scene.true, blake3=blake3, states=digests_from_bytes(b""))
    thief = serve_odd(scene.stage.node("thief"), scene.model, forged, "withhold", 3)
    leecher = scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1")
    summary = pulled(leecher, scene.link(forged, thief.address, scene.seeder.address))
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    assert scene.seeder.address not in summary["rejected"]
    # What both manifests name was kept: not all of it came twice.
    assert summary["bytes_fetched"] < 1.5 * scene.true.size


def test_a_withheld_piece_of_a_true_manifest(scene: Scene) -> None:
    thief = serve_odd(scene.stage.node("thief"), scene.model, scene.true, "withhold", 3)
    leecher = scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1")
    summary = pulled(leecher, scene.link(scene.true, thief.address, scene.seeder.address))
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    assert summary["rejected"] == {}


def test_a_withheld_piece_alone(scene: Scene) -> None:
    thief = serve_odd(scene.stage.node("thief"), scene.model, scene.true, "withhold", 3)
    leecher = scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1")
    done = pull(leecher, scene.link(scene.true, thief.address))
    assert done.code in {3, 5}, done.err
    assert not (leecher.directory / "got.bin").exists()


# Signatures.


def signed_forger(scene: Scene, name: str, signature: ManifestSignature, manifest: Manifest) -> Running:
    """A node that offers a manifest with this signature."""
    node = scene.stage.node(name)
    path = node.directory / "forged.bin"
    path.write_bytes(scene.content)
    with Store(Root.open(node.root, create=True)) as store:
        store.adopt(path, manifest, signatures=[signature])
    return node.serve("node", "start")


def test_a_signature_by_a_stranger_adds_nothing(scene: Scene) -> None:
    """The forger signs with its own key; the true manifest, which the link names, still goes first."""
    manifest, _ = scene.forger("state")
    stranger = scene.stage.node("stranger")
    stranger.ok("auth", "init")
    with Store(Root.open(stranger.root, create=False)) as store:
        key = store.root.load_key()
        assert key is not None
    forger = signed_forger(scene, "signer", sign_manifest(key, manifest.id), manifest)
    leecher = scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1")
    summary = pulled(leecher, scene.link(manifest, forger.address, scene.seeder.address))
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    assert summary["rejected"] == {}


def test_a_key_that_is_named_does_not_make_a_garbage_signature_good(scene: Scene) -> None:
    manifest, _ = scene.forger("splice")
    key = scene.stage.node("owner")
    did = key.ok("auth", "init").out.strip()
    public = Root.open(key.root, create=False).public_key()
    assert public is not None
    forger = signed_forger(scene, "garbler", ManifestSignature(public, bytes(64)), manifest)
    leecher = scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1")
    link = scene.link(manifest, forger.address, scene.seeder.address)
    pulled(leecher, link, "--key", did)
    assert (leecher.directory / "got.bin").read_bytes() == scene.content


def test_a_trusted_signature_saves_the_proof_and_always_proves(scene: Scene) -> None:
    """`proof = auto` takes a trusted signature for the proof; `always` finds out that it was misused."""
    manifest, _ = scene.forger("state")
    owner = scene.stage.node("owner")
    did = owner.ok("auth", "init").out.strip()
    key = Root.open(owner.root, create=False).load_key()
    assert key is not None
    forger = signed_forger(scene, "owner's node", sign_manifest(key, manifest.id), manifest)
    link = scene.link(manifest, forger.address)
    trusting = scene.stage.node("trusting")
    assert pulled(trusting, link, "--key", did)["rejected"] == {}
    assert (trusting.directory / "got.bin").read_bytes() == scene.content
    proving = scene.stage.node("proving", MEGALFS_PROOF="always")
    done = pull(proving, link, "--key", did)
    assert done.code == 0, done.err
    assert "false" in done.err
    assert (proving.directory / "got.bin").read_bytes() == scene.content


def test_a_refuted_manifest_is_remembered_as_false(scene: Scene) -> None:
    manifest, forger = scene.forger("state")
    leecher = scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1")
    pulled(leecher, scene.link(manifest, forger))
    with Store(Root.open(leecher.root, create=False)) as store:
        assert manifest.id not in store.manifests(scene.true.oid)


def test_a_liar_that_adopts_a_manifest_of_another_size(scene: Scene) -> None:
    """A pointer's size rules out manifests of another one before anything is fetched."""
    short = scene.stage.node("short")
    path = short.directory / "short.bin"
    path.write_bytes(scene.content[: 3 * MIB])
    other = replace(manifest_of(path), oid=scene.true.oid)
    adopt(short.root, path, other)
    running = short.serve("node", "start")
    leecher = scene.stage.node("leecher", MEGALFS_MANIFEST_SWITCH_S="1")
    pulled(leecher, scene.link(other, running.address, scene.seeder.address))
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
