"""What things are called on the server: at most 255 bytes, and only characters that AMQP clients let through.

RabbitMQ itself takes any UTF-8, but keeps `amq.` for itself.
"""

from __future__ import annotations

import hashlib
import re

from thalweg.errors import ConfigurationError

__all__ = ["Names"]

_LONGEST = 100  # of each part; a longer one ends in a hash
_LONGEST_PREFIX = 40
_ODD = re.compile(rb"[^A-Za-z0-9_.@#,/ -]")


class Names:
    """All names begin with the URL's `prefix`. What follows a `:` is ours: it never occurs in an escaped topic name.

    Topic `withdrawals`: stream queues `withdrawals:0`, `withdrawals:1`… Queue `emails`: the exchange and the queue
    `emails`, and `emails:GROUP` for a second consumer group. Odd characters become `+` and two hexadecimal digits.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = _escape(prefix)
        if len(self.prefix) > _LONGEST_PREFIX:
            raise ConfigurationError(
                f"?prefix={prefix} is too long: RabbitMQ has names of 255 bytes, and {_LONGEST_PREFIX} are left "
                "for it (letters, digits and ._@#,/- count as one, all others as three or more)"
            )

    def topic(self, name: str, *parts: str | int) -> str:
        """A part of a topic or queue: `withdrawals:3`; without parts, the topic's own name as the server has it."""
        whole = self.prefix + ":".join([_short(name), *(_short(str(part)) for part in parts)])
        return "+61" + whole[1:] if whole.startswith("amq.") else whole

    def own(self, *parts: str | int) -> str:
        """What belongs to no topic: `:topics`, `:delay:3`…"""
        return ":".join([self.prefix, *(_short(str(part)) for part in parts)])

    def address(self, name: str) -> str:
        """One word of a routing key of topic exchanges, which mean something by `.`, `*` and `#`."""
        return _hash(name)


def _escape(name: str) -> str:
    return _ODD.sub(lambda found: b"+%02X" % found[0][0], name.encode()).decode()


def _short(name: str) -> str:
    escaped = _escape(name)
    return escaped if len(escaped) <= _LONGEST else f"{escaped[:67]}+{_hash(name)}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]
