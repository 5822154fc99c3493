"""Signatures of what Thalweg says in headers: with `App(secret=…)` only who knows it is believed (design rule 15).

A message that has headers of ours gets one more, `thalweg-mac`: the first 16 bytes of HMAC-SHA256 over topic,
partition, key, value and those headers. So who may write to a topic, but does not know the secret, can write messages,
and no ids or addresses for answers; and what is copied to another topic or partition says nothing there.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

import msgspec

from .errors import ConfigurationError
from .headers import MAC, PREFIX, find
from .message import Headers, Message, Record

__all__ = ["QUEUED", "Signer", "room_of", "signer_of"]

MAC_BYTES = 16
SIZE = len(MAC) + MAC_BYTES
"""What a signature adds to `Message.size`."""
SHORTEST = 16
QUEUED = -1
"""Instead of a partition: a queue gives none that its sender knows."""


def signer_of(secret: str | None) -> Signer | None:
    """secret: one or several, separated by blanks: the first signs, all are believed. Raises ConfigurationError."""
    if secret is None:
        return None
    secrets = secret.split() if isinstance(secret, str) else []
    if not secrets or min(map(len, secrets)) < SHORTEST:
        raise ConfigurationError(
            f"secret=***: expected a str of {SHORTEST} characters or more, or several such, separated by blanks; a "
            "good one is what `secrets.token_urlsafe()` gives"
        )
    return Signer([one.encode() for one in secrets])


def room_of(limit: int | None, signer: Signer | None) -> int | None:
    """Of a limit of bytes, what is left for a message without its signature."""
    return limit if limit is None or signer is None else limit - SIZE


class Signer:
    """secrets: the first is for signing; all are believed, so that one can take the place of another."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._keys = [hmac.new(secret, b"", hashlib.sha256) for secret in secrets]

    def signed(self, topic: str, partition: int, messages: Sequence[Message]) -> Sequence[Message]:
        """Those with headers of ours signed."""
        if not any(message.headers and _is_ours(message.headers) for message in messages):
            return messages
        return [
            self._signed(topic, partition, message) if _is_ours(message.headers) else message for message in messages
        ]

    def all_signed(self, topic: str, records: Mapping[int, Sequence[Message]]) -> Mapping[int, Sequence[Message]]:
        """Likewise, by partition."""
        return {partition: self.signed(topic, partition, messages) for partition, messages in records.items()}

    def believed(self, topic: str, partition: int, record: Record) -> Record:
        """The record, without headers of ours unless they are signed."""
        headers = record.headers
        if not headers or not _is_ours(headers):
            return record
        given = find(headers, MAC) or b""
        if any(hmac.compare_digest(given, _mac(key, topic, partition, record)) for key in self._keys):
            return record
        foreign = tuple(pair for pair in headers if not pair[0].startswith(PREFIX))
        return Message(record.value, record.key, foreign, record.timestamp)

    def _signed(self, topic: str, partition: int, message: Message) -> Message:
        mac = _mac(self._keys[0], topic, partition, message)
        unsigned = tuple(pair for pair in message.headers if pair[0] != MAC)
        return msgspec.structs.replace(message, headers=(*unsigned, (MAC, mac)))


def _is_ours(headers: Headers) -> bool:
    return any(name.startswith(PREFIX) for name, _ in headers)


def _mac(key: hmac.HMAC, topic: str, partition: int, message: Record) -> bytes:
    """A copied HMAC costs half of a new one. Each part with its length, or two parts could pass for others."""
    mac = key.copy()
    parts = [topic.encode(), b"%d" % partition, message.key, message.value]
    for name, value in message.headers:
        if name.startswith(PREFIX) and name != MAC:
            parts += [name.encode(), value]
    for part in parts:
        mac.update(b"-" if part is None else b"%d:" % len(part))
        mac.update(part or b"")
    return mac.digest()[:MAC_BYTES]
