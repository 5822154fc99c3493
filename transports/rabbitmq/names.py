"""What things are called on the server: at most 255 bytes, and no more than the characters that AMQP's clients allow.

RabbitMQ itself takes any UTF-8, but keeps `amq.` for itself.
"""

from __future__ import annotations

import hashlib
import re

from thalweg.errors import ConfigurationError

__all__ = ["Names"]

_LONGEST = 255  # bytes
_ODD = re.compile(rb"[^A-Za-z0-9_.@#,/ -]")


class Names:
    """All names begin with the URL's `prefix`. What follows a `:` is ours: it never occurs in an escaped topic name.

    Topic `withdrawals`: stream queues `withdrawals:0`, `withdrawals:1`… Queue `emails`: the exchange and the queue
    `emails`, and `emails:GROUP` for a second consumer group.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = _escape(prefix)

    def topic(self, name: str, *parts: str | int) -> str:
        """A part of a topic or queue: `withdrawals:3`; without parts, the topic's own name as the server has it."""
        whole = self.prefix + ":".join([_escape(name), *(_escape(str(part)) for part in parts)])
        if whole.startswith("amq."):
            whole = "+61" + whole[1:]
        return _checked(whole, name)

    def own(self, *parts: str | int) -> str:
        """What belongs to no topic: `:topics`, `:delay:3`…"""
        whole = ":".join([self.prefix, *(_escape(str(part)) for part in parts)])
        return _checked(whole, str(parts[-1]))

    def address(self, name: str) -> str:
        """One word of a routing key of topic exchanges, which mean something by `.`, `*` and `#`."""
        return hashlib.sha256(name.encode()).hexdigest()[:32]


def _escape(name: str) -> str:
    return _ODD.sub(lambda found: b"+%02X" % found[0][0], name.encode()).decode()


def _checked(whole: str, name: str) -> str:
    size = len(whole.encode())
    if size > _LONGEST:
        raise ConfigurationError(
            f"the name {name[:60]!r}… is too long: RabbitMQ takes {_LONGEST} bytes, this one has {size} with ?prefix= "
            "and what the driver adds; choose a shorter one"
        )
    return whole
