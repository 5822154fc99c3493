"""`send(id=…)`: of messages with one id and key, each agent handles the first, whatever dies; others are untouched."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thalweg import App, Event, MissingCapability, Retry, Stream, WrongType
from thalweg.dead_letters import replay
from thalweg.message import Message

BROKERS = ["memory://", "memory://?fencing=false"]


class Bank:
    """Two agents of different concurrency read deposits; each notes what it handled, and passes it on."""

    def __init__(self, remember_ids: float = 3600.0) -> None:
        self.app = app = App("bank", partitions=2, remember_ids=remember_ids)
        self.deposits = app.topic("deposits", key=str, value=int)
        self.receipts = app.topic("receipts", key=str, value=int)
        self.totals = app.table("totals", key=str, value=int, default=int)
        self.ids: list[str] = []
        self.failing: set[int] = set()

        @app.agent(self.deposits, on_error=Retry(3, backoff=1))
        async def add(stream: Stream[int]) -> None:
            async for event in stream.events():
                self.ids.append(event.id)
                self.totals[event.key] += event.value
                if event.value in self.failing:
                    self.failing.discard(event.value)
                    raise ValueError(event.value)

        @app.agent(self.deposits, concurrency=4)
        async def receipt(stream: Stream[int]) -> None:
            async for event in stream.events():
                await self.receipts.send(event.value, key=event.key)


sends = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", "3", None]), st.booleans()),
        st.sampled_from(["crash", "settle"]),
    ),
    max_size=14,
)


@pytest.mark.parametrize("broker", BROKERS)
@settings(max_examples=40, deadline=None)
@given(steps=sends)
async def test_an_id_is_handled_once_by_each_agent_through_crashes_and_retries(
    broker: str, steps: list[tuple[str, str | None, bool] | str]
) -> None:
    bank, totals, receipts, seen = Bank(), Counter[str](), Counter[tuple[str, int]](), set()
    async with bank.app.test(errors="policy", broker=broker) as t:
        for number, step in enumerate(steps, 1):
            if step == "crash":
                await t.crash()
            elif isinstance(step, str):
                await t.settle()
            else:
                key, id_, fails = step
                value = 1 << number
                if fails:
                    bank.failing.add(value)
                await bank.deposits.send(value, key=key, id=None if id_ is None else key + id_)
                if id_ is None or (key, id_) not in seen:
                    totals[key] += value
                    receipts[(key, value)] += 1
                    seen.add((key, id_))
        await t.advance(60)
        assert dict(bank.totals.items()) == dict(totals)
        assert Counter((event.key, event.value) for event in t.sent(bank.receipts)) == receipts


async def test_an_id_is_remembered_for_the_window_by_the_time_of_sending_and_forgotten_after_it() -> None:
    bank = Bank(remember_ids=3600)
    async with bank.app.test() as t:
        await bank.deposits.send(1, key="a", id="x")
        await t.advance(3599)
        await bank.deposits.send(10, key="a", id="x")
        await t.settle()
        assert bank.totals["a"] == 1
        await t.advance(2)
        await bank.deposits.send(100, key="a", id="x")
        await t.crash()
        await t.settle()
        assert bank.totals["a"] == 101
        for number in range(3):  # others are forgotten as new ones come
            await t.advance(3601)
            await bank.deposits.send(0, key="a", id=f"y{number}")
        await t.settle()
        rows = [
            key for task in bank.app.running.worker.tasks.values() for key, _ in task._store.scan(b"d", b"e")
        ]  # of both agents, for the last one
        assert [key.rpartition(b"\0")[2] for key in rows] == [b"y2", b"y2"]


async def test_a_copy_that_lay_unread_for_longer_than_the_window_is_a_copy_still() -> None:
    bank = Bank(remember_ids=60)
    async with bank.app.test() as t:
        await bank.deposits.send(1, key="a", id="x")
        await t.settle()
        assert t._worker is not None
        await t._worker.stop_by_kill()
        await t.advance(30)
        await bank.deposits.send(10, key="a", id="x")
        t.clock.move(t.now() + 86_400)
        await t.crash()
        await t.settle()
        assert bank.totals["a"] == 1


async def test_without_a_key_copies_go_to_the_partition_of_their_id() -> None:
    totals: Counter[int] = Counter()
    app = App("keyless", partitions=4)
    topic = app.topic("topic", value=int)

    @app.agent(topic)
    async def note(stream: Stream[int]) -> None:
        async for value in stream:
            totals[value] += 1

    async with app.test() as t:
        for number in range(20):
            for _ in range(2):
                await topic.send(number, id=f"n{number}")
        await t.settle()
        assert totals == Counter(range(20))
        assert len({event.partition for event in t.sent(topic)}) == 4


async def test_the_id_is_the_events_own_and_a_replayed_dead_letter_is_no_copy() -> None:
    bank = Bank()
    async with bank.app.test(errors="policy") as t:
        for _ in range(2):
            await bank.deposits.send(7, key="a", id="order-1")
        bank.failing = {7}
        await t.advance(10)
        assert bank.ids == ["order-1", "order-1"]
    app = App("letters", partitions=1)
    topic = app.topic("topic", value=str)
    ids: list[str] = []

    @app.handler(topic, on_error=Retry(1))
    async def fail(value: str) -> None:
        ids.append(value)
        raise ValueError(value)

    async with app.test(errors="policy") as t:
        await topic.send("x", id="order-2")
        await t.settle()
        assert await replay(app, "topic") == 1
        await t.settle()
        assert ids == ["x", "x"]


async def test_foreign_producers_give_ids_by_the_header() -> None:
    bank = Bank()
    async with bank.app.test() as t:
        for value in (b"1", b"2"):
            message = Message(value, b"a", (("thalweg-once", b"from-afar"),), round(t.now() * 1000))
            await bank.app.running.send("deposits", {bank.deposits._plan.partition_of(b"a", 2): [message]})
        await t.settle()
        assert bank.totals["a"] == 1
        assert bank.ids == ["from-afar"]


async def test_ids_sent_by_events_are_copies_too() -> None:
    """Two events, by mistake of the program's, send what is meant once."""
    app = App("twice", partitions=2)
    source = app.topic("source", key=str, value=str)
    target = app.topic("target", key=str, value=str)
    got: list[str] = []

    @app.agent(source)
    async def send(stream: Stream[str]) -> None:
        async for value in stream:
            await target.send(value, key="k", id="welcome")

    @app.agent(target)
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            got.append(value)

    async with app.test() as t:
        for number in range(4):
            await source.send(str(number), key=str(number))
            await t.settle()
        assert got == ["0"]


