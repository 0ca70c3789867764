"""What a TARGET means: a pointer file, a directory of them, a link, an oid, or a published name, in that order.

Nothing large is fetched here. A name is a signed record, asked of the peers and the root's own store; whose
word is followed is DESIGN.md section 4.3: a key in the link, in `--key` or in the configuration, or any key
when a peer that the user named gave the record.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.link import LINK_SCHEME, Kind, Link
from megalfs.core.names import SignedName, parse_name
from megalfs.core.pathrules import escape_for_terminal
from megalfs.errors import MegalfsError, NotFoundError, PolicyError, TemporaryError, UsageError
from megalfs.formats import strict_json
from megalfs.formats.hostport import HostPort
from megalfs.formats.pointer import POINTER_BYTES_MAX, Pointer
from megalfs.net.http import HttpClient, check_status
from megalfs.store.blobs import Store

__all__ = ["NameSources", "Wanted", "resolve"]

log = logging.getLogger(__name__)

_OID = re.compile(r"(?:sha256:)?[0-9a-fA-F]{64}\Z")
_PATH = re.compile(r"~?\.{0,2}/")  # no name begins so: `/x`, `./x`, `../x`, `~/x`
RECORDS_MAX = 64


class Wanted(Struct, frozen=True, kw_only=True):
    """One blob to pull; `target` is set where the TARGET itself says so (a pointer file)."""

    oid: Oid
    name: str
    size: int | None = None
    manifest: ManifestId | None = None
    kind: Kind = "blob"
    target: Path | None = None
    key: NodeKey | None = None
    peers: tuple[HostPort, ...] = ()
    trackers: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    note: str | None = None


class NameSources(Struct, frozen=True):
    """Whom to ask for a name, and whose word counts.

    Attributes:
        keys: believed wherever the record comes from.
        chosen: by the user for this very command: no other key is followed.
        neighbours: waits for the nodes of the LAN; whom nobody named must show an accepted key.
    """

    http: HttpClient
    peers: Sequence[HostPort]
    trackers: Sequence[str]
    keys: frozenset[NodeKey]
    chosen: frozenset[NodeKey] = frozenset()
    neighbours: Callable[[], Sequence[HostPort]] = list

    @property
    def followed(self) -> frozenset[NodeKey]:
        """The keys whose records count wherever they come from."""
        return self.chosen or self.keys


def resolve(target: str, *, cwd: Path, store: Store, names: NameSources) -> list[Wanted]:
    """What one TARGET asks for. Blocks when it must ask peers.

    Raises:
        UsageError: it is none of the five forms.
        NotFoundError, TemporaryError: no such file; nobody knows the name; nobody could be asked.
        PolicyError: a name that no accepted key signed, or that expired.
    """
    if not target:
        raise UsageError("an empty TARGET")
    if target.lower().startswith(LINK_SCHEME):
        return [_from_link(Link.parse(target))]
    path = cwd / target
    if path.is_dir():
        return list(_pointers_below(path)) or _from_name_of_directory(target, store, names)
    pointer = _pointer_at(path)
    if pointer is not None:
        return [Wanted(oid=pointer.oid, size=pointer.size, name=path.name, target=path)]
    if _OID.match(target):
        oid = Oid.parse(target)
        return [Wanted(oid=oid, name=str(oid))]
    if path.exists():
        return [_from_file(store, path)]
    if _PATH.match(target):
        raise NotFoundError(f"no such file: '{escape_for_terminal(target)}'")
    return [_from_name(target, store, names)]


def _from_link(link: Link) -> Wanted:
    return Wanted(
        oid=link.oid,
        name=link.name or str(link.oid),
        size=link.size,
        manifest=link.manifest,
        kind=link.kind,
        key=link.key,
        peers=link.peers,
        trackers=link.trackers,
        origins=link.origins,
    )


def _pointer_at(path: Path) -> Pointer | None:
    """The pointer file at `path`, or None for anything else; large files are not read."""
    try:
        if not path.is_file() or path.stat().st_size > POINTER_BYTES_MAX:
            return None
        return Pointer.parse(path.read_bytes())
    except OSError:
        return None


def _pointers_below(directory: Path) -> Iterator[Wanted]:
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(files):
            path = Path(folder) / name
            pointer = None if path.is_symlink() else _pointer_at(path)
            if pointer is not None:
                yield Wanted(oid=pointer.oid, size=pointer.size, name=name, target=path)


def _from_name_of_directory(target: str, store: Store, names: NameSources) -> list[Wanted]:
    """A directory without pointers may be a named tree whose pull was interrupted, or is to be renewed."""
    try:
        return [_from_name(target, store, names)]
    except (UsageError, NotFoundError):
        return []


def _from_file(store: Store, path: Path) -> Wanted:
    """A file that is no pointer: it is what it should be when the store knows it."""
    blob = store.at(path)
    if blob is None:
        raise UsageError(
            f"{str(path)!r} is no pointer file",
            hint="TARGET is a pointer file, a directory of them, a link, an oid or a published name",
        )
    return Wanted(oid=blob.oid, size=blob.size, name=path.name, target=path)


def _from_name(text: str, store: Store, names: NameSources) -> Wanted:
    name = parse_name(text)
    found = [
        record
        for record in store.names()
        if record.record.name == name and (record.key in names.followed or _is_own(store, record))
    ]
    errors: list[MegalfsError] = []
    for base in [f"http://{peer}" for peer in names.peers]:
        found += _ask(base, name, names, errors, is_named_by_user=True)
    neighbours = names.neighbours() if not found else []
    for base in [f"http://{peer}" for peer in neighbours]:
        found += _ask(base, name, names, errors, is_named_by_user=False)
    for base in names.trackers:
        found += _ask(base.rstrip("/"), name, names, errors, is_named_by_user=False)
    if not found:
        raise _no_name(name, errors, asked=len(names.peers) + len(names.trackers) + len(neighbours))
    signed = _choose(name, found)
    record = signed.record
    if record.is_expired(time.time()):  # noqa: TID251 - the publisher's date
        raise PolicyError(
            f"the name '{escape_for_terminal(name)}' has expired", hint="the publisher must sign it again"
        )
    known = store.name(signed.key, name)
    if known is not None and known.record.seq > record.seq:
        raise PolicyError(
            f"the name '{escape_for_terminal(name)}' went back from seq {known.record.seq} to {record.seq}",
            hint="somebody serves an old record; ask another peer",
        )
    store.put_name(signed)
    return Wanted(
        oid=record.oid,
        name=name.rpartition("/")[2],
        size=record.size,
        manifest=record.manifest,
        kind=record.kind,
        key=signed.key,
        note=f"{escape_for_terminal(name)} is {record.oid}, signed by {signed.key} (seq {record.seq})",
    )


def _is_own(store: Store, record: SignedName) -> bool:
    return record.key == store.root.public_key()


def _ask(
    base: str, name: str, names: NameSources, errors: list[MegalfsError], *, is_named_by_user: bool
) -> list[SignedName]:
    """The records of one name at one node that may be followed."""
    from urllib.parse import quote

    url = f"{base}/v1/names?name={quote(name, safe='')}"
    try:
        reply = names.http.get(url)
        check_status(reply.status, url)
        documents = strict_json.parse(reply.body)
        if not isinstance(documents, list):
            return []
        signed = [SignedName.parse(strict_json.encode(each), name=name) for each in documents[:RECORDS_MAX]]
    except strict_json.JsonFault as error:
        errors.append(TemporaryError(f"{url}: {error}"))
        return []
    except MegalfsError as error:
        log.info("%s: %s", url, error)
        errors.append(error)
        return []
    trusted = [each for each in signed if each.key in names.followed]
    if trusted or not is_named_by_user:
        return trusted
    return signed if not names.chosen else []


def _choose(name: str, found: Sequence[SignedName]) -> SignedName:
    """The newest record; two keys that disagree are for the user to judge."""
    newest: dict[NodeKey, SignedName] = {}
    for each in found:
        known = newest.get(each.key)
        if known is None or each.record.seq > known.record.seq:
            newest[each.key] = each
        elif each.record.seq == known.record.seq and each.record != known.record:
            raise PolicyError(f"{each.key} signed two records of '{escape_for_terminal(name)}' with one seq")
    if len({each.record.oid for each in newest.values()}) > 1:
        keys = ", ".join(str(key) for key in sorted(newest))
        raise PolicyError(
            f"several keys signed '{escape_for_terminal(name)}' for different blobs: {keys}",
            hint="choose one with --key",
        )
    return max(newest.values(), key=lambda each: each.record.seq)


def _no_name(name: str, errors: Sequence[MegalfsError], *, asked: int) -> MegalfsError:
    shown = escape_for_terminal(name)
    if not asked:
        return NotFoundError(
            f"no file, link, oid or known name: '{shown}'", hint="name who knows it with --peer or --tracker"
        )
    if len(errors) == asked and all(error.is_retryable for error in errors):
        return TemporaryError(f"nobody could be asked for the name '{shown}': {errors[-1]}")
    return NotFoundError(f"nobody asked knows the name '{shown}' under a key that is accepted")
