"""An event that kills its process is given up after so many deaths, whatever else is under way (design rule 12)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from thalweg import App, DeadLetter, Event, Retry, Stream
from thalweg.errors import ProcessDied
from thalweg.journal.rows import CRASHES, Parked, Suspect, Suspects, decode
from thalweg.runtime.context import current_lane
from thalweg.runtime.task import Task
from thalweg.starting import load_stores
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


async def test_an_event_that_was_finished_just_before_is_not_blamed() -> None:
    app = App("poison", partitions=1)
    source = app.topic("source", value=int)
    killer = Killer()
    handled: set[int] = set()

    @app.agent(source, on_error=DeadLetter())
    async def handle(stream: Stream[int]) -> None:
        async for number in stream:
            if number == POISON:
                lane: Any = current_lane.get()
                await lane.host.task.worker.committer._lock.acquire()  # nothing is committed any more
                await killer.strike()
            handled.add(number)

    async with app.test(errors="policy") as t:
        await source.send_many([(None, number) for number in (1, 2, POISON, 3)])
        await killer.run(t, most=5)
        assert [letter.value async for letter in app.dead_letters(source)] == [b"7"]
        assert handled == {1, 2, 3}


async def test_poison_that_waits_for_others_before_it_kills_is_given_up_at_last() -> None:
    app = App("poison", partitions=2)
    source, questions = app.topic("source", value=int), app.topic("questions", value=int)
    killer = Killer()
    handled: set[int] = set()

    @app.agent(questions, on_error=Retry(None, backoff=0.1))
    async def echo(stream: Stream[int]) -> Any:
        async for number in stream:
            yield number

    @app.agent(source, on_error=POLICY)
    async def handle(stream: Stream[int]) -> None:
        async for number in stream:
            await echo.ask(number, timeout=30.0)
            if number == POISON:
                await killer.strike()
            handled.add(number)

    async with app.test(errors="policy") as t:
        await source.send(POISON, partition=0)
        await source.send(1, partition=1)
        await killer.run(t, most=12)
        assert [letter.value async for letter in app.dead_letters(source)] == [b"7"]
        assert handled == {1}


async def test_two_that_kill_side_by_side_cost_little_more_than_one_after_the_other() -> None:
    app = App("poison", partitions=2)
    source = app.topic("source", value=int)
    killer = Killer()
    handled: set[int] = set()

    @app.agent(source, on_error=POLICY)
    async def handle(stream: Stream[int]) -> None:
        async for number in stream:
            if number in (POISON, -POISON):
                await killer.strike()
            handled.add(number)

    async with app.test(errors="policy") as t:
        for partition, poison in ((0, POISON), (1, -POISON)):
            for number in (10, 11, poison, 12, 13):
                await source.send(number + 100 * partition if number > POISON else number, partition=partition)
        await killer.run(t, most=8)
        assert sorted([letter.value async for letter in app.dead_letters(source)]) == [b"-7", b"7"]
        assert handled == {10, 11, 12, 13, 110, 111, 112, 113}


def the_task(t: Any) -> Task:
    task: Task = t._worker.tasks["1", 0]
    return task


async def test_a_worker_that_has_a_lost_lock_again_has_not_died() -> None:
    app = App("alive", partitions=1)
    source = app.topic("source", value=int)
    started = asyncio.Event()

    @app.agent(source, on_error=POLICY)
    async def handle(stream: Stream[int]) -> None:
        async for _ in stream:
            started.set()
            await app.sleep(60)

    async with app.test(errors="policy") as t:
        await source.send(1)
        await started.wait()
        await t.crash()
        await t.advance(1)
        before = the_task(t)
        assert before.read_row(CRASHES) is not None
        noted = decode(before.read_row(b"shandle") or b"", type=Suspects).noted
        assert noted is not None
        t._broker.broker.lose_lock("alive-task-1-0")  # type: ignore[attr-defined]
        await t.advance(1)
        assert the_task(t) is not before
        assert decode(the_task(t).read_row(CRASHES) or b"", type=int) == 1
        again = decode(the_task(t).read_row(b"shandle") or b"", type=Suspects)
        assert again == Suspects(noted, [])
        await t.advance(120)


async def test_care_costs_a_commit_an_event_however_many_tasks_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    flush, flushes = Task.flush, 0

    async def counted(task: Task) -> None:
        nonlocal flushes
        flushes += 1
        await flush(task)

    monkeypatch.setattr(Task, "flush", counted)
    app = App("many", partitions=24)
    source = app.topic("source", value=int)
    handled: list[int] = []

    @app.agent(source)
    async def handle(stream: Stream[int]) -> None:
        async for number in stream:
            await asyncio.sleep(0)
            handled.append(number)

    async with app.test() as t:
        for task in t._worker.tasks.values() if t._worker else ():
            for agent in task.agents:
                agent.suspicion.careful = 20
        await source.send_many((None, number) for number in range(480))
        await t.settle()
        assert sorted(handled) == list(range(480))
        assert flushes < 3 * 480


async def test_a_store_that_was_closed_in_good_order_tells_of_no_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thalweg.testing.load_stores", lambda _: load_stores(f"sqlite:///{tmp_path}"))
    app = App("calm", partitions=1)
    source = app.topic("source", value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for number in stream:
            sums["all"] += number

    async with app.test() as t:
        await source.send(1)
        await t.settle()
        await t._stop()
        await t._start()
        await t.settle()
        assert sums["all"] == 1
        assert the_task(t).read_row(CRASHES) is None
        assert the_task(t).agents[0].suspicion.careful == 0


def test_rows_written_before_deaths_were_told_apart_can_be_read() -> None:
    suspects = msgspec.msgpack.encode([["in", 3, 2], [["in", 1, 1]]])
    assert decode(suspects, type=Suspects) == Suspects(Suspect("in", 3, 2, 0), [Suspect("in", 1, 1, 0)])
    parked = msgspec.msgpack.encode([b"v", b"k", [], 5, 2, 9, "why", 1])
    assert decode(parked, type=Parked).deaths == 1
    assert decode(parked, type=Parked).shared == 0
