"""The sidecar of a partial: whose it is, and which pieces it claims. Hints only: a resume hashes them again.

A fixed layout, so that saving progress is one pwrite of what changed and a torn write loses hints, not truth:

    0     8  magic
    8    32  SHA-256 of the JSON
    40    4  length of the JSON, little-endian
    44  ...  JSON: oid, manifest, size, pieces, part, owner
    4096 ..  one bit a chunk, the first in the highest bit
    ...      records of verified parts of chunks that are not whole, appended: first part, how many, length of the
             chunk's proof in bytes (u32 each, little-endian; 0 when an earlier record has it), the proof

The file's mtime is the heartbeat. It is compared with the mtime of a file made just now in the same
directory, so both come from one clock, the file server's, and no host's clock matters.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING

from msgspec import Struct

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.ids import ManifestId, Oid
from megalfs.errors import MegalfsError, RemoteProtocolError
from megalfs.store.files import Json, write_all, write_atomic
from megalfs.store.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from megalfs.core.manifest import Manifest

__all__ = [
    "HEADER_BYTES",
    "PartialState",
    "append_records",
    "decode_records",
    "encode_record",
    "overwrite",
    "read_state",
    "save_bits",
    "write_state",
]

MAGIC = b"megalfsP"
HEADER_BYTES = 4096
_RECORD = struct.Struct("<III")
STATE_BYTES_MAX = HEADER_BYTES + (8 << 20)  # one bit for each chunk a manifest may have, and then some


class PartialState(Struct, frozen=True):
    """What a sidecar says. `pieces` is 0 when the manifest was not known."""

    oid: Oid
    manifest: ManifestId | None
    size: int
    pieces: int
    part: str  # file name of the data
    owner: Owner
    claimed: bytes = b""  # packed bits
    records: bytes = b""  # of parts

    @classmethod
    def of(cls, oid: Oid, size: int, manifest: Manifest | None, part: str, owner: Owner) -> PartialState:
        """The state of a partial that has nothing yet."""
        pieces = 0 if manifest is None else manifest.piece_count
        return cls(oid, None if manifest is None else manifest.id, size, pieces, part, owner)

    def bits(self) -> Bitfield:
        """The pieces claimed; none where the bits are damaged."""
        try:
            return Bitfield.from_bytes(self.claimed, self.pieces)
        except RemoteProtocolError:
            return Bitfield(self.pieces)


def write_state(path: Path, state: PartialState) -> None:
    """Writes a sidecar anew, whole."""
    bits = state.claimed or bytes((state.pieces + 7) // 8)
    write_atomic(path, _header(state) + bits)


def overwrite(fd: int, state: PartialState) -> None:
    """Overwrites a sidecar in place: that needs no room on a full disk, and cannot undo a take-over."""
    if state.claimed:
        write_all(fd, state.claimed + state.records, HEADER_BYTES)
        os.ftruncate(fd, HEADER_BYTES + len(state.claimed) + len(state.records))
    write_all(fd, _header(state), 0)
    os.utime(fd)


def _header(state: PartialState) -> bytes:
    document: dict[str, Json] = {
        "oid": str(state.oid), "manifest": None if state.manifest is None else str(state.manifest),
        "size": state.size, "pieces": state.pieces, "part": state.part, "owner": state.owner.to_json(),
    }  # fmt: skip
    text = json.dumps(document).encode("ascii")
    header = MAGIC + hashlib.sha256(text).digest() + len(text).to_bytes(4, "little") + text
    assert len(header) <= HEADER_BYTES
    return header.ljust(HEADER_BYTES, b"\0")


def save_bits(fd: int, bits: Bitfield) -> None:
    """Overwrites the claimed pieces in place; also the heartbeat, since it renews the mtime."""
    write_all(fd, bits.to_bytes(), HEADER_BYTES)
    os.utime(fd)  # a file system may leave the mtime of an equal overwrite alone


def encode_record(run: Run, proof: bytes) -> bytes:
    """Parts of one chunk are verified and written; the proof of their chunk, or nothing when it was given before."""
    return _RECORD.pack(*run, len(proof)) + proof


def decode_records(records: bytes) -> Iterator[tuple[Run, bytes]]:
    """What `encode_record` made, up to the first that is not whole. Hints: nothing in them is true yet."""
    at = 0
    while at + _RECORD.size <= len(records):
        first, count, size = _RECORD.unpack_from(records, at)
        at += _RECORD.size + size
        if at > len(records):
            return
        yield Run(first, count), records[at - size : at]


def append_records(fd: int, pieces: int, at: int, records: bytes) -> None:
    """Writes records behind the bits, where `at` bytes of them are already."""
    write_all(fd, records, HEADER_BYTES + (pieces + 7) // 8 + at)


def read_state(path: Path) -> PartialState | None:
    """What a sidecar says, or None when it is damaged: then nothing is claimed."""
    try:
        with path.open("rb") as file:
            content = file.read(STATE_BYTES_MAX)
        return _parse(content)
    except (OSError, ValueError, MegalfsError):
        return None


def _parse(content: bytes) -> PartialState | None:
    length = int.from_bytes(content[40:44], "little")
    text = content[44 : 44 + min(length, HEADER_BYTES)]
    if content[:8] != MAGIC or hashlib.sha256(text).digest() != content[8:40]:
        return None
    match json.loads(text):
        case {"oid": str(oid), "manifest": str() | None as manifest, "size": int(size), "pieces": int(pieces),
              "part": str(part), "owner": owner_fields}:  # fmt: skip
            owner = Owner.from_json(owner_fields)
            if (
                owner is None
                or "/" in part
                or size < 0
                or not 0 <= pieces <= 8 * (len(content) - HEADER_BYTES)
            ):
                return None
            end = HEADER_BYTES + (pieces + 7) // 8
            claimed, records = content[HEADER_BYTES:end], content[end:]
            known = None if manifest is None else ManifestId.parse(manifest)
            return PartialState(Oid.parse(oid), known, size, pieces, part, owner, claimed, records)
        case _:
            return None
