"""What the swarm wants done, as data; the driver matches on the union and does it."""

from __future__ import annotations

from typing import NewType

from msgspec import Struct

from megalfs.core.messages import SwarmMessage

__all__ = ["Ban", "Cancel", "Completed", "Effect", "Fetch", "PeerId", "Send", "Serve"]

PeerId = NewType("PeerId", int)
"""A number the driver gives to one session, web seed or local source; never used twice."""


class Send(Struct, frozen=True, gc=False):
    """Send this control message. Equal news for many peers is one object: encode it once."""

    peer: PeerId
    message: SwarmMessage


class Fetch(Struct, frozen=True, gc=False):
    """Ask this peer for this run: a `Request` to a node, a Range request to an origin."""

    peer: PeerId
    first: int
    count: int


class Cancel(Struct, frozen=True, gc=False):
    """Stop fetching this run, or this part of one: `CancelRequest` to a node, or drop the Range request.

    Bytes already on their way may still be reported as verified.
    """

    peer: PeerId
    first: int
    count: int


class Serve(Struct, frozen=True, gc=False):
    """Send these pieces now, and report with `served` when done or failed."""

    peer: PeerId
    first: int
    count: int


class Ban(Struct, frozen=True, gc=False):
    """Drop this peer and keep it away. The swarm has forgotten it already."""

    peer: PeerId
    reason: str


class Completed(Struct, frozen=True, gc=False):
    """Every piece is verified and here."""


Effect = Send | Fetch | Cancel | Serve | Ban | Completed
