"""Questions and answers: who asked, where the answer goes, and how it finds the one who waits.

An answer leaves after the commit of the event it answers, is not journaled, and is dropped if undeliverable (design
rule 11). Within the process it takes no broker, but the same bytes. Nobody waits for those that leave: they go in
order, many at a time, to each topic by itself (`Outgoing`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from thalweg import headers as names
from thalweg.capabilities import FOLLOWING, Log
from thalweg.clock import Clock
from thalweg.codec import TypeCodec
from thalweg.errors import AgentError, BrokerError, Gap, MessageTooLarge, ThalwegError
from thalweg.message import Headers, Message, Record
from thalweg.signing import Signer

from .complaints import Complaints
from .outgoing import Outgoing
from .sender import Sender
from .task import Answer, Failure

__all__ = ["REPLY_TO", "Replies"]

log = logging.getLogger("thalweg")

SUFFIX = "-replies"


class Replies:
    """The answers that this process waits for, and those that its agents give."""

    def __init__(
        self,
        app_id: str,
        sender: Sender,
        open_log: Callable[[str], Awaitable[Log]],
        partition_in: Callable[[str, bytes | None], int | None],
        clock: Clock,
        signer: Signer | None = None,
    ) -> None:
        self.topic = app_id + SUFFIX
        self._me = secrets.token_hex(8)
        # the partition of a declared topic; None for any other: answers write to no topic that the app does not know
        self._sender, self._open_log, self._partition_in = sender, open_log, partition_in
        self._signer, self._clock, self._complaints = signer, clock, Complaints(clock)
        self._waiting: dict[bytes, tuple[asyncio.Future[Any], TypeCodec[Any]]] = {}
        self._partition = 0
        self._address = b""
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._outgoing: dict[str, Outgoing] = {}
        self.on_question: Callable[[Record], None] = lambda _: None
        """Gets each question that another process sends here."""

    async def send_question(self, address: str, question: bytes, headers: Headers) -> None:
        """To another process that hears there (`on_question`). Raises BrokerError."""
        topic, partition, instance = address.rsplit("/", 2)
        message = Message(question, None, ((names.ASKED, instance.encode()), *headers), round(self._clock.now() * 1000))
        await self._sender.send(topic, {int(partition): [message]})

    async def start(self, partitions: int) -> None:
        """Be able to hear answers; called before the first question."""
        async with self._starting:
            if self._reader is not None:
                return
            self._partition = secrets.randbelow(partitions)
            reader = await self._open_log(self.topic)
            position = (await reader.bounds(self._partition)).last
            self._address = f"{self.topic}/{self._partition}/{self._me}".encode()
            self._reader = asyncio.get_running_loop().create_task(self._read(reader, position), name="thalweg replies")

    @property
    def started(self) -> bool:
        return self._reader is not None

    @property
    def address(self) -> str:
        """Where in the app's reply topic this process hears: "topic/partition/instance". Empty before the start."""
        return self._address.decode()

    def expect(self, codec: TypeCodec[Any]) -> tuple[asyncio.Future[Any], Headers]:
        """A future for one answer, and the headers that lead it here."""
        correlation = secrets.token_bytes(16)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = (answer, codec)
        answer.add_done_callback(lambda _: self._waiting.pop(correlation, None))
        return answer, ((names.REPLY, self._address), (names.CORRELATION, correlation))

    # --- giving answers ------------------------------------------------------------------------------------------

    def deliver(self, answers: Sequence[Answer]) -> None:
        """Raises nothing: an answer that cannot be given is dropped, and the events were committed before."""
        for plan, record, value in answers:
            try:
                self.give(plan.name, record, value)
            except Exception as error:
                unknown = None if isinstance(error, ThalwegError) else error
                log.warning("an answer of agent %s was dropped: %s", plan.name, error, exc_info=unknown)

    def give(self, agent: str, record: Record, value: bytes | Failure) -> None:
        address = names.find(record.headers, names.REPLY)
        if address is None:
            return
        topic, _, rest = address.decode("utf-8", "replace").rpartition("/")[0].rpartition("/")
        instance = address.rpartition(b"/")[2].decode("utf-8", "replace")
        correlation = names.find(record.headers, names.CORRELATION) or b""
        if instance == REPLY_TO:
            self._reply_to(agent, rest, record, value, correlation)
            return
        message = self._message(record, value, correlation)
        if instance == self._me:
            self._heard(message)
        elif topic.endswith(SUFFIX) and rest.isdecimal():
            self._send(agent, topic, int(rest), message)

    def _reply_to(self, agent: str, topic: str, record: Record, value: bytes | Failure, correlation: bytes) -> None:
        """As a message of its own, which the program reads: an error is none, for it has another type."""
        partition = self._partition_in(topic, record.key)
        if partition is None or isinstance(value, Failure):
            return
        headers: Headers = ((CORRELATION, correlation),) if correlation else ()
        message = Message(value, record.key, headers, record.timestamp)
        self._send(agent, topic, partition, message)

    @staticmethod
    def _message(record: Record, value: bytes | Failure, correlation: bytes) -> Message:
        headers: Headers = ((names.CORRELATION, correlation),)
        if isinstance(value, Failure):
            headers = (*headers, (names.ERROR, value.trace.encode("utf-8", "replace")))
            return Message(value.reason.encode("utf-8", "replace"), record.key, headers, record.timestamp)
        return Message(value, record.key, headers, record.timestamp)

    def _send(self, agent: str, topic: str, partition: int, message: Message) -> None:
        outgoing = self._outgoing.get(topic)
        if outgoing is None:
            outgoing = self._outgoing[topic] = Outgoing(topic, self._sender, self._in_its_place)
        outgoing.put(agent, partition, message)
        outgoing.start(lambda: self._outgoing.pop(topic, None))

    def _in_its_place(self, message: Message, error: MessageTooLarge) -> Message | None:
        """What whoever waits for an answer gets that is too large; nothing where nobody does (a reply_to topic)."""
        correlation = names.find(message.headers, names.CORRELATION)
        if correlation is None or names.find(message.headers, names.ERROR) is not None:
            return None
        return self._message(message, Failure(f"the answer is too large: {error}", ""), correlation)

    # --- hearing answers -----------------------------------------------------------------------------------------

    async def _read(self, reader: Log, position: int | None) -> None:
        lost = False
        try:
            while True:
                try:
                    if lost:
                        position, lost = (await reader.bounds(self._partition)).last, False
                    batches = await reader.read({self._partition: position}, 1000, 1 << 22, FOLLOWING)
                except Gap as gap:  # it was away for longer than answers are kept
                    log.warning("answers were lost: %s", gap)
                    lost = True
                    continue
                except BrokerError as error:
                    self._complaints.warn("answers", "reading answers failed, again in 1 s: %s", error)
                    await self._clock.sleep(1)
                    continue
                for batch in batches.values():
                    position = batch.positions[-1]
                    for record in batch.records:
                        self._heard(self._believed(record))
        finally:
            await reader.close()

    def _believed(self, record: Record) -> Record:
        return record if self._signer is None else self._signer.believed(self.topic, self._partition, record)

    def _heard(self, record: Record) -> None:
        asked = names.find(record.headers, names.ASKED)
        if asked is not None:
            if asked == self._me.encode():
                self.on_question(record)
            return
        waiting = self._waiting.get(names.find(record.headers, names.CORRELATION) or b"")
        if waiting is None or waiting[0].done():
            return
        answer, codec = waiting
        error = names.find(record.headers, names.ERROR)
        if error is not None:
            text = (record.value or b"").decode("utf-8", "replace")
            answer.set_exception(AgentError(text, error.decode("utf-8", "replace")))
            return
        try:
            answer.set_result(codec.decode(record.value or b""))
        except Exception as caught:
            answer.set_exception(AgentError(f"the answer could not be decoded: {caught}"))

    async def close(self) -> None:
        await asyncio.gather(*(outgoing.close() for outgoing in list(self._outgoing.values())))
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        for answer, _ in list(self._waiting.values()):
            answer.cancel()


REPLY_TO = "to"
"""In an address: the answer goes to a named topic, as a message of its own."""

CORRELATION = "correlation"
"""The header of such an answer that a program sees."""
