"""What a worker tells while it recovers."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console
from thalweg import App, StaleRead, Stream
from thalweg.cli.bar import Bar
from thalweg.runtime import recovery, replay
from thalweg.runtime.recovery import Recovering
from thalweg.starting import worker_running


def make() -> tuple[App, Any]:
    app = App("ledger", broker="memory://recovery", partitions=1)
    numbers = app.topic("numbers", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> Any:
        async for event in stream.events():
            sums[event.key] += event.value
            yield sums[event.key]

    return app, add


async def test_how_far_it_is_is_told_and_logged_and_its_end_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replay, "READ_RECORDS", 2)
    monkeypatch.setattr(recovery, "SHOWN_EVERY", 0.0)
    monkeypatch.setattr(recovery, "LOGGED_EVERY", 0.0)
    app, add = make()
    async with app:
        for number in range(40):
            await add.ask(number, key=f"k{number}")
    told: list[Recovering | None] = []
    caplog.set_level(logging.INFO, "thalweg")
    async with worker_running(app, recovering=told.append):
        pass
    *before, end = told
    assert end is None
    shares = [one.share for one in before if one is not None]
    assert len(shares) == len(before)
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.5 < shares[-1] <= 1
    assert before[0] is not None
    assert before[0].tasks == 1
    assert before[-1] is not None
    assert before[-1].keys >= 40
    assert any("recovering" in message and "keys/s" in message for message in caplog.messages)


async def test_rows_are_not_listed_while_some_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "READ_RECORDS", 2)
    monkeypatch.setattr(recovery, "SHOWN_EVERY", 0.0)
    app, add = make()
    async with app:
        for number in range(40):
            await add.ask(number, key=f"k{number}")
    looks: list[Recovering] = []

    def look(recovering: Recovering | None) -> None:
        if recovering is not None:
            with pytest.raises(StaleRead, match="partition 0 is here, but may be old"):
                list(app.running.table_items(app.tables["sums"]))
            looks.append(recovering)

    async with worker_running(app, recovering=look):
        assert looks
        assert len(list(app.running.table_items(app.tables["sums"]))) == 40


def test_the_bar_is_there_while_it_lasts() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with Bar(console) as bar:
        bar.show(Recovering(3, 0.42, 420_000, 120_000.0, 12.0))
        assert "recovering" in out.getvalue()
        assert "3 tasks: 42%, 120,000 keys/s, 12 s left" in out.getvalue()
        bar.show(None)
        end = len(out.getvalue())
        bar.show(None)
    assert len(out.getvalue()) == end
