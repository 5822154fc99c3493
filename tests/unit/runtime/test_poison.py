"""An event that kills its process is given up after so many deaths, whatever else is under way (design rule 12)."""

from __future__ import annotations

import asyncio

from thalweg import App, DeadLetter, Event, Retry, Stream
from thalweg.errors import ProcessDied
from thalweg.testing import AppTest

POISON = 7
POLICY = Retry(3, backoff=0.1, on=(ProcessDied,), then=DeadLetter()) | Retry(None, backoff=0.1, factor=1.0)


class Killer:
    """Stands for what brings the process down: it is killed in the midst of the event."""

    def __init__(self) -> None:
        self.deaths = 0
        self._struck = asyncio.Event()

    async def strike(self) -> None:
        self._struck.set()
        await asyncio.get_running_loop().create_future()

    async def run(self, t: AppTest, most: int) -> None:
        while await self._strikes(t):
            self.deaths += 1
            assert self.deaths <= most, "it kills again and again"
            self._struck.clear()
            await t.crash()

    async def _strikes(self, t: AppTest) -> bool:
        """Whether it does, soon; what else is under way goes on meanwhile, for a tenth of a second at most."""
        for _ in range(100):
            await t.advance(0.1)
            if self._struck.is_set():
                return True
        return False


async def test_deaths_are_counted_though_an_event_that_is_retried_comes_first_each_time() -> None:
    app = App("poison", partitions=1)
    source = app.topic("source", key=str, value=int)
    killer = Killer()
    handled: list[int] = []

    @app.agent(source.stream().events(), on_error=POLICY)
    async def handle(stream: Stream[Event[int, str]]) -> None:
        async for event in stream:
            if event.value == POISON:
                await killer.strike()
            if event.value == 0 and not killer.deaths > 5:
                raise ValueError("not yet")
            handled.append(event.value)

    async with app.test(errors="policy") as t:
        for number in (0, 1, POISON, 8):
            await source.send(number, key=str(number))
        await killer.run(t, most=8)
        letters = [letter.value async for letter in app.dead_letters(source)]
        assert letters == [b"7"]
        assert {1, 8} <= set(handled)


async def test_events_of_other_partitions_are_not_blamed_for_a_death() -> None:
    app = App("poison", partitions=2)
    source = app.topic("source", value=int)
    killer = Killer()
    handled: set[int] = set()

    @app.agent(source, on_error=POLICY)
    async def handle(stream: Stream[int]) -> None:
        async for number in stream:
            await app.sleep(0.05 if number == POISON else 0.2)
            if number == POISON:
                await killer.strike()
            handled.add(number)

    async with app.test(errors="policy") as t:
        await source.send(POISON, partition=0)
        await source.send(1, partition=1)
        await killer.run(t, most=8)
        assert [letter.value async for letter in app.dead_letters(source)] == [b"7"]
        assert handled == {1}
