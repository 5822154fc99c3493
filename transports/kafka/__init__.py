"""`kafka://host:port,host:port`, and `kafkas://` with TLS: Apache Kafka (tried with 3.9 and 4.3).

A topic is a Kafka topic of its name, its partitions are Kafka's; so are key, value, headers and timestamp. A queue
`orders` is the topic `queue.orders`. With `?prefix=shop.` the names become `shop.withdrawals` and `shop.queue.orders`.
See `names.py` for odd characters, `fencing.py` for the one header that records of a journal have beside their own.
"""

from __future__ import annotations

from .transport import KafkaOptions, KafkaTransport

__all__ = ["KafkaOptions", "KafkaTransport"]
