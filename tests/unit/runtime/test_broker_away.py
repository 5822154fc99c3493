"""A broker that goes away and comes back: the worker recovers by itself, with few calls and few words meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from thalweg import App, Stream
from thalweg.errors import Fenced
from thalweg.runtime.worker import AFTER_FENCED
from thalweg.transports.memory import MemoryTransport
from thalweg.transports.memory.faults import Call
from thalweg.transports.memory.session import Session

BROKERS = ("memory://", "memory://?fencing=false")
KEYS = [f"k{number}" for number in range(40)]
AWAY = 600.0
"""Seconds."""


class Calls(Counter[str]):
    """Counts the calls to the broker."""

    async def __call__(self, call: Call) -> None:
        if not call.done:
            self[call.operation] += 1


def make_app() -> tuple[App, object, object, object]:
    app = App("away", partitions=16)
    source = app.topic("source", key=str, value=int)
    target = app.topic("target", key=str, value=int)
    jobs = app.queue("jobs", value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            sums[event.key] += event.value
            await target.send(sums[event.key], key=event.key)
            yield sums[event.key]

    @app.agent(jobs)
    async def work(stream: Stream[int]) -> None:
        async for _ in stream:
            pass

    return app, source, target, sums


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("in_flight", [False, True])
async def test_the_worker_recovers_by_itself_and_meanwhile_neither_spins_nor_fills_the_log(
    broker: str, in_flight: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    app, source, target, sums = make_app()
    async with app.test(broker=broker) as t:
        for key in KEYS:
            await source.send(1, key=key)
        if not in_flight:
            await t.settle()
        transport = app.running.transport
        assert isinstance(transport, MemoryTransport)
        transport.cut()
        tries = 0

        def counting(session: Session) -> None:
            nonlocal tries
            tries += 1
            check(session)

        check = Session.check
        monkeypatch.setattr(Session, "check", counting)
        caplog.clear()
        await t.advance(AWAY)
        assert len(caplog.records) < AWAY / 4, Counter(record.msg for record in caplog.records)
        assert tries < AWAY * 6  # by sixteen tasks, two sources, a queue, the members and the leader
        transport.heal()
        await t.advance(60)
        for key in KEYS:
            await source.send(1, key=key)
        await t.settle()
        assert dict(sums.items()) == dict.fromkeys(KEYS, 2)
        for key in KEYS:
            assert [event.value for event in t.sent(target) if event.key == key] == [1, 2]


async def test_after_it_was_fenced_an_owner_waits_before_it_claims_again() -> None:
    app, source, _, sums = make_app()
    async with app.test() as t:
        await source.send(1, key="k")
        await t.settle()
        t._broker.broker.faults.fail("commit", error=Fenced("another has claimed it"))
        claims = Calls()
        t._broker.broker.faults.intercept(claims)
        await source.send(1, key="k")
        await t.advance(AFTER_FENCED / 2 - 0.01)
        assert claims["claim"] == 0
        await t.advance(AFTER_FENCED)
        assert claims["claim"] == 1
        assert sums["k"] == 2


async def test_a_task_that_is_closed_while_it_starts_over_stays_closed() -> None:
    app, source, _, _ = make_app()
    async with app.test() as t:
        faults = t._broker.broker.faults
        faults.fail("commit")
        hold = faults.hold("claim")
        await source.send(1, key="k")
        await t.advance(1)
        await hold.reached.wait()
        worker = t._worker
        assert worker is not None
        (key,) = worker._restarting
        closing = asyncio.ensure_future(worker._close_task(key, False))  # its lock is lost
        await t.settle()
        hold.release()
        await closing
        await t.settle()
        assert key not in worker.tasks
        assert f"away-journal-{key[0]}" not in {topic for topic, index in worker.committer.tasks if index == key[1]}
        await worker._open_task(key)
        await t.settle()
        assert worker.serving(*key) is not None
