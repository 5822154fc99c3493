"""Of the events that may kill their process, those that are to run alone do; the others run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from thalweg.clock import VirtualClock
from thalweg.runtime.isolation import ANSWERED, LONGEST_SUSPICION, Isolation, Noted


class One:
    """Notes events that others could be beside."""

    known_with = 0

    def __init__(self, isolation: Isolation, alone: bool = False) -> None:
        self.alone, self._isolation = alone, isolation
        self.beside: Collection[Noted] | None = None
        self.entering = asyncio.get_running_loop().create_task(self._enter())

    async def _enter(self) -> None:
        self.beside = await self._isolation.enter(self)

    @property
    def runs(self) -> bool:
        return self.beside is not None

    def joined(self) -> bool:
        return True

    def is_known(self, commit: int) -> bool:
        return True

    async def committed(self) -> None:
        pass


async def quiet() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_that_are_to_run_alone_do_and_the_others_side_by_side() -> None:
    isolation = Isolation(VirtualClock(0.0))
    first, second, alone, behind = One(isolation), One(isolation), One(isolation, alone=True), One(isolation)
    await quiet()
    assert [one.runs for one in (first, second, alone, behind)] == [True, True, False, False]
    isolation.leave(first)
    isolation.finish(second)
    await quiet()
    assert alone.beside == [second]  # whose end is still to be committed
    assert not behind.runs
    isolation.leave(second)
    isolation.leave(alone)
    await quiet()
    assert behind.beside == []


async def test_one_that_waits_lets_others_in_and_later_those_that_are_to_run_alone() -> None:
    clock = VirtualClock(0.0)
    isolation = Isolation(clock)
    waiting = One(isolation, alone=True)
    await quiet()
    alone, asked = One(isolation, alone=True), One(isolation)
    await quiet()
    assert not asked.runs
    isolation.waits(waiting)
    await quiet()
    assert asked.beside == [waiting]
    isolation.leave(asked)
    await quiet()
    assert not alone.runs
    clock.move(ANSWERED)
    await quiet()
    assert alone.beside == [waiting]


async def test_one_that_runs_for_long_keeps_nobody_waiting_for_ever() -> None:
    clock = VirtualClock(0.0)
    isolation = Isolation(clock)
    long = One(isolation)
    await quiet()
    alone = One(isolation, alone=True)
    clock.move(LONGEST_SUSPICION - 0.1)
    await quiet()
    assert not alone.runs
    clock.move(LONGEST_SUSPICION)
    await quiet()
    assert alone.beside == [long]


async def test_one_that_leaves_or_is_cancelled_as_it_waits_holds_up_nobody() -> None:
    isolation = Isolation(VirtualClock(0.0))
    first = One(isolation, alone=True)
    await quiet()
    leaving, cancelled, last = One(isolation, alone=True), One(isolation, alone=True), One(isolation)
    await quiet()
    assert not isolation.is_free(last)
    isolation.leave(leaving)
    cancelled.entering.cancel()
    await quiet()
    assert leaving.entering.done()
    assert not leaving.runs
    isolation.leave(first)
    await quiet()
    assert last.beside == []
    isolation.leave(last)
    assert isolation.is_free(first)
