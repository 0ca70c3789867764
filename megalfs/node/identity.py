"""This node's key, and what it signs. The private key never leaves this object."""

from __future__ import annotations

from msgspec import Struct

from megalfs.core import signing
from megalfs.core.identity import NodeKey
from megalfs.core.signing import SigningKey
from megalfs.errors import PolicyError, RemoteProtocolError

__all__ = ["LocalIdentity"]


class LocalIdentity(Struct, frozen=True):
    """An Ed25519 key pair: of the root, or made for one process that has no root's key."""

    key: NodeKey
    private: SigningKey

    @classmethod
    def of(cls, private: SigningKey) -> LocalIdentity:
        """The identity of a private key."""
        return cls(private.public, private)

    def sign(self, kind: str, payload: bytes) -> bytes:
        """Signs `megalfs:<kind>:v1\\0` + payload: 64 bytes."""
        return signing.sign(self.private, kind, payload)

    @staticmethod
    def verify(key: bytes, signature: bytes, kind: str, payload: bytes) -> None:
        """Checks a peer's signature.

        Raises:
            RemoteProtocolError: it is not that key's.
        """
        try:
            signing.verify(NodeKey(key), kind, payload, signature)
        except PolicyError as error:
            raise RemoteProtocolError("the peer does not hold the key it claims") from error
