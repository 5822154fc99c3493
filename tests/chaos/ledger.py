"""What the statements of the bank may say, line by line, and have to come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from chaos.bank import OPENING, Line, Transfer, transfer_of

__all__ = ["NOTHING", "Followed", "Ledger"]


def _mark(number: int) -> int:
    """Sums of these tell sets of numbers apart."""
    return (number + 1) * 0xD6E8FEB86659FD93 % (1 << 61)


class Followed(msgspec.Struct, frozen=True):
    """What the lines of an account's statement have said up to now.

    last: the newest transfer that it paid, or could not. came: the sum of the marks of those that came in.
    """

    lines: int = 0
    balance: int = OPENING
    last: int = -1
    came: int = 0


NOTHING = Followed()


class Ledger:
    """Follows statements line by line, and knows at the end what they should have said.

    paid: transfers whose payer's line has been seen, and whether the money was there. arrived: those whose payee's has.
    Both are sets in effect: who reads may have to begin anew. That no line comes twice, the numbers of lines tell.
    """

    def __init__(self, wrong: Callable[[str], None]) -> None:
        self.paid: dict[int, bool] = {}
        self.arrived: set[int] = set()
        self._wrong = wrong

    def done(self, number: int) -> bool:
        return number in self.arrived or self.paid.get(number) is False

    def follow(self, line: Line, before: Followed, uncertain: Collection[int] = ()) -> Followed:
        """uncertain: transfers that may have been sent later than others with higher numbers."""
        transfer, last, came = transfer_of(line.transfer), before.last, before.came
        if line.number != before.lines + 1:
            self._wrong(f"{line} comes after line {before.lines}")
        if line.balance != before.balance + line.cents:
            self._wrong(f"{line} comes after a balance of {before.balance}")
        if line.account == transfer.payer:
            covered = transfer.cents <= before.balance
            if line.cents != (-transfer.cents if covered else 0):
                self._wrong(f"{line} of {transfer}, with a balance of {before.balance} before")
            if line.transfer <= last and line.transfer not in uncertain:
                self._wrong(f"{line} comes after the transfer {last}: repeated or out of order")
            self.paid[line.transfer] = covered
            last = max(last, line.transfer)
        elif line.account == transfer.payee:
            if line.cents != transfer.cents:
                self._wrong(f"{line} of {transfer}")
            self.arrived.add(line.transfer)
            came = (came + _mark(line.transfer)) % (1 << 61)
        else:
            self._wrong(f"{line} of {transfer}, which is another's")
        return Followed(line.number, line.balance, last, came)

    def truth(self, transfers: Iterable[Transfer]) -> Mapping[str, Followed]:
        """What a bank without faults, which does one transfer after another, comes to.

        That those which it refuses were refused with reason, `follow` has seen.
        """
        lines, money, came = Counter[str](), Counter[str](), Counter[str]()
        last: dict[str, int] = {}
        for transfer in transfers:
            lines[transfer.payer] += 1
            last[transfer.payer] = max(transfer.number, last.get(transfer.payer, -1))
            if self.paid.get(transfer.number):
                lines[transfer.payee] += 1
                money[transfer.payer] -= transfer.cents
                money[transfer.payee] += transfer.cents
                came[transfer.payee] += _mark(transfer.number)
        return {
            name: Followed(lines[name], OPENING + money[name], last.get(name, -1), came[name] % (1 << 61))
            for name in lines
        }

    def check(self, transfers: Collection[Transfer], followed: Mapping[str, Followed]) -> None:
        """transfers: all there are. followed: each account's statement, to its end."""
        counts = Counter(transfer.number for transfer in transfers)
        for number in sorted(n for n in counts.keys() | self.paid.keys() if counts[n] != 1 or n not in self.paid)[:3]:
            self._wrong(f"transfer {number} lies {counts[number]} times in its topic; paid: {self.paid.get(number)}")
        accepted = {number for number, covered in self.paid.items() if covered}
        for number in sorted(accepted ^ self.arrived)[:3]:
            self._wrong(f"transfer {number}: paid: {self.paid.get(number)}, arrived: {number in self.arrived}")
        truth = self.truth(transfers)
        for name in sorted(n for n in truth.keys() | followed.keys() if truth.get(n) != followed.get(n))[:3]:
            self._wrong(f"the statement of {name} says {followed.get(name)}, expected {truth.get(name)}")

    def check_lines(self, who: str, lines: Iterable[Line], uncertain: Collection[int] = ()) -> None:
        """All lines as another reader finds them, those of an account in their order: each once, and none missing."""
        found: dict[str, Followed] = {}
        other = Ledger(lambda what: self._wrong(f"{who} finds that {what}"))
        for line in lines:
            found[line.account] = other.follow(line, found.get(line.account, NOTHING), uncertain)
        if other.paid != self.paid or other.arrived != self.arrived:
            self._wrong(
                f"{who} finds {len(other.paid)} transfers paid and {len(other.arrived)} arrived, "
                f"expected {len(self.paid)} and {len(self.arrived)}"
            )
