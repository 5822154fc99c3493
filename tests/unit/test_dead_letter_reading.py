"""Dead letters are read to their end, also from a broker that takes its time."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from thalweg import App, DeadLetter
from thalweg.dead_letters import read_dead_letters, replay
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
