"""What nodes say to each other, as values; `codec` turns them into bytes and back.

Piece numbers mean nothing without the manifest they count in, so every message about pieces names it. The
control connection of a session carries all of these but `Data`; a data connection carries, in one
direction, `Data` headers each followed by the bytes of its pieces.
"""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

from megalfs.core.bitfield import Run
from megalfs.core.ids import ManifestId, Oid
from megalfs.core.topology import Labels

__all__ = [
    "CancelRequest",
    "Credit",
    "Data",
    "Expecting",
    "Granting",
    "HaveAll",
    "HaveRuns",
    "Hello",
    "Join",
    "Leave",
    "Lost",
    "Message",
    "OpenData",
    "PeerAddress",
    "Peers",
    "Ping",
    "Pong",
    "Reject",
    "RejectReason",
    "Request",
    "Role",
    "SwarmMessage",
]


class Role(IntEnum):
    """What a connection is for, seen from the side that dialled."""

    CONTROL = 1
    FETCH = 2  # the dialler receives data
    SERVE = 3  # the dialler sends data


class RejectReason(IntEnum):
    """Why a request is not served."""

    NOT_HELD = 1
    BUSY = 2
    WITHDRAWN = 3
    RECALLED = 4  # not a refusal: the requester cancelled it, and it had not begun


class Hello(Struct, frozen=True, gc=False):
    """First frame of every connection, both ways: who this is and what the connection is for."""

    version: int
    role: Role
    session: bytes
    instance: bytes
    key: bytes
    signature: bytes
    port: int
    advertise: str
    labels: Labels
    flags: int


class Join(Struct, frozen=True, gc=False):
    """The sender takes part in the swarm of this manifest."""

    manifest: ManifestId
    oid: Oid
    piece_count: int
    is_seeder: bool


class Leave(Struct, frozen=True, gc=False):
    """The sender takes part no longer."""

    manifest: ManifestId


class HaveRuns(Struct, frozen=True, gc=False):
    """The sender holds these pieces, verified. Empty as first word of one who holds nothing."""

    manifest: ManifestId
    runs: tuple[Run, ...]


class HaveAll(Struct, frozen=True, gc=False):
    """The sender holds every piece and may be asked for any."""

    manifest: ManifestId


class Granting(Struct, frozen=True, gc=False):
    """The sender holds every piece but chooses itself what it sends: give it `Credit`, do not ask.

    Ends with `HaveAll`. Requests sent before it was seen are still served.
    """

    manifest: ManifestId


class Expecting(Struct, frozen=True, gc=False):
    """The sender has asked a dear source for these pieces: wait for it rather than ask too."""

    manifest: ManifestId
    runs: tuple[Run, ...]


class Lost(Struct, frozen=True, gc=False):
    """The sender no longer holds these pieces: the file changed under it."""

    manifest: ManifestId
    runs: tuple[Run, ...]


class Request(Struct, frozen=True, gc=False):
    """Send me this run."""

    manifest: ManifestId
    first: int
    count: int


class CancelRequest(Struct, frozen=True, gc=False):
    """What of this run you have not begun to send is no longer wanted."""

    manifest: ManifestId
    first: int
    count: int


class Reject(Struct, frozen=True, gc=False):
    """This run will not be sent."""

    manifest: ManifestId
    first: int
    count: int
    reason: RejectReason


class Credit(Struct, frozen=True, gc=False):
    """You may send me `count` more runs of your choice."""

    manifest: ManifestId
    count: int


class OpenData(Struct, frozen=True, gc=False):
    """Dial me `count` data connections on which you send: I cannot reach you."""

    count: int


class PeerAddress(Struct, frozen=True, gc=False):
    """Where a node listens; `instance` tells nodes behind one address apart."""

    host: str
    port: int
    instance: bytes


class Peers(Struct, frozen=True, gc=False):
    """Peer exchange: nodes of this manifest's swarm that the sender has lately been connected to."""

    manifest: ManifestId
    peers: tuple[PeerAddress, ...]


class Ping(Struct, frozen=True, gc=False):
    """Answer with `Pong` of the same nonce."""

    nonce: int


class Pong(Struct, frozen=True, gc=False):
    """Answer to `Ping`."""

    nonce: int


class Data(Struct, frozen=True, gc=False):
    """Header on a data connection; exactly `size` raw bytes follow."""

    manifest: ManifestId
    first: int
    count: int
    size: int


SwarmMessage = HaveRuns | HaveAll | Granting | Expecting | Lost | Request | CancelRequest | Reject | Credit
"""What `Swarm.received` takes and `Send` carries; the driver answers the rest itself."""

Message = SwarmMessage | Hello | Join | Leave | OpenData | Peers | Ping | Pong | Data
