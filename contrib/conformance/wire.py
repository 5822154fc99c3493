"""How a test and its puppet understand each other: frames of pickle, in which live objects travel as numbers."""

from __future__ import annotations

import io
import pickle
import struct
from asyncio import IncompleteReadError, StreamReader
from collections.abc import Callable
from typing import Any

from thalweg.errors import BrokerError, ThalwegError
from thalweg.message import Batch, Delivery, Message, Record

__all__ = ["Remote", "dump", "error_from", "error_to", "load", "read_frame"]

_LENGTH = struct.Struct(">I")


class Remote:
    """Stands for an object that lives in the puppet: as the handle of a delivery, or as the whole of a claim."""

    def __init__(self, number: int, facts: dict[str, Any]) -> None:
        self.number = number
        self.__dict__.update(facts)


def dump(value: object, keep: Callable[[object], tuple[int, dict[str, Any]] | None]) -> bytes:
    """One frame. keep: the number of an object that must not travel, and what may be known of it; None lets it go."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.keep = keep
    pickler.dump(value)
    data = buffer.getvalue()
    return _LENGTH.pack(len(data)) + data


def load(data: bytes, find: Callable[[int, dict[str, Any]], object]) -> Any:
    """find: the object of a number here, given what is known of it."""
    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.find = find
    return unpickler.load()


async def read_frame(reader: StreamReader) -> bytes | None:
    """None once the other side is gone."""
    try:
        return await reader.readexactly(_LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0])
    except (IncompleteReadError, ConnectionError):
        return None


class _Pickler(pickle.Pickler):
    keep: Callable[[object], tuple[int, dict[str, Any]] | None]

    def persistent_id(self, obj: object) -> Any:
        if isinstance(obj, Delivery):
            kept = self.keep(obj)
            return None if kept is None else ("delivery", kept[0], _plain(obj.record), obj.attempts)
        if isinstance(obj, Batch):
            return ("batch", [_plain(record) for record in obj.records], list(obj.positions))
        kept = self.keep(obj)
        return None if kept is None else ("object", *kept)


class _Unpickler(pickle.Unpickler):
    find: Callable[[int, dict[str, Any]], object]

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == "batch":
            return Batch(*rest)
        if kind == "object":
            return self.find(*rest)
        number, record, attempts = rest
        here = self.find(number, {})
        return here if isinstance(here, Delivery) else Delivery(record, attempts, here)


def _plain(record: Record) -> Message:
    """A driver may hand out objects of its client, which need not travel."""
    return Message(record.value, record.key, tuple(record.headers), record.timestamp)


def error_to(error: BaseException) -> tuple[type[BaseException], tuple[Any, ...], dict[str, Any]]:
    """What to send of it. Errors of Thalweg and Python arrive as they are, others as `BrokerError`s that show them."""
    if isinstance(error, ThalwegError) or type(error).__module__ in ("builtins", "asyncio.exceptions"):
        return type(error), error.args, dict(error.__dict__)
    return BrokerError, (f"{type(error).__module__}.{type(error).__qualname__}: {error}",), {}


def error_from(kind: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind)  # its __init__ may want other arguments than `args`
    error.args = args
    error.__dict__.update(facts)
    return error
