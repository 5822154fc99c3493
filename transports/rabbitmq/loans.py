"""What a queue's channel has taken from the server and not settled: in nobody's hands yet, or lent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable

import msgspec
from aiormq.abc import AbstractChannel, DeliveredMessage
from thalweg.clock import boot_clock
from thalweg.message import Delivery

from .wire import ATTEMPTS, EXPIRES, from_amqp

__all__ = ["Consumer", "Loan", "Loans"]


class Consumer:
    """outstanding: what it brought and was not settled; at `prefetch` the server sends no more."""

    def __init__(self, channel: AbstractChannel, prefetch: int) -> None:
        self.channel = channel
        self.prefetch = prefetch
        self.outstanding = 0
        self.tag: str | None = None

    @property
    def hungry(self) -> bool:
        return self.tag is not None and not self.channel.is_closed and self.outstanding < self.prefetch


class Loan(msgspec.Struct, eq=False):
    """The handle of a delivery. until: boot clock. settled: nothing more is to be done about it. done: committed."""

    book: Loans
    consumer: Consumer
    message: DeliveredMessage
    attempts: int
    until: float = 0.0
    settled: bool = False
    done: bool = False

    @property
    def tag(self) -> int:
        assert self.message.delivery_tag is not None
        return self.message.delivery_tag

    @property
    def stands(self) -> bool:
        return not self.settled and self.until > boot_clock() and not self.consumer.channel.is_closed


class Loans:
    """arrived: in nobody's hands yet. lent: in the program's, until their leases end."""

    def __init__(self) -> None:
        self.arrived: deque[Loan] = deque()
        self.lent: dict[Loan, None] = {}
        self._unsettled: dict[int, Loan] = {}  # by delivery tag, in that order: what has arrived or is lent

    @property
    def unsettled(self) -> list[Loan]:
        return list(self._unsettled.values())

    def enter(self, consumer: Consumer, message: DeliveredMessage) -> None:
        consumer.outstanding += 1
        headers = message.header.properties.headers or {}
        before, returned = headers.get(ATTEMPTS), headers.get("x-delivery-count")
        attempts = 1 + (before if isinstance(before, int) else 0)
        attempts += returned if isinstance(returned, int) else bool(message.redelivered)
        loan = Loan(self, consumer, message, attempts)
        self._unsettled[loan.tag] = loan
        self.arrived.append(loan)

    def lend(self, limit: int, lease: float) -> tuple[list[Delivery], list[Loan]]:
        """Of what has arrived; and what has expired on its way."""
        taken, expired = list[Delivery](), list[Loan]()
        now, until = time.time_ns() // 1_000_000, boot_clock() + lease
        while self.arrived and len(taken) < limit:
            loan = self.arrived.popleft()
            if loan.settled or loan.consumer.channel.is_closed:
                continue
            expires = (loan.message.header.properties.headers or {}).get(EXPIRES)
            if loan.attempts == 1 and isinstance(expires, int) and expires <= now:
                expired.append(loan)
                continue
            loan.until = until
            self.lent[loan] = None
            taken.append(Delivery(from_amqp(loan.message, now), loan.attempts, loan))
        return taken, expired

    def prefix(self, tags: Collection[int]) -> int:
        """Of these tags, the last before which nothing else is unsettled; 0 if there is none."""
        last = 0
        for tag in self._unsettled:
            if tag not in tags:
                break
            last = tag
        return last

    def settle(self, loans: Iterable[Loan]) -> None:
        for loan in loans:
            if not loan.settled:
                loan.settled = True
                loan.consumer.outstanding -= 1
                self.lent.pop(loan, None)
                self._unsettled.pop(loan.tag, None)

    def forget_all(self) -> None:
        """The channel is gone, and the server has taken everything back."""
        self.settle(self.unsettled)
        self._unsettled.clear()
        self.arrived.clear()
