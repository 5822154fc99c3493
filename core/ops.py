"""What a stream does to each value on its way: small steps, each from one value to any number of values."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

__all__ = ["Filter", "FlatMap", "Map", "Op", "run_ops"]


class Op(Protocol):
    @property
    def waits(self) -> bool:
        """Whether `apply` gives an awaitable."""
        ...

    def apply(self, value: Any, /) -> Iterable[Any] | Awaitable[Iterable[Any]]: ...


class _Call:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.waits = inspect.iscoroutinefunction(function)
        self.apply: Callable[[Any], Any] = self._later if self.waits else self._now

    def _now(self, value: Any) -> Iterable[Any]:
        return self.shape(value, self.function(value))

    async def _later(self, value: Any) -> Iterable[Any]:
        return self.shape(value, await self.function(value))

    def shape(self, value: Any, result: Any) -> Iterable[Any]:
        raise NotImplementedError


class Map(_Call):
    def shape(self, value: Any, result: Any) -> Iterable[Any]:
        return (result,)


class Filter(_Call):
    def shape(self, value: Any, result: Any) -> Iterable[Any]:
        return (value,) if result else ()


class FlatMap(_Call):
    def shape(self, value: Any, result: Any) -> Iterable[Any]:
        return result  # type: ignore[no-any-return]


async def run_ops(ops: Sequence[Op], value: Any) -> Iterable[Any]:
    values: Iterable[Any] = (value,)
    for op in ops:
        if op.waits:
            values = [out for value in values for out in await op.apply(value)]  # type: ignore[misc]
        else:
            values = [out for value in values for out in op.apply(value)]  # type: ignore[union-attr]
    return values
