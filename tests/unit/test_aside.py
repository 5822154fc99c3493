"""A thread beside the event loop takes what it will do, and refuses what it will not: nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading

import pytest
from thalweg.aside import Aside
from thalweg.errors import BrokerError


class Winding:
    """Work in the thread that, cancelled, keeps the thread at its end until it is let go."""

    def __init__(self) -> None:
        self.begun, self.reached, self.go_on = threading.Event(), threading.Event(), threading.Event()

    async def work(self) -> None:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.reached.set()
            self.go_on.wait(60)


async def answer() -> int:
    return 42


async def in_time(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


async def test_what_is_asked_of_it_while_it_comes_to_its_end_is_refused_at_once() -> None:
    aside, winding = Aside("winding"), Winding()
    working = asyncio.create_task(aside.run(winding.work()))
    await in_time(winding.begun)
    closing = asyncio.create_task(aside.close())
    await in_time(winding.reached)
    done = threading.Event()
    with pytest.raises(BrokerError, match="transport of its own"):
        aside.do(done.set)
    async with asyncio.timeout(60):
        with pytest.raises(BrokerError, match="transport of its own"):
            await aside.run(answer())
    winding.go_on.set()
    await closing
    with pytest.raises(BrokerError):  # and not CancelledError, as nobody has cancelled whoever waits
        await working
    await aside.close()
    assert not done.is_set()


async def test_what_was_taken_before_the_close_is_done_or_refused_and_never_left_waiting() -> None:
    for _ in range(50):
        aside = Aside("closing")
        assert await aside.run(answer()) == 42
        asked = [asyncio.create_task(aside.run(answer())) for _ in range(5)]
        await asyncio.sleep(0)
        await aside.close()
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*asked, return_exceptions=True)
        assert all(end == 42 or isinstance(end, BrokerError) for end in ends)


def leave() -> None:
    raise SystemExit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_when_its_thread_ends_by_itself_whoever_waits_hears_of_it() -> None:
    aside = Aside("leaving")
    waiting = asyncio.create_task(aside.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    aside.do(leave)
    async with asyncio.timeout(60):
        with pytest.raises(BrokerError):
            await waiting
    with pytest.raises(BrokerError):
        aside.do(leave)
    await aside.close()


async def test_whoever_is_cancelled_while_it_closes_stays_cancelled() -> None:
    aside, winding = Aside("cancelled"), Winding()
    working = asyncio.create_task(aside.run(winding.work()))
    await in_time(winding.begun)
    closing = asyncio.create_task(aside.close())
    await in_time(winding.reached)
    working.cancel()
    winding.go_on.set()
    await closing
    with pytest.raises(asyncio.CancelledError):
        await working
