"""`redis://host:port/database`, and `rediss://` with TLS: Redis 7.0 or newer, or Valkey, as a broker.

A program without Thalweg writes to partition 3 of topic `withdrawals`, and reads it, with any client:

    XADD {3}:withdrawals * key ada value '{"amount": 5}'
    XRANGE {3}:withdrawals - + COUNT 100

Fields: `key` (may be missing), `value` (missing: a tombstone), `timestamp` in milliseconds since the epoch (missing:
that of the entry's id), and `header:NAME` for each header, in order; a name may occur twice. A queue `orders` is the
streams `queue:{orders}:0` to `:9`, by priority; with a field `expires` (milliseconds since the epoch) a message is
dropped undelivered.

With `?prefix=shop.` the names become `{3}:shop.withdrawals` and `queue:{shop.orders}:0`.

On a Redis Cluster, all that a URL names lies in one slot, hence on one node, so that a commit and its outputs remain
one step: its hash tag is the prefix, or `thalweg`, and goes before all others: `{shop.}{3}:shop.withdrawals`,
`queue:{shop.}{shop.orders}:0`. Programs with other prefixes use other slots. The connection follows the slot to
whichever node has it; while it is being moved, calls wait.
"""

from __future__ import annotations

from .transport import RedisOptions, RedisTransport

__all__ = ["RedisOptions", "RedisTransport"]
