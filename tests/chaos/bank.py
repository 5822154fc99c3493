"""The bank of `examples/bank.py`, as a program of a run's own."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from thalweg import App

from chaos.program import Options

__all__ = ["ACCOUNTS", "OPENING", "PARTITIONS", "Bank", "Line", "Transfer", "transfer_of"]

PARTITIONS = 8
"""Thalweg's default."""

PATH = Path(__file__).parents[2] / "examples" / "bank.py"

_numbers = itertools.count()


def _load() -> ModuleType:
    """Another app at each call."""
    name = f"the_bank_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(name, PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_bank: Any = _load()
OPENING: int = _bank.OPENING
Line = _bank.Line
Transfer = _bank.Transfer

ACCOUNTS = 200


def transfer_of(number: int, kind: Any = Transfer) -> Transfer:
    """Payers come in turn, so that a run of `ACCOUNTS` transfers has each of them once; cents up to 120.00."""
    dice = number * 0x9E3779B97F4A7C15 % (1 << 64) >> 16
    payer = number % ACCOUNTS
    payee = (payer + 1 + dice % (ACCOUNTS - 1)) % ACCOUNTS
    return kind(number, f"account-{payer}", f"account-{payee}", 1 + (dice >> 20) % 120_00)


class Bank:
    """The example, on this broker."""

    def __init__(self, options: Options) -> None:
        bank: Any = _load()
        self.app: App = bank.app
        self.app.broker, self.app.store, self.app.lease = options.broker, options.store, options.lease
        self.transfers, self.lines = bank.transfers, bank.lines
        self._kind: Any = bank.Transfer  # each app has its own
        self.balances, self.statements = bank.balances, bank.statements

    async def send(self, numbers: range) -> None:
        await self.transfers.send_many((None, transfer_of(number, self._kind)) for number in numbers)
