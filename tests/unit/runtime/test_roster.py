"""What workers say of themselves, as any program may read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from thalweg import App
from thalweg.channel import TopicSpec
from thalweg.clock import VirtualClock
from thalweg.message import Message
from thalweg.runtime.roster import BACK, BEAT, Here, Plan, as_messages
from thalweg.starting import worker_running
from thalweg.transports.memory import MemoryOptions, MemoryTransport
from town import START, Town, quiet, until


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    town = Town()
    yield town
    await town.roster.close()
    await town.reader.close()


KINDS = {"locks and peers": MemoryOptions(), "groups": MemoryOptions(grouped=True, locks=False, peers=False)}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_worker_says_what_it_runs_and_at_the_end_that_it_is_gone(kind: str) -> None:
    town = Town(KINDS[kind])
    async with town.worker(worker_id="w1", zone="north") as first:
        roster = await town.read()
        await town.advance(1)
        here = roster.workers[first.me]
        assert (here.name, here.zone, here.since, here.leaving) == ("w1", "north", START * 1000, False)
        assert here.reply.startswith("bank-replies/")
        assert here.owns == {"4": (0, 1, 2, 3)}
        async with town.worker() as second:
            await town.advance(20)
            owned = [roster.workers[worker.me].owns["4"] for worker in (first, second)]
            assert sorted((*owned[0], *owned[1])) == [0, 1, 2, 3]
            assert roster.owner("4", owned[1][0]) == roster.workers[second.me]
        await town.advance(20)
        assert second.me not in roster.workers
        assert roster.workers[first.me].owns == {"4": (0, 1, 2, 3)}
    await town.advance(1)
    assert not roster.workers
    await town.roster.close()


async def test_who_comes_later_learns_what_was_said_in_the_last_minute(town: Town) -> None:
    async with town.worker() as worker:
        await town.advance(500)
        roster = await town.read()
        assert roster.workers.keys() == {worker.me}
        assert town.clock.now() - roster.heard[worker.me] <= BEAT


async def test_a_worker_that_died_is_forgotten_and_one_that_lives_is_not(town: Town) -> None:
    async with town.worker() as living, town.worker() as dying:
        roster = await town.read()
        await town.advance(20)
        assert roster.workers.keys() == {living.me, dying.me}
        await dying.stop_by_kill()
        await town.advance((BACK + 2) * BEAT)
        assert roster.workers.keys() == {living.me}


async def test_a_clock_that_jumps_makes_nobody_seem_gone(town: Town) -> None:
    async with town.worker() as worker:
        roster = await town.read()
        await town.advance(1)
        town.clock.move(town.clock.now() + 86_400)
        await quiet()
        assert worker.me in roster.workers


async def test_what_cannot_be_written_is_written_later_and_tasks_run_meanwhile(town: Town) -> None:
    async with town.worker(worker_id="w") as worker:
        roster = await town.read()
        await town.advance(1)
        before = roster.heard[worker.me]
        town.broker.faults.fail("append", times=100_000, topic="bank-workers")
        await town.advance(30)
        assert len(worker.tasks) == 4
        assert roster.heard[worker.me] == before
        town.broker.faults.clear()
        await town.advance(10)
        assert roster.heard[worker.me] > before


async def test_old_words_strange_ones_and_plans_of_older_coordinators_count_for_nothing(town: Town) -> None:
    town.broker.declare([TopicSpec("bank-workers", 1)])
    roster = await town.read()
    news = Here("x", said=7, owns={"4": (1,)})
    older = Here("x", said=6, owns={"4": (2,)})
    plans = [Plan("a", 2, 5, {"4": ("a",)}), Plan("z", 1, 9, {"4": ("z",)}), Plan("a", 2, 4, {"4": ("b",)})]
    strange = [Message(b"\xff"), Message(b'{"says":"new"}'), Message(None), Message(b"[]")]
    await town.append(*strange, *(as_messages(word, town.clock, None)[0] for word in (news, older, *plans)))
    await until(lambda: "x" in roster.workers)
    assert roster.workers["x"] == news
    assert roster.plan == plans[0]


async def test_who_catches_up_has_read_what_lay_there_and_waits_for_nothing_more(town: Town) -> None:
    town.broker.declare([TopicSpec("bank-workers", 1)])
    await town.reader.open()
    await town.append(as_messages(Here("old", said=1), town.clock, None)[0])
    await town.advance(2 * BACK * BEAT)  # too old to be read
    roster = await town.read()
    async with asyncio.timeout(30):
        await roster.catch_up()
    assert not roster.workers
    await town.append(as_messages(Here("x", said=1), town.clock, None)[0])
    async with asyncio.timeout(30):
        await roster.catch_up()
    assert "x" in roster.workers


async def test_of_two_who_claim_a_task_the_last_to_speak_counts_whatever_their_clocks_say(town: Town) -> None:
    town.broker.declare([TopicSpec("bank-workers", 1)])
    roster = await town.read()
    ahead = VirtualClock(START + 60)
    await town.append(
        as_messages(Here("dead", said=1, owns={"4": (1,)}), ahead, None)[0],
        as_messages(Here("living", said=1, owns={"4": (1,)}), town.clock, None)[0],
    )
    await until(lambda: "living" in roster.workers)
    owner = roster.owner("4", 1)
    assert owner is not None
    assert owner.me == "living"


async def test_a_change_is_not_missed_and_a_word_repeated_is_none(town: Town) -> None:
    async with town.worker():
        roster = await town.read()
        await town.advance(1)
        waiting = asyncio.ensure_future(roster.change())
        await town.advance(5 * BEAT)
        assert not waiting.done()
        await town.append(as_messages(Here("x", said=1), town.clock, None)[0])
        await waiting
        assert "x" in roster.workers


async def test_without_a_log_there_is_no_roster_and_nothing_misses_it() -> None:
    town = Town(MemoryOptions(log=False))
    app = App("bank")
    letters = app.queue("letters", value=int)

    @app.handler(letters)
    async def read(value: int) -> None: ...

    async with worker_running(app, transport=MemoryTransport(town.broker, town.options)):
        assert all(info.name != "bank-workers" for info in town.broker.topics())


@pytest.mark.parametrize("limit", [20, 60, 300])
async def test_a_word_above_the_brokers_limit_goes_in_pieces_and_half_of_one_counts_for_nothing(
    limit: int, town: Town
) -> None:
    town.broker.declare([TopicSpec("bank-workers", 1)])
    roster = await town.read()
    owns = {"g": tuple(range(200))}
    first = as_messages(Here("x", said=1, owns=owns), town.clock, limit)
    assert len(first) > 1
    assert all(message.size <= limit for message in first)
    await town.append(*first[:-1])
    await quiet()
    assert not roster.workers
    await town.append(*as_messages(Here("y", said=1), town.clock, limit), *first[-1:])
    await quiet()
    assert roster.workers == {"x": Here("x", said=1, owns=owns), "y": Here("y", said=1)}
    second = as_messages(Here("x", said=2, owns=owns), town.clock, limit)
    await town.append(*second[:1], *as_messages(Here("x", said=3, pid=7), town.clock, limit), *second[1:])
    await quiet()
    assert roster.workers["x"] == Here("x", said=3, pid=7)
