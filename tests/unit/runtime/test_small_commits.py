"""Brokers whose atomic commit holds few messages, or whose messages are small: all arrives, and all of it once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from thalweg import App, Stream, Topic
from thalweg.journal.inbox import Inbox
from thalweg.journal.origin import HEADER
from thalweg.message import Message
from thalweg.testing import AppTest
from thalweg.transports.memory import MemoryTransport

KEYS = [f"k{number}" for number in range(16)]


def make_app() -> tuple[App, Topic[str, int], Topic[str, str], object]:
    """An event of number n adds n to its key's row and sends n messages."""
    app = App("small", partitions=8)
    source = app.topic("source", key=str, value=int)
    target = app.topic("target", key=str, value=str)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value
            for number in range(event.value):
                await target.send(f"{event.position}/{number}", key=event.key)

    return app, source, target, sums


async def check(t: AppTest, target: Topic[str, str], sums: object, expected: Counter[str]) -> None:
    assert dict(sums.items()) == expected  # type: ignore[attr-defined]
    assert Counter(event.key for event in t.sent(target)) == expected
    assert len({(event.key, event.value) for event in t.sent(target)}) == expected.total()


def records(t: AppTest) -> Iterator[tuple[int, int, Message]]:
    """All that lies in the target."""
    broker = t._broker
    assert isinstance(broker, MemoryTransport)
    return broker.records("target")


@pytest.mark.parametrize("most", [1, 2, 3, 10])
async def test_no_commit_is_above_the_limit_whatever_the_tasks_have_to_commit(most: int) -> None:
    app, source, target, sums = make_app()
    expected: Counter[str] = Counter()
    async with app.test(broker=f"memory://?commit_messages={most}") as t:
        for size in (1, 25, 2, 3):  # few outputs join the commit, many go through the outbox, then few again
            await source.send_many([(key, size) for key in KEYS])
            await t.settle()
            expected.update(dict.fromkeys(KEYS, size))
            await check(t, target, sums, expected)
        await t.crash()
        await t.settle()
        await check(t, target, sums, expected)


async def test_outputs_join_the_commit_again_once_what_was_ahead_of_them_has_arrived() -> None:
    app, source, target, _ = make_app()
    commits: list[int] = []
    async with app.test(broker="memory://?commit_messages=4") as t:
        real = app.running.transport.commit  # type: ignore[attr-defined]

        async def noting(commits_of: dict[object, object]) -> object:
            commits.append(sum(len(m) for c in commits_of.values() for m in c.outputs.values()))  # type: ignore[attr-defined]
            return await real(commits_of)

        app.running.transport.commit = noting  # type: ignore[attr-defined]
        for size in (2, 9, 2):
            await source.send(size, key="k")
            await t.settle()
        joined = [number for number in commits if number]
        assert joined == [2, 2]
        values = [event.value for event in t.sent(target)]
        assert values == [*(f"0/{n}" for n in range(2)), *(f"1/{n}" for n in range(9)), *(f"2/{n}" for n in range(2))]
        numbered = [any(name == HEADER for name, _ in message.headers) for _, _, message in records(t)]
        assert numbered[:2] == [False, False]
        assert all(numbered[2:])  # from then on each carries its number: a late copy of those before is known by it


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_backlog_goes_in_commits_that_hold_its_outputs(concurrency: int) -> None:
    """So that a foreign reader sees each output once too."""
    app = App("small", partitions=2)
    source = app.topic("source", key=str, value=int)
    target = app.topic("target", key=str, value=int)

    @app.agent(source, concurrency=concurrency)
    async def pass_on(stream: Stream[int]) -> None:
        async for event in stream.events():
            await target.send(event.value, key=event.key)

    async with app.test(broker="memory://?commit_messages=10") as t:
        expected = 0
        for _ in range(3):
            await source.send_many([(KEYS[number % 16], expected + number) for number in range(500)])
            expected += 500
            for _ in range(20):
                await asyncio.sleep(0)
            await t.crash()
        await t.settle()
        assert sorted(int(message.value or b"") for _, _, message in records(t)) == list(range(expected))
        assert not any(message.headers for _, _, message in records(t))


async def test_a_late_copy_from_the_outbox_is_dropped_by_who_began_to_read_after_it() -> None:
    app, source, _, _ = make_app()
    async with app.test(broker="memory://?commit_messages=4") as t:
        await source.send(9, key="k")
        await t.settle()
        copies = list(records(t))
        await source.send(2, key="k")
        await t.settle()
        log = await app.running.open_log("target")
        for partition, _, message in copies:
            await log.append({partition: [message]})
        await log.close()
        partition, start, _ = copies[-1]
        inbox = Inbox("target", partition, start)
        later = [(position, message) for _, position, message in records(t) if position > start]
        accepted = [one.record.value for position, message in later for one in inbox.receive(position, message)]
        assert accepted == [b"1/0", b"1/1"]


@pytest.mark.parametrize("fencing", ["true", "false"])
async def test_journal_records_above_the_brokers_message_size_go_in_pieces(fencing: str) -> None:
    app = App("pieces", partitions=2)
    source = app.topic("source", key=str, value=str)
    texts = app.table("texts", key=str, value=list[str], default=list)

    @app.agent(source)
    async def gather(stream: Stream[str]) -> None:
        async for event in stream.events():
            texts[event.key].append(event.value)

    async with app.test(broker=f"memory://?message_bytes=400&commit_messages=3&fencing={fencing}") as t:
        for number in range(12):
            await source.send_many([(key, f"{number}" * 100) for key in KEYS])
            await t.settle()
        expected = {key: [f"{number}" * 100 for number in range(12)] for key in KEYS}
        assert dict(texts.items()) == expected
        broker = t._broker
        assert isinstance(broker, MemoryTransport)
        sizes = [message.size for _, _, message in broker.records("pieces-journal-2")]
        assert max(sizes) <= 400
        assert sum(sizes) > 20_000  # or there were no pieces
        await t.crash()
        await t.settle()
        assert dict(texts.items()) == expected
