"""A link names a blob and says who may have it:

    megalfs:<oid>?name=...&size=...&manifest=<id>&kind=tree&key=did:key:...&peer=host:port&tracker=URL&origin=URL

What `publish` prints and `pull` takes. Only the oid must be there; peers, trackers and origins may repeat.
Unknown parameters are ignored, so that links can learn; a known single parameter given twice is refused,
because two readers might take different ones. Links come from strangers: nothing in one may reach a shell, a
header, a path or a scheme other than HTTP (research/eco.md 6.3, cases 31 and 32).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.pathrules import name_fault
from megalfs.errors import UsageError
from megalfs.formats.hostport import HostPort
from megalfs.formats.limits import SIZE_MAX

__all__ = ["LINK_SCHEME", "HostPort", "Kind", "Link", "parse_http_url"]

LINK_SCHEME: Final = "megalfs:"
LINK_CHARS_MAX = 16 << 10  # what shells and chat programs still pass on
URL_CHARS_MAX = 2048
REPEATS_MAX = 64  # peers, trackers, origins: each

Kind = Literal["blob", "tree"]
T = TypeVar("T")


class Link(Struct, frozen=True, kw_only=True):
    """A parsed link; `str()` writes it, the parameters in the order above."""

    oid: Oid
    name: str | None = None
    size: int | None = None
    manifest: ManifestId | None = None
    kind: Kind = "blob"
    key: NodeKey | None = None
    peers: tuple[HostPort, ...] = ()
    trackers: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Link:
        """Reads a link.

        Raises:
            UsageError: no link, or a parameter that is malformed, unsafe, or given too often.
        """
        if not text.lower().startswith(LINK_SCHEME) or len(text) > LINK_CHARS_MAX:
            raise UsageError(f"not a link: {text[:80]!r}", hint="megalfs:<oid>?... is expected")
        oid, _, query = text[len(LINK_SCHEME) :].partition("?")
        values = _values(query)
        return cls(
            oid=Oid.parse(oid),
            name=_one(values, "name", _name),
            size=_one(values, "size", _size),
            manifest=_one(values, "manifest", ManifestId.parse),
            kind=_one(values, "kind", _kind) or "blob",
            key=_one(values, "key", NodeKey.parse),
            peers=_many(values, "peer", HostPort.parse),
            trackers=_many(values, "tracker", parse_http_url),
            origins=_many(values, "origin", parse_http_url),
        )

    def __str__(self) -> str:
        single = {
            "name": self.name,
            "size": self.size,
            "manifest": self.manifest,
            "kind": None if self.kind == "blob" else self.kind,
            "key": self.key,
        }
        pairs = [(name, str(value)) for name, value in single.items() if value is not None]
        pairs += [("peer", str(peer)) for peer in self.peers]
        pairs += [("tracker", url) for url in self.trackers]
        pairs += [("origin", url) for url in self.origins]
        query = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in pairs)
        return f"{LINK_SCHEME}{self.oid}" + (f"?{query}" if query else "")


def parse_http_url(text: str) -> str:
    """Checks an http or https URL and returns it as it was.

    Raises:
        UsageError: another scheme, userinfo, no host, a bad port, a fragment, a space, control or non-ASCII
            character, a backslash, or more than 2048 characters.
    """
    fault = f"not a usable http(s) URL: {text[:200]!r}"
    if len(text) > URL_CHARS_MAX or not all("!" <= char <= "~" and char not in '\\"<>^`|' for char in text):
        raise UsageError(fault)
    try:
        parts = urlsplit(text)
    except ValueError as e:
        raise UsageError(fault) from e
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.fragment:
        raise UsageError(fault, hint="only http and https, without user, password or fragment")
    HostPort.parse(parts.netloc, default_port=443 if parts.scheme == "https" else 80)
    return text


def _values(query: str) -> Mapping[str, Sequence[str]]:
    values: defaultdict[str, list[str]] = defaultdict(list)
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        try:
            values[name].append(unquote(value, errors="strict"))
        except UnicodeDecodeError as e:
            raise UsageError(f"not UTF-8 in a link: {value[:80]!r}") from e
    return values


def _one(values: Mapping[str, Sequence[str]], name: str, parse: Callable[[str], T]) -> T | None:
    given = values.get(name, ())
    if len(given) > 1:
        raise UsageError(f"{name!r} stands {len(given)} times in a link")
    return parse(given[0]) if given else None


def _many(values: Mapping[str, Sequence[str]], name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
    given = values.get(name, ())
    if len(given) > REPEATS_MAX:
        raise UsageError(f"{name!r} stands {len(given)} times in a link; the limit is {REPEATS_MAX}")
    return tuple(dict.fromkeys(parse(value) for value in given))


def _name(text: str) -> str:
    fault = name_fault(text)
    if fault is not None:
        raise UsageError(f"the name {text[:80]!r} in a link is refused: {fault}")
    return text


def _size(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > SIZE_MAX:
        raise UsageError(f"not a size: {text[:80]!r}")
    return int(text)


def _kind(text: str) -> Kind:
    match text:
        case "blob" | "tree":
            return text
        case _:
            raise UsageError(f"unknown kind {text[:80]!r} in a link", hint="upgrade megalfs")
