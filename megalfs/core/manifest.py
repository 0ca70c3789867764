"""The manifest of a blob: its chunks in order, both digests of each, and the SHA-256 states on the way.

Everything per chunk is a numpy column, because a 140 GB blob has some 560,000 chunks: nothing here walks
them one by one. A manifest is a value; it is checked when it is made, whoever made it, so that holding one
means that its lengths add up, its counts fit its size, and its encoding is the only one it has. None of that
means that it is *true*: that is for `core/proof.py` to find out.

State k, for every 0 < k * 2**20 < size, is the SHA-256 chaining state after k * 2**20 bytes, as eight
big-endian words. A manifest may declare no states; then it can only be proven serially.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from megalfs.core.ids import ChunkId, ManifestId, Oid
from megalfs.core.parts import Parts
from megalfs.errors import IntegrityError, PolicyError, UsageError
from megalfs.formats import columns, strict_json
from megalfs.formats.digests import DIGEST_BYTES, Digests, SortedDigests
from megalfs.formats.layout import Layout, Plain, Tensor
from megalfs.formats.manifest_fields import (
    EMPTY_OID,
    MAGIC,
    MANIFEST_BYTES_MAX,
    SEGMENT_BYTES,
    VERSION,
    ChunkColumns,
    LengthSummary,
    chunks_from_json,
    chunks_to_json,
    encode_manifest,
    layout_from_json,
    layout_to_json,
    manifest_fault,
    state_count,
    states_from_json,
    tensors_from_json,
    tensors_to_json,
)
from megalfs.formats.strict_json import JsonFault, JsonValue

__all__ = ["EMPTY_OID", "MANIFEST_BYTES_MAX", "SEGMENT_BYTES", "Manifest", "segment_count", "state_count"]

MANIFEST_JSON_BYTES_MAX = 1 << 30  # four times the binary form

_COLUMNS = {"lengths": "<u4", "blake3": "|u1", "sha256": "|u1", "states": "|u1", "tensors": "|u1"}
_OID = re.compile(r"[0-9a-f]{64}\Z")
_FIELDS = frozenset({"layout", "oid", "profile", "size"})
_JSON_FIELDS = _FIELDS | {"chunks", "states", "tensors", "version"}


def segment_count(size: int) -> int:
    """How many links its proof has; the empty blob has one, of no bytes."""
    return state_count(size) + 1


class Manifest(Struct, frozen=True, eq=False, kw_only=True, dict=True):  # dict: where cached_property keeps
    """The chunks of one blob. Arrays are read-only; `lengths` (n,) uint32, digests (n, 32), states (m, 32).

    Raises:
        IntegrityError: counts, lengths or extents that cannot belong to a blob of this size.
        PolicyError: the profile is unknown.
    """

    oid: Oid
    size: int
    profile: str
    layout: Layout | Plain
    lengths: NDArray[np.uint32]
    blake3: Digests
    sha256: Digests
    states: Digests

    def __post_init__(self) -> None:
        assert self.lengths.dtype == np.uint32
        assert self.lengths.ndim == 1
        for digests in (self.blake3, self.sha256, self.states):
            assert digests.dtype == np.uint8
            assert digests.shape[1:] == (DIGEST_BYTES,)
        for column in (self.lengths, self.blake3, self.sha256, self.states):
            column.setflags(write=False)
        fault = self._fault()
        if fault is not None:
            raise IntegrityError(f"manifest of {self.oid}: {fault}")

    @cached_property
    def id(self) -> ManifestId:
        """SHA-256 of the encoding."""
        return ManifestId(hashlib.sha256(self.encode()).digest())

    @property
    def piece_count(self) -> int:
        """Pieces are chunks, numbered from 0."""
        return len(self.lengths)

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """The tensor table in file order; None when the file is plain."""
        return self.layout.tensors if isinstance(self.layout, Layout) else None

    @property
    def has_states(self) -> bool:
        """True when every link of the proof can be checked on its own."""
        return len(self.states) == state_count(self.size)

    @cached_property
    def offsets(self) -> NDArray[np.uint64]:
        """Where each piece starts, in bytes; one more entry, the size, at the end."""
        offsets = np.zeros(len(self.lengths) + 1, np.uint64)
        np.cumsum(self.lengths, out=offsets[1:])
        offsets.setflags(write=False)
        return offsets

    @cached_property
    def parts(self) -> Parts:
        """What a swarm fetches this blob in."""
        return Parts(self.lengths, self.offsets)

    def run_extent(self, first: int, count: int) -> tuple[int, int]:
        """Offset and length in bytes of `count` pieces from `first`."""
        if not 0 <= first <= first + count <= self.piece_count:
            raise UsageError(f"pieces {first}+{count} of {self.piece_count}")
        start = int(self.offsets[first])
        return start, int(self.offsets[first + count]) - start

    def pieces_covering(self, offset: int, length: int) -> tuple[int, int]:
        """First and count of the pieces that overlap these bytes; no bytes, no pieces."""
        if not 0 <= offset <= offset + length <= self.size:
            raise UsageError(f"bytes {offset}+{length} of {self.size}")
        first = int(np.searchsorted(self.offsets[1:], np.uint64(offset), "right"))
        if length == 0:
            return first, 0
        return first, int(np.searchsorted(self.offsets, np.uint64(offset + length), "left")) - first

    def chunk_id(self, index: int) -> ChunkId:
        """BLAKE3-256 of piece `index`."""
        return ChunkId(self.blake3[index].tobytes())

    def index_of_blake3(self, chunk_id: ChunkId) -> int | None:
        """The first piece with this chunk id."""
        return self._sorted_blake3.find(chunk_id.raw)

    def index_of_sha256(self, digest: Oid) -> int | None:
        """The first piece whose bytes have this SHA-256."""
        return self._sorted_sha256.find(digest.raw)

    def indices_of_blake3(self, wanted: Digests) -> NDArray[np.int64]:
        """For each wanted chunk id (k, 32) the first piece that has it, or -1."""
        return self._sorted_blake3.find_many(wanted)

    @cached_property
    def _sorted_blake3(self) -> SortedDigests:
        return SortedDigests.of(self.blake3)

    @cached_property
    def _sorted_sha256(self) -> SortedDigests:
        return SortedDigests.of(self.sha256)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Manifest) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Manifest({self.oid}, {self.size} bytes, {self.piece_count} pieces, {self.profile})"

    def encode(self) -> bytes:
        """The canonical bytes, whose SHA-256 is the id.

        Raises:
            UsageError: the blob has too many chunks for its profile.
        """
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        return encode_manifest(
            oid=self.oid,
            size=self.size,
            profile=self.profile,
            layout=self.layout,
            lengths=np.ascontiguousarray(self.lengths, "<u4").data,
            blake3=np.ascontiguousarray(self.blake3).data,
            sha256=np.ascontiguousarray(self.sha256).data,
            states=np.ascontiguousarray(self.states).data,
        )

    @classmethod
    def decode(cls, encoded: bytes, *, oid: Oid | None = None) -> Self:
        """Reads what `encode` writes, and nothing else. Keeps `encoded` alive: the arrays are views of it.

        Args:
            oid: the blob asked for, where one was.

        Raises:
            IntegrityError: malformed, not canonical, beyond a limit, or of another blob.
            PolicyError: another version, profile, column or header field: an upgrade is needed.
        """
        if len(encoded) > MANIFEST_BYTES_MAX:
            raise IntegrityError(f"a manifest of {len(encoded)} bytes; the limit is {MANIFEST_BYTES_MAX}")
        parts = columns.unpack(MAGIC, VERSION, encoded)
        _refuse_unknown(parts.fields, _FIELDS)
        subject, arrays = _subject(parts.fields, oid), _checked_columns(parts.arrays)
        manifest = cls(
            oid=subject.oid,
            size=subject.size,
            profile=subject.profile,
            layout=layout_from_json(parts.fields.get("layout"), _tensors(arrays["tensors"])),
            lengths=arrays["lengths"].astype(np.uint32, copy=False),
            blake3=arrays["blake3"].astype(np.uint8, copy=False),
            sha256=arrays["sha256"].astype(np.uint8, copy=False),
            states=arrays["states"].astype(np.uint8, copy=False),
        )
        manifest.__dict__["_encoded"] = encoded  # it is canonical: `unpack` and the checks above saw to that
        return manifest

    def to_json(self) -> bytes:
        """The same content for people and other programs; see DESIGN.md section 6 for the promised keys."""
        return strict_json.encode(
            {
                "version": VERSION,
                "oid": str(self.oid),
                "size": self.size,
                "profile": self.profile,
                "layout": layout_to_json(self.layout),
                "chunks": chunks_to_json(
                    self.offsets[:-1], ChunkColumns(self.lengths, self.sha256, self.blake3)
                ),
                "states": [state.tobytes().hex() for state in self.states],
                "tensors": tensors_to_json(self.layout),
            }
        )

    @classmethod
    def from_json(cls, text: bytes, *, oid: Oid | None = None) -> Self:
        """Reads `to_json`, in any order and spacing; the result has the same id.

        Raises:
            IntegrityError, PolicyError: as `decode`.
        """
        if len(text) > MANIFEST_JSON_BYTES_MAX:
            raise IntegrityError(f"a manifest of {len(text)} bytes; the limit is {MANIFEST_JSON_BYTES_MAX}")
        try:
            fields = strict_json.parse(text)
        except JsonFault as e:
            raise IntegrityError(f"bad manifest: {e}") from e
        if not isinstance(fields, dict):
            raise IntegrityError("bad manifest: not an object")
        if fields.get("version") != VERSION:
            raise PolicyError(
                f"manifest version {fields.get('version')!r} is unknown", hint="upgrade megalfs"
            )
        _refuse_unknown(fields, _JSON_FIELDS)
        subject, chunks = _subject(fields, oid), chunks_from_json(fields.get("chunks"))
        return cls(
            oid=subject.oid,
            size=subject.size,
            profile=subject.profile,
            layout=layout_from_json(fields.get("layout"), tensors_from_json(fields.get("tensors"))),
            lengths=chunks.lengths,
            blake3=chunks.blake3,
            sha256=chunks.sha256,
            states=states_from_json(fields.get("states")),
        )

    def _fault(self) -> str | None:
        least, most = (int(self.lengths.min()), int(self.lengths.max())) if len(self.lengths) else (0, 0)
        total = int(self.lengths.sum(dtype=np.uint64))
        return manifest_fault(
            oid=self.oid,
            size=self.size,
            profile=self.profile,
            layout=self.layout,
            lengths=LengthSummary(len(self.lengths), total, least, most),
            blake3=len(self.blake3),
            sha256=len(self.sha256),
            states=len(self.states),
        )


def _refuse_unknown(fields: Mapping[str, JsonValue], known: frozenset[str]) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise PolicyError(f"unknown field {unknown[0][:40]!r} in a manifest", hint="upgrade megalfs")


def _checked_columns(arrays: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
    if set(arrays) - set(_COLUMNS):
        raise PolicyError(f"unknown columns in a manifest: {sorted(arrays)[:8]}", hint="upgrade megalfs")
    if list(arrays) != list(_COLUMNS):
        raise IntegrityError("columns are missing or out of order")
    for name, array in arrays.items():
        shape = (len(array),) if name in ("lengths", "tensors") else (len(array), DIGEST_BYTES)
        if array.dtype.str != _COLUMNS[name] or array.shape != shape:
            raise IntegrityError(f"column {name} has type {array.dtype.str}, shape {array.shape}")
    return arrays


class _Subject(NamedTuple):
    oid: Oid
    size: int
    profile: str


def _subject(fields: Mapping[str, JsonValue], asked_for: Oid | None) -> _Subject:
    match fields:
        case {"oid": str(oid), "size": int(size), "profile": str(profile)} if _OID.match(oid):
            if type(size) is not int:
                raise IntegrityError(f"a manifest of size {size!r}")
            subject = _Subject(Oid.parse(oid), size, profile)
        case _:
            raise IntegrityError("a manifest without oid, size and profile")
    if asked_for not in (None, subject.oid):
        raise IntegrityError(f"a manifest of {subject.oid} where one of {asked_for} was asked for")
    return subject


def _tensors(column: NDArray[np.generic]) -> tuple[Tensor, ...] | None:
    try:
        return tensors_from_json(strict_json.parse_canonical(column.tobytes()))
    except JsonFault as e:
        raise IntegrityError(f"bad tensor table: {e}") from e
