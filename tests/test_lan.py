"""Nodes of one LAN find each other; here the LAN is the loopback interface, which carries multicast too."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Megalfs

CONTENT = bytes(range(256)) * 2000
GROUP = "224.0.0.251"


def carries_multicast() -> bool:
    """Whether a datagram to the mDNS group comes back on loopback."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        listener.bind(("", 0))
        listener.settimeout(1.0)
        membership = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
        try:
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.sendto(b"?", (GROUP, listener.getsockname()[1]))
            return listener.recv(1) == b"?"
        except OSError:
            return False


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[tuple[Megalfs, Megalfs, str]]:
    """A seeding node that announces itself, a root that knows nobody, and the oid that the node has."""
    if not carries_multicast():
        pytest.skip("loopback carries no multicast here")
    seeder, puller = (
        Megalfs(tmp_path / name, environ={"MEGALFS_DISCOVER": "true"}) for name in ("seeder", "puller")
    )
    try:
        (tmp_path / "seeder" / "model.bin").write_bytes(CONTENT)
        yield seeder, puller, str(seeder.seed("model.bin").records[0]["oid"])
    finally:
        seeder.close()
        puller.close()


def test_a_pull_that_names_nobody_finds_the_node(lan: tuple[Megalfs, Megalfs, str]) -> None:
    _, puller, oid = lan
    done = puller.ok("pull", oid, "-o", "model.bin", "--listen", "127.0.0.1:0", "--json")
    assert (puller.directory / "model.bin").read_bytes() == CONTENT
    assert done.records[-1]["bytes_fetched"] == len(CONTENT)


def test_no_discover_asks_nobody(lan: tuple[Megalfs, Megalfs, str]) -> None:
    _, puller, oid = lan
    done = puller.run(
        "pull", oid, "-o", "model.bin", "--listen", "127.0.0.1:0", "--no-discover", "--wait-peers", "1"
    )
    assert done.code == 5
    assert not (puller.directory / "model.bin").exists()


def test_a_name_from_the_lan_needs_an_accepted_key(lan: tuple[Megalfs, Megalfs, str]) -> None:
    seeder, puller, _ = lan
    seeder.ok("publish", "model.bin", "--name", "weights")
    key = seeder.ok("auth", "show", "--json").records[0]["key"]
    argv = ["pull", "weights", "-o", "model.bin", "--listen", "127.0.0.1:0"]
    assert puller.run(*argv).code == 3
    puller.ok(*argv, "--key", key)
    assert (puller.directory / "model.bin").read_bytes() == CONTENT
