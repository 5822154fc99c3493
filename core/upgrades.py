"""Rows of a table whose value type has changed: read as they were written, brought up to date as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .codec import DECODE_ERRORS, Codec, TypeCodec, codec_for
from .errors import ConfigurationError, DecodeError
from .text import shortened

__all__ = ["Upgrade", "with_upgrades"]

Upgrade = tuple[Any, Callable[[Any], Any]]
"""A type that the values had once, and what makes the next newer type's of them."""


def with_upgrades(
    table: str, current: TypeCodec[Any], upgrades: Sequence[Upgrade], codec: str | Codec[Any] | None
) -> TypeCodec[Any]:
    """The codec, but what it cannot decode is decoded as an older type, the newest first, and upgraded step by step.

    upgrades: oldest first; each function takes its own type and gives the next one's, the last the current type's.
    What no type decodes raises what the current type's codec says.
    """
    steps = [_checked(table, upgrade, codec) for upgrade in upgrades]
    if not steps:
        return current
    decode_current = current.decode

    def decode(data: bytes) -> Any:
        try:
            return decode_current(data)
        except DECODE_ERRORS as error:
            for number in reversed(range(len(steps))):
                try:
                    value = steps[number][0].decode(data)
                except DECODE_ERRORS:
                    continue
                return _upgraded(table, value, steps[number:])
            raise error

    return TypeCodec(current.encode, decode, current.type_name, current.format, current.form)


def _checked(table: str, upgrade: Any, codec: str | Codec[Any] | None) -> tuple[TypeCodec[Any], Callable[[Any], Any]]:
    if not isinstance(upgrade, tuple) or len(upgrade) != 2 or not callable(upgrade[1]):
        raise ConfigurationError(
            f"table {table!r}: upgrades={upgrade!r}: expected pairs (OldType, function), the oldest first"
        )
    return codec_for(upgrade[0], codec), upgrade[1]


def _upgraded(table: str, value: Any, steps: Sequence[tuple[TypeCodec[Any], Callable[[Any], Any]]]) -> Any:
    for codec, function in steps:
        try:
            value = function(value)
        except Exception as error:
            raise DecodeError(
                f"table {table!r}: a row of the type {codec.type_name} could not be upgraded: "
                f"{type(error).__name__}: {shortened(str(error))}"
            ) from error
    return value
