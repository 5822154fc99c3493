"""How far a group is in one partition: what is finished, what is not, and how often that was delivered.

Kafka keeps a number and a text with each offset that a group commits. The number is the position of the first message
that is not finished. The text says what is finished beyond it, how often the rest was delivered and when it is due, so
that gaps stay gaps and attempts grow when another member takes over.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec
from thalweg.errors import BrokerError
from thalweg.message import Position

__all__ = ["Progress", "Run"]

Run: TypeAlias = tuple[Position, Position, bool, int]
"""Neighbours of which the same is known: start, stop, whether they are finished, else how often they were delivered."""

_MOST_TEXT = 4000
"""Characters. Kafka takes 4,096 (offset.metadata.max.bytes)."""

_VERSION = b"\1"
_FINISHED, _NEW, _ONCE, _OFTEN = range(4)  # the kinds of runs; after _OFTEN comes how often


class Progress(msgspec.Struct, frozen=True):
    """All before `first` is finished; `runs` begin there and follow one another; beyond them nothing is known.

    due: milliseconds since the epoch, by position, of what waits for another attempt.
    """

    first: Position
    runs: Sequence[Run] = []
    due: Mapping[Position, int] = {}

    @property
    def end(self) -> Position:
        return self.runs[-1][1] if self.runs else self.first

    def encode(self) -> tuple[int, str]:
        """Offset and text. What does not fit is left out: first when messages are due, then how often they came.

        Raises BrokerError if what is finished does not fit either.
        """
        if not self.runs:
            return self.first, ""
        for attempts, due in ((True, True), (True, False), (False, False)):
            text = self._text(attempts, due)
            if len(text) <= _MOST_TEXT:
                return self.first, text
        raise BrokerError(
            f"what is finished beyond position {self.first} takes more than {_MOST_TEXT} characters, and Kafka's "
            "offset.metadata.max.bytes is 4096; it can be stored once more of what lies before is finished"
        )

    def _text(self, attempts: bool, due: bool) -> str:
        data = bytearray()
        for start, stop, finished, count in self.runs:
            kind = _FINISHED if finished else _NEW if not count else _ONCE if count == 1 or not attempts else _OFTEN
            _put(data, (stop - start) << 2 | kind)
            if kind == _OFTEN:
                _put(data, count)
        if due and self.due:
            _put(data, 0)
            at = self.first
            for position, milliseconds in sorted(self.due.items()):
                _put(data, position - at)
                _put(data, milliseconds)
                at = position
        return base64.b64encode(_VERSION + zlib.compress(data)).decode()

    @classmethod
    def decode(cls, offset: int, text: str) -> Progress:
        """A text that is not ours says nothing: all from the offset on is new."""
        try:
            raw = base64.b64decode(text, validate=True)
            return cls._read(offset, zlib.decompress(raw[1:])) if raw[:1] == _VERSION else cls(offset)
        except (ValueError, zlib.error, StopIteration):
            return cls(offset)

    @classmethod
    def _read(cls, offset: int, data: bytes) -> Progress:
        numbers = _numbers(data)
        runs: list[Run] = []
        due: dict[Position, int] = {}
        at = offset
        for number in numbers:
            if number == 0:
                break
            kind = number & 3
            count = next(numbers) if kind == _OFTEN else max(0, kind - _NEW)
            runs.append((at, at + (number >> 2), kind == _FINISHED, count))
            at += number >> 2
        at = offset
        for number in numbers:
            at += number
            due[at] = next(numbers)
        return cls(offset, runs, due)


def _put(data: bytearray, number: int) -> None:
    """Seven bits a byte, the lowest first."""
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    data.append(number)


def _numbers(data: Iterable[int]) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0
