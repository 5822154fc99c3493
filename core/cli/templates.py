"""The small program that `thalweg init` writes."""

from __future__ import annotations

__all__ = ["FILES"]

BANK = '''\
"""Sums up what is withdrawn from each account."""

from collections.abc import AsyncIterator

import msgspec
from thalweg import App, Stream


class Withdrawal(msgspec.Struct):
    account: str
    amount: int


app = App("bank", broker="sqlite:///bank.db")
withdrawals = app.topic("withdrawals", key=str, value=Withdrawal, key_of=lambda w: w.account)
totals = app.table("totals", key=str, value=int, default=int)


@app.agent(withdrawals)
async def total(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
    """The sum of each account, exactly once."""
    async for withdrawal in stream:
        totals[withdrawal.account] += withdrawal.amount
        yield totals[withdrawal.account]


if __name__ == "__main__":
    app.main()
'''

TEST = """\
from bank import Withdrawal, app, total, totals, withdrawals


async def test_withdrawals_of_an_account_add_up() -> None:
    async with app.test() as t:  # the real runtime, in memory, with a clock that only the test moves
        await withdrawals.send(Withdrawal("ada", 5))
        await withdrawals.send(Withdrawal("ada", 7))
        await withdrawals.send(Withdrawal("bob", 1))
        await t.settle()
        assert totals["ada"] == 12
        assert totals["bob"] == 1


async def test_a_crash_loses_nothing() -> None:
    async with app.test() as t:
        await withdrawals.send(Withdrawal("ada", 5))
        await t.settle()
        await t.crash()
        assert await total.ask(Withdrawal("ada", 1), key="ada") == 6
"""

PROJECT = """\
[project]
name = "bank"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["thalweg"]

[dependency-groups]
dev = ["pytest", "pytest-asyncio"]

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
pythonpath = ["."]
"""

README = """\
# bank

Sums up what is withdrawn from each account, on a broker that is one SQLite file.

```
python bank.py worker                                              # in one terminal
python bank.py send withdrawals '{"account": "ada", "amount": 5}'  # in another
python bank.py table totals ada                                    # 5
python bank.py doctor                                              # what the broker can do
pytest
```

What another broker can do for this program: `THALWEG_BROKER=memory:// python bank.py doctor`.
"""

FILES = {"bank.py": BANK, "test_bank.py": TEST, "pyproject.toml": PROJECT, "README.md": README}
