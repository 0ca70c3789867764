"""The numbers of the scheduler and where each came from ("prototype" is research/swarm-prototype.md)."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["SwarmParams"]

KIB = 1 << 10
MIB = 1 << 20


class SwarmParams(Struct, frozen=True):
    """Settings of one swarm; the defaults are for every network we measured."""

    from_end: bool = False
    """Prefer the end of the file when choices are equal: an unsigned manifest is proven from there."""

    lanes: int = 2
    """Data connections worth feeding per peer. Two threads filled two cores in research/pull-prototype.md."""

    # -- size of runs
    run_bytes_max: int = 16 * MIB
    """Where the cost of one decision vanishes: 5 ms at 3 GB/s."""
    run_bytes_initial: int = 256 * KIB
    """Before a rate is known: 21 ms at 100 Mbit/s. The first of 16 nodes that came 50 ms early with four times 1 MiB
    kept a 50 Mbit/s uplink from the others for 0.7 s (0.3 s of ramp in tests/sim)."""
    run_s: float = 0.05
    """A run is what a peer sends in this time, so that Python decides tens of times a second."""
    runs_per_s: int = 200
    """Of all peers together; above this runs grow (64 peers at 3 GB/s would else make 1,280 a second)."""
    relay_parts: int = 100
    """A relayed run is at most size / (this * ceil(log2(N+1))): then the last hops cost 1 % (Mundinger)."""

    # -- depth of queues
    queue_s: float = 0.01
    """What a peer may have queued for us beyond one run. Deep queues cost libtorrent 30-45 %; 10 ms cover a
    thread's wake-up and leave one single run at 100 Mbit/s."""
    delay_s_max: float = 0.4
    """Of the usual time from asking to the first byte, no more is filled: it may be the peer's own queue."""
    depth_max: int = 8
    """Runs outstanding at one peer, on the longest link: 400 ms of round trip at `run_s`."""
    flights_max: int = 32
    """The same where they are short: 5 MB in single parts, which is 0.4 s at 100 Mbit/s."""

    # -- haves
    have_delay_s: float = 0.005
    """Haves are pushed in batches of this age (prototype)."""
    have_delay_per_peer_s: float = 0.0015
    """From four peers on, batches age by this per peer: at most 700 messages a second leave a node."""
    have_delay_share: float = 0.25
    """Yet by no more than this part of the time that the largest relayed run takes to arrive."""
    have_further_share: float = 0.6
    """News of a piece that another leecher holds age by this part of what a fetch takes: whoever lacks the piece has
    asked there. At N = 16 that is half of all messages, and at N = 8 a quarter, for nothing (tests/sim; as long as a
    fetch takes costs 0.02 at N = 8)."""
    have_further_s_max: float = 0.18
    """But by no more than this."""
    have_lazy_s: float = 0.2
    """For seeders that only keep statistics with it."""

    promise_s: float = 10.0
    """How long a peer's word is believed that it will soon hold a run: the longest time-out we measured."""

    gateway_s: float = 0.1
    """How long a far piece is left to the member of our rack that is to ask for it: three times the oldest
    batch of haves, which it may be behind us."""

    # -- uploads
    upload_slots: int = 8
    """Concurrent uploads. With pieces of varying size 4 left uplinks idle that wait for busy receivers: 0.93
    of the bound at N=16 where 8 reach 0.96 (tests/sim); the prototype's equal pieces did not care."""
    slow_slot_s_min: float = 0.1
    slow_slot_factor: float = 4.0
    """A slot older than max(0.1 s, 4 x the mean) stops counting (prototype)."""
    requests_per_peer_max: int = 64
    """Requests one peer may have queued here; ours never has more than `depth_max`."""
    strikes_max: int = 200
    """Senseless messages of one peer before it is banned; races make some, never hundreds."""

    # -- grants
    credits: int = 4
    """Runs a seeder may have chosen for us at a time: two lanes, one queued behind each."""
    credits_max: int = 64
    """More credit than this from one peer is not counted."""
    credit_stale_s: float = 10.0
    """Credit unanswered for so long is given anew: a connection may have died with it."""
    newcomers_max: int = 4
    """Leechers without a piece that are granted one at a time: the first arrives, and is relayed, sooner."""
    unspread_max: int = 3
    """Granted runs of one leecher that nobody else holds yet (prototype, W)."""
    arrive_s_min: float = 2.0
    """A granted run that has not arrived after this goes back to the pool (prototype)."""

    # -- patience
    timeout_s_min: float = 1.5
    timeout_factor: float = 8.0
    """A peer silent for max(1.5 s, 8 x the mean time of a run) is snubbed (prototype: 1.5 s at N=8, where a
    run took 0.17 s; 4 s at N=16, 0.67 s)."""
    timeout_s_initial: float = 3.0
    """Before the first run has come from anyone."""
    recall_factor: float = 0.7
    """A run that has not begun after this x the mean is taken back for an idle peer that holds it too: of
    sixty that ask the first holder of a piece, most are better served by the next ones."""
    hedge_s_min: float = 0.2
    hedge_factor: float = 2.5
    """Endgame: a run older than this x the mean is asked twice (prototype: 0.4 s at N=8, 1 s at N=16)."""
    snub_s_min: float = 2.0
    snub_s_max: float = 60.0
    """How long a snubbed peer is not asked, doubling each time: it may cost a few seconds in all."""
    retry_s_min: float = 0.1
    """First pause after a failed or rejected fetch, doubling: a broken peer must not become a busy loop."""
    progress_bytes_min: int = 4 * KIB
    """Bytes that count as a sign of life; a peer at 1 byte/s gives none within any time-out."""
