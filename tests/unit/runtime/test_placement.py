"""Topics whose keys were placed by another partitioner than the program declares."""

from __future__ import annotations

import logging

import pytest
from thalweg import App, Stream
from thalweg.channel import TopicSpec
from thalweg.errors import TopicMismatch
from thalweg.message import Message
from thalweg.partitioner import crc32_partitioner, murmur2_partitioner
from thalweg.transports.memory import MemoryTransport

KEYS = [f"key-{number}" for number in range(30)]


def make_app(transport: MemoryTransport, partitioner: str = "murmur2") -> tuple[App, list[str | None]]:
    app = App("placed", broker=transport)
    source = app.topic("source", value=str, partitioner=partitioner)
    handled: list[str | None] = []

    @app.agent(source)
    async def note(stream: Stream[str]) -> None:
        async for event in stream.events():
            handled.append(event.key)

    return app, handled


async def fill(transport: MemoryTransport, place) -> None:
    """As a foreign producer does."""
    await transport.declare([TopicSpec("source", partitions=4)])
    log = await transport.log("source")
    for key in KEYS:
        await log.append({place(key): [Message(b"v", key.encode())]})
    await log.append({0: [Message(b"v", None), Message(b"v", b"")]})  # keys of no bytes say nothing
    await log.close()


@pytest.fixture
async def transport():
    transport = MemoryTransport()
    await transport.open()
    yield transport
    await transport.close()


async def test_a_mismatch_stops_the_worker_before_any_event_and_names_the_partitioner_that_fits(transport) -> None:
    await fill(transport, lambda key: crc32_partitioner(key.encode(), 4))
    app, handled = make_app(transport)
    with pytest.raises(TopicMismatch, match=r"partitioner='murmur2' would place .* partitioner='crc32'"):
        async with app:
            await app.running.worker.failed
    wrong = [key for key in KEYS if crc32_partitioner(key.encode(), 4) != murmur2_partitioner(key.encode(), 4)]
    assert not set(handled) & set(wrong)


@pytest.mark.parametrize("partitioner", ["crc32", "murmur2"])
async def test_the_right_partitioner_runs(transport, partitioner: str) -> None:
    places = {"crc32": crc32_partitioner, "murmur2": murmur2_partitioner}
    await fill(transport, lambda key: places[partitioner](key.encode(), 4))
    app, handled = make_app(transport, partitioner)
    async with app:
        while len(handled) < len(KEYS) + 2:
            await app.sleep(0.01)
        assert not app.running.worker.failed.done()


async def test_keys_that_lie_by_no_known_rule_are_warned_of_and_handled(
    transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await fill(transport, lambda key: KEYS.index(key) % 4)
    app, handled = make_app(transport)
    async with app:
        while len(handled) < len(KEYS) + 2:
            await app.sleep(0.01)
        assert not app.running.worker.failed.done()
    assert caplog.text.count("no partitioner known here fits") <= 4
    assert "no partitioner known here fits" in caplog.text


async def test_who_names_a_partition_may_put_any_key_there() -> None:
    app = App("placed", partitions=4)
    source = app.topic("source", value=str)
    handled: list[str] = []

    @app.agent(source)
    async def note(stream: Stream[str]) -> None:
        async for event in stream.events():
            assert event.headers == ()
            handled.append(event.value)

    async with app.test() as t:
        for partition in range(4):
            await source.send(f"{partition}", key="k", partition=partition)
        await t.settle()
        assert sorted(handled) == ["0", "1", "2", "3"]
        assert sum(bool(message.headers) for _, _, message in t._broker.records("source")) == 3  # one is its own
