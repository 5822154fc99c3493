"""Outputs that cannot join the commit: to queues always, to logs where the broker has no fencing (design rule 4), or
where its commits hold fewer messages than these.

They lie in the journal until their destination has confirmed them; after an error, or by the next owner, they are sent
again under their own ids, and a Thalweg consumer of a log drops the copies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from thalweg.clock import Clock
from thalweg.errors import BrokerError, ConfigurationError, MessageTooLarge
from thalweg.journal.outbox import Outbox, OutboxRow, Output
from thalweg.journal.rows import decode, encode, outbox_key, output_key
from thalweg.message import Message
from thalweg.plan import Destination
from thalweg.store import Store

from .complaints import Complaints

__all__ = ["Deliveries"]

log = logging.getLogger("thalweg")

LONGEST_BACKOFF = 2.0
SETTLE = 5.0
"""Seconds that a task which is given up in good order waits for its last outputs."""
Send = Callable[[str, Mapping[int, Sequence[Message]]], Awaitable[None]]


class Deliveries:
    """The outboxes of one task, and the sending of what lies in them."""

    def __init__(
        self,
        journal: bytes,
        epoch: int,
        clock: Clock,
        send: Send,
        changed: Callable[[], None],
        complaints: Complaints,
    ) -> None:
        self._journal, self._epoch, self._clock = journal, epoch, clock
        self._send, self._changed, self._complaints = send, changed, complaints
        self._outboxes: dict[Destination, Outbox] = {}
        self._sending: dict[Destination, asyncio.Task[None]] = {}
        self._confirmed: dict[Destination, list[bytes]] = {}  # rows to delete with the next commit

    def restore(self, store: Store) -> None:
        """What the last owner left unconfirmed."""
        outputs: dict[Destination, list[Output]] = {}
        for key, value in store.scan(b"u", b"v"):
            topic, partition, _ = key[1:].split(b"\0", 2)
            outputs.setdefault((topic.decode(), int(partition)), []).append(decode(value, type=Output))
        for key, value in store.scan(b"v", b"w"):
            topic, partition = key[1:].split(b"\0", 1)
            destination = (topic.decode(), int(partition))
            row = decode(value, type=OutboxRow)
            left = outputs.get(destination, [])
            self._outboxes[destination] = Outbox(self._journal, *destination, self._epoch, row, left)

    def start(self) -> None:
        for destination in self._outboxes:
            self._pump(destination)

    def add(
        self, outputs: Mapping[Destination, Sequence[Message]], rows: dict[bytes, bytes | None]
    ) -> dict[Destination, int]:
        """Put outputs into the commit being built; how many of each destination, for `committed`."""
        counts: dict[Destination, int] = {}
        for destination, messages in outputs.items():
            outbox = self._outboxes.get(destination)
            if outbox is None:
                outbox = self._outboxes[destination] = Outbox(self._journal, *destination, self._epoch)
            for message in messages:
                output = outbox.add(message)
                rows[output_key(*destination, output.id)] = encode(output)
            counts[destination] = len(messages)
        for destination in {*counts, *self._confirmed}:
            rows.update(dict.fromkeys(self._confirmed.pop(destination, ())))
            rows[outbox_key(*destination)] = encode(self._outboxes[destination].row)
        return counts

    def may_join(self, destination: Destination) -> bool:
        """Whether nothing is ahead of an output to this destination, so that it may be part of the commit itself."""
        outbox = self._outboxes.get(destination)
        return outbox is None or outbox.clear

    def join(
        self, outputs: Mapping[Destination, list[Message]], rows: dict[bytes, bytes | None]
    ) -> Mapping[Destination, list[Message]]:
        """The outputs as they are to be written with the commit being built.

        Where others were sent before, they carry on their numbers: a late copy of those is known by it.
        """
        if outputs.keys().isdisjoint(self._outboxes):
            return outputs
        joining = dict(outputs)
        for destination in outputs.keys() & self._outboxes.keys():
            outbox = self._outboxes[destination]
            joining[destination] = outbox.direct(outputs[destination])
            rows[outbox_key(*destination)] = encode(outbox.row)
        return joining

    def committed(self, counts: Mapping[Destination, int]) -> None:
        for destination, count in counts.items():
            self._outboxes[destination].committed(count)
            self._pump(destination)

    @property
    def news(self) -> bool:
        """Whether something was confirmed that the journal does not know yet."""
        return bool(self._confirmed)

    def _pump(self, destination: Destination) -> None:
        sending = self._sending.get(destination)
        if sending is None or sending.done():
            name = f"thalweg outbox {destination[0]}"
            self._sending[destination] = asyncio.get_running_loop().create_task(self._deliver(destination), name=name)

    async def _deliver(self, destination: Destination) -> None:
        outbox = self._outboxes[destination]
        backoff = 0.1
        while messages := outbox.to_send():
            ids = [output.id for output in outbox.unconfirmed[: len(messages)]]
            try:
                await self._send(destination[0], {destination[1]: messages})
            except (ConfigurationError, MessageTooLarge) as error:
                outbox.park(str(error))
                log.critical(
                    "outputs to %s/%d are held back, and kept: %s. Mend the cause and restart the worker",
                    *destination,
                    error,
                )
                return
            except Exception as error:  # whatever it was, nobody knows what was written: all of it goes again
                self._complaints.warn(
                    f"outputs: {type(error).__name__}",
                    "outputs to %s/%d failed, again in %.1f s: %s",
                    *(*destination, backoff, error),
                    exc_info=None if isinstance(error, BrokerError) else error,
                )
                outbox.failed()
                await self._clock.sleep(backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF)
                continue
            backoff = 0.1
            outbox.confirmed(len(messages))
            self._confirmed.setdefault(destination, []).extend(output_key(*destination, id) for id in ids)
            self._changed()

    async def settle(self) -> None:
        """Return when all that was committed has been sent or is held back, or after `SETTLE` seconds.

        Real ones: a destination that is away must not hold up a stop, and loses nothing by waiting for the next owner.
        """
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=SETTLE)

    async def stop(self) -> None:
        for sending in self._sending.values():
            sending.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)
