"""The functions that a program hands over, checked where it does so: an error there shows the line to mend."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from .errors import ConfigurationError

__all__ = ["check_function", "is_async"]


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable or an async iterator; wrappers by `functools` are looked through."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    call = getattr(type(function), "__call__", None)  # noqa: B004 - whether it is async is asked, not whether it is there
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (function, call))


def check_function(what: str, function: object, *arguments: str, may_block: bool = False) -> None:
    """Raise ConfigurationError if it cannot be called with so many arguments, or is no async function.

    what: "agent 'total'". arguments: what each is, in a word. may_block: a plain function will do.
    """
    if not callable(function):
        raise ConfigurationError(f"{what}: {function!r} is not a function")
    name = getattr(function, "__name__", "function")
    form = f"async def {name}({', '.join(arguments)})"
    if not (may_block or is_async(function)):
        raise ConfigurationError(f"{what} is not an async function; write `{form}`")
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # some of those written in C do not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ConfigurationError(f"{what} is declared as {name}{signature}; write `{form}`") from None
