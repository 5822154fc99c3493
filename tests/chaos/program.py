"""The program that is put under stress: payments -> an agent with a table -> receipts, and sums behind a repartition.

A payment's key and amount follow from its number alone, so whoever reads a receipt knows whether it is right.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
from thalweg import App, Stream, Table, Topic

from chaos.trace import Trace

__all__ = [
    "APP",
    "KEYS",
    "KINDS",
    "Account",
    "Options",
    "Payment",
    "Program",
    "Receipt",
    "amount_of",
    "key_of",
    "kind_of",
]

APP = "chaos"
KEYS = 60
KINDS = 5


class Payment(msgspec.Struct):
    """sent: seconds since the epoch, by the producer's clock."""

    number: int
    amount: int
    sent: float


class Account(msgspec.Struct, frozen=True):
    count: int = 0
    total: int = 0


class Receipt(msgspec.Struct):
    """What the account came to with this payment, and the process that said so."""

    number: int
    count: int
    total: int
    worker: int
    at: float


def amount_of(number: int) -> int:
    return number * 7919 % 199 - 50


def kind_of(number: int) -> str:
    return f"kind-{number % KINDS}"


def key_of(number: int, keys: int) -> str:
    return f"account-{number % keys}"


class Options(msgspec.Struct, frozen=True):
    """Of the program. repartition: whether there are sums by kind. program: its name, see `programs.py`.

    settings: more of the app's own. standbys: of the accounts.
    snapshot_bytes: how much a journal grows, at least, until it is compacted.
    """

    broker: str
    partitions: int = 8
    lease: float = 10.0
    repartition: bool = True
    program: str = "payments"
    store: str = "memory://"
    settings: dict[str, Any] = {}
    standbys: int = 0
    snapshot_bytes: int | None = None


class Program:
    def __init__(self, options: Options, trace: Trace | None = None) -> None:
        self.app = app = App(
            APP,
            broker=options.broker,
            store=options.store,
            partitions=options.partitions,
            lease=options.lease,
            **options.settings,
        )
        self.payments: Topic[str, Payment] = app.topic("payments", key=str, value=Payment)
        self.receipts: Topic[str, Receipt] = app.topic("receipts", key=str, value=Receipt)
        self.accounts: Table[str, Account] = app.table(
            "accounts", key=str, value=Account, default=Account, standbys=options.standbys
        )
        self.kinds: Table[str, Account] = app.table("kinds", key=str, value=Account, default=Account)
        me = os.getpid()

        @app.agent(self.payments)
        async def pay(stream: Stream[Payment]) -> None:
            async for event in stream.events():
                payment, before = event.value, self.accounts[event.key]
                account = Account(before.count + 1, before.total + payment.amount)
                self.accounts[event.key] = account
                now = time.time()
                if trace is not None:
                    trace.add(now, now - payment.sent, payment.number, event.partition)
                await self.receipts.send(Receipt(payment.number, account.count, account.total, me, now), key=event.key)

        if options.repartition:

            @app.agent(self.payments.stream().group_by(lambda payment: kind_of(payment.number), name="by-kind"))
            async def count(stream: Stream[Payment]) -> None:
                async for payment in stream:
                    kind, before = kind_of(payment.number), self.kinds[kind_of(payment.number)]
                    self.kinds[kind] = Account(before.count + 1, before.total + payment.amount)

    async def send(self, numbers: range) -> None:
        now = time.time()
        payments = [(key_of(n, KEYS), Payment(n, amount_of(n), now)) for n in numbers]
        await self.payments.send_many(payments)
