"""A bank: money goes from account to account, and whatever dies meanwhile, not a cent is lost or made.

    python examples/bank.py                     # 10,000 transfers, in memory

On any broker, with as many workers as you like; kill them as you like:

    export THALWEG_BROKER=redis://localhost     # or kafka://…, nats://…, amqp://…, sqlite:///bank.db
    python examples/bank.py worker
    python examples/bank.py send transfers '{"number": 1, "payer": "ada", "payee": "bob", "cents": 2500}'
    python examples/bank.py table statements bob

A transfer is two events, for payer and payee may belong to different workers: `pay` takes the money and sends it on its
way, `credit` receives it. Each of them, with all its changes and messages, happens once or not at all.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Iterator

import msgspec
from thalweg import App, StaleRead, Stream

OPENING = 500_00  # cents: what each account begins with
SHOWN = 10  # lines of a statement that are kept


class Transfer(msgspec.Struct, frozen=True):
    number: int
    payer: str
    payee: str
    cents: int


class Line(msgspec.Struct, frozen=True):
    """Of an account's statement; those of an account are numbered from 1, without gaps.

    cents: what came in, or went out (below 0); 0 if the payer had too little.
    """

    account: str
    number: int
    transfer: int
    cents: int
    balance: int


app = App("bank")
transfers = app.topic("transfers", value=Transfer, key_of=lambda transfer: transfer.payer)
credits = app.topic("credits", value=Transfer, key_of=lambda transfer: transfer.payee)
lines = app.topic("lines", value=Line, key_of=lambda line: line.account)
balances = app.table("balances", value=int, default=lambda: OPENING)
statements = app.table("statements", value=list[Line], default=list)


@app.agent(transfers)
async def pay(stream: Stream[Transfer]) -> AsyncIterator[bool]:
    """Answers whether the payer had the money."""
    async for transfer in stream:
        covered = 0 < transfer.cents <= balances[transfer.payer]
        if covered:
            await credits.send(transfer)
        await enter(transfer.payer, -transfer.cents if covered else 0, transfer)
        yield covered


@app.agent(credits)
async def credit(stream: Stream[Transfer]) -> None:
    async for transfer in stream:
        await enter(transfer.payee, transfer.cents, transfer)


async def enter(account: str, cents: int, transfer: Transfer) -> None:
    balances[account] += cents
    statement = statements[account]
    number = statement[-1].number + 1 if statement else 1
    line = Line(account, number, transfer.number, cents, balances[account])
    statement.append(line)
    del statement[:-SHOWN]
    await lines.send(line)


# --- a demonstration: some accounts, many transfers, and whether the sum is what it was ----------------------------

NAMES = [
    "ada",
    "bob",
    "cleo",
    "dan",
    "eve",
    "fay",
    "gus",
    "hal",
    "ida",
    "jan",
    "kim",
    "leo",
    "mia",
    "ned",
    "oda",
    "pia",
]


def drawn(count: int) -> Iterator[Transfer]:
    dice = random.Random(1)
    for number in range(count):
        payer, payee = dice.sample(NAMES, 2)
        yield Transfer(number, payer, payee, dice.randint(1, 90_00))


async def demo(count: int = 10_000) -> None:
    orders = list(drawn(count))
    async with app:
        before, entered, made = money(), entries(), 0
        for start in range(0, count, 100):
            made += sum(await pay.ask_all(orders[start : start + 100]))
        while entries() < entered + count + made:  # noqa: ASYNC110 - a table tells nobody that it changed
            await asyncio.sleep(0.01)
        print(f"{count:,} transfers on {app.broker}, {app.guarantee.replace('_', ' ')}; {count - made:,} refused\n")
        print("ada's statement ends with")
        for line in statements["ada"]:
            what = f"{line.cents / 100:+10.2f}" if line.cents else "   refused"
            print(f"  {line.number:6}  transfer {line.transfer:5} {what} {line.balance / 100:10.2f}")
        print(f"\nAll accounts together had {before / 100:,.2f}, and have {money() / 100:,.2f}.")


def money() -> int:
    return sum(balances[name] for name in NAMES)


def entries() -> int:
    try:
        return sum(statement[-1].number for statement in statements.values())
    except StaleRead:  # a partition starts over: its rows cannot be counted just now
        return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        app.main()
    else:
        asyncio.run(demo())
