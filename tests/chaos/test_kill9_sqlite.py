"""100,000 events and a process killed with SIGKILL twenty times: every result is right, each output comes once."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from thalweg import App, StaleRead, Stream, Table, Topic

EVENTS = 100_000
KILLS = 20
ACCOUNTS = 500
PARTITIONS = 4


class Payment(msgspec.Struct):
    account: str
    amount: int
    number: int


class Program:
    """Two tables, one of them changed in place, an output an event, and a second agent behind a repartition."""

    def __init__(self, broker: str, store: str) -> None:
        self.app = app = App("kill9", broker=broker, store=store, partitions=PARTITIONS, lease=2.0)
        self.payments: Topic[str, Payment] = app.topic("payments", key=str, value=Payment)
        self.receipts: Topic[str, int] = app.topic("receipts", key=str, value=int)
        self.sums: Table[str, int] = app.table("sums", key=str, value=int, default=int)
        self.paid: Table[str, int] = app.table("paid", key=str, value=int, default=int)
        self.lasts: Table[str, list[int]] = app.table("lasts", key=str, value=list[int], default=list)
        self.signs: Table[str, int] = app.table("signs", key=str, value=int, default=int)
        by_sign = self.payments.stream().group_by(lambda payment: sign_of(payment.amount), name="by-sign")

        @app.agent(self.payments)
        async def pay(stream: Stream[Payment]) -> None:
            async for payment in stream:
                self.sums[payment.account] += payment.amount
                self.paid[payment.account] += 1
                lasts = self.lasts[payment.account]
                lasts.append(payment.number)
                del lasts[:-3]
                await self.receipts.send(payment.number, key=payment.account)

        @app.agent(by_sign)
        async def count(stream: Stream[Payment]) -> None:
            async for payment in stream:
                self.signs[sign_of(payment.amount)] += 1

    @property
    def done(self) -> int:
        """How many events both agents have handled."""
        try:
            return min(sum(self.signs.values()), sum(self.paid.values()))
        except StaleRead:  # a task starts over
            return 0


def sign_of(amount: int) -> str:
    return "negative" if amount < 0 else "positive"


def history() -> list[Payment]:
    chance = random.Random(1)
    return [Payment(f"a{chance.randrange(ACCOUNTS)}", chance.randrange(-100, 100), number) for number in range(EVENTS)]


async def work(broker: str, store: str) -> None:
    """What the process does that is killed."""
    program = Program(broker, store)
    async with program.app:
        print("up", flush=True)
        while program.done < EVENTS:  # noqa: ASYNC110 - tables tell nobody when they change
            await asyncio.sleep(0.05)
    print("done", flush=True)


@pytest.mark.alone
@pytest.mark.parametrize("store", ["memory://", "sqlite:///"])
def test_killed_at_any_moment_it_loses_and_repeats_nothing(store: str, tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/broker.db"
    if store != "memory://":
        store += f"{tmp_path}/state"
    payments = history()

    async def fill() -> None:
        program = Program(broker, store)
        async with program.app.client():
            await program.payments.send_many([(payment.account, payment) for payment in payments])

    asyncio.run(fill())

    chance = random.Random(2)
    killed = 0
    while True:
        process = subprocess.Popen([sys.executable, __file__, broker, store], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process, process.stdout as said:
            try:
                assert said.readline() == "up\n"
                if killed == KILLS:
                    assert said.readline() == "done\n"
                    assert process.wait() == 0
                    break
                process.wait(chance.uniform(0.0, 0.2))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
                killed += 1
            else:
                pytest.fail(f"it was done after {killed} kills: the test shows less than it says")
            finally:
                process.kill()

    truth: Counter[str] = Counter()
    lasts: dict[str, list[int]] = {}
    for payment in payments:
        truth[payment.account] += payment.amount
        lasts[payment.account] = [*lasts.get(payment.account, []), payment.number][-3:]

    async def look() -> None:
        program = Program(broker, store)
        async with program.app as app:
            assert dict(program.sums.items()) == dict(truth)
            assert dict(program.lasts.items()) == lasts
            assert dict(program.signs.items()) == Counter(sign_of(payment.amount) for payment in payments)
            assert [letter async for letter in app.dead_letters(program.payments)] == []
            by_account: dict[str, list[int]] = {}
            reader = await app.running.open_log("receipts")
            for partition in range(PARTITIONS):
                after = None
                while batch := (await reader.read({partition: after}, 5000, 1 << 24, 0)).get(partition):
                    after = batch.positions[-1]
                    for record in batch.records:
                        by_account.setdefault((record.key or b"").decode(), []).append(int(record.value or b""))
            await reader.close()
        expected: dict[str, list[int]] = {}
        for payment in payments:
            expected.setdefault(payment.account, []).append(payment.number)
        assert by_account == expected  # each exactly once, and in order

    asyncio.run(look())


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
