"""Hundreds of small swarms with crashes, stalls, cuts, loss, liars: safe always, complete once faults stop."""

from __future__ import annotations

import os

import pytest
from sim.faults import check_ends_well

SEEDS = int(os.environ.get("SIM_SEEDS", "240"))  # `make sim` sets it
BATCH = 8  # seeds a test, so that pytest's own time does not count


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_swarms_end_well(first: int) -> None:
    for seed in range(first, first + BATCH):
        try:
            check_ends_well(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
