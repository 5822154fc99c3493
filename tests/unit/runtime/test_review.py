"""What a review of the runtime found: each test is the smallest program that showed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from thalweg import AgentError, App, DeadLetter, Skip, Stream
from thalweg.clock import VirtualClock
from thalweg.journal.records import Marker
from thalweg.journal.rows import CRASHES, decode, encode
from thalweg.message import Message
from thalweg.runtime.replay import Replay
from thalweg.runtime.roster import Plan, as_messages
from thalweg.runtime.task import CALM_EVENTS, Task


def the_task(t: Any, partition: int = 0, group: str = "1") -> Task:
    task: Task = t._worker.tasks[group, partition]
    return task


async def test_events_that_finished_ahead_of_an_open_one_count_once_after_a_crash() -> None:
    app = App("ahead", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen = app.table("seen", key=str, value=int, default=int)
    gate = asyncio.Event()

    @app.agent(source, concurrency=2)
    async def count(stream: Stream[str]) -> None:
        async for key in stream:
            if key == "slow":
                await gate.wait()
            seen[key] += 1

    async with app.test() as t:
        for key in ("slow", "fast", "quick"):
            await source.send(key, key=key)
        await t.advance(1)  # commits "fast" and "quick"
        await t.crash()
        gate.set()
        await t.advance(1)
        assert dict(seen.items()) == {"slow": 1, "fast": 1, "quick": 1}
        await t.crash()
        await t.settle()
        assert dict(seen.items()) == {"slow": 1, "fast": 1, "quick": 1}


async def test_undoing_a_change_in_place_keeps_what_a_commit_in_flight_takes_along() -> None:
    app = App("flight", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list)

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(value)
            if value == "bad":
                raise ValueError(value)

    async with app.test(errors="policy") as t:
        hold = t._broker.broker.faults.hold("commit")
        await source.send("first", key="k")
        await hold.reached.wait()
        await source.send("bad", key="k")
        await t.settle()
        await source.send("last", key="k")
        await t.settle()
        hold.release()
        await t.settle()
        assert rows["row"] == ["first", "last"]
        await t.crash()
        await t.settle()
        assert rows["row"] == ["first", "last"]


@pytest.mark.parametrize("after", [False, True])
async def test_a_rollback_while_a_commit_is_in_flight_loses_and_repeats_nothing(after: bool) -> None:
    app = App("overlap", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list)

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(value)
            if value == "bad":
                raise ValueError(value)

    async with app.test(errors="policy") as t:
        hold = t._broker.broker.faults.hold("commit", after=after)
        await source.send("first", key="k")
        await hold.reached.wait()
        await source.send_many([("k", "second"), ("k", "bad")])  # in one batch: undone by a rollback
        await t.settle()
        hold.release()
        await t.settle()
        await source.send("last", key="k")
        await t.advance(20)
        assert rows["row"] == ["first", "second", "last"]
        await t.crash()
        await t.settle()
        assert rows["row"] == ["first", "second", "last"]


async def test_a_halt_at_an_undecodable_record_amid_a_batch_handles_nothing_more() -> None:
    app = App("halting", partitions=1)
    source = app.topic("source", key=str, value=int)
    seen: list[int] = []

    @app.handler(source, on_error=DeadLetter(max_consecutive=1))
    async def note(value: int) -> None:
        seen.append(value)

    async with app.test(errors="policy") as t:
        await source.raw.send_many([(None, raw) for raw in (b"1", b"?", b"?", b"4", b"5")])
        await t.advance(1)
        assert seen == [1]
        await t.crash()  # as if the cause were mended: the count of dead letters in a row begins anew
        await t.settle()
        assert seen == [1, 4, 5]
        assert [letter.position async for letter in app.dead_letters(source)] == [1, 2]


async def test_a_record_whose_timestamp_cannot_be_told_holds_up_nobody() -> None:
    app = App("times", partitions=1)
    source = app.topic("source", key=str, value=dict, timestamp_of=lambda value: value["time"])
    other = app.topic("other", key=str, value=dict)
    seen = app.table("seen", key=str, value=int, default=int)

    @app.agent(source, on_error=Skip())
    async def count(stream: Stream[dict[str, Any]]) -> None:
        async for value in stream:
            seen[value["name"]] += 1

    @app.agent(other, on_error=Skip())
    async def count_too(stream: Stream[dict[str, Any]]) -> None:
        async for value in stream:
            seen[value["name"]] += 1

    async with app.test(errors="policy") as t:
        await source.raw.send_many(
            [(b"k", raw) for raw in (b'{"name":"a","time":1}', b'{"name":"b"}', b"?", b'{"name":"c","time":3}')]
        )
        await other.send({"name": "d"}, key="k")
        await t.advance(5)
        assert dict(seen.items()) == {"a": 1, "b": 1, "c": 1, "d": 1}
        await t.crash()
        await t.advance(5)
        assert dict(seen.items()) == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_a_cancellation_that_comes_from_the_agents_own_code_is_that_events_error() -> None:
    app = App("cancelled", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen: list[str] = []

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            if value == "bad":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            seen.append(value)

    async with app.test(errors="policy") as t:
        await source.send_many([(None, value) for value in ("a", "bad", "b")])
        await t.advance(1)
        assert seen == ["a", "b"]


async def test_a_timer_goes_on_after_a_cancellation_of_its_own() -> None:
    app = App("ticking", partitions=1)
    ticks: list[float] = []

    @app.timer(1)
    async def tick() -> None:
        ticks.append(app.now())
        raise asyncio.CancelledError

    async with app.test(errors="policy") as t:
        await t.advance(3)
        assert len(ticks) == 3


async def test_lists_taken_after_a_flat_map_are_part_of_their_event() -> None:
    app = App("split", partitions=1)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)
    lists: list[list[int]] = []

    @app.agent(source.stream().flat_map(lambda n: [n] * n).take(2, within=1))
    async def add(stream: Stream[list[int]]) -> None:
        async for values in stream:
            lists.append(values)
            sums["all"] += sum(values)

    async with app.test() as t:
        await source.send(5, key="k")
        await source.send(1, key="k")
        await t.advance(5)
        assert sums["all"] == 26
        await t.crash()
        await t.advance(5)
        assert sums["all"] == 26


async def test_events_that_wait_for_their_turn_after_an_answer_do_not_hold_up_a_restart() -> None:
    app = App("turns", partitions=1)
    questions = app.topic("questions", key=str, value=str)
    ask, hold = app.topic("ask", key=str, value=str), app.topic("hold", key=str, value=str)
    shared = app.table("shared", key=str, value=int, default=int)
    gate = asyncio.Event()

    @app.agent(questions)
    async def answer(stream: Stream[str]) -> AsyncIterator[str]:
        async for value in stream:
            await gate.wait()
            yield value

    @app.agent(ask)
    async def asking(stream: Stream[str]) -> None:
        async for value in stream:
            await answer.ask(value, key="k", timeout=1000)
            shared["k"] += 1

    @app.agent(hold)
    async def holding(stream: Stream[str]) -> None:
        async for _ in stream:
            shared["k"] += 1
            await gate.wait()

    async with app.test() as t:
        await ask.send("a", key="k")
        await t.settle()
        await hold.send("b", key="k")
        await t.settle()
        stopping = asyncio.ensure_future(the_task(t).stop_lanes())
        await t.settle()
        assert stopping.done()
        gate.set()
        the_task(t).failed(RuntimeError("start over"))
        await t.advance(1)
        assert shared["k"] == 2


async def test_what_an_unfinished_event_changed_in_place_is_not_committed_when_draining_takes_too_long() -> None:
    app = App("drained", partitions=1, drain_timeout=5.0)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list)
    gate = asyncio.Event()

    @app.agent(source)
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(value)
            if value == "open":
                await gate.wait()

    async with app.test() as t:
        await source.send_many([("k", "first"), ("k", "open")])  # one batch: `first` is not committed yet
        await t.settle()
        task = the_task(t)
        closing = asyncio.ensure_future(t._worker._close_task(task.key, True))
        await t.advance(10)
        await closing
        gate.set()
        await t.crash()
        await t.settle()
        assert rows["row"] == ["first", "open"]


async def test_outputs_survive_an_error_of_any_kind_while_they_are_sent() -> None:
    app = App("outputs", partitions=1)
    source = app.topic("source", key=str, value=str)
    work = app.queue("work", value=str)
    done: list[str] = []

    @app.agent(source)
    async def pass_on(stream: Stream[str]) -> None:
        async for value in stream:
            await work.send(value)

    @app.handler(work)
    async def do(value: str) -> None:
        done.append(value)

    async with app.test() as t:
        t._broker.broker.faults.fail("put", error=OSError("the socket broke"))
        await source.send("a")
        await t.settle()
        await source.send("b")
        await t.advance(30)
        assert sorted(done) == ["a", "b"]


@pytest.mark.parametrize("topic", [True, False])
async def test_an_answer_that_cannot_be_encoded_is_an_error_for_who_asked_and_nobody_else(topic: bool) -> None:
    app = App("answers", partitions=1)
    source = app.topic("source", key=str, value=str) if topic else app.queue("source", key=str, value=str)

    @app.agent(source, on_error=DeadLetter())  # the agent is wrong, so it is its event that fails
    async def answer(stream: Stream[str]) -> AsyncIterator[Any]:
        async for value in stream:
            yield object() if value == "bad" else value

    async with app.test(errors="policy") as t:
        bad = asyncio.ensure_future(answer.ask("bad", key="k", timeout=5))
        await t.advance(1)
        assert bad.done(), "no answer at all"
        with pytest.raises(AgentError):
            await bad
        good = asyncio.ensure_future(answer.ask("good", key="k", timeout=5))
        await t.advance(1)
        assert await good == "good"
        if topic:
            assert the_task(t)._fold.marker is not None
            assert not t._worker._failures, "the task started over because of an answer"


async def test_a_dead_letter_of_the_largest_message_is_written() -> None:
    app = App("large", partitions=1)
    source = app.topic("source", key=str, value=bytes)

    @app.agent(source, on_error=DeadLetter())
    async def fail(stream: Stream[bytes]) -> None:
        async for _ in stream:
            raise ValueError("no")

    async with app.test(errors="policy", broker="memory://?message_bytes=2000") as t:
        await source.send(b"x" * 1930, key="k")
        await t.advance(60)
        assert not t._worker.failed.done()
        letters = [letter async for letter in app.dead_letters(source)]
        assert [letter.agent for letter in letters] == ["fail"]


async def test_a_message_just_below_the_limit_leaves_the_outbox() -> None:
    app = App("brim", partitions=1)
    source, target = app.topic("source", key=str, value=str), app.topic("target", key=str, value=bytes)

    @app.agent(source, on_error=Skip())
    async def send(stream: Stream[str]) -> None:
        async for value in stream:
            await target.send(b"x" * (1990 if value == "large" else 1), key="k")

    async with app.test(errors="policy", broker="memory://?message_bytes=2000&fencing=false") as t:
        await source.send("large", key="k")
        await source.send("small", key="k")
        await t.advance(60)
        assert len(t.sent(target)) >= 1, "the destination is blocked"


async def test_a_start_that_fails_is_reported_though_there_are_queues() -> None:
    app = App("failing", partitions=1)
    work = app.queue("work", value=str)

    @app.handler(work)
    async def do(value: str) -> None: ...

    test = app.test()
    original = test._broker.again

    def again() -> Any:
        transport = original()

        async def channel(topic: str, group: str) -> Any:
            raise OSError("no channel")

        transport.channel = channel
        return transport

    test._broker.again = again  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="no channel"):
            async with test:
                pass


async def test_a_rollback_is_not_taken_for_a_death() -> None:
    app = App("alive", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list)

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(value)
            if value == "bad":
                raise ValueError(value)

    async with app.test(errors="policy") as t:
        await source.send_many([("k", "first"), ("k", "bad")])
        await t.settle()
        assert rows["row"] == ["first"]
        assert the_task(t).read_row(CRASHES) is None


async def test_owners_that_get_much_done_before_they_die_leave_no_suspicion_behind() -> None:
    app = App("busy", partitions=1)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for value in stream:
            sums["all"] += value

    async with app.test() as t:
        for life in range(1, 5):
            await source.send_many(("all", 1) for _ in range(2 * CALM_EVENTS))
            await t.settle()
            assert sums["all"] == 2 * CALM_EVENTS * life
            crashes = the_task(t).read_row(CRASHES)
            assert crashes is None or decode(crashes, type=int) == 0
            await t.crash()


async def test_a_row_that_cannot_be_encoded_fails_its_own_event_though_the_row_had_changed_before() -> None:
    app = App("unencodable", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[Any], default=list)

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(object() if value == "bad" else value)

    async with app.test(errors="policy") as t:
        await source.send_many([("k", "first"), ("k", "bad"), ("k", "last")])
        await t.advance(60)
        assert not t._worker.failed.done()
        assert rows["row"] == ["first", "last"]


async def test_a_question_that_cannot_be_sent_leaves_nothing_behind() -> None:
    app = App("questions", partitions=1)
    source = app.topic("source", key=str, value=int)

    @app.agent(source)
    async def answer(stream: Stream[int]) -> AsyncIterator[int]:
        async for value in stream:
            yield value

    async with app.test() as t:
        wrong: Any = "not a number"
        with pytest.raises(TypeError):
            await answer.ask(wrong, key="k")
        await t.settle()
        assert not app.running.replies._waiting


async def test_answers_are_heard_again_after_some_were_dropped_from_the_log() -> None:
    app = App("stale", partitions=1)
    source = app.topic("source", key=str, value=int)

    @app.agent(source)
    async def answer(stream: Stream[int]) -> AsyncIterator[int]:
        async for value in stream:
            yield value

    async with app.test() as t:
        assert await answer.ask(1, key="k") == 1
        replies = app.running.replies
        await app.running.send(replies.topic, {0: [Message(b"1")] * 5})
        t._broker.broker.faults.fail("read", topic=replies.topic, error=make_gap(replies.topic), times=3)
        await app.running.send(replies.topic, {0: [Message(b"1")]})
        await t.settle()
        heard: list[Any] = []
        replies._heard = heard.append  # type: ignore[method-assign]
        async with asyncio.timeout(3):
            await app.running.send(replies.topic, {0: [Message(b"1")]})
            while not heard:
                await t.advance(2)


def make_gap(topic: str) -> Exception:
    from thalweg.errors import Gap

    return Gap(topic, 0, 1, 5)


async def test_a_handler_in_a_thread_that_raises_stop_iteration_has_failed() -> None:
    app = App("stopping", partitions=1)
    source = app.topic("source", key=str, value=list[int])
    seen: list[int] = []

    @app.handler(source, on_error=Skip())
    def first(values: list[int]) -> None:
        seen.append(next(iter(values)))

    async with app.test(errors="policy") as t:
        await source.send([], key="k")
        await source.send([1], key="k")
        async with asyncio.timeout(5):
            while not seen:
                await asyncio.sleep(0.01)
                await t._quiet() if not app.thread_calls else None
        assert seen == [1]


async def test_an_agent_that_does_not_read_its_stream_keeps_no_turn_from_others() -> None:
    app = App("idle", partitions=1)
    first, second = app.topic("first", key=str, value=str), app.topic("second", key=str, value=str)
    seen = app.table("seen", key=str, value=int, default=int)

    @app.agent(first)
    async def broken(stream: Stream[str]) -> None:
        _ = seen

    @app.agent(second)
    async def count(stream: Stream[str]) -> None:
        async for value in stream:
            seen[value] += 1

    async with app.test(errors="policy") as t:
        await first.send("a", key="k", timestamp=1.0)
        await t.settle()
        await second.send("b", key="k", timestamp=2.0)
        await t.settle()
        assert dict(seen.items()) == {"b": 1}


async def test_a_hot_key_does_not_make_a_slow_agent_read_without_end() -> None:
    app = App("hot", partitions=1)
    source = app.topic("source", key=str, value=int)
    gate = asyncio.Event()

    @app.agent(source, concurrency=2)
    async def slow(stream: Stream[int]) -> None:
        async for _ in stream:
            await gate.wait()

    async with app.test() as t:
        await source.send_many([("hot", n) for n in range(30_000)])
        await t.settle()
        agent = the_task(t).agents[0]
        queued = sum(len(lane.queue) for lane in agent.lanes)
        gate.set()
        await t.settle()
        assert queued < 15_000


async def test_a_hot_key_does_not_make_a_slow_queue_handler_fetch_without_end() -> None:
    app = App("hotter", partitions=1)
    work = app.queue("work", key=str, value=int)
    gate = asyncio.Event()
    done: list[int] = []

    @app.handler(work, concurrency=2)
    async def slow(value: int) -> None:
        await gate.wait()
        done.append(value)

    async with app.test() as t:
        for n in range(200):
            await work.send(n, key="hot")
        await t.settle()
        (group,) = t._broker.broker.topic("work")._groups.values()
        lent = sum(item.loan is not None for item in group.unfinished.values())
        gate.set()
        await t.settle()
        assert len(done) == 200
        assert lent < 50


async def test_a_loop_that_catches_its_errors_and_goes_on_is_fed_on() -> None:
    app = App("catching", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen: list[str] = []

    @app.agent(source)
    async def note(stream: Stream[str]) -> None:
        for _ in range(100):  # `while True` would hang the test, where it fails
            try:
                async for value in stream:
                    if value == "bad":
                        raise ValueError(value)
                    seen.append(value)
            except ValueError:
                pass

    async with app.test() as t:
        await source.send_many([(None, value) for value in ("a", "bad", "b")])
        await t.advance(1)
        assert seen == ["a", "b"]


async def test_a_loop_that_catches_the_error_of_a_step_and_goes_on_is_fed_on() -> None:
    app = App("steps", partitions=1)
    source = app.topic("source", key=str, value=int)
    seen: list[float] = []

    @app.agent(source.stream().map(lambda n: 1 / n))
    async def note(stream: Stream[float]) -> None:
        for _ in range(100):
            try:
                async for value in stream:
                    seen.append(value)
            except ZeroDivisionError:
                pass

    async with app.test() as t:
        await source.send_many([(None, 1), (None, 0), (None, 2)])
        await t.advance(1)
        assert seen == [1, 0.5]


async def test_an_owner_that_was_succeeded_while_it_claimed_finds_its_own_marker() -> None:
    app = App("duel", partitions=1)
    source = app.topic("source", key=str, value=str)

    @app.handler(source)
    async def note(value: str) -> None: ...

    async with app.test(broker="memory://?fencing=false") as t:
        task = the_task(t)
        journal = await t._worker.log(task.journal[0])
        store = task.worker._stores.open("other")
        markers = [
            Marker(token, 0, epoch, b"j" * 16, "owner", 1, "murmur2")
            for epoch, token in ((1 << 50, b"ours"), (1 << 51, b"theirs"))
        ]
        await journal.append({0: [Message(encode(marker)) for marker in markers]})
        replay = Replay(journal, 0, store)
        async with asyncio.timeout(1):
            await replay.to_marker(b"ours")
        assert replay.fold.marker is not None
        assert replay.fold.marker.token == b"ours"


async def test_a_worker_that_stops_while_it_hands_a_task_over_finishes_that_first() -> None:
    app = App("handing", partitions=1)
    source = app.topic("source", key=str, value=str)
    gate, begun = asyncio.Event(), list[str]()

    @app.handler(source)
    async def note(value: str) -> None:
        begun.append(value)
        await gate.wait()

    async with app.test() as t:
        worker, task = t._worker, the_task(t)
        await source.send("a", key="k")
        await t.settle()
        others = Plan("other", 1000, 1, {"1": ("other",)}, {}, ("other",))
        await worker.send_now(worker.roster.topic, {0: [as_messages(others, t.clock, None)[0]]})
        await t.settle()
        stopping = asyncio.ensure_future(worker.stop())
        await t.settle()
        gate.set()
        await t.settle()
        assert stopping.done()
        assert all(lane.task is None or lane.task.done() for lane in task.all_lanes())
        assert task._store is None
        await t.crash()
        await t.settle()
        assert begun == ["a"]


async def test_a_retry_comes_though_the_clock_was_set_back_while_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    class SetBack(VirtualClock):
        """As the machine's: timers do not follow the time of day when that is corrected."""

        by = 0.0

        def now(self) -> float:
            return super().now() - self.by

    monkeypatch.setattr("thalweg.testing.VirtualClock", SetBack)
    app = App("corrected", partitions=1)
    source = app.topic("source", key=str, value=str)
    tries: list[str] = []

    @app.handler(source)
    async def note(value: str) -> None:
        tries.append(value)
        if len(tries) == 1:
            raise ValueError(value)

    async with app.test(errors="policy") as t:
        await source.send("a", key="k")
        await t.settle()
        SetBack.by = 2.0
        await t.advance(10)
        assert tries == ["a", "a"]
        SetBack.by = 0.0


