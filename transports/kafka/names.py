"""How topics and queues are called on the broker: `<prefix>name`, `<prefix>queue.name`, odd characters escaped.

Kafka takes letters, digits, `.`, `_` and `-`. Any other character becomes `_-<its code point in hex>-_`, so that what
other programs call their topics stays as it is: `a b` is `a_-20-_b`. Kafka takes no two names that differ in `.` and
`_` only: of those, the second has its own escaped, so that `a_b` becomes `a_-5f-_b` where there is an `a.b`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from thalweg.errors import ConfigurationError

__all__ = ["NAME_BYTES", "check_prefix", "kafka_names", "plain_name"]

NAME_BYTES = 249
"""The longest name that Kafka takes."""

_QUEUE = "queue."
_NOTHING = "_-x-_"
_ESCAPE = re.compile(r"_-([0-9a-f]{1,6}|x)-_")
_ODD = re.compile(
    r"[^A-Za-z0-9._-]|_(?=-(?:[0-9a-f]{1,6}|x)-_)"
)  # an underscore only where it would look like an escape
_ODD_OR_ALIKE = re.compile(r"[^A-Za-z0-9-]")


def kafka_names(prefix: str, name: str, queue: bool) -> Sequence[str]:
    """What it is called, and what it is called if the broker says that this is too much like another name.

    Raises ConfigurationError if it is too long.
    """
    first = _kafka_name(prefix, name, queue, _ODD)
    if "." in name or "_" in name:
        return first, _kafka_name(prefix, name, queue, _ODD_OR_ALIKE)
    return (first,)


def _kafka_name(prefix: str, name: str, queue: bool, odd: re.Pattern[str]) -> str:
    escaped = odd.sub(lambda match: _escape(match[0]), name)
    if not queue and escaped.startswith(_QUEUE):
        escaped = f"queue{_escape('.')}{escaped.removeprefix(_QUEUE)}"
    found = f"{prefix}{_QUEUE if queue else ''}{escaped}"
    if found in ("", ".", ".."):
        found = _escape(".") * len(found) or _NOTHING
    if len(found) > NAME_BYTES:
        raise ConfigurationError(
            f"topic {name!r} would be called {found!r} on Kafka, which takes {NAME_BYTES} characters of {len(found)}"
        )
    return found


def plain_name(prefix: str, found: str) -> tuple[str, bool] | None:
    """The name behind a Kafka topic, and whether it is a queue; None for one that lacks the prefix."""
    if not found.startswith(prefix):
        return None
    name = found.removeprefix(prefix)
    queue = name.startswith(_QUEUE)
    name = name.removeprefix(_QUEUE) if queue else name
    return _ESCAPE.sub(_character, name), queue


def check_prefix(prefix: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]*", prefix):
        raise ConfigurationError(
            f"prefix={prefix!r}: names of Kafka's topics, and so a prefix, have letters, digits, '.', '_' and '-'"
        )
    return prefix


def _escape(character: str) -> str:
    return f"_-{ord(character):x}-_"


def _character(match: re.Match[str]) -> str:
    if match[0] == _NOTHING:
        return ""
    code = int(match[1], 16)
    return chr(code) if code < 0x110000 else match[0]
