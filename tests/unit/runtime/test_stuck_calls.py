"""One call to the broker that takes for ever holds up nothing but what depends on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from thalweg import Agent, App, Stream, Table, Topic, starting
from thalweg.runtime import outgoing

BROKERS = ("memory://", "memory://?fencing=false")
pytestmark = pytest.mark.parametrize("broker", BROKERS)


def make_app() -> tuple[App, Agent[int, int], Topic[str, int], Table[str, int]]:
    app = App("stuck", partitions=4)
    source = app.topic("source", key=str, value=int)
    answers = app.topic("answers", key=str, value=int, partitions=1)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            sums[event.key] += event.value
            yield sums[event.key]

    return app, add, answers, sums


KEYS = ("a", "b", "c", "d", "e", "f")


async def test_a_reply_topic_that_takes_nothing_holds_up_no_commit_and_keeps_the_order(broker: str) -> None:
    app, add, answers, sums = make_app()
    async with app.test(broker=broker) as t:
        hold = t._broker.broker.faults.hold("append", topic="answers")
        for number in range(1, 4):
            for key in KEYS:
                await add.cast(number, key=key, reply_to=answers)
            await t.settle()
        assert hold.reached.is_set()
        assert t.sent(answers) == []
        assert dict(sums.items()) == dict.fromkeys(KEYS, 6)
        assert await add.ask(4, key="a") == 10  # answers that go elsewhere are given
        hold.release()
        await t.settle()
        for key in KEYS:
            assert [event.value for event in t.sent(answers) if event.key == key] == [1, 3, 6]


async def test_answers_that_wait_are_bounded_and_those_beyond_are_dropped_with_a_warning(
    broker: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outgoing, "MOST", 3)
    app, add, answers, sums = make_app()
    async with app.test(broker=broker) as t:
        hold = t._broker.broker.faults.hold("append", topic="answers")
        for number in range(10):
            await add.cast(1, key="a", reply_to=answers)
            await t.settle()
            assert sums["a"] == number + 1
        hold.release()
        await t.settle()
        assert [event.value for event in t.sent(answers)] == [1, 2, 3, 4]  # one was under way
    assert "answer of agent add dropped: 3 others wait for 'answers'" in caplog.text


async def test_a_truncation_that_takes_for_ever_or_fails_holds_up_no_commit(
    broker: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 500)
    app, add, _, sums = make_app()
    async with app.test(broker=broker) as t:
        faults = t._broker.broker.faults
        hold = faults.hold("truncate", topic="stuck-journal-4")
        faults.fail("truncate", nth=2, topic="stuck-journal-4")
        for number in range(100):
            for key in KEYS:
                await add.cast(1, key=key)
            await t.settle()
            assert dict(sums.items()) == dict.fromkeys(KEYS, number + 1)
        assert hold.reached.is_set()
        assert "was not truncated" in caplog.text
        assert "starts over" not in caplog.text
        hold.release()
        await t.settle()
        await t.crash()
        await t.settle()
        assert dict(sums.items()) == dict.fromkeys(KEYS, 100)


async def test_outputs_sent_ahead_hold_up_only_the_tasks_that_send_them(broker: str) -> None:
    app = App("ahead", partitions=4, guarantee="at_least_once")
    source = app.topic("source", key=str, value=int)
    target = app.topic("target", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value
            if event.key == "a":
                await target.send(event.value, key="a")

    async with app.test(broker=f"{broker}&commit_messages=1" if "?" in broker else f"{broker}?commit_messages=1") as t:
        hold = t._broker.broker.faults.hold("append", topic="target")
        for key in KEYS:
            await source.send(1, key=key)
        await t.advance(2)
        assert hold.reached.is_set()
        committed = [task.commits for (group, _), task in t._worker.tasks.items() if group == "4"]
        for key in KEYS:
            await source.send(1, key=key)
        await t.advance(2)
        now = [task.commits for (group, _), task in t._worker.tasks.items() if group == "4"]
        assert sum(after > before for before, after in zip(committed, now, strict=True)) >= 2
        assert t.sent(target) == []
        hold.release()
        await t.settle()
        assert dict(sums.items()) == dict.fromkeys(KEYS, 2)
        assert [event.value for event in t.sent(target)] == [1, 1]
