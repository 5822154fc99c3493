"""The headers that Thalweg itself sets. In sending, users' own `thalweg-*` are stripped; in reading, ours hidden."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from .errors import WrongType
from .message import Headers

__all__ = [
    "AGENT", "ANSWERS", "ASKED", "ATTEMPTS", "CORRELATION", "ERROR", "ID", "MAC", "ONCE", "ONLY", "PARTITION", "PLACED",
    "POSITION", "REASON", "REPLY", "TIMESTAMP", "TOPIC", "TRACEBACK", "UserHeaders", "find", "hidden",
    "identified", "stripped",
]  # fmt: skip

UserHeaders = Mapping[str, str | bytes] | Headers

PREFIX: Final = "thalweg-"
ID: Final = "thalweg-id"  # the event's id, where it is not its position
ONCE: Final = "thalweg-once"  # the id that its sender gave it: of messages with the same one, the first is handled
ONLY: Final = "thalweg-only"  # the one agent this message is for
ANSWERS: Final = "thalweg-answers"  # the agent asked: others that read the same topic do not answer
ASKED: Final = "thalweg-asked"  # among answers: a question for a row, and who of those that read there is meant
REPLY: Final = "thalweg-reply"  # where the answer goes
CORRELATION: Final = "thalweg-correlation"  # which question the answer belongs to
PLACED: Final = "thalweg-placed"  # its sender named the partition, though it has a key
ERROR: Final = "thalweg-error"  # on an answer: the remote traceback
MAC: Final = "thalweg-mac"  # signs the others, where the app has a secret

# on dead letters
REASON: Final = "thalweg-reason"
TRACEBACK: Final = "thalweg-traceback"
TOPIC: Final = "thalweg-topic"
PARTITION: Final = "thalweg-partition"
POSITION: Final = "thalweg-position"
ATTEMPTS: Final = "thalweg-attempts"
TIMESTAMP: Final = "thalweg-timestamp"
AGENT: Final = "thalweg-agent"


def find(headers: Headers, name: str) -> bytes | None:
    for header, value in headers:
        if header == name:
            return value
    return None


def identified(headers: Headers) -> Headers:
    """With an id, for messages that get no position which would tell one from another: `Event.id`."""
    return (*headers, (ID, secrets.token_hex(16).encode()))


def hidden(headers: Headers) -> Headers:
    """What a user sees."""
    return tuple(pair for pair in headers if not pair[0].startswith(PREFIX)) if headers else ()


def stripped(headers: UserHeaders | None) -> Headers:
    """What a user may send: pairs of name and bytes, ours removed, text as UTF-8. Raises WrongType."""
    if not headers:
        return ()
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return tuple((name, _bytes(name, value)) for name, value in pairs if not name.startswith(PREFIX))


def _bytes(name: str, value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise WrongType(f"header {name!r}: expected str or bytes, got {type(value).__name__}")
