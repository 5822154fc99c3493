"""`table.ask`: rows from whichever worker has them, in any worker, client, event or thread of the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import TypeVar

import pytest
from thalweg import App, EncodeError, Reading, Stream, headers
from thalweg.capabilities import Logs
from thalweg.clock import VirtualClock
from thalweg.errors import DecodeError
from thalweg.message import Message
from thalweg.registry import load_stores
from thalweg.runtime.recovery import Progress
from thalweg.runtime.replay import Replay
from thalweg.runtime.worker import Worker
from thalweg.starting import worker_running
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport

T = TypeVar("T")

PARTITIONS = 6
LEASE = 10.0
OPTIONS = {
    "locks": MemoryOptions(),
    "locks without fencing": MemoryOptions(fencing=False),
    "groups": MemoryOptions(grouped=True, locks=False, peers=False),
}
KEYS = [f"key-{n}" for n in range(40)]


class Member:
    """A worker or client of the app "bank", as in a process of its own."""

    def __init__(self, rig: Rig, value: type = int, standbys: int = 0) -> None:
        self.rig = rig
        self.transport = MemoryTransport(rig.broker, rig.options)
        self.app = App("bank", broker=self.transport, partitions=PARTITIONS, lease=LEASE)
        self.app.clock = rig.clock
        self.source = self.app.topic("source", key=str, value=int)
        self.questions = self.app.topic("questions", key=str, value=str)
        self.sums = self.app.table("sums", key=str, value=value, default=int, standbys=standbys)
        self.plain = self.app.table("plain", key=str, value=int)
        self.gate = asyncio.Event()
        self.gate.set()
        self.written = asyncio.Event()
        self.worker: Worker
        sums, plain, gate, written = self.sums, self.plain, self.gate, self.written

        @self.app.agent(self.source)
        async def add(stream: Stream[int]) -> AsyncIterator[int]:
            async for event in stream.events():
                sums[event.key] += event.value
                plain[event.key] = event.value
                written.set()
                await gate.wait()
                yield sums[event.key]

        @self.app.agent(self.questions)
        async def look_up(stream: Stream[str]) -> AsyncIterator[int]:
            async for key in stream:
                yield await sums.ask(key) or 0

        self.add, self.look_up = add, look_up

    @property
    def owned(self) -> set[int]:
        group = str(PARTITIONS)
        return {index for name, index in self.worker.tasks if name == group and self.worker.serving(group, index)}


class Rig:
    def __init__(self, options: MemoryOptions) -> None:
        self.clock = VirtualClock(1_000_000.0)
        self.broker = MemoryBroker(clock=self.clock)
        self.options = options
        self._stack = AsyncExitStack()

    async def worker(self, value: type = int, standbys: int = 0) -> Member:
        member = Member(self, value, standbys)
        running = worker_running(member.app, transport=member.transport, stores=load_stores("memory://"))
        member.worker = await self.until(self._stack.enter_async_context(running))
        return member

    async def client(self, value: type = int) -> Member:
        member = Member(self, value)
        await self._stack.enter_async_context(member.app.client())
        return member

    async def even(self, *members: Member) -> None:
        while not all(len(member.owned) == PARTITIONS // len(members) for member in members):
            await self.advance(0.5)

    async def kill(self, member: Member) -> None:
        member.transport.kill()
        await member.worker.stop_by_kill()

    async def until(self, coroutine: Awaitable[T]) -> T:
        """Its result; time passes while it waits."""
        task = asyncio.ensure_future(coroutine)
        while not task.done():
            await quiet()
            if not task.done():
                self.clock.move(self.clock.next() or self.clock.now())
        return task.result()

    async def advance(self, seconds: float) -> None:
        await self.until(self.clock.sleep(seconds))
        await quiet()

    async def close(self) -> None:
        await self.until(self._stack.aclose())


async def quiet() -> None:
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    calm = 0
    while calm < 2:
        await asyncio.sleep(0)
        calm = calm + 1 if not ready else 0


@pytest.fixture(params=list(OPTIONS))
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(OPTIONS[request.param])
    yield rig
    await rig.close()


async def add_all(rig: Rig, member: Member, amount: int) -> None:
    asked = (member.add.ask(amount, key=key) for key in KEYS)
    await rig.until(asyncio.gather(*asked))


async def ask_all(rig: Rig, member: Member) -> list[int | None]:
    return await rig.until(asyncio.gather(*(member.sums.ask(key) for key in KEYS)))


async def test_any_worker_and_any_client_gets_any_row(rig: Rig) -> None:
    one, two = await rig.worker(), await rig.worker()
    client = await rig.client()
    await rig.even(one, two)
    await add_all(rig, client, 5)
    for member in (one, two, client):
        assert await ask_all(rig, member) == [5] * len(KEYS)
        assert await rig.until(member.sums.ask("nobody")) == 0
        assert await rig.until(member.plain.ask("nobody")) is None
        assert await rig.until(member.plain.ask(KEYS[0])) == 5


async def test_an_event_gets_rows_of_other_partitions_too(rig: Rig) -> None:
    one, two = await rig.worker(), await rig.worker()
    await rig.even(one, two)
    await add_all(rig, one, 5)
    asked = (one.look_up.ask(key, key=other) for key, other in zip(KEYS, reversed(KEYS), strict=True))
    assert await rig.until(asyncio.gather(*asked)) == [5] * len(KEYS)


async def test_what_is_answered_is_committed(rig: Rig) -> None:
    one = await rig.worker()
    client = await rig.client()
    await add_all(rig, client, 5)
    one.gate.clear()
    one.written.clear()
    asking = asyncio.ensure_future(client.add.ask(2, key=KEYS[0]))
    await one.written.wait()
    assert one.sums._plan.name == "sums"
    for member in (one, client):
        assert await rig.until(member.sums.ask(KEYS[0])) == 5
    one.gate.set()
    assert await rig.until(asking) == 7
    for member in (one, client):
        assert await rig.until(member.sums.ask(KEYS[0])) == 7


async def test_questions_outlive_the_owner_that_they_were_sent_to(rig: Rig) -> None:
    one, two = await rig.worker(), await rig.worker()
    client = await rig.client()
    await rig.even(one, two)
    await add_all(rig, client, 5)
    assert await ask_all(rig, client) == [5] * len(KEYS)
    await rig.kill(one)
    late = [asyncio.ensure_future(client.sums.ask(key, timeout=60)) for key in KEYS]
    in_time = [asyncio.ensure_future(client.sums.ask(key, timeout=5)) for key in KEYS]
    assert await rig.until(asyncio.gather(*late)) == [5] * len(KEYS)
    answers = await rig.until(asyncio.gather(*in_time, return_exceptions=True))
    lost = [answer for answer in answers if isinstance(answer, TimeoutError)]
    assert 0 < len(lost) < len(KEYS)
    assert {answer for answer in answers if not isinstance(answer, TimeoutError)} == {5}
    assert f"worker {one.worker.me}" in str(lost[0])
    assert "no answer within timeout=5 s" in str(lost[0])


async def test_a_standby_answers_for_an_owner_that_died_and_says_that_it_may_be_stale(rig: Rig) -> None:
    one, two = await rig.worker(standbys=1), await rig.worker(standbys=1)
    client = await rig.client()
    await rig.even(one, two)
    await add_all(rig, client, 5)
    assert await rig.until(client.sums.ask(KEYS[0], stale_ok=True)) == Reading(5, stale=False)
    while one.owned != {index for _, index in two.worker.standbys.keys}:
        await rig.advance(0.5)
    mine = next(key for key in KEYS if one.sums._plan.partition_of(key.encode(), PARTITIONS) in one.owned)
    await rig.kill(one)
    reading = asyncio.ensure_future(client.sums.ask(mine, timeout=LEASE / 2, stale_ok=True))
    with pytest.raises(TimeoutError):
        await rig.until(client.sums.ask(mine, timeout=LEASE / 2))
    assert await rig.until(reading) == Reading(5, stale=True)
    assert await rig.until(client.sums.ask(mine, timeout=60)) == 5


async def test_an_owner_that_reads_its_journal_answers_where_stale_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(OPTIONS["locks"])
    one = await rig.worker()
    await add_all(rig, one, 5)
    await rig.kill(one)
    whole, reading = asyncio.Event(), asyncio.Event()
    to_end = Replay.to_end

    async def slow(replay: Replay, progress: Progress | None = None) -> None:
        await to_end(replay, progress)
        reading.set()
        await whole.wait()

    monkeypatch.setattr(Replay, "to_end", slow)
    member = Member(rig)
    running = worker_running(member.app, transport=member.transport, stores=load_stores("memory://"))
    starting = asyncio.ensure_future(rig._stack.enter_async_context(running))
    client = await rig.client()
    while not reading.is_set():
        await rig.advance(1)
    assert await rig.until(client.sums.ask(KEYS[0], timeout=60, stale_ok=True)) == Reading(5, stale=True)
    with pytest.raises(TimeoutError):
        await rig.until(client.sums.ask(KEYS[0], timeout=5))
    whole.set()
    await rig.until(starting)
    assert await rig.until(client.sums.ask(KEYS[0], stale_ok=True)) == Reading(5, stale=False)
    await rig.close()


async def test_where_nobody_runs_it_the_error_says_so(rig: Rig) -> None:
    client = await rig.client()
    with pytest.raises(TimeoutError, match=r"table 'sums', key 'ada': no answer within timeout=3 s\. No worker says"):
        await rig.until(client.sums.ask("ada", timeout=3))


async def test_an_owner_that_was_cut_off_does_not_answer_from_what_is_old(rig: Rig) -> None:
    one, two = await rig.worker(), await rig.worker()
    await rig.even(one, two)
    await add_all(rig, two, 5)
    mine = next(key for key in KEYS if one.sums._plan.partition_of(key.encode(), PARTITIONS) in one.owned)
    one.transport.cut()
    await rig.advance(3 * LEASE)
    assert await rig.until(two.add.ask(1, key=mine)) == 6
    with pytest.raises(TimeoutError):
        await rig.until(one.sums.ask(mine, timeout=5))
    one.transport.heal()
    assert await rig.until(one.sums.ask(mine, timeout=60)) == 6


async def test_a_key_or_a_row_of_another_type_is_an_error_at_once(rig: Rig) -> None:
    one = await rig.worker()
    await add_all(rig, one, 5)
    client = await rig.client(value=dict[str, str])
    with pytest.raises(EncodeError, match="cannot be a key"):
        await client.sums.ask(b"\xff\xfe", timeout=1)  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="table 'sums', key 'key-0'"):
        await rig.until(client.sums.ask(KEYS[0]))


async def test_a_forged_question_is_answered_nowhere_else_and_rubbish_by_nothing(rig: Rig) -> None:
    one = await rig.worker()
    client = await rig.client()
    await add_all(rig, client, 5)
    address = one.app.running.replies.address
    assert isinstance(client.transport, Logs)
    log = await client.transport.log("bank-replies")
    asked = (headers.ASKED, address.rpartition("/")[2].encode())
    for reply in (b"/source/to", b"source/0/x", b"", b"bank-replies/x/y", b"bank-replies"):
        for body in (b"rubbish", None):
            pairs = (asked, (headers.REPLY, reply), (headers.CORRELATION, b"1"))
            await log.append({int(address.split("/")[1]): [Message(body, None, pairs)]})
    await rig.advance(1)
    assert await ask_all(rig, client) == [5] * len(KEYS)
    records = list(client.transport.records("source"))
    assert len(records) == len(KEYS)
