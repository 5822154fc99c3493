"""Dead letters are read to their end, also from a broker that takes its time, and replayed once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from thalweg import App, DeadLetter, Stream
from thalweg.dead_letters import read_dead_letters, replay
from thalweg.errors import BrokerError
from thalweg.message import Batch, Position
from thalweg.transports.memory.log import MemoryLog


async def test_a_read_that_comes_back_empty_at_once_loses_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a broker across a network, which has no record ready at the moment that it is asked."""
    app = App("post", partitions=1)
    letters = app.topic("letters", value=str)
    healed = False
    delivered: list[str] = []

    @app.handler(letters, on_error=DeadLetter())
    async def deliver(text: str) -> None:
        if not healed:
            raise ValueError("no such street")
        delivered.append(text)

    real = MemoryLog.read

    async def read(
        self: MemoryLog, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        return {} if timeout == 0 else await real(self, after, limit, max_bytes, timeout)

    async with app.test(errors="policy") as t:
        for number in range(5):
            await letters.send(f"letter {number}")
        await t.settle()
        monkeypatch.setattr(MemoryLog, "read", read)
        assert len([letter async for letter in read_dead_letters(app, "letters")]) == 5
        healed = True
        assert await replay(app, "letters") == 5
        assert [letter async for letter in read_dead_letters(app, "letters")] == []
        await t.settle()
        assert sorted(delivered) == [f"letter {number}" for number in range(5)]


async def test_a_replay_that_is_interrupted_and_repeated_has_each_letter_handled_once() -> None:
    app = App("post", partitions=2)
    letters = app.topic("letters", key=str, value=str)
    broken = True
    delivered: list[tuple[str, str]] = []

    @app.agent(letters, on_error=DeadLetter())
    async def deliver(stream: Stream[str]) -> None:
        async for event in stream.events():
            if broken or event.value.startswith("never"):
                raise ValueError("no such street")
            delivered.append((event.value, event.id))

    async with app.test(errors="policy") as t:
        for number in range(5):
            await letters.send(f"letter {number}", key=f"k{number}")
        await letters.send("never", key="k")
        await t.settle()
        ids = {letter.event_id async for letter in read_dead_letters(app, "letters")}
        broken = False
        t._broker.broker.faults.fail("truncate", nth=3)
        with pytest.raises(BrokerError, match="truncate"):
            await replay(app, "letters")
        await t.settle()
        await replay(app, "letters")
        await t.settle()
        assert sorted(value for value, _ in delivered) == [f"letter {number}" for number in range(5)]
        assert {id for _, id in delivered} < ids
        assert await replay(app, "letters") == 1  # another try is no copy
        await t.settle()
        assert len([letter async for letter in read_dead_letters(app, "letters")]) == 1
