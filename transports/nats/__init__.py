"""`nats://host:port`, and `tls://`: NATS JetStream, 2.11 or newer (2.12: exactly once for foreign readers too).

A program without Thalweg writes to partition 3 of topic `withdrawals`, and reads it, with any client:

    nats pub thalweg.log.withdrawals.3 '{"amount": 5}' -H thalweg-key:ada
    nats sub --stream thalweg 'thalweg.log.withdrawals.3'

The payload is the value. Headers: `thalweg-key` (may be missing), `thalweg-time` in milliseconds since the epoch
(missing: when the server stored it), `thalweg-tombstone` (no value at all, which differs from an empty one); all others
are the message's own, in order. In their names and values %XX stands for a byte that a header cannot carry. In subjects
and names of streams =XX stands for a byte of what is no letter, digit, `_` or `-`.

All topics lie in the stream that `?prefix=` names (`thalweg`), so that one atomic batch reaches all of them. A queue
`orders` is the stream `thalweg+queue+orders` with the subject `thalweg.queue.orders`; `thalweg-delay` and
`thalweg-expires` are seconds since the message was stored, before which it is not delivered and after which it is
dropped.
"""

from __future__ import annotations

from .options import NatsOptions
from .transport import NatsTransport

__all__ = ["NatsOptions", "NatsTransport"]
