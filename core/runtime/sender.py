"""Sends from outside events: durable when they return. Small concurrent sends share an append."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from thalweg.capabilities import Log
from thalweg.errors import MessageTooLarge
from thalweg.message import Message
from thalweg.signing import Signer

__all__ = ["Sender"]

Records = Mapping[int, Sequence[Message]]
_Pending = tuple[Records, "asyncio.Future[None]"]


class Sender:
    """Appends to topics. While one append is under way, what comes meanwhile is gathered and goes in the next."""

    def __init__(self, open_log: Callable[[str], Awaitable[Log]], signer: Signer | None = None) -> None:
        self._open_log, self._signer = open_log, signer
        self._topics: dict[str, _TopicSender] = {}

    async def send(self, topic: str, records: Records) -> None:
        """Return when all are durable, in order per partition."""
        sender = self._topics.get(topic)
        if sender is None:
            opened = await self._open_log(topic)
            sender = self._topics.setdefault(topic, _TopicSender(opened))
        await sender.send(records if self._signer is None else self._signer.all_signed(topic, records))

    async def close(self) -> None:
        for sender in self._topics.values():
            await sender.close()
        self._topics.clear()


class _TopicSender:
    def __init__(self, log: Log) -> None:
        self._log = log
        self._pending: list[_Pending] = []
        self._busy = False
        self._flushing: asyncio.Task[None] | None = None

    async def send(self, records: Records) -> None:
        if self._busy:
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pending.append((records, sent))
            await sent
            return
        self._busy = True
        try:
            await self._log.append(records, positions=False)
        finally:
            if self._pending:
                self._flushing = asyncio.get_running_loop().create_task(self._flush())
            else:
                self._busy = False

    async def _flush(self) -> None:
        while self._pending:
            pending, self._pending = self._pending, []
            await self._append(pending)
        self._busy = False

    async def _append(self, pending: Sequence[_Pending]) -> None:
        together: dict[int, list[Message]] = {}
        for records, _ in pending:
            for partition, messages in records.items():
                together.setdefault(partition, []).extend(messages)
        error: BaseException | None = None
        try:
            await self._log.append(together, positions=False)
        except MessageTooLarge as caught:
            if len(pending) > 1:  # nothing was written: only those fail that must
                for one in pending:
                    await self._append([one])
                return
            error = caught
        except BaseException as caught:
            error = caught
        for _, sent in pending:
            if not sent.done():
                if error is None:
                    sent.set_result(None)
                else:
                    sent.set_exception(error)
        if error is not None and not isinstance(error, Exception):
            raise error

    async def close(self) -> None:
        if self._flushing is not None:
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self._log.close()
