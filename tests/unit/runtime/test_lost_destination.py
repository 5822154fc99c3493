"""A topic that takes no more messages, for good or for long, holds up nothing but what is meant for it."""

from __future__ import annotations

import pytest
from thalweg import App, Stream
from thalweg.errors import BrokerError, MessageTooLarge
from thalweg.transports.memory.faults import Call

KEYS = [f"k{number}" for number in range(20)]


@pytest.mark.parametrize("error", [BrokerError("target is gone"), MessageTooLarge("target takes less than it says")])
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
        if isinstance(error, MessageTooLarge):
            await t.crash()  # what cannot be sent as it is waits for the next start
        await t.advance(60)
        for key in KEYS[:3]:
            assert [event.value for event in t.sent(target) if event.key == key] == [1, 2, 3]