@pytest.mark.parametrize("broker", BROKERS)
async def test_of_messages_to_a_queue_with_one_id_the_first_arrives(broker: str) -> None:
    app = App("mail", partitions=2)
    letters = app.queue("letters", key=str, value=str)
    welcomes = app.topic("welcomes", key=str, value=str)
    got: list[tuple[str, str]] = []

    @app.agent(letters.stream().events())
    async def post(stream: Stream[Event[str, str]]) -> None:
        async for event in stream:
            got.append((event.id, event.value))

    @app.agent(welcomes)
    async def welcome(stream: Stream[str]) -> None:
        async for event in stream.events():
            await letters.send(event.value, id=f"welcome-{event.key}", delay=30)

    async with app.test(broker=broker) as t:
        for value in ("first", "second"):
            await letters.send(value, id="order-1")
            await welcomes.send(value, key="ada")
            await t.settle()
            await t.crash()
        await letters.send("without")
        with pytest.raises(WrongType, match="id="):
            await letters.send("x", id="")
        await t.advance(29)
        assert {value for _, value in got} == {"first", "without"}
        await t.advance(2)
        assert {id_ for id_, value in got if value == "first"} == {"order-1", "welcome-ada"}
        assert {value for _, value in got} == {"first", "without"}  # of one, a copy may follow a crash: it is a queue
    bare = App("bare")
    jobs = bare.queue("jobs", value=str)
    async with bare.test(broker="memory://?log=false"):
        with pytest.raises(MissingCapability, match="needs a log"):
            await jobs.send("x", id="1")
