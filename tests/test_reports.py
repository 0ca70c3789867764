"""Reports of lanes to the loop: complete, in the order of each lane, and many in one call."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

from msgspec import Struct

from megalfs.core.ids import ManifestId
from megalfs.net.session import Session
from megalfs.node.reports import Part, Reports

MANIFESTS = [ManifestId(bytes([number]) * 32) for number in range(2)]
LANES = 8
RUNS = 300


def session(number: int) -> Session:
    """Nobody looks into it here: its number says which lane reported."""
    return cast(Session, number)


class Heard(Struct):
    """What the loop was told: (manifest, parts) of each call, and after how many parts each lane ended."""

    calls: list[tuple[ManifestId, list[Part]]]
    ended: dict[int, int]

    def parts(self) -> list[Part]:
        """All of them, in the order of the calls."""
        return [part for _, parts in self.calls for part in parts]


async def report_from_threads() -> Heard:
    heard = Heard([], {})
    reports = Reports(lambda manifest_id, parts: heard.calls.append((manifest_id, parts)))
    all_ended = asyncio.Event()

    def ended(number: int) -> None:
        heard.ended[number] = sum(1 for who, _, _ in heard.parts() if who == session(number))
        if len(heard.ended) == LANES:
            all_ended.set()

    def lane(number: int) -> None:
        for first in range(RUNS):
            reports.verified(MANIFESTS[number % 2], session(number), first, 1)
        reports.put(lambda: ended(number))

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(LANES)]
    for each in lanes:
        each.start()
    await asyncio.wait_for(all_ended.wait(), 60)
    for each in lanes:
        each.join()
    return heard


def test_everything_is_told_once_in_the_order_of_its_lane() -> None:
    heard = asyncio.run(report_from_threads())
    for number in range(LANES):
        told = [first for who, first, _ in heard.parts() if who == session(number)]
        assert told == list(range(RUNS))
    for manifest_id, parts in heard.calls:
        assert {MANIFESTS[cast(int, who) % 2] for who, _, _ in parts} == {manifest_id}


def test_a_lane_ends_after_what_it_brought() -> None:
    assert asyncio.run(report_from_threads()).ended == dict.fromkeys(range(LANES), RUNS)


def test_what_comes_between_two_turns_of_the_loop_is_one_call() -> None:
    async def main() -> list[tuple[ManifestId, list[Part]]]:
        calls: list[tuple[ManifestId, list[Part]]] = []
        told = asyncio.Event()

        def tell(manifest_id: ManifestId, parts: list[Part]) -> None:
            calls.append((manifest_id, parts))
            told.set()

        reports = Reports(tell)
        for first in range(100):
            reports.verified(MANIFESTS[0], session(first % 5), first, 1)
        await asyncio.wait_for(told.wait(), 60)
        return calls

    [(manifest_id, parts)] = asyncio.run(main())
    assert manifest_id == MANIFESTS[0]
    assert [first for _, first, _ in parts] == list(range(100))


def test_what_may_wait_wakes_nobody_and_keeps_its_place() -> None:
    async def main() -> list[str]:
        heard: list[str] = []
        reports = Reports(lambda _, parts: heard.append(f"pieces {[first for _, first, _ in parts]}"))
        reports.put(lambda: heard.append("early"), may_wait=True)
        await asyncio.sleep(0.05)
        assert heard == []
        reports.verified(MANIFESTS[0], session(0), 1, 1)
        reports.put(lambda: heard.append("with it"), may_wait=True)
        await asyncio.sleep(0.05)
        reports.put(lambda: heard.append("late"), may_wait=True)
        reports.catch_up()
        return heard

    assert asyncio.run(main()) == ["early", "pieces [1]", "with it", "late"]
