"""Links and addresses: what is written is read, nothing unsafe passes (research/eco.md 6.3, cases 31, 32)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.link import HostPort, Link, parse_http_url
from megalfs.core.pathrules import name_fault
from megalfs.errors import UsageError

OID = "ab" * 32
BARE = f"megalfs:{OID}"
DID = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"

FULL = Link(
    oid=Oid.parse(OID),
    name="my model+1 100%&=?#.safetensors",
    size=91_000_000,
    manifest=ManifestId.parse("cd" * 32),
    kind="tree",
    key=NodeKey.parse(DID),
    peers=(HostPort("node7", 7427), HostPort("10.0.0.7", 1), HostPort("fe80::1%eth0", 65535)),
    trackers=("http://t.example/announce", "https://[2001:db8::1]:8443"),
    origins=("https://cdn.example/models/{oid}?x=1&y=%20", "http://localhost:8080/"),
)


def test_a_full_link_round_trips() -> None:
    text = str(FULL)
    assert Link.parse(text) == FULL
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert text.startswith(
        f"megalfs:{OID}?name=my%20model%2B1%20100%25%26%3D%3F%23.safetensors&size=91000000&manifest="
    )


def test_a_bare_link() -> None:
    assert Link.parse(BARE) == Link(oid=Oid.parse(OID))
    assert str(Link.parse(BARE)) == BARE
    assert Link.parse(BARE + "?") == Link.parse("MEGALFS:" + OID.upper()) == Link.parse(BARE)


def test_what_people_type() -> None:
    link = Link.parse(
        f"{BARE}?peer=[::1]:80&peer=host:7427&peer=host:7427&tracker=http://t:1/&key={DID}&new=1&&x"
    )
    assert link.peers == (HostPort("::1", 80), HostPort("host", 7427))
    assert link.trackers == ("http://t:1/",)
    assert link.key == NodeKey.parse(DID)
    assert Link.parse(f"{BARE}?key={NodeKey.parse(DID).peer_id}").key == link.key


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=20), st.integers(0, (1 << 63) - 1))
def test_any_good_name_round_trips(name: str, size: int) -> None:
    if name_fault(name) is None:
        link = Link(oid=Oid.parse(OID), name=name, size=size)
        assert Link.parse(str(link)) == link


@pytest.mark.parametrize(
    "text",
    [
        "",
        OID,
        "megalfs:",
        "megalfs:" + OID[:-1],
        "megalfs://" + OID,
        "http://" + OID,
        BARE + "?size=-1",
        BARE + "?size=1e9",
        BARE + "?size=+1",
        BARE + "?size=",
        BARE + "?size=" + str(1 << 63),
        BARE + "?size=" + "9" * 5000,
        BARE + "?size=\u0665",
        BARE + "?size=1&size=2",
        BARE + "?name=a&name=b",
        BARE + "?name=",
        BARE + "?name=..",
        BARE + "?name=%2e%2e",
        BARE + "?name=a%2fb",
        BARE + "?name=a%5cb",
        BARE + "?name=%00",
        BARE + "?name=%0d%0aSet-Cookie",
        BARE + "?name=%1b[31m",
        BARE + "?name=%e2%80%ae",
        BARE + "?name=%ff",
        BARE + "?manifest=00",
        BARE + "?kind=volume",
        BARE + "?kind=tree&kind=blob",
        BARE + "?key=did:key:z",
        BARE + "?peer=host",
        BARE + "?peer=user@host:1",
        BARE + "?peer=host:1%0d%0aX:y",
        BARE + "?tracker=ftp://x/",
        BARE + "?origin=file:///etc/passwd",
        BARE + "?origin=gopher://x/",
        BARE + "?origin=http://u:p@x/",
        BARE + "?origin=http://x/%0d%0aHost:y" + "\r\n",
        BARE + "&".join(["?peer=h:1"] + [f"peer=h:{port}" for port in range(2, 66)]),
        BARE + "?x=" + "x" * 16_400,
    ],
)
def test_bad_links_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Link.parse(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "https://host:443/a/b?c=d",
        "http://127.0.0.1:8000/{oid}/{name}",
        "http://[::1]/",
        "https://host/%2e%2e/",
        "http://host/" + "x" * 2036,
    ],
)
def test_urls_that_are_taken(url: str) -> None:
    assert parse_http_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "//host/",
        "http:",
        "http:///x",
        "http://",
        "http://@host/",
        "http://user@host/",
        "http://host:99999/",
        "http://host:0x50/",
        "http://host:80:80/",
        "http://host#f",
        "http://ho st/",
        "http://host/a b",
        "http://host/\x00",
        "http://host/\r\nX: y",
        "http://host\t/",
        "http://h\u00f6st/",
        "http://host\\@evil/",
        "http://[::1",
        "http://[::1]x/",
        "http://[v1.x]/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "http://host/" + "x" * 2037,
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        parse_http_url(url)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:0", "localhost", 0),
        ("node_1.rack-2.cluster.:65535", "node_1.rack-2.cluster.", 65535),
        ("10.1.2.3:7427", "10.1.2.3", 7427),
        ("[::1]:7427", "::1", 7427),
        ("[2001:DB8:0:0::1]:1", "2001:db8::1", 1),
        ("[fe80::1%en0]:1", "fe80::1%en0", 1),
        ("0.0.0.0:7427", "0.0.0.0", 7427),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = HostPort.parse(text)
    assert address == HostPort(host, port)
    assert HostPort.parse(str(address)) == address
    assert address.is_ipv6 == text.startswith("[")


def test_a_default_port() -> None:
    assert HostPort.parse("host", default_port=7427) == HostPort("host", 7427)
    assert HostPort.parse("[::1]", default_port=7427) == HostPort("::1", 7427)
    assert HostPort.parse("host:1", default_port=7427) == HostPort("host", 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "host",
        "host:",
        "host:x",
        "host:-1",
        "host:+1",
        "host:65536",
        "host:080",
        "host: 1",
        "host:1 ",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[host]:1",
        "[]:1",
        "[::1%]:1",
        "[::1%a/b]:1",
        "ho st:1",
        "a..b:1",
        "-a:1",
        "a-:1",
        "h@x:1",
        "h/x:1",
        "h\n:1",
        "host:1\n",
        "1.2.3:1",
        "1.2.3.4.5:1",
        "256.1.1.1:1",
        "01.2.3.4:1",
        "x" * 64 + ":1",
        ".".join(["x" * 63] * 4) + ":1",
        "host:٣",
    ],
)
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        HostPort.parse(text)
