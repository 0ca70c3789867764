"""Answers to what people ask about a swarm; plain values, made on demand."""

from __future__ import annotations

from msgspec import Struct

from megalfs.core.effects import PeerId
from megalfs.core.session import PeerKind
from megalfs.core.topology import Tier

__all__ = ["AvailabilitySummary", "PeerStatus"]


class AvailabilitySummary(Struct, frozen=True):
    """Copies of the pieces among connected peers, this node not counted."""

    copies_min: int
    copies_median: float
    rarest: int | None
    """Index of a piece with the fewest copies; None for an empty blob."""


class PeerStatus(Struct, frozen=True):
    """One peer, as `megalfs status` shows it."""

    peer: PeerId
    kind: PeerKind
    tier: Tier
    shows: str
    pieces: int
    """Pieces it is known to hold; haves that we had already may be untold."""
    rate_in: float
    rate_out: float
    bytes_in: int
    bytes_out: int
    bytes_wasted: int
    outstanding: int
    uploading: int
    is_paused: bool
    rejected: int
    """Pieces that came from it with wrong bytes."""
