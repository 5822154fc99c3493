"""How the tests of real brokers run `bank.py`, whatever the broker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from listing import listed
from thalweg.capabilities import Log, Logs
from thalweg.channel import Transport
from thalweg.errors import BrokerError
from thalweg.registry import load_transport

from brokers.bank import Withdrawal, make_bank

T = TypeVar("T")

LONG = 1_000_000
ACCOUNTS = [f"account-{n}" for n in range(8)]


async def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    """What other processes and the server do gives no event to wait for."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def becomes(ask: Callable[[], Awaitable[T]], answer: Callable[[T], bool], seconds: float = 30) -> T:
    async with asyncio.timeout(seconds):
        while not answer(found := await ask()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


@asynccontextmanager
async def opened(broker: str) -> AsyncIterator[Transport]:
    transport = load_transport(broker)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


def start_worker(broker: str, program: str = "bank.py", zone: str = "") -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(program)), "worker"],
        env={**clean, "THALWEG_BROKER": broker, "THALWEG_ZONE": zone},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def hang(process: subprocess.Popen[bytes] | asyncio.subprocess.Process) -> None:
    """Stop a child; returns once it stands still: until then it may answer what is asked after the signal."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


async def send_all(bank: Any, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, 100):
        batch = range(start, min(start + 100, numbers.stop))
        await asyncio.gather(*(send(bank, number) for number in batch))


async def send(bank: Any, number: int) -> None:
    account = ACCOUNTS[number % len(ACCOUNTS)]
    await bank.withdrawals.send(Withdrawal(number, account, number), key=account)


def handled(bank: Any) -> list[int]:
    return sorted(number for numbers in listed(bank.seen).values() for number in numbers)


async def alerts(broker: str) -> list[int]:
    """What the program sent, as a foreign reader of the topic sees it."""
    async with opened(broker) as transport:
        assert isinstance(transport, Logs)
        log = await transport.log("alerts")
        return [int(value or b"") for partition in range(4) for value in await values(log, partition)]


async def alerts_reach(broker: str, count: int, seconds: float = 30) -> None:
    async with opened(broker) as transport, asyncio.timeout(seconds):
        assert isinstance(transport, Logs)
        reached: dict[int, int | None] = dict.fromkeys(range(4))
        seen = 0
        while seen < count:
            try:
                found = await (await transport.log("alerts")).read(reached, LONG, LONG, 1)
            except BrokerError:  # not declared yet
                await asyncio.sleep(0.05)
                continue
            for partition, batch in found.items():
                reached[partition] = batch.positions[-1]
                seen += len(batch.records)


class Server(Protocol):
    def start(self) -> None: ...
    def kill(self) -> None: ...


async def survives_restarts(
    server: Server, broker: str, *, told: Callable[[str], Awaitable[list[int]]] = alerts, copies: bool = False
) -> None:
    """The program runs while its server is killed and started twice: nothing acknowledged is lost, nothing repeated.

    told: what the program sent, as another program reads it. copies: there it may come twice, after a crash.
    """
    bank = make_bank(broker)
    acknowledged: list[int] = []
    async with bank.app:

        async def produce() -> None:
            for number in range(1500):
                try:
                    await send(bank, number)
                    acknowledged.append(number)
                except BrokerError:
                    await asyncio.sleep(0.05)

        async def last_sent() -> bool:
            try:
                await send(bank, 9999)
            except BrokerError:
                if not copies:
                    raise
                return False
            return True

        producing = asyncio.create_task(produce())
        for goal in (200, 500):
            await eventually(lambda goal=goal: len(acknowledged) >= goal)  # type: ignore[misc]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await producing
        await eventually(lambda: set(handled(bank)) >= set(acknowledged))
        await becomes(last_sent, bool)
        await eventually(lambda: 9999 in handled(bank))
        found = handled(bank)
        assert len(found) == len(set(found))
        if copies:
            await alerts_reach(broker, len(found))
        else:
            assert acknowledged[-1] == 1499
    read = await told(broker)
    assert sorted(set(read) if copies else read) == found


async def values(log: Log, partition: int = 0, after: int | None = None) -> list[bytes | None]:
    """All that there is, in as many reads as it takes."""
    found: list[bytes | None] = []
    last = (await log.bounds(partition)).last
    while last is not None and (after is None or after < last):
        batch = (await log.read({partition: after}, LONG, 100 * LONG, 10)).get(partition)
        if batch is None:
            break
        found += [record.value for record in batch.records]
        after = batch.positions[-1]
    return found
