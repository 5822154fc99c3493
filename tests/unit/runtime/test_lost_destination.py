"""A topic that takes no more messages, for good or for long, holds up nothing but what is meant for it."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from thalweg import App, Stream
from thalweg.cli.lag import held_back
from thalweg.errors import AccessDenied, BrokerError, MessageRefused, MessageTooLarge
from thalweg.runtime import deliveries
from thalweg.transports.memory.faults import Call
from thalweg.transports.memory.log import MemoryLog

Guarantee = Literal["exactly_once", "at_least_once"]

KEYS = [f"k{number}" for number in range(20)]


@pytest.mark.parametrize(
    "error",
    [
        BrokerError("target is gone"),
        MessageTooLarge("target takes less than it says"),
        AccessDenied("you may not write there"),
    ],
)
@pytest.mark.parametrize("fencing", ["true", "false"])
async def test_the_tasks_go_on_and_what_was_kept_arrives_once_the_topic_is_back(fencing: str, error: Exception) -> None:
    app = App("lost", partitions=4)
    source = app.topic("source", key=str, value=int)
    target, fine = app.topic("target", key=str, value=int), app.topic("fine", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value
            await fine.send(sums[event.key], key=event.key)
            if event.key in KEYS[:3]:
                await target.send(sums[event.key], key=event.key)

    async with app.test(broker=f"memory://?fencing={fencing}") as t:
        gone = True
        transport = app.running.transport
        real = type(transport)._commit

        def commit(commits: object) -> object:
            """The whole call is refused, as by a broker whose topic was deleted."""
            if gone and any(name == "target" for one in commits.values() for name, _ in one.outputs):  # type: ignore[attr-defined]
                raise error
            return real(transport, commits)  # type: ignore[arg-type]

        async def refuse(call: Call) -> None:
            if gone and call.operation == "append" and call.topic == "target":
                raise error

        transport._commit = commit  # type: ignore[attr-defined, method-assign]
        t._broker.broker.faults.intercept(refuse)
        for number in range(1, 4):
            for key in KEYS:
                await source.send(1, key=key)
            await t.advance(60)
            assert dict(sums.items()) == dict.fromkeys(KEYS, number)
            assert sorted(event.value for event in t.sent(fine)) == sorted([*range(1, number + 1)] * len(KEYS))
        assert t.sent(target) == []
        gone = False
        await t.advance(60)
        for key in KEYS[:3]:
            assert [event.value for event in t.sent(target) if event.key == key] == [1, 2, 3]


class Shipping:
    """Orders go to a queue, which refuses them while `closed`; each is counted."""

    def __init__(self, guarantee: Guarantee = "exactly_once") -> None:
        self.app = app = App("shipping", partitions=2, guarantee=guarantee)
        self.orders = app.topic("orders", key=str, value=int)
        self.parcels = app.queue("parcels", value=int)
        self.count = app.table("count", key=str, value=int, default=int)
        self.closed = True
        self.tries = 0
        self.delivered: list[int] = []

        @app.agent(self.orders)
        async def order(stream: Stream[int]) -> None:
            async for event in stream.events():
                self.count[event.key] += 1
                await self.parcels.send(event.value)

        @app.agent(self.parcels)
        async def deliver(stream: Stream[int]) -> None:
            async for value in stream:
                self.delivered.append(value)

    async def refuse(self, call: Call) -> None:
        if call.operation == "put" and call.topic == "parcels" and not call.done:
            self.tries += 1
            if self.closed:
                raise AccessDenied("no rights to parcels")


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_a_destination_that_refuses_is_parked_told_of_once_and_goes_on_by_itself(
    guarantee: Guarantee, caplog: pytest.LogCaptureFixture
) -> None:
    """At least once, what is sent goes before the commit, and would hold it up for good."""
    shop = Shipping(guarantee)
    async with shop.app.test() as t:
        t._broker.broker.faults.intercept(shop.refuse)
        for number in range(20):
            await shop.orders.send(number, key="a")
            await t.advance(60)
        assert shop.count["a"] == 20
        await t.crash()
        await t.advance(3600)
        assert shop.tries < 300
        held = [
            one for task in t._worker.tasks.values() for one in held_back(*task.key, dict(task.store.scan(b"", None)))
        ]
        shop.closed = False
        await t.advance(60)
        assert sorted(shop.delivered) == [*range(20)]
    assert [record.levelname for record in caplog.records if "are held back" in record.message] == ["ERROR"]
    assert [(one["messages"], one["reason"]) for one in held] == [(20, "no rights to parcels")]


async def test_only_so_much_is_held_back_then_the_partition_waits_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "MOST", 20)
    shop = Shipping()
    async with shop.app.test() as t:
        t._broker.broker.faults.intercept(shop.refuse)
        for number in range(30):
            await shop.orders.send(number, key="a")
            await t.advance(1)
        await shop.orders.send(1000, key="d")  # of the other partition
        await t.crash()
        await t.advance(600)
        assert dict(shop.count.items()) == {"a": 20, "d": 1}
        shop.closed = False
        await t.advance(60)
        assert dict(shop.count.items()) == {"a": 30, "d": 1}
        assert sorted(shop.delivered) == [*range(30), 1000]


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("fencing", ["true", "false"])
async def test_a_message_that_is_refused_for_itself_is_a_dead_letter_and_the_others_follow(
    fencing: str, guarantee: Guarantee, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("picky", partitions=1, guarantee=guarantee)
    source = app.topic("source", key=str, value=int)
    target = app.topic("target", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)
    arrived: list[int] = []

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for number in stream:
            sums["all"] += number
            await target.send(number, key="k")

    @app.agent(target)
    async def read(stream: Stream[int]) -> None:
        async for number in stream:
            arrived.append(number)

    refused = {b"3", b"7"}
    async with app.test(broker=f"memory://?fencing={fencing}") as t:
        transport = app.running.transport
        real = type(transport)._commit

        def commit(commits: object) -> object:
            outputs = [one.outputs for one in commits.values()]  # type: ignore[attr-defined]
            if any(m.value in refused for one in outputs for messages in one.values() for m in messages):
                raise MessageRefused("a time that cannot be")
            return real(transport, commits)  # type: ignore[arg-type]

        append = MemoryLog.append

        async def refusing(log: MemoryLog, records: Any, positions: bool = True) -> Any:
            if log._topic.name == "target" and any(m.value in refused for each in records.values() for m in each):
                raise MessageRefused("a time that cannot be")
            return await append(log, records, positions=positions)

        transport._commit = commit  # type: ignore[attr-defined, method-assign]
        monkeypatch.setattr(MemoryLog, "append", refusing)
        await source.send_many(("k", number) for number in range(10))
        await t.advance(60)
        await t.crash()
        await source.send(10, key="k")
        await t.advance(60)
        assert sums["all"] == 55
        assert [event.value for event in t.sent(target)] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
        assert sorted(set(arrived)) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
        letters = [letter async for letter in app.dead_letters(target)]
        assert [letter.value for letter in letters] == [b"3", b"7"]
        assert {letter.reason for letter in letters} == {"a time that cannot be"}
