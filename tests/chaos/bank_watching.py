"""Who reads the statements of the bank while it is under stress, and whether all is right in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from listing import listed
from thalweg import App, Event, Stream, Table

from chaos.bank import ACCOUNTS, OPENING, Bank, Line, Transfer
from chaos.checking import consumed, everything
from chaos.history import History
from chaos.ledger import Followed, Ledger
from chaos.program import Options
from chaos.servers import Broker, Kafka
from chaos.watching import Reader

__all__ = ["BankWatcher", "check_bank"]


class BankWatcher(Reader):
    """Reads each line of each statement exactly once, and checks that it can follow the one before."""

    def __init__(self, options: Options, history: History, journal: str) -> None:
        super().__init__(history)
        self.journal = journal
        self.ledger = Ledger(history.wrong)
        self.app = App("bank-watcher", broker=options.broker, partitions=options.partitions, lease=options.lease)
        lines = self.app.topic("lines", key=str, value=Line)
        self.followed: Table[str, Followed] = self.app.table("followed", key=str, value=Followed, default=Followed)

        @self.app.agent(lines)
        async def follow(stream: Stream[Line]) -> None:
            async for event in stream.events():
                self.followed[event.key] = self._follow(event, self.followed[event.key])

    def _follow(self, event: Event[Line, str], before: Followed) -> Followed:
        line = event.value
        now = self.ledger.follow(line, before, self.uncertain)
        owner = self.history.owner(self.journal, event.partition)  # a line does not tell who wrote it
        self.note(event.partition, line.transfer, owner, self.ledger.done(line.transfer))
        return now


async def check_bank(
    broker: Broker, options: Options, watcher: BankWatcher, history: History, transfers: Collection[Transfer]
) -> None:
    """All workers have ended, and `transfers` is what was asked of them."""
    ledger, followed = watcher.ledger, dict(watcher.followed.items())
    ledger.check(transfers, followed)
    bank = Bank(options)
    async with bank.app as app:
        try:
            async with asyncio.timeout(60):
                while len(balances := listed(bank.balances)) < len(followed):  # noqa: ASYNC110 - tasks to be had
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        statements = listed(bank.statements)
        for letter in [letter async for letter in app.dead_letters(bank.transfers)]:
            history.wrong(f"transfer {letter.value!r} is a dead letter: {letter.reason}")
    if sum(balances.values()) != ACCOUNTS * OPENING:
        history.wrong(f"all accounts hold {sum(balances.values())} cents, expected {ACCOUNTS * OPENING}")
    for name, row in followed.items():
        last = statements[name][-1] if statements.get(name) else None
        if last is None or (row.lines, row.balance) != (last.number, last.balance) or row.balance != balances.get(name):
            history.wrong(f"{name} has {balances.get(name)} cents, its statement ends with {last}, expected {row}")
    readers = {"a foreign reader": everything(options, "lines", Line)} if broker.fenced else {}
    if isinstance(broker, Kafka):
        readers["a read_committed consumer"] = consumed(broker, options, "lines", Line)
    for who, reading in readers.items():
        ledger.check_lines(who, [line for _, line in await reading], watcher.uncertain)
    if broker.fenced:
        credits = sorted(credit.number for _, credit in await everything(options, "credits", Transfer))
        if credits != sorted(ledger.arrived):
            history.wrong(f"a foreign reader finds {len(credits)} credits, expected {len(ledger.arrived)}, each once")
