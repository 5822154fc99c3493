"""An agent that never waits lets everything else run in between (design rule 16): commits, leases, signals."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from thalweg import App, Stream
from thalweg.runtime import lane

EVENT = 0.004
"""Seconds that an event computes."""
EVENTS = 200


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("taking", [False, True])
async def test_others_run_every_few_events(monkeypatch: pytest.MonkeyPatch, concurrency: int, taking: bool) -> None:
    app = App("computing", partitions=1)
    source = app.topic("source", key=str, value=int)
    now, seen, looks = 0.0, 0, list[float]()
    monkeypatch.setattr(lane, "perf_counter", lambda: now)

    def compute(count: int) -> None:
        nonlocal now, seen
        now, seen = now + count * EVENT, seen + count

    @app.agent(source.stream().take(2, within=1.0) if taking else source, concurrency=concurrency)
    async def handle(stream: Stream[Any]) -> None:
        async for value in stream:
            compute(len(value) if isinstance(value, list) else 1)

    async def look_on() -> None:
        while seen < EVENTS:
            looks.append(now)
            await asyncio.sleep(0)
        looks.append(now)

    async with app.test():
        looking = asyncio.create_task(look_on())
        await source.send_many([(str(number % 7), number) for number in range(EVENTS)])
        async with asyncio.timeout(30):
            await looking
        assert max(after - before for before, after in pairwise(looks)) <= lane.FEW * EVENT + lane.SUSPEND_EVERY
