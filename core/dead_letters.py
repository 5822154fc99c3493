"""Dead letters: what failed, with its bytes as they came and the reason; read, and replayed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from . import headers as names
from .errors import DecodeError
from .journal.origin import OutputId, destination_of, origin_of
from .journal.replay import records_until_now
from .message import Headers, Message, Record

if TYPE_CHECKING:
    from .app import App

__all__ = ["DeadLetterRecord", "dead_letter_topic", "read_dead_letters", "replay"]


class DeadLetterRecord(msgspec.Struct, frozen=True):
    """A message that failed. key, value: bytes as they came. timestamp: seconds since the epoch.

    topic, partition, position: where it lay. attempts: how often it was tried. id: of the letter itself. event_id: the
    failed event's `Event.id`, which it keeps when it is replayed.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: float
    topic: str
    partition: int
    position: int
    reason: str
    traceback: str
    attempts: int
    agent: str
    id: int
    event_id: str = ""

    @classmethod
    def of(cls, record: Record, position: int) -> DeadLetterRecord:
        def text(name: str) -> str:
            return (names.find(record.headers, name) or b"").decode("utf-8", "replace")

        def number(name: str) -> int:
            digits = text(name)
            return int(digits) if digits.lstrip("-").isdigit() else 0

        return cls(
            record.key,
            record.value,
            names.hidden(record.headers),
            number(names.TIMESTAMP) / 1000,
            text(names.TOPIC),
            number(names.PARTITION),
            number(names.POSITION),
            text(names.REASON),
            text(names.TRACEBACK),
            number(names.ATTEMPTS),
            text(names.AGENT),
            position,
            text(names.ID),
        )


def dead_letter_topic(app_id: str, source: str) -> str:
    return f"{app_id}-dead-letters-{source}"


async def read_dead_letters(app: App, source: str) -> AsyncIterator[DeadLetterRecord]:
    """All that lie there now, oldest first; each once, also where an outbox had to send it again."""
    running = app.running
    topic = dead_letter_topic(app.id, source)
    if not running.has_log:
        async for record in running.peek_queue(topic):
            yield DeadLetterRecord.of(record, 0)
        return
    reader = await running.open_log(topic)
    seen: set[tuple[bytes, OutputId]] = set()
    try:
        async for position, record in records_until_now(reader, 0):
            if not _is_copy(record, topic, seen):
                yield DeadLetterRecord.of(record, position)
    finally:
        await reader.close()


def _is_copy(record: Record, topic: str, seen: set[tuple[bytes, OutputId]]) -> bool:
    try:
        origin = origin_of(record.headers, destination_of(topic, 0))
    except DecodeError:
        return False
    if origin is None:
        return False
    known = (origin.journal, origin.id) in seen
    seen.add((origin.journal, origin.id))
    return known


async def replay(app: App, source: str) -> int:
    """Send every dead letter of `source` back where it came from, for the agent that failed; how many.

    Each letter is removed once its message is durable again. If this ends in between, and is done again, agents of a
    topic know the message by its id, and handle it once; those of a queue may handle it twice.
    """
    running = app.running
    plan = app.topics[source]
    topic = dead_letter_topic(app.id, source)
    reader = await running.open_log(topic)
    count = 0
    try:
        last = (await reader.bounds(0)).last
        async for letter in read_dead_letters(app, source):
            ours = ((names.ONLY, letter.agent.encode()), (names.ID, letter.event_id.encode()))
            headers = (*letter.headers, *(pair for pair in ours if pair[1]))
            message = Message(letter.value, letter.key, headers, round(letter.timestamp * 1000))
            if plan.spec.queue:
                await running.put(source, [message])
            else:
                once = names.ONCE, f"{topic}/{letter.id}/{letter.event_id}".encode()
                message = msgspec.structs.replace(message, headers=(*headers, once))
                await running.send(source, {min(letter.partition, plan.partitions - 1): [message]})
            await reader.truncate(0, letter.id + 1)
            count += 1
        if last is not None:
            await reader.truncate(0, last + 1)  # copies, if any
    finally:
        await reader.close()
    return count