async def test_a_worker_that_cannot_go_on_fails_the_test() -> None:
    app = App("broken", partitions=1)
    source = app.topic("source", key=str, value=str)

    @app.handler(source)
    async def note(value: str) -> None: ...

    async with app.test() as t:
        t._broker.broker.faults.fail("claim", error=RuntimeError("a bug"), times=1000)
        the_task(t).failed(RuntimeError("start over"))
        with pytest.raises(RuntimeError, match="a bug"):
            await t.advance(1000)
        t._worker.failed = asyncio.get_running_loop().create_future()


async def test_a_change_from_a_task_that_outlived_its_event_is_refused() -> None:
    app = App("outlived", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=int, default=int)
    gate, errors, spawned = asyncio.Event(), list[BaseException](), list[asyncio.Task[None]]()

    async def later() -> None:
        await gate.wait()
        try:
            rows["late"] = 1
        except Exception as error:
            errors.append(error)

    @app.agent(source)
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows[value] += 1
            spawned.append(asyncio.create_task(later()))

    async with app.test() as t:
        await source.send("a", key="k")
        await t.settle()
        gate.set()
        await t.settle()
        assert [type(error).__name__ for error in errors] == ["OutsideEvent"]


async def test_reading_a_mutable_row_from_outside_shows_finished_events_only() -> None:
    app = App("outside", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list)
    gate = asyncio.Event()

    @app.agent(source)
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(value)
            if value == "open":
                await gate.wait()

    async with app.test() as t:
        await source.send("first", key="k")
        await t.settle()
        await source.send("open", key="k")
        await t.settle()
        assert rows["row"] == ["first"]
        rows["row"].append("from outside")
        gate.set()
        await t.settle()
        assert rows["row"] == ["first", "open"]


async def test_a_lock_lost_while_a_commit_is_in_flight_stops_that_task_alone() -> None:
    app = App("losing", partitions=2)
    source = app.topic("source", key=str, value=str)
    seen = app.table("seen", key=str, value=int, default=int)

    @app.agent(source)
    async def count(stream: Stream[str]) -> None:
        async for value in stream:
            seen[value] += 1

    async with app.test() as t:
        hold = t._broker.broker.faults.hold("commit", after=True)
        await source.send("a", key="a", partition=0)
        await hold.reached.wait()
        closing = asyncio.ensure_future(t._worker._close_task(("2", 0), False))
        await t.settle()
        hold.release()
        await t.settle()
        await closing
        assert not t._worker.failed.done()
