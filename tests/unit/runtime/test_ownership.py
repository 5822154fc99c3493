"""Who runs which task: several workers of one app on one memory broker, under a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest
from thalweg.clock import VirtualClock
from thalweg.errors import Superseded
from thalweg.runtime.ownership import RETRY, Ownership
from thalweg.runtime.roster import BEAT, Plan, as_messages
from thalweg.runtime.worker import Worker
from thalweg.transports.memory import MemoryTransport
from thalweg.transports.memory.locks import MemoryLock
from town import Town, quiet

GROUP = "4"
ALL = {0, 1, 2, 3}
LEASE = 10.0


def owned(worker: Worker) -> set[int]:
    return {index for group, index in worker.tasks if group == GROUP and worker.serving(group, index) is not None}


def shares(*workers: Worker) -> list[int]:
    """How many tasks each runs; all tasks are run, and each by one."""
    found = [owned(worker) for worker in workers]
    assert sum(len(share) for share in found) == len(ALL), found
    assert set().union(*found) == ALL
    return sorted(len(share) for share in found)


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    town = Town()
    yield town
    await town.roster.close()
    await town.reader.close()


def said(town: Town) -> list[Plan]:
    """All plans in the order in which they were said, repeated ones too."""
    from thalweg.runtime.roster import _decoder

    records = MemoryTransport(town.broker).records("bank-workers")
    words = [_decoder.decode(record.value or b"") for _, _, record in records]
    return [word for word in words if isinstance(word, Plan)]


async def plans(town: Town) -> list[Plan]:
    """All that were said, each once."""
    found = {plan.age: plan for plan in said(town)}
    return [found[age] for age in sorted(found)]


async def test_the_first_worker_has_all_at_once_and_no_time_passes(town: Town) -> None:
    began = town.clock.now()
    async with town.worker() as first:
        assert town.clock.now() == began
        assert owned(first) == ALL


async def test_a_worker_that_is_alone_says_its_plan_once_and_others_are_told_again(town: Town) -> None:
    async with town.worker() as first:
        await town.advance(600)
        assert len(said(town)) == 1
        async with town.worker(worker_id="w2") as second:
            await town.advance(5)
            assert len(said(town)) == 2
            await town.advance(2 * BEAT)
            assert len(said(town)) > 2
            told = len(said(town))
            tasks = owned(second)
        async with town.worker(worker_id="w2") as second:
            await town.advance(1)
            assert len(said(town)) > told, "it reads from the moment it comes, and nothing is planned anew for it"
            assert owned(second) == tasks
            assert owned(first) == ALL - tasks
        assert said(town)[-1].version == 2


async def test_tasks_that_stay_are_not_stopped_and_what_moves_moves_once(town: Town) -> None:
    async with town.worker() as first:
        tasks = dict(first.tasks)
        async with town.worker() as second:
            await town.advance(5)
            assert shares(first, second) == [2, 2]
            assert all(first.tasks[key] is tasks[key] for key in first.tasks)
            stayed = dict(second.tasks)
            async with town.worker() as third:
                await town.advance(5)
                assert shares(first, second, third) == [1, 1, 2]
                assert all(second.tasks[key] is stayed[key] for key in second.tasks)
        await town.advance(5)
        assert owned(first) == ALL


async def test_a_worker_that_stops_hands_over_at_once_whatever_the_leases_are(town: Town) -> None:
    async with town.worker() as first:
        async with town.worker() as second:
            await town.advance(5)
            assert shares(first, second) == [2, 2]
        stopped = town.clock.now()
        while owned(first) != ALL:
            await quiet()
            if owned(first) != ALL:
                town.clock.move(town.clock.next() or town.clock.now())
        assert town.clock.now() - stopped < RETRY  # by the virtual clock: nobody waited to try again


async def test_a_coordinator_that_stops_gives_its_lock_back_before_it_is_seen_to_be_gone(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = MemoryLock.release
    alone: list[bool] = []

    async def takes_a_moment(held: MemoryLock) -> None:
        await quiet()
        if held.name == "bank-coordinator":
            assert isinstance(heir.ownership, Ownership)
            assert heir.ownership._coordinator is not None
            alone.append(heir.ownership._coordinator.live == {heir.me})
        await release(held)

    async with AsyncExitStack() as stack:
        async with town.worker() as first:
            heir = await stack.enter_async_context(town.worker())
            await town.advance(5)
            assert shares(first, heir) == [2, 2]
            assert said(town)[-1].me == first.me
            monkeypatch.setattr(MemoryLock, "release", takes_a_moment)
        await town.advance(5)
        assert owned(heir) == ALL
        assert alone == [False]  # or the heir would find the lock taken, and wait to try again while nobody plans


async def test_what_a_worker_that_died_had_goes_to_the_others_within_the_lease(town: Town) -> None:
    dying = MemoryTransport(town.broker)
    async with town.worker() as first, town.worker(dying) as second:
        await town.advance(5)
        assert shares(first, second) == [2, 2]
        dying.kill()
        await second.stop_by_kill()
        await town.advance(LEASE + 2)
        assert owned(first) == ALL


async def test_when_the_coordinator_dies_another_plans(town: Town) -> None:
    dying = MemoryTransport(town.broker)
    async with town.worker(dying) as first, town.worker() as second, town.worker() as third:
        await town.advance(5)
        assert (await plans(town))[-1].me == first.me
        dying.kill()
        await first.stop_by_kill()
        await town.advance(LEASE + 2)
        assert shares(second, third) == [2, 2]
        assert (await plans(town))[-1].me in (second.me, third.me)


async def test_a_new_coordinator_plans_only_once_it_knows_what_was_planned_before(town: Town) -> None:
    async with town.worker() as one, town.worker() as two, town.worker() as three:
        await town.advance(10)
        last = (await plans(town))[-1]
        staying = [worker.me for worker in (one, two, three) if worker.me != last.me]
        town.broker.faults.fail("read", times=1_000_000, topic="bank-workers")
        other = dict(zip(staying, reversed(staying), strict=True))
        owners = tuple(other.get(owner or "", owner) for owner in last.owners[GROUP])
        unread = Plan("another", last.number + 1, 1, {GROUP: owners}, {}, last.members)
        await town.reader.open()
        await town.append(as_messages(unread, town.clock, None)[0])
        await next(worker for worker in (one, two, three) if worker.me == last.me).stop_by_kill()
        await town.advance(60)
        assert (await plans(town))[-1] == unread
        town.broker.faults.clear()
        await town.advance(60)
        after = (await plans(town))[-1].owners[GROUP]
        assert set(after) == set(staying)
        assert [new for new, old in zip(after, owners, strict=True) if old in staying] == [
            old for old in owners if old in staying
        ]


async def test_many_workers_that_start_at_once_cause_few_plans(town: Town) -> None:
    async with AsyncExitStack() as stack:
        workers = await asyncio.gather(*(stack.enter_async_context(town.worker()) for _ in range(10)))
        await town.advance(10)
        assert shares(*workers) == [0] * 6 + [1] * 4
        assert len(await plans(town)) <= 3


async def test_a_worker_that_comes_back_under_its_id_finds_its_tasks_kept(town: Town) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(town.worker(worker_id="a"))
        async with town.worker(worker_id="b") as second:
            await town.advance(5)
            assert shares(first, second) == [2, 2]
            kept, tasks, before = owned(second), dict(first.tasks), (await plans(town))[-1]
        await town.advance(3)
        assert len(owned(first)) == 2
        async with town.worker(worker_id="b") as again:
            await town.advance(LEASE * 2)
            assert owned(again) == kept
            assert all(first.tasks[key] is tasks[key] for key in first.tasks)
            assert (await plans(town))[-1].owners == before.owners


@pytest.mark.parametrize("killed", [False, True])
async def test_a_worker_with_an_id_that_does_not_come_back_is_replaced_after_a_lease(town: Town, killed: bool) -> None:
    async with town.worker(worker_id="a") as first:
        transport = MemoryTransport(town.broker)
        async with town.worker(transport, worker_id="b") as second:
            await town.advance(5)
            if killed:
                transport.kill()
                await second.stop_by_kill()
        await town.advance(LEASE - 1)
        assert len(owned(first)) == 2
        await town.advance(3.5)
        assert owned(first) == ALL


async def test_of_two_workers_of_one_id_the_newer_goes_on_and_the_older_learns_why(town: Town) -> None:
    async with AsyncExitStack() as stack, AsyncExitStack() as older:
        first = await older.enter_async_context(town.worker(worker_id="a"))
        second = asyncio.ensure_future(stack.enter_async_context(town.worker(worker_id="a")))
        await town.while_time_passes(asyncio.wait([first.failed]))
        with pytest.raises(Superseded, match=r"worker_id='a'.*process"):
            first.failed.result()
        await older.aclose()
        newer = await second
        await town.advance(LEASE + 2)
        assert owned(newer) == ALL


@pytest.mark.parametrize("later_first", [False, True], ids=["the older release plans", "the later release plans"])
async def test_while_a_release_is_rolled_out_each_group_is_run_by_those_that_have_it(
    town: Town, later_first: bool
) -> None:
    def of_more(worker: Worker) -> list[int]:
        return [index for group, index in worker.tasks if group == "2"]

    releases = (2, None) if later_first else (None, 2)
    async with town.worker(more=releases[0]) as first, town.worker(more=releases[1]) as second:
        await town.advance(5)
        older, later = (second, first) if later_first else (first, second)
        assert shares(first, second) == [2, 2]
        assert (of_more(older), sorted(of_more(later))) == ([], [0, 1])
        async with town.worker(more=2) as third:
            await town.advance(5)
            assert shares(first, second, third) == [1, 1, 2]
            assert sorted(map(len, map(of_more, (older, later, third)))) == [0, 1, 1]


async def test_a_plan_of_an_earlier_coordinator_counts_for_nothing(town: Town) -> None:
    async with town.worker() as worker:
        await town.read()
        await town.append(
            as_messages(Plan("zombie", 0, 99, {GROUP: ("zombie",) * 4}, {}, ("zombie",)), town.clock, None)[0]
        )
        await town.advance(30)
        assert owned(worker) == ALL


async def test_a_plan_that_outdoes_the_coordinator_is_outdone_again(town: Town) -> None:
    async with town.worker() as worker:
        await town.read()
        await town.append(
            as_messages(Plan("stranger", 999, 1, {GROUP: ("stranger",) * 4}, {}, ("stranger",)), town.clock, None)[0]
        )
        await town.advance(30)
        assert owned(worker) == ALL


async def test_a_worker_cut_off_comes_back_by_itself(town: Town) -> None:
    cut = MemoryTransport(town.broker)
    async with town.worker() as first, town.worker(cut) as second:
        await town.advance(5)
        cut.cut()
        await town.advance(LEASE + 3)
        assert owned(first) == ALL
        assert not owned(second)
        cut.heal()
        await town.advance(20)
        assert shares(first, second) == [2, 2]


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_a_clock_that_jumps_moves_nothing(town: Town, jump: float) -> None:
    async with town.worker() as first, town.worker() as second:
        await town.advance(5)
        tasks: Sequence[dict[object, object]] = [dict(first.tasks), dict(second.tasks)]
        _jump(town.clock, jump)
        await town.advance(60)
        assert [dict(first.tasks), dict(second.tasks)] == tasks


def _jump(clock: VirtualClock, seconds: float) -> None:
    """As when the machine's clock is set; timers run on."""
    clock._now += seconds
    clock._timers = [(when + seconds, number, timer) for when, number, timer in clock._timers]


async def test_plans_and_words_that_cannot_be_written_come_later(town: Town) -> None:
    async with town.worker() as first:
        town.broker.faults.fail("append", times=6, topic="bank-workers")
        async with town.worker() as second:
            await town.advance(30)
            assert shares(first, second) == [2, 2]


async def test_locks_that_cannot_be_had_together_lengthen_the_pause_once(town: Town) -> None:
    """A broker that was away for a moment is not made to wait for as many doublings as there are tasks."""
    for index in ALL:
        town.broker.faults.fail("try_lock", topic=f"bank-task-{GROUP}-{index}")
    began = town.clock.now()
    async with town.worker() as first:
        assert owned(first) == ALL
        assert town.clock.now() - began == 2 * RETRY
