"""`app.lock` and `@app.exclusive` where the broker has locks, and where it has groups instead; by a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from thalweg import App, ConfigurationError, HeldLock, LockLost, MissingCapability, NotRunning, Stream
from thalweg.capabilities import Held
from thalweg.clock import VirtualClock
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport

LEASE = 10.0
LOCKS = MemoryOptions()
GROUPS = MemoryOptions(grouped=True, locks=False, peers=False)
NEITHER = MemoryOptions(locks=False, peers=False)


class Rig:
    """Clients of one app, each as in a process of its own."""

    def __init__(self, options: MemoryOptions) -> None:
        self.clock = VirtualClock(1_000_000.0)
        self.broker = MemoryBroker(clock=self.clock)
        self.options = options
        self._stack = AsyncExitStack()

    async def client(self) -> Client:
        client = Client(MemoryTransport(self.broker, self.options), self.clock)
        await self._stack.enter_async_context(client.app.client())
        return client

    async def close(self) -> None:
        await self._stack.aclose()

    async def advance(self, seconds: float) -> None:
        until = self.clock.now() + seconds
        await quiet()
        while (due := self.clock.next()) is not None and due <= until:
            self.clock.move(due)
            await quiet()
        self.clock.move(until)
        await quiet()


class Client:
    def __init__(self, transport: MemoryTransport, clock: VirtualClock) -> None:
        self.transport = transport
        self.app = App("bank", broker=transport, lease=LEASE)
        self.app.clock = clock


async def quiet() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


class Block:
    """A task that holds a lock until it is told to go on."""

    def __init__(self, app: App, name: str = "x", timeout: float | None = None) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self.held: HeldLock
        self.task = asyncio.get_running_loop().create_task(self._run(app, name, timeout))

    async def _run(self, app: App, name: str, timeout: float | None) -> None:
        async with app.lock(name, timeout=timeout) as self.held:
            self.entered.set()
            await self.leave.wait()

    @property
    def inside(self) -> bool:
        return self.entered.is_set() and not self.task.done()

    async def end(self) -> None:
        self.leave.set()
        await self.task


@pytest.fixture(params=[LOCKS, GROUPS], ids=["locks", "groups"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(request.param)
    yield rig
    await rig.close()


async def test_one_holds_a_lock_at_a_time_and_each_new_holder_has_a_larger_number(rig: Rig) -> None:
    clients = [await rig.client() for _ in range(3)]
    blocks = [Block(client.app) for client in clients for _ in range(2)]
    numbers: list[int] = []
    while len(numbers) < len(blocks):
        await rig.advance(1)
        (inside,) = (block for block in blocks if block.inside)
        numbers.append(inside.held.number)
        await inside.end()
    assert numbers == sorted(set(numbers))


async def test_locks_of_different_names_are_different_whatever_the_names(rig: Rig) -> None:
    one, other = await rig.client(), await rig.client()
    names = ["a", "a/b", "a.b", " ", "ü\n*>#", "a\0b", "%61", "x" * 500]
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(one.app.lock(name, timeout=0))
        for name in names:
            with pytest.raises(TimeoutError):
                await stack.enter_async_context(other.app.lock(name, timeout=0))


@pytest.mark.parametrize("name", ["", "\ud800"])
async def test_a_name_that_is_none_is_refused(rig: Rig, name: str) -> None:
    client = await rig.client()
    with pytest.raises(ConfigurationError, match="expected a name"):
        async with client.app.lock(name):
            raise AssertionError
    with pytest.raises(ConfigurationError, match="expected a name"):
        client.app.exclusive(name)(quiet)


async def test_whoever_waits_gets_it_soon_after_a_release(rig: Rig) -> None:
    one, other = await rig.client(), await rig.client()
    first = Block(one.app)
    await first.entered.wait()
    here, there = Block(one.app), Block(other.app)
    await rig.advance(3600)
    assert not here.inside
    assert not there.inside
    await first.end()
    await rig.advance(0.5)
    assert here.inside is not there.inside
    await (here if here.inside else there).end()
    await rig.advance(0.5)
    await (there if here.task.done() else here).end()


async def test_a_timeout_is_told_with_the_name_and_leaves_nothing_behind(rig: Rig) -> None:
    one, other = await rig.client(), await rig.client()
    first = Block(one.app)
    await first.entered.wait()
    for client in (one, other):
        late = Block(client.app, timeout=5)
        await rig.advance(4.9)
        assert not late.task.done()
        await rig.advance(0.2)
        with pytest.raises(TimeoutError, match=r"lock 'x' was not to be had within timeout=5 s"):
            await late.task
        with pytest.raises(TimeoutError, match="another holds it"):
            async with client.app.lock("x", timeout=0):
                raise AssertionError
    await first.end()
    for client in (one, other):
        async with client.app.lock("x", timeout=0):
            pass


async def test_a_cancelled_waiter_leaves_the_lock_to_the_next(rig: Rig) -> None:
    one, other = await rig.client(), await rig.client()
    first = Block(one.app)
    await first.entered.wait()
    waiting = [Block(one.app), Block(other.app), Block(one.app)]
    await rig.advance(1)
    for block in waiting[:2]:
        block.task.cancel()
    await first.end()
    await rig.advance(1)
    assert [block.task.cancelled() for block in waiting] == [True, True, False]
    assert waiting[2].inside
    await waiting[2].end()


async def test_an_exception_of_the_block_passes_and_frees_the_lock(rig: Rig) -> None:
    client = await rig.client()
    with pytest.raises(ZeroDivisionError):
        async with client.app.lock("x"):
            raise ZeroDivisionError
    async with client.app.lock("x", timeout=0):
        pass


async def test_a_holder_that_is_cut_off_is_cancelled_and_told_and_another_has_it_then(rig: Rig) -> None:
    one, other = await rig.client(), await rig.client()
    first, second = Block(one.app), Block(other.app)
    await first.entered.wait()
    one.transport.cut()
    await rig.advance(LEASE - 1)
    assert first.inside or rig.options is GROUPS  # which may be told at once
    assert not second.inside
    await rig.advance(2)
    with pytest.raises(LockLost, match=r"lock 'x' \(number \d+\) was lost"):
        await first.task
    assert second.inside
    assert second.held.number > first.held.number
    assert first.held.lost.is_set()
    one.transport.heal()
    await second.end()
    async with one.app.lock("x", timeout=0) as third:
        assert third.number > second.held.number


async def test_a_block_that_ends_without_noticing_is_told_nevertheless(rig: Rig) -> None:
    client = await rig.client()
    for until_cancelled in (True, False):

        async def lose(wait: bool = until_cancelled) -> None:
            async with client.app.lock("x") as held:
                client.transport.cut()
                rig.clock.move(rig.clock.now() + 2 * LEASE)
                while wait and not held.lost.is_set():
                    await quiet()

        with pytest.raises(LockLost):
            await lose()
        client.transport.heal()
        await quiet()  # a cancellation of ours that was left over would strike here
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancellation_from_elsewhere_is_not_taken_for_a_loss(rig: Rig) -> None:
    client = await rig.client()
    block = Block(client.app)
    await block.entered.wait()
    block.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await block.task
    block = Block(client.app)
    await block.entered.wait()
    client.transport.cut()
    rig.clock.move(rig.clock.now() + 2 * LEASE)
    block.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await block.task


async def test_a_broker_that_does_not_answer_is_waited_for_and_told_of_who_will_not_wait() -> None:
    rig = Rig(LOCKS)
    client = await rig.client()
    rig.broker.faults.fail("try_lock", times=5)
    with pytest.raises(Exception, match="injected fault"):
        async with client.app.lock("x", timeout=0):
            raise AssertionError
    block = Block(client.app)
    await rig.advance(10)
    assert block.inside
    await block.end()
    await rig.close()


async def test_a_task_that_asks_for_what_it_holds_is_told_instead_of_waiting_for_ever(rig: Rig) -> None:
    client = await rig.client()
    async with client.app.lock("x"):
        with pytest.raises(ConfigurationError, match="holds it"):
            async with client.app.lock("x"):
                raise AssertionError
        async with client.app.lock("y"):
            pass


async def test_when_the_app_stops_who_holds_and_who_waits_is_told(rig: Rig) -> None:
    client = Client(MemoryTransport(rig.broker, rig.options), rig.clock)
    other = await rig.client()
    theirs = Block(other.app, "theirs")
    async with client.app.client():
        holds = Block(client.app)
        await holds.entered.wait()
        waits = [Block(client.app), Block(client.app, "theirs"), Block(client.app, "theirs")]
        await rig.advance(1)
    await rig.advance(1)
    with pytest.raises(LockLost):
        await holds.task
    for block in waits:
        with pytest.raises(NotRunning):
            await block.task
    async with other.app.lock("x", timeout=0):
        pass
    await theirs.end()


async def test_exclusive_functions_run_one_at_a_time_or_not_at_all(rig: Rig) -> None:
    running, most, calls = 0, 0, 0

    def declare(app: App, wait: bool) -> Callable[[int], object]:
        @app.exclusive("report", wait=wait)
        async def report(value: int) -> int:
            nonlocal running, most, calls
            running, calls = running + 1, calls + 1
            most = max(most, running)
            await app.sleep(1)
            running -= 1
            return 2 * value

        return report

    clients = [await rig.client() for _ in range(3)]
    waiting = [asyncio.ensure_future(declare(client.app, True)(n)) for n, client in enumerate(clients)]
    await rig.advance(10)
    assert [task.result() for task in waiting] == [0, 2, 4]
    left_out = [asyncio.ensure_future(declare(client.app, False)(n + 1)) for n, client in enumerate(clients)]
    await rig.advance(10)
    assert sorted(str(task.result()) for task in left_out)[-2:] == ["None", "None"]
    assert (most, calls) == (1, 4)


async def test_an_exclusive_function_may_time_out_by_itself() -> None:
    rig = Rig(LOCKS)
    client = await rig.client()

    @client.app.exclusive("x", wait=False)
    async def fails() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await fails()
    await rig.close()


def test_what_cannot_be_exclusive_is_refused_where_it_is_declared() -> None:
    app = App("bank")
    topic = app.topic("numbers", value=int)

    async def report() -> None: ...
    async def generator() -> AsyncIterator[int]:
        yield 1

    @app.agent(topic)
    async def agent(stream: Stream[int]) -> None: ...

    app.timer(30)(report)
    for wrong, why in ((report, "above"), (agent, "above"), (generator, "no `yield`"), (print, "not an async")):
        with pytest.raises(ConfigurationError, match=why):
            app.exclusive("x")(wrong)  # type: ignore[arg-type]


async def test_without_locks_it_is_refused_where_it_is_used_and_at_the_start_where_it_is_declared() -> None:
    app = App("bank", broker=MemoryTransport(options=NEITHER))
    async with app.client():
        with pytest.raises(
            MissingCapability, match=r"lock 'x' needs a transport with the capability 'locks'.*redis://"
        ):
            async with app.lock("x"):
                raise AssertionError

    @app.exclusive("report")
    async def report() -> None: ...

    with pytest.raises(MissingCapability, match=r"@app.exclusive\('report'\) needs"):
        async with app:
            raise AssertionError


@pytest.mark.parametrize("options", ["", "?grouped=true&locks=false&peers=false"])
async def test_handlers_timers_and_background_functions_exclude_one_another_under_the_virtual_clock(
    options: str,
) -> None:
    app = App("bank", partitions=4)
    numbers = app.topic("numbers", value=int)
    inside: list[str] = []
    log: list[str] = []

    async def alone(who: str) -> None:
        async with app.lock("x"):
            assert not inside
            inside.append(who)
            await app.sleep(1)
            inside.remove(who)
            log.append(who)

    @app.handler(numbers, concurrency=4)
    async def handle(value: int) -> None:
        await alone("handler")

    @app.timer(10)
    async def tick() -> None:
        await alone("timer")

    @app.background
    async def run() -> None:
        await alone("background")

    async with app.test(broker=f"memory://{options}") as t:
        for value in range(8):
            await numbers.send(value, key=str(value))
        await t.advance(10)
        await t.advance(10)
        assert sorted(set(log)) == ["background", "handler", "timer"]
        assert log.count("handler") == 8


async def test_a_lock_that_is_lost_before_its_answer_comes_is_not_had(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(LOCKS)
    client, other = await rig.client(), await rig.client()
    asked = MemoryTransport.try_lock
    lost: list[Held] = []

    async def slow(transport: MemoryTransport, name: str, lease: float) -> Held | None:
        held = await asked(transport, name, lease)
        if held is not None and not lost:
            lost.append(held)
            rig.broker.lose_lock(name)
        return held

    monkeypatch.setattr(MemoryTransport, "try_lock", slow)
    block = Block(client.app)
    await rig.advance(1)
    assert block.inside
    assert len(lost) == 1
    assert block.held.number > lost[0].number
    assert not block.held.lost.is_set()
    with pytest.raises(TimeoutError):
        async with other.app.lock("x", timeout=0):
            pass
    await block.end()
    await rig.close()
