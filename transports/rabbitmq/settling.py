"""Telling the server what became of messages: acknowledged, or given back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from aiormq.abc import AbstractChannel
from thalweg.errors import AmbiguousCommit, BrokerError

from .connection import Connection
from .intake import Intake
from .loans import Loan, Loans

__all__ = ["Settling"]


class Settling:
    """Of the loans of one channel; settled is what it has begun to tell. name: of the queue, for errors."""

    def __init__(self, connection: Connection, intake: Intake, loans: Loans, name: str) -> None:
        self._connection, self._intake, self._loans, self._name = connection, intake, loans, name
        self._writing = asyncio.Lock()

    async def ack(self, loans: Sequence[Loan]) -> None:
        """The beginning of what is unsettled in one frame; the server has it all when this returns."""
        tags = {loan.tag for loan in loans if not loan.settled}
        last, channel = self._loans.prefix(tags), loans[0].consumer.channel
        self._loans.settle(loans)

        async def write() -> None:
            if last:
                await channel.basic_ack(last, multiple=True, wait=False)
            for tag in sorted(tags):
                if tag > last:
                    await channel.basic_ack(tag, wait=False)

        await self._told(channel, write())

    async def give_back(self, loans: Sequence[Loan], requeue: bool = True) -> None:
        """One by one, which keeps their order; or, without requeue, to where dead letters go."""
        tags = sorted(loan.tag for loan in loans if not loan.settled)
        channel = loans[0].consumer.channel
        self._loans.settle(loans)

        async def write() -> None:
            for tag in tags:
                await channel.basic_nack(tag, requeue=requeue, wait=False)

        await self._told(channel, write())

    async def _told(self, channel: AbstractChannel, writing: Coroutine[Any, Any, Any]) -> None:
        """AMQP does not answer an acknowledgement; but it keeps the order of a channel, and answers this."""
        try:
            async with self._writing:  # what begins with the first tags must not overtake what they are in
                await self._connection.ask(writing)
            await self._connection.ask(channel.basic_qos(prefetch_count=self._intake.prefetch))
        except BrokerError as error:
            raise AmbiguousCommit(f"queue {self._name!r}: {error} (whether it was settled is unknown)") from None
