"""A journal whose state is replaced from outside: old stores do not outlive it, and half of it is not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from thalweg import App, Stream
from thalweg.capabilities import Logs
from thalweg.declaring import check_leftovers
from thalweg.errors import ConfigurationError, Fenced
from thalweg.journal.readback import writer_for
from thalweg.journal.replay import committed_rows
from thalweg.journal.rewriting import Rewriting
from thalweg.journal.rows import prefix
from thalweg.registry import load_transport
from thalweg.starting import looking

JOURNAL = ("ledger-journal-1", 0)


def make(broker: str, folder: Path) -> tuple[App, Any, Any]:
    app = App("ledger", broker=broker, store=f"sqlite:///{folder}/state", partitions=1)
    numbers = app.topic("numbers", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> Any:
        async for event in stream.events():
            sums[event.key] += event.value
            yield sums[event.key]

    return app, add, sums


@pytest.mark.parametrize("options", ["", "?fencing=false"])
async def test_a_state_that_is_replaced(options: str, tmp_path: Path) -> None:
    broker = f"memory://rewriting-{len(options)}{options}"
    app, add, sums = make(broker, tmp_path)
    async with app:
        for number in range(20):
            await add.ask(number, key=f"k{number % 5}")
    transport = load_transport(broker)
    await transport.open()
    assert isinstance(transport, Logs)
    log = await transport.log(JOURNAL[0])
    writers = [writer_for(transport, transport.log, app.clock) for _ in range(2)]

    position = await committed_rows(log, 0, b"p", b"q")

    async def begun(number: int) -> Rewriting:
        one = Rewriting(writers[number], log, JOURNAL, app.clock, None)
        await one.look()
        await one.claim(1, "murmur2", name=b"another name 16b")
        await one.begin("a test")
        return one

    first = await begun(0)
    await first.add({prefix("sums") + b"k1": b"1"})
    assert first.worked
    with pytest.raises(ConfigurationError, match="a test has not ended"):
        async with app:
            pass

    async with looking(app) as existing:
        with pytest.raises(ConfigurationError, match="a test has not ended"):  # as doctor asks
            await check_leftovers(app, app.running.transport, existing, everywhere=True)

    second = await begun(1)
    assert not second.worked
    with pytest.raises(Fenced):
        await first.add({prefix("sums") + b"k1": b"1"})
    state = {prefix("sums") + b"k2": b"2", **position}
    await second.add(state)
    assert await committed_rows(log, 0, b"p", b"z") == state  # also for who reads from before it
    await second.end()
    assert await committed_rows(log, 0, b"", b"z") == state

    async with app:
        assert dict(sums.items()) == {"k2": 2}
        assert await add.ask(5, key="k2") == 7
    for writer in writers:
        await writer.close()
    await log.close()
    await transport.close()
