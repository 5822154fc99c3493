"""Notices that a topic has got more partitions than it had when the worker started, for nobody reads the new ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from thalweg.channel import Transport
from thalweg.clock import Clock
from thalweg.errors import BrokerError
from thalweg.plan import TopicPlan

__all__ = ["LOOK_EVERY", "watch_growth"]

log = logging.getLogger("thalweg")

LOOK_EVERY = 60.0
"""Seconds."""


async def watch_growth(transport: Transport, topics: Iterable[TopicPlan], clock: Clock) -> None:
    """Without end. Each growth of one of these topics is an error in the log, said once."""
    known = {topic.name: topic.partitions for topic in topics}
    while True:
        await clock.sleep(LOOK_EVERY)
        try:
            found = {info.name: info.partitions for info in await transport.topics()}
        except BrokerError as error:
            log.debug("whether topics have grown is not known this time: %s", error)
            continue
        for name, before in known.items():
            now = found.get(name, before)
            if now > before:
                known[name] = now
                log.error(
                    "topic %r has %d partitions now, and had %d: nobody reads what lies in the new ones, and keys that "
                    "other programs place anew no longer meet their rows. Restart all workers: without tables they go "
                    "on with all partitions; where state would be orphaned they say so, and what to do",
                    *(name, now, before),
                )
