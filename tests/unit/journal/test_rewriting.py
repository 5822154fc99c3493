"""A journal whose state somebody else than a worker replaces: old stores do not outlive it, and half of it is not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from thalweg import App, Stream
from thalweg.errors import ConfigurationError, Fenced
from thalweg.journal.readback import writer_for
from thalweg.journal.replay import committed_rows
from thalweg.journal.rewriting import Rewriting
from thalweg.journal.rows import prefix
from thalweg.registry import load_transport

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
async def test_a_state_that_is_replaced(options: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    broker = f"memory://rewriting{options}"
    app, add, sums = make(broker, tmp_path)
    async with app:
        for number in range(20):
            await add.ask(number, key=f"k{number % 5}")
    transport = load_transport(broker)
    await transport.open()
    writer = writer_for(transport, transport.log, app.clock)  # type: ignore[attr-defined]
    log = await transport.log(JOURNAL[0])  # type: ignore[attr-defined]

    async def begun() -> Rewriting:
        one = Rewriting(writer, log, JOURNAL, app.clock, None)
        await one.look()
        await one.claim(1, "murmur2", name=b"another name 16b")
        await one.begin("a test")
        return one

    first = await begun()
    await first.add({prefix("sums") + b"k1": b"1"})
    assert first.worked
    with pytest.raises(ConfigurationError, match="a test has not ended"):
        async with app:
            pass

    second = await begun()
    assert not second.worked
    with pytest.raises(Fenced):
        await first.add({prefix("sums") + b"k1": b"1"})
    await second.add({prefix("sums") + b"k2": b"2"})
    before_truncation = await committed_rows(log, 0, b"", b"\xff")
    await second.end()
    assert await committed_rows(log, 0, b"", b"\xff") == {prefix("sums") + b"k2": b"2"}
    assert before_truncation == {prefix("sums") + b"k2": b"2"}

    async with app:
        assert dict(sums.items()) == {"k2": 2}
        assert await add.ask(5, key="k2") == 7
    await writer.close()
    await log.close()
    await transport.close()
