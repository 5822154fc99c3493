"""Delayed sends: each leaves once, at its time, unless it was taken back; whatever dies, and whoever owns it then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thalweg import App, Event, MessageTooLarge, MissingCapability, Stream, WrongType
from thalweg.errors import AmbiguousCommit, BrokerError
from thalweg.runtime.committer import Committer
from thalweg.runtime.delayed import Delayed
from thalweg.testing import AppTest
from thalweg.transports.memory.faults import Call

BROKERS = ["memory://", "memory://?fencing=false", "memory://?grouped=true&locks=false&peers=false"]
START = 1_577_836_800.0  # where the virtual clock begins


class Shop:
    """Orders are reminded of after an hour, or so, unless they are paid."""

    def __init__(self, after: float | timedelta = timedelta(hours=1)) -> None:
        self.app = app = App("shop", partitions=2)
        self.orders = app.topic("orders", key=str, value=str)
        self.reminders = app.topic("reminders", key=str, value=str, partitions=3)
        self.reminded: list[tuple[str, str, float]] = []

        @app.agent(self.orders)
        async def order(stream: Stream[str]) -> None:
            async for event in stream.events():
                if event.value == "paid":
                    await self.reminders.cancel(event.key)
                elif event.value == "twice":
                    await self.reminders.send("one", key=event.key, delay=60)
                    await self.reminders.send("two", key=event.key, delay=30)
                else:
                    await self.reminders.send(event.value, key=event.key, delay=after, id=event.key)

        @app.agent(self.reminders)
        async def remind(stream: Stream[str]) -> None:
            async for event in stream.events():
                self.reminded.append((event.key, event.value, app.now() - START))

    def told(self, t: AppTest) -> list[tuple[str, str, float]]:
        return sorted((event.key, event.value, event.timestamp - START) for event in t.sent(self.reminders))


@pytest.mark.parametrize("broker", BROKERS)
async def test_what_waits_leaves_at_its_time_though_its_owner_dies_and_what_is_cancelled_does_not(broker: str) -> None:
    shop = Shop()
    async with shop.app.test(broker=broker) as t:
        for key in ("a", "b", "c"):
            await shop.orders.send("order", key=key)
        await t.advance(1800)
        await shop.orders.send("paid", key="b")
        await t.crash()
        await t.advance(1799)
        assert shop.reminded == []
        await t.crash()
        await t.advance(1)
        assert sorted(shop.reminded) == [("a", "order", 3600.0), ("c", "order", 3600.0)]
        assert shop.told(t) == [("a", "order", 3600.0), ("c", "order", 3600.0)]
        await t.crash()
        await t.advance(10_000)
        assert len(shop.reminded) == 2


async def test_deaths_while_it_is_taken_in_cost_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    take, commit = Delayed.take, Committer.commit
    dead: list[Committer] = []

    def takes(delayed: Delayed, event: Event[bytes | None, bytes]) -> None:
        take(delayed, event)
        if len(dead) < 5:
            dead.append(delayed._task.worker.committer)

    async def commits(committer: Committer) -> None:
        if committer in dead:
            await asyncio.get_running_loop().create_future()
        await commit(committer)

    monkeypatch.setattr(Delayed, "take", takes)
    monkeypatch.setattr(Committer, "commit", commits)
    shop = Shop()
    async with shop.app.test() as t:
        await shop.orders.send("roses", key="one")
        for deaths in range(1, 6):
            await t.advance(15)
            assert len(dead) == deaths
            await t.crash()
        await t.advance(3600)
        assert shop.reminded == [("one", "roses", 3600.0)]


async def test_due_while_no_worker_ran_it_leaves_at_the_next_start_and_late_cancelling_still_counts() -> None:
    shop = Shop()
    async with shop.app.test() as t:
        for key in ("a", "b"):
            await shop.orders.send("order", key=key)
        await t.settle()
        assert t._worker is not None
        await t._worker.stop_by_kill()
        t.clock.move(t.now() + 7200)
        await shop.reminders.cancel("b")
        await t.crash()
        await t.settle()
        assert shop.reminded == [("a", "order", 7200.0)]


async def test_sent_again_under_its_id_it_takes_the_place_of_what_waits_and_is_free_once_that_has_left() -> None:
    shop = Shop()
    async with shop.app.test() as t:
        await shop.reminders.send("first", key="k", delay=60, id="x")
        await t.advance(30)
        await shop.reminders.send("later", key="k", delay=60, id="x")
        await t.advance(59)
        assert shop.reminded == []
        await t.advance(1)
        assert shop.reminded == [("k", "later", 90.0)]
        await shop.reminders.cancel("x")  # too late: nothing happens
        await shop.reminders.send("again", key="k", delay=10, id="x")
        await shop.reminders.send("sooner", key="k", delay=5, id="x")
        await shop.reminders.send("of another", key="k", delay=1, id="y")
        await t.advance(20)
        assert [value for _, value, _ in shop.reminded] == ["later", "of another", "sooner"]


async def test_without_an_id_each_send_waits_by_itself_and_leaves_in_the_order_of_time() -> None:
    shop = Shop()
    async with shop.app.test() as t:
        await shop.orders.send("twice", key="k")
        await shop.reminders.send("three", key="k", delay=45)
        await shop.reminders.send("four", key="k", delay=45, timestamp=START + 1)
        await t.advance(100)
        assert sorted(shop.told(t), key=lambda one: one[1]) == [
            ("k", "four", 1.0), ("k", "one", 60.0), ("k", "three", 45.0), ("k", "two", 30.0)
        ]  # fmt: skip
        assert [at for _, _, at in shop.reminded] == [30.0, 45.0, 45.0, 60.0]


@pytest.mark.parametrize("broker", BROKERS)
async def test_thousands_that_are_due_at_once_all_leave_once(broker: str) -> None:
    shop = Shop()
    async with shop.app.test(broker=broker) as t:
        for number in range(3000):
            await shop.reminders.send(str(number), key=str(number % 7), delay=60)
        await t.advance(59)
        await t.crash()
        await t.advance(1)
        assert sorted(int(value) for _, value, _ in shop.told(t)) == list(range(3000))
        waiting = [task.delayed for task in t._worker.tasks.values() if task.delayed] if t._worker else []
        assert waiting
        assert all(delayed._next is None for delayed in waiting)


async def test_a_failed_attempt_leaves_nothing_that_waits() -> None:
    app = App("attempts", partitions=1)
    source = app.topic("source", value=str)
    later = app.topic("later", value=str)
    failures = 2

    @app.agent(source)
    async def fail(stream: Stream[str]) -> None:
        nonlocal failures
        async for value in stream:
            await later.send(f"{value} {failures}", delay=10)
            if failures:
                failures -= 1
                raise ValueError(value)

    async with app.test(errors="policy") as t:
        await source.send("x")
        await t.advance(100)
        assert [event.value for event in t.sent(later)] == ["x 0"]


async def test_a_client_delays_and_workers_that_run_already_see_to_it() -> None:
    """The topic of delays does not exist at their start."""
    workers, client = Shop(), Shop()
    async with workers.app.test() as t:
        client.app._broker = t._broker.again()
        client.app.clock = t.clock
        async with client.app.client():
            await client.reminders.send("of a client", key="k", delay=5)
        await t.advance(5)
        assert workers.reminded == [("k", "of a client", 5.0)]


async def test_a_program_that_reads_nothing_delays_too() -> None:
    app = App("writer", partitions=4)
    topic = app.topic("topic", value=str)

    @app.background
    async def write() -> None:
        await topic.send("later", delay=5)

    async with app.test() as t:
        await t.advance(5)
        assert [event.value for event in t.sent(topic)] == ["later"]


async def test_programs_that_delay_nothing_have_no_topic_for_it() -> None:
    shop = Shop()
    async with shop.app.test() as t:
        await shop.orders.send("paid", key="k")
        await t.settle()
        transport = shop.app.running.transport
        assert "shop-delays" in {info.name for info in await transport.topics()}  # for the cancelling
    other = App("other", partitions=2)
    topic = other.topic("topic", value=str)
    async with other.test() as t:
        await topic.send("now")
        await t.settle()
        assert "other-delays" not in {info.name for info in await other.running.transport.topics()}


async def test_what_lies_in_the_topic_is_dropped_once_the_journal_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.runtime.delayed.TRUNCATE_EVERY", 10)
    shop = Shop()
    async with shop.app.test() as t:
        for number in range(200):
            await shop.reminders.send(str(number), key="k", delay=60, id=str(number % 50))
            if number % 10 == 0:
                await t.settle()
        await t.settle()
        reader = await shop.app.running.open_log("shop-delays")
        firsts = [(await reader.bounds(partition)).first for partition in range(2)]
        assert all(first is not None and first > 30 for first in firsts)
        await t.crash()
        await t.advance(60)
        assert sorted(int(value) for _, value, _ in shop.told(t)) == list(range(150, 200))


async def test_what_is_refused_says_why_and_sends_nothing() -> None:
    shop = Shop()
    async with shop.app.test(broker="memory://?message_bytes=2000") as t:
        with pytest.raises(MessageTooLarge, match="reminders"):
            await shop.reminders.send("x" * 1990, key="k", delay=5)
        for id_ in ("", "x" * 513, 7):
            with pytest.raises(WrongType, match="id="):
                await shop.reminders.send("x", key="k", id=id_)  # type: ignore[arg-type]
        await t.advance(10)
        assert shop.told(t) == []
    async with App("bare").test(broker="memory://?log=false"):
        pass
    bare = App("bare")
    topic = bare.topic("topic", value=str)
    async with bare.test(broker="memory://?log=false"):
        with pytest.raises(MissingCapability, match="needs a log"):
            await topic.send("x", delay=5)
        with pytest.raises(MissingCapability, match="needs a log"):
            await topic.cancel("x")


async def test_a_broker_that_is_away_at_the_first_delayed_send_costs_no_event() -> None:
    app = App("first", partitions=1)
    source = app.topic("source", value=str)
    later = app.topic("later", value=str)
    attempts: list[str] = []

    @app.agent(source)
    async def delay(stream: Stream[str]) -> None:
        async for value in stream:
            attempts.append(value)
            await later.send(value, delay=10)

    async def fail(call: Call) -> None:
        if call.operation == "append" and call.topic == "first-workers" and not call.done:
            raise BrokerError("away")

    async with app.test() as t:
        await t.advance(1)
        t._broker.broker.faults.intercept(fail)
        await source.send("x")
        await t.advance(60)
        assert attempts == ["x"]
        assert t.sent(later) == []
        t._broker.broker.faults.intercept(None)
        await t.advance(60)
        assert attempts == ["x"]
        assert [event.value for event in t.sent(later)] == ["x"]


commands = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from("abc"), st.integers(1, 40)),
        st.tuples(st.just("cancel"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("pass"), st.just(""), st.integers(1, 20)),
        st.tuples(st.just("crash"), st.just(""), st.just(0)),
    ),
    max_size=20,
)


@pytest.mark.parametrize("broker", BROKERS[:2])
@settings(max_examples=40, deadline=None)
@given(commands=commands, inside=st.booleans())
async def test_any_course_of_sends_and_cancels_ends_as_a_dict_of_what_waits_would(
    broker: str, commands: list[tuple[str, str, int]], inside: bool
) -> None:
    """inside: events of an agent send and cancel."""
    app = App("model", partitions=2)
    orders = app.topic("orders", key=str, value=tuple[str, str, int, str])
    target = app.topic("target", key=str, value=str)

    async def carry_out(what: str, id_: str, delay: int, value: str) -> None:
        await (target.send(value, key=id_, delay=delay, id=id_) if what == "send" else target.cancel(id_))

    @app.agent(orders)
    async def follow(stream: Stream[tuple[str, str, int, str]]) -> None:
        async for order in stream:
            await carry_out(*order)

    waiting: dict[str, tuple[float, str]] = {}
    left: list[tuple[str, str, float]] = []

    def let_leave(now: float) -> None:
        for id_, (due, value) in list(waiting.items()):
            if due <= now:
                left.append((id_, value, due))
                del waiting[id_]

    async with app.test(broker=broker) as t:
        for number, (what, id_, amount) in enumerate(commands):
            if what == "crash":
                await t.crash()
            elif what == "pass":
                await t.advance(amount)
            else:
                if inside:
                    await orders.send((what, id_, amount, str(number)), key=id_)
                else:
                    await carry_out(what, id_, amount, str(number))
                await t.settle()
                waiting.pop(id_, None)
                if what == "send":
                    waiting[id_] = (t.now() - START + amount, str(number))
            let_leave(t.now() - START)
        await t.advance(100)
        let_leave(t.now() - START)
        assert sorted((event.key, event.value, event.timestamp - START) for event in t.sent(target)) == sorted(left)


# --- a fault at each call to the broker --------------------------------------------------------------------------

WRITES = ("append", "commit", "claim", "truncate", "bounds")
Meet = Callable[[Call], Awaitable[None]]


async def run(broker: str, number: int, after: bool, meet: Meet, kill: bool) -> bool:
    """Orders come, are paid and reminded of; call `number` to the broker meets a fault. Whether there was one."""
    shop, count, killed = Shop(after=20), 0, False

    async def intercept(call: Call) -> None:
        nonlocal count
        if call.operation in WRITES and call.topic != "shop-workers" and call.done == after:
            count += 1
            if count == number:
                await meet(call)

    async with shop.app.test(errors="policy", broker=broker) as t:
        faults = t._broker.broker.faults
        steps = [("a", "order"), ("b", "order"), ("c", "order"), ("b", "paid"), ("c", "order again")]
        for step in range(27):
            if step < len(steps):
                faults.intercept(None)
                await shop.orders.send(steps[step][1], key=steps[step][0])
                faults.intercept(intercept)
            await t.advance(1)
            if kill and count >= number and not killed:
                killed = True
                await t.crash()
        faults.intercept(None)
        await t.advance(60)
        expected = [("a", "order"), ("c", "order again")]
        assert [(key, value) for key, value, _ in shop.told(t)] == expected
        await t.crash()
        await t.advance(60)
        assert [(key, value) for key, value, _ in shop.told(t)] == expected
    return count >= number


async def all_calls(broker: str, after: bool, meet: Meet, kill: bool = False) -> None:
    number = 1
    while await run(broker, number, after, meet, kill):
        number += 1
    assert number > 8, "hardly a call was made: the test shows nothing"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("broker", BROKERS[:2])
async def test_killed_at_any_call_each_message_leaves_once(broker: str, after: bool) -> None:
    async def stand_still(call: Call) -> None:
        await asyncio.get_running_loop().create_future()

    await all_calls(broker, after, stand_still, kill=True)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("broker", BROKERS[:2])
async def test_a_failed_or_ambiguous_call_leaves_each_message_once(broker: str, after: bool) -> None:
    async def fail(call: Call) -> None:
        if "-journal-" in call.topic or call.operation in ("commit", "claim", "truncate") or after is False:
            raise (AmbiguousCommit if after else BrokerError)("injected")

    await all_calls(broker, after, fail)
