"""The work that all sides do: withdrawals of 100 bytes as JSON, on 1000 accounts, summed by account."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import msgspec

__all__ = ["ACCOUNTS", "MESSAGE_BYTES", "Withdrawal", "as_json", "check_totals", "withdrawals"]

ACCOUNTS = 1000
MESSAGE_BYTES = 100


class Withdrawal(msgspec.Struct):
    account: str
    country: str
    amount: int
    note: str


@cache
def withdrawals(count: int) -> tuple[Withdrawal, ...]:
    """The same for every side. Accounts come in a mixed but fixed order, so that partitions fill evenly."""
    return tuple(_withdrawal(number) for number in range(count))


def _withdrawal(number: int) -> Withdrawal:
    account = f"account-{number * 7919 % ACCOUNTS:04}"
    bare = Withdrawal(account, "NO", 1 + number % 9, "")
    return Withdrawal(account, "NO", bare.amount, "x" * (MESSAGE_BYTES - len(msgspec.json.encode(bare))))


@cache
def as_json(count: int) -> tuple[bytes, ...]:
    return tuple(msgspec.json.encode(withdrawal) for withdrawal in withdrawals(count))


@cache
def _totals(count: int) -> Mapping[str, int]:
    totals: dict[str, int] = {}
    for withdrawal in withdrawals(count):
        totals[withdrawal.account] = totals.get(withdrawal.account, 0) + withdrawal.amount
    return totals


def check_totals(found: Mapping[str, int], count: int) -> None:
    """Raises AssertionError if a side did not do all the work, or did some of it twice."""
    wanted = _totals(count)
    if found != wanted:
        raise AssertionError(f"sums are {sum(found.values())} in all, expected {sum(wanted.values())}")
