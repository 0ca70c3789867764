"""How far a peer is: labels from the configuration, and the tier that follows from two sets of labels.

Only the order of tiers counts: a piece that a cheaper tier offers is not asked from a dearer one, so each
piece crosses a thin link about once (the cut bound of research/swarm.md, 3 D).
"""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

__all__ = ["Labels", "Tier", "tier_between"]


class Tier(IntEnum):
    """What lies between us and a source, cheapest first."""

    HOST = 0
    RACK = 1
    ZONE = 2
    FAR = 3
    ORIGIN = 4


class Labels(Struct, frozen=True):
    """Where a node stands, in the operator's words; empty means not told."""

    host: str = ""
    rack: str = ""
    zone: str = ""


def tier_between(ours: Labels, theirs: Labels) -> Tier:
    """The tier of a node that has `theirs`.

    Unlabelled nodes count as one zone: without labels every peer is equally near, and nothing is held back.
    A rack of the same name in another zone is another rack.
    """
    if ours.zone and theirs.zone and ours.zone != theirs.zone:
        return Tier.FAR
    if ours.host and ours.host == theirs.host:
        return Tier.HOST
    if ours.rack and ours.rack == theirs.rack:
        return Tier.RACK
    return Tier.ZONE
