"""An event that failed: what the log says of it, and the letter that keeps it."""

from __future__ import annotations

import logging
import sys
import traceback

import msgspec
from thalweg import headers as names
from thalweg.event import Event
from thalweg.message import Headers, Message, Record
from thalweg.policy import Action, Decision

from .lane import Lane
from .tickets import Ticket

__all__ = ["dead_letter", "log_failure", "refused_output", "short_traceback"]

log = logging.getLogger("thalweg")


def log_failure(agent: str, ticket: Ticket, lane: Lane, attempts: int, decision: Decision, error: Exception) -> None:
    """One line while it is retried, with the traceback once it is not. Never the payload."""
    final = decision.action is not Action.RETRY
    log.log(
        logging.ERROR if final else logging.WARNING,
        "agent %s: event %s: attempt %d failed, %s: %s",
        *(agent, ticket.event(None, lane).id, attempts, decision.action.value.replace("_", " "), decision.reason),
        exc_info=error if final else None,
    )


def short_traceback(error: Exception, limit: int = 8000) -> str:
    text = "".join(traceback.format_exception(error))
    return text if len(text) <= limit else text[: limit // 2] + "\n…\n" + text[-limit // 2 :]


def dead_letter(
    agent: str,
    ticket: Ticket,
    reason: str,
    trace: str,
    attempts: int,
    limit: int | None = None,
    head_limit: int | None = None,
) -> Message:
    """The record as it came, bytes intact, with what went wrong in headers.

    limit, head_limit: bytes, in all and of key and headers. What is above loses its traceback first, then its other
    headers, and as the last resort the end of its value, or its key: the reason says so, and where the record lies.
    """
    record = ticket.record
    about = {
        names.AGENT: agent,
        names.REASON: reason,
        names.TRACEBACK: trace,
        names.TOPIC: ticket.input.topic.name,
        names.PARTITION: str(ticket.input.partition),
        names.POSITION: str(ticket.position),
        names.ATTEMPTS: str(attempts),
        names.TIMESTAMP: str(record.timestamp),
        names.ID: Event(ticket.input.topic, record, ticket.input.partition, ticket.position, None, None).id,
    }
    return _letter(record, about, limit, head_limit)


def refused_output(
    topic: str, partition: int, message: Message, reason: str, now: int, limit: int | None, head_limit: int | None
) -> Message:
    """A letter of a message that was sent and that the broker refuses, for its time, perhaps. now: milliseconds.

    It lies nowhere else. Limits as above.
    """
    about = {
        names.AGENT: "",
        names.REASON: reason,
        names.TRACEBACK: "",
        names.TOPIC: topic,
        names.PARTITION: str(max(partition, 0)),
        names.TIMESTAMP: str(message.timestamp),
        names.ID: (names.find(message.headers, names.ID) or b"").decode("utf-8", "replace"),
    }
    return _letter(msgspec.structs.replace(message, timestamp=now), about, limit, head_limit)


def _letter(record: Record, about: dict[str, str], limit: int | None, head_limit: int | None) -> Message:
    trace = about[names.TRACEBACK]

    def letter(value: bytes | None, kept: Headers, key: bytes | None = record.key) -> Message:
        ours = tuple((name, text.encode("utf-8", "replace")) for name, text in about.items())
        return Message(value, key, (*kept, *ours), record.timestamp)

    def spare(message: Message) -> int:
        """Bytes; below 0 it does not fit."""
        of_all = sys.maxsize if limit is None else limit - message.size
        return of_all if head_limit is None else min(of_all, head_limit - message.head)

    kept = names.hidden(record.headers)
    message = letter(record.value, kept)
    if spare(message) >= 0:
        return message
    about[names.TRACEBACK] = ""
    room = spare(letter(record.value, kept))
    if room >= 0:
        about[names.TRACEBACK] = trace.encode("utf-8", "replace")[-room:].decode("utf-8", "ignore") if room else ""
        return letter(record.value, kept)
    whole = len(record.value or b"")
    about[names.REASON] = f"(cut, of {whole} bytes; whole at the position given) {about[names.REASON]}"[:500]
    key = record.key if spare(letter(b"", ())) >= 0 else None
    room = max(0, sys.maxsize if limit is None else limit - letter(b"", (), key).size)
    return letter(record.value if record.value is None else record.value[:room], (), key)
