"""The programs that are put under stress, by name."""

from __future__ import annotations

from typing import Protocol

from thalweg import App

from chaos.bank import Bank
from chaos.production import Production
from chaos.program import Options, Program
from chaos.trace import Trace

__all__ = ["Sending", "program_of"]


class Sending(Protocol):
    """app: what the workers run. send: what the n-th message is, follows from its number."""

    app: App

    async def send(self, numbers: range) -> None: ...


def program_of(options: Options, trace: Trace | None = None) -> Sending:
    match options.program:
        case "payments":
            return Program(options, trace)
        case "production":
            return Production(options, trace)
        case "bank":
            return Bank(options)
    raise ValueError(f"no such program: {options.program!r}")
