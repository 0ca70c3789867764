"""One swarm by itself, told what to believe: tests draw who holds what and read the effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

import numpy as np

from megalfs.core.bitfield import Bitfield, Run, runs_of
from megalfs.core.effects import PeerId, Send
from megalfs.core.ids import ManifestId
from megalfs.core.messages import HaveAll, HaveRuns, SwarmMessage
from megalfs.core.params import SwarmParams
from megalfs.core.swarm import PeerKind, Swarm
from megalfs.core.topology import Tier

MANIFEST = ManifestId(bytes(32))
PIECE_BYTES = 100_000
E = TypeVar("E")


def bits(drawing: str) -> Bitfield:
    """`"x  x"` holds the first and the last of four pieces."""
    field = Bitfield(len(drawing))
    for run in runs_of(np.array([mark == "x" for mark in drawing], dtype=np.bool_)):
        field.add(*run)
    return field


class Solo:
    """A swarm and the clock it is told."""

    def __init__(
        self,
        have: str,
        *,
        lengths: Sequence[int] | None = None,
        seed: int = 1,
        instance: int = 0,
        **params: float | bool,
    ) -> None:
        lengths = lengths or [PIECE_BYTES] * len(have)
        self.now = 0.0
        self.swarm = Swarm(
            MANIFEST,
            np.array(lengths, dtype=np.uint32),
            instance=instance.to_bytes(16, "big"),
            have=bits(have),
            params=SwarmParams(**params),  # type: ignore[arg-type]
            rng=Random(seed),
            now=0.0,
        )

    def join(
        self, number: int, holds: str | None = None, *, tier: Tier = Tier.ZONE, origin: bool = False
    ) -> PeerId:
        """Connects a peer; `holds` is its drawing, "all", or None when it says nothing yet."""
        peer = PeerId(number)
        kind = PeerKind.ORIGIN if origin else PeerKind.NODE
        self.swarm.connected(
            peer,
            kind=kind,
            tier=Tier.ORIGIN if origin else tier,
            instance=number.to_bytes(16, "big"),
            now=self.now,
        )
        if holds == "all":
            self.hear(peer, HaveAll(MANIFEST))
        elif holds is not None:
            self.hear(peer, HaveRuns(MANIFEST, tuple(bits(holds).runs())))
        return peer

    def hear(self, peer: PeerId, message: SwarmMessage) -> None:
        self.swarm.received(peer, message, now=self.now)

    def wait(self, seconds: float) -> None:
        """Time passes; timers go off on the way."""
        end = self.now + seconds
        while (due := self.swarm.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self.swarm.timeout(now=self.now)
        self.now = end

    def deliver(self, peer: PeerId, run: Run) -> None:
        """A run comes from a peer, whole and right."""
        assert self.swarm.receiving(peer, *run, now=self.now)
        self.swarm.verified(peer, *run, now=self.now)

    def effects(self, kind: Callable[..., E]) -> list[E]:
        """The new effects of one kind; the others are dropped."""
        assert isinstance(kind, type)
        return [effect for effect in self.swarm.effects() if isinstance(effect, kind)]

    def said(self, kind: Callable[..., E]) -> list[tuple[PeerId, E]]:
        """The new messages of one kind, and to whom."""
        assert isinstance(kind, type)
        sends = self.effects(Send)
        return [(send.peer, send.message) for send in sends if isinstance(send.message, kind)]
