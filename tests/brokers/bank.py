"""The program that the tests of real brokers run, in their own process and, as `python bank.py worker`, in others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgspec
from thalweg import App, Stream


class Withdrawal(msgspec.Struct):
    number: int
    account: str
    amount: int


def make_bank(broker: str | None = None, lease: float = 1.0) -> SimpleNamespace:
    app = App("bank", broker=broker or "memory://", partitions=4, lease=lease)
    withdrawals = app.topic("withdrawals", key=str, value=Withdrawal)
    alerts = app.topic("alerts", key=str, value=int)
    totals = app.table("totals", key=str, value=int, default=int)
    seen = app.table("seen", key=str, value=list[int], default=list)
    emails = app.queue("emails", value=str)
    mailed: list[str] = []

    @app.agent(withdrawals)
    async def total(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
        async for withdrawal in stream:
            totals[withdrawal.account] += withdrawal.amount
            seen[withdrawal.account].append(withdrawal.number)
            await alerts.send(withdrawal.number, key=withdrawal.account)
            if withdrawal.amount > 100:
                await emails.send(withdrawal.account)
            yield totals[withdrawal.account]

    @app.handler(emails)
    def mail(account: str) -> str:
        mailed.append(account)
        return account.upper()

    return SimpleNamespace(**locals())


if __name__ == "__main__":
    make_bank().app.main()
