"""Who somebody is: an Ed25519 public key, with two spellings of the same 32 bytes.

    did:key:z6Mk...  multibase z, base58btc(0xed 0x01 + key)        https://w3c-ccg.github.io/did-key-spec/
    12D3KooW...      base58btc(0x00 0x24 0x08 0x01 0x12 0x20 + key)  https://github.com/libp2p/specs peer-ids

Both are accepted wherever a key is; `did:key:` is written. The predecessor wrote `did:key:z2D...` (one byte
0xed): read, never written.
"""

from __future__ import annotations

from msgspec import Struct

from megalfs.errors import UsageError
from megalfs.formats import base58

__all__ = ["KEY_BYTES", "NodeKey"]

KEY_BYTES = 32
_DID = "did:key:z"
_MULTICODEC = bytes((0xED, 0x01))  # ed25519-pub as an unsigned varint
_MULTICODEC_LEGACY = bytes((0xED,))
_PEER_ID = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))  # identity multihash of a protobuf {Ed25519, 32 bytes}


class NodeKey(Struct, frozen=True, order=True, gc=False):
    """An Ed25519 public key; `str()` is its `did:key:`."""

    raw: bytes

    def __post_init__(self) -> None:
        assert len(self.raw) == KEY_BYTES

    @classmethod
    def parse(cls, text: str) -> NodeKey:
        """Reads `did:key:z6Mk...`, the legacy `did:key:z2D...`, or `12D3KooW...`.

        Raises:
            UsageError: anything else, another key type included.
        """
        try:
            raw = _strip(text)
        except UsageError:
            raw = b""
        if len(raw) != KEY_BYTES:
            raise UsageError(
                f"not an Ed25519 key: {text[:100]!r}", hint="did:key:z6Mk... or 12D3KooW... is expected"
            )
        return cls(raw)

    @property
    def did(self) -> str:
        """`did:key:z6Mk...`."""
        return _DID + base58.encode(_MULTICODEC + self.raw)

    @property
    def peer_id(self) -> str:
        """`12D3KooW...`, as in `p2p://` URLs."""
        return base58.encode(_PEER_ID + self.raw)

    def __str__(self) -> str:
        return self.did


def _strip(text: str) -> bytes:
    """The key inside either spelling; of another length when it is neither."""
    if not text.startswith(_DID):
        coded = base58.decode(text)
        return coded[len(_PEER_ID) :] if coded.startswith(_PEER_ID) else b""
    coded = base58.decode(text.removeprefix(_DID))
    # The length tells the two apart: a legacy key whose first byte is 0x01 has 33 bytes in all, not 34.
    if len(coded) == len(_MULTICODEC_LEGACY) + KEY_BYTES and coded.startswith(_MULTICODEC_LEGACY):
        return coded[len(_MULTICODEC_LEGACY) :]
    return coded[len(_MULTICODEC) :] if coded.startswith(_MULTICODEC) else b""
