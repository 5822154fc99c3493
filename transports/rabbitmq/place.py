"""Where a queue's messages are put, and where one consumer group takes them from."""

from __future__ import annotations

import msgspec

__all__ = ["Place"]


class Place(msgspec.Struct, frozen=True):
    """kind: quorum, classic, or existing (whatever it is). address: of the exchange, for delays; queue_address: of the
    group's queue. dead_letter: the exchange of the queue to which rejected messages go.
    """

    name: str
    kind: str
    exchange: str
    routing_key: str
    queue: str
    address: str
    queue_address: str
    dead_letter: str = ""
