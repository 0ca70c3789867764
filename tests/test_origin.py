"""A plain HTTP server as a source: with a manifest from a peer, without any, and with every oddity it may have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from adversaries import MIB, Stage, error_of, litter, make_model, plain_origin, pull, pulled
from processes import Running

SIZE = 6 * MIB


@dataclass(frozen=True)
class Scene:
    """A model that a seeder has and that origins serve."""

    stage: Stage
    content: bytes
    oid: str
    link: str
    seeder: Running


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("origin")
    stage = Stage(directory)
    model = make_model(directory, size=SIZE)
    seeder = stage.node("seeder").serve("seed", model, "--limit-up", "3M")
    yield Scene(stage, model.read_bytes(), str(seeder.records[0]["oid"]), seeder.link, seeder)
    stage.close()


def test_no_manifest_anywhere(scene: Scene) -> None:
    leecher = scene.stage.node("alone")
    with plain_origin({"/model": scene.content}) as origin:
        summary = pulled(leecher, scene.oid, "--origin", origin.url("/model"))
    size = len(scene.content)
    assert summary["bytes_origin"] == summary["bytes_fetched"] == size
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    assert litter(leecher.directory) == []
    assert leecher.ok("publish", leecher.directory / "got.bin", "--json").records[0]["oid"] == scene.oid


@pytest.mark.parametrize("template", ["/by/{oid}", "/by/{name}", "/by/"])
def test_where_a_blob_lies_at_an_origin(scene: Scene, template: str) -> None:
    files = {f"/by/{scene.oid}": scene.content, "/by/model.safetensors": scene.content}
    leecher = scene.stage.node("template")
    link = scene.link.partition("?")[0] + "?name=model.safetensors"
    with plain_origin(files) as origin:
        pulled(leecher, link, "--origin", origin.url(template))
        wanted = f"/by/{scene.oid}" if "oid" in template else "/by/model.safetensors"
        assert {each.path for each in origin.asked} == {wanted}


def test_a_manifest_from_a_peer(scene: Scene) -> None:
    """Both are sources; what the peer brings is not asked of the origin."""
    leecher = scene.stage.node("both")
    with plain_origin({"/model": scene.content}) as origin:
        summary = pulled(leecher, scene.link, "--origin", origin.url("/model"))
        assert (leecher.directory / "got.bin").read_bytes() == scene.content
        by_peer = summary["bytes_by_peer"]
        assert by_peer.get(scene.seeder.address, 0) > 0
        assert summary["bytes_origin"] == by_peer.get(origin.url("/model"), 0)
        # Hedging at the end may ask for a few runs twice, not for the whole file.
        assert origin.sent <= len(scene.content) - by_peer[scene.seeder.address] + 3 * MIB


def test_a_manifest_known_here_and_only_an_origin(scene: Scene) -> None:
    """A file that was lost since: its manifest is still in the root, so damage costs chunks, not the file."""
    leecher = scene.stage.node("manifest here")
    pulled(leecher, scene.link)
    (leecher.directory / "got.bin").unlink()
    with plain_origin({"/model": scene.content}) as origin:
        summary = pulled(leecher, scene.oid, "--origin", origin.url("/model"))
        assert all(each.range for each in origin.asked)
    assert summary["bytes_origin"] == len(scene.content)


@pytest.mark.parametrize("oddity", ["no range", "once 503", "once 429", "truncated once"])
def test_oddities_that_cost_nothing(scene: Scene, oddity: str) -> None:
    leecher = scene.stage.node(oddity)
    with plain_origin({"/model": scene.content}) as origin:
        origin.oddity = oddity
        summary = pulled(leecher, scene.oid, "--origin", origin.url("/model"))
    assert summary["rejected"] == {}
    assert (leecher.directory / "got.bin").read_bytes() == scene.content


@pytest.mark.parametrize(
    "oddity", ["no range", "wrong range", "gzip", "changes", "404", "403", "429", "500", "truncated", "html"]
)
def test_oddities_beside_a_good_peer(scene: Scene, oddity: str) -> None:
    leecher = scene.stage.node(f"beside {oddity}")
    with plain_origin({"/model": scene.content}) as origin:
        origin.oddity = oddity
        summary = pulled(leecher, scene.link, "--origin", origin.url("/model"))
    assert (leecher.directory / "got.bin").read_bytes() == scene.content
    assert scene.seeder.address not in summary["rejected"]


@pytest.mark.parametrize(
    ("oddity", "code"),
    [
        ("404", 3),
        ("403", 11),
        ("429", 11),
        ("401", 7),
        ("500", 5),
        ("html", 4),
        ("truncated", 5),
        ("gzip", 5),
    ],
)
def test_oddities_alone(scene: Scene, oddity: str, code: int) -> None:
    leecher = scene.stage.node(f"alone {oddity}")
    with plain_origin({"/model": scene.content}) as origin:
        origin.oddity = oddity
        link = scene.link.partition("&peer=")[0]
        error = error_of(pull(leecher, link, "--origin", origin.url("/model")), code)
        assert origin.address in error["message"]
    assert not (leecher.directory / "got.bin").exists()


def test_other_bytes(scene: Scene) -> None:
    leecher = scene.stage.node("other bytes")
    with plain_origin({"/model": scene.content[::-1]}) as origin:
        error = error_of(pull(leecher, scene.oid, "--origin", origin.url("/model")), 4)
        assert error["rejected"] == {origin.url("/model"): 1}
    assert litter(leecher.directory) == []


def test_a_bad_origin_and_a_good_one(scene: Scene) -> None:
    leecher = scene.stage.node("two origins")
    with (
        plain_origin({"/model": scene.content[::-1]}) as bad,
        plain_origin({"/model": scene.content}) as good,
    ):
        argv = ["--origin", bad.url("/model"), "--origin", good.url("/model")]
        summary = pulled(leecher, scene.oid, *argv)
    assert set(summary["rejected"]) == {bad.url("/model")}
    assert (leecher.directory / "got.bin").read_bytes() == scene.content


def test_a_redirect_to_another_host_gets_no_credentials(scene: Scene) -> None:
    from megalfs.net.webseed import Origin

    with plain_origin({"/model": scene.content}) as real, plain_origin({}) as front:
        front.oddity, front.location = "redirect", real.url("/model")
        origin = Origin(
            front.url("/x"), proxies={}, headers={"Authorization": "Bearer secret", "Cookie": "a=b"}
        )
        response, start = origin.fetch_from(0)
        assert (response.read(), start) == (scene.content, 0)
        origin.close()
        assert "Authorization" in front.asked[0].headers
        assert not {"Authorization", "Cookie"} & set(real.asked[0].headers)
        leecher = scene.stage.node("redirected")
        pulled(leecher, scene.oid, "--origin", front.url("/x"))
    assert (leecher.directory / "got.bin").read_bytes() == scene.content


def test_a_redirect_from_https_to_http_is_refused() -> None:
    from megalfs.errors import RemoteProtocolError
    from megalfs.net.http import follow

    with pytest.raises(RemoteProtocolError, match="https to http"):
        follow("https://host/a", "http://host/a", {})
    for location in (
        "file:///etc/passwd",
        "gopher://host/",
        "http://user:secret@host/",
        "http://host/\r\nX: y",
    ):
        with pytest.raises(RemoteProtocolError, match="unusable"):
            follow("http://host/a", location, {})


def test_an_endless_redirect(scene: Scene) -> None:
    leecher = scene.stage.node("endless")
    with plain_origin({}) as origin:
        origin.oddity, origin.location = "redirect", "/again"
        error = error_of(pull(leecher, scene.oid, "--origin", origin.url("/x")), 5)
    assert "redirects more than" in error["message"]
