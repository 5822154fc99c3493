"""The judge of the bank is itself judged: statements that are right pass, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.bank import ACCOUNTS, OPENING, Line, transfer_of
from chaos.ledger import NOTHING, Ledger

COUNT = 8_000


def statements() -> list[Line]:
    """Those of a bank that does one transfer after another."""
    balances, numbers, found = dict[str, int](), dict[str, int](), list[Line]()

    def enter(account: str, cents: int, number: int) -> None:
        balances[account] = balances.get(account, OPENING) + cents
        numbers[account] = numbers.get(account, 0) + 1
        found.append(Line(account, numbers[account], number, cents, balances[account]))

    for number in range(COUNT):
        transfer = transfer_of(number)
        covered = transfer.cents <= balances.get(transfer.payer, OPENING)
        enter(transfer.payer, -transfer.cents if covered else 0, number)
        if covered:
            enter(transfer.payee, transfer.cents, number)
    return found


def wrongs(lines: list[Line], count: int = COUNT) -> list[str]:
    found: list[str] = []
    ledger, followed = Ledger(found.append), dict.fromkeys((f"account-{n}" for n in range(ACCOUNTS)), NOTHING)
    for line in lines:
        followed[line.account] = ledger.follow(line, followed[line.account])
    ledger.check([transfer_of(number) for number in range(count)], followed)
    return found


def renumbered(lines: list[Line]) -> list[Line]:
    """The same amounts, with numbers and balances that follow from one another: as if the tables had it so."""
    balances, numbers, found = dict[str, int](), dict[str, int](), list[Line]()
    for line in lines:
        balances[line.account] = balances.get(line.account, OPENING) + line.cents
        numbers[line.account] = numbers.get(line.account, 0) + 1
        found.append(Line(line.account, numbers[line.account], line.transfer, line.cents, balances[line.account]))
    return found


def without(lines: list[Line], at: int) -> list[Line]:
    return lines[:at] + lines[at + 1 :]


def twice(lines: list[Line], at: int) -> list[Line]:
    return [*lines[: at + 1], lines[at], *lines[at + 1 :]]


def test_a_bank_that_does_one_transfer_after_another_is_right() -> None:
    lines = statements()

    assert wrongs(lines) == []
    assert any(line.cents == 0 for line in lines), "nothing is ever refused"


@pytest.mark.parametrize("change", [without, twice])
@pytest.mark.parametrize("consistent", [False, True], ids=["in its topic", "in its tables too"])
@pytest.mark.parametrize("kind", [-1, 0, 1], ids=["paid", "refused", "come in"])
def test_a_line_too_few_or_too_many_is_found(
    change: Callable[[list[Line], int], list[Line]], consistent: bool, kind: int
) -> None:
    lines = statements()
    at = next(n for n, line in enumerate(lines) if n > COUNT and (line.cents > 0) - (line.cents < 0) == kind)
    changed = change(lines, at)

    assert wrongs(renumbered(changed) if consistent else changed)


def test_a_transfer_that_nobody_has_handled_is_found() -> None:
    assert wrongs(statements(), COUNT + 1)
