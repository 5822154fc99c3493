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
from thalweg.errors import AccessDenied, BrokerError, ConfigurationError, MessageRefused, MessageTooLarge
from thalweg.journal.outbox import Outbox, OutboxRow, Output
from thalweg.journal.rows import decode, encode, outbox_key, output_key
from thalweg.message import Message
from thalweg.plan import Destination
from thalweg.store import Store

from .complaints import Complaints

__all__ = ["Deliveries"]

log = logging.getLogger("thalweg")

LONGEST_BACKOFF = 2.0
PATIENCE = 30.0
"""Seconds for which a destination may fail, whatever the error, until it is parked."""
PARKED_BACKOFF = 30.0
"""Seconds between two tries of one that is parked, at most; the first comes after one."""
MOST, MOST_BYTES = 10_000, 64 << 20
"""How much waits in the outboxes of a task until its agents wait too."""
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
        room: Callable[[], None],
        complaints: Complaints,
        refused: Callable[[Destination, Message, str], bool],
    ) -> None:
        """changed: told when the journal has something to note. room: that what was `full` is so no more.

        refused: gets a message that the broker never takes, to have it among the dead letters with the next commit;
        whether it will be.
        """
        self._refused = refused
        self._journal, self._epoch, self._clock = journal, epoch, clock
        self._send, self._changed, self._room, self._complaints = send, changed, room, complaints
        self._outboxes: dict[Destination, Outbox] = {}
        self._sending: dict[Destination, asyncio.Task[None]] = {}
        self._settled: dict[Destination, list[bytes]] = {}  # rows to delete with the next commit
        self._waiting = self._bytes = self._commits = 0

    @property
    def full(self) -> bool:
        """So much waits that nothing should be added for the time being."""
        return self._waiting >= MOST or self._bytes >= MOST_BYTES

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
            outbox = Outbox(self._journal, *destination, self._epoch, row, outputs.get(destination, []))
            self._outboxes[destination] = outbox
            self._count(outbox.unconfirmed)

    def _count(self, outputs: Sequence[Output], sign: int = 1) -> None:
        self._waiting += sign * len(outputs)
        self._bytes += sign * sum(len(output.message.value or b"") for output in outputs)

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
            added = [outbox.add(message) for message in messages]
            for output in added:
                rows[output_key(*destination, output.id)] = encode(output)
            self._count(added)
            counts[destination] = len(messages)
        for destination in {*counts, *self._settled}:
            rows.update(dict.fromkeys(self._settled.pop(destination, ())))
            rows[outbox_key(*destination)] = encode(self._outboxes[destination].row)
        return counts

    def may_join(self, destination: Destination) -> bool:
        """Whether an output to this destination may be part of the commit itself: nothing is ahead of it, and no other
        partition of its topic is parked, or the whole commit might be refused."""
        outbox = self._outboxes.get(destination)
        if outbox is not None and not outbox.clear:
            return False
        return not any(one.parked and topic == destination[0] for (topic, _), one in self._outboxes.items())

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
        self._commits += 1
        for destination, count in counts.items():
            self._outboxes[destination].committed(count)
            self._pump(destination)

    @property
    def news(self) -> bool:
        """Whether something was confirmed, or is parked, that the journal does not know yet."""
        return bool(self._settled)

    def _pump(self, destination: Destination) -> None:
        sending = self._sending.get(destination)
        if sending is None or sending.done():
            name = f"thalweg outbox {destination[0]}"
            self._sending[destination] = asyncio.get_running_loop().create_task(self._deliver(destination), name=name)

    async def _deliver(self, destination: Destination) -> None:
        outbox = self._outboxes[destination]
        backoff, since, commits = 0.1, self._clock.now(), self._commits
        while messages := outbox.to_send():
            sent = outbox.unconfirmed[: len(messages)]
            try:
                await self._send(destination[0], {destination[1]: messages})
            except Exception as error:  # whatever it was, nobody knows what was written: all of it goes again
                if isinstance(error, MessageRefused) and self._set_aside(destination, sent, str(error)):
                    continue
                outbox.failed()
                for_good = isinstance(error, AccessDenied | ConfigurationError | MessageTooLarge)
                for_long = self._clock.now() - since >= PATIENCE and self._commits > commits
                if outbox.parked:
                    backoff = min(2 * backoff, PARKED_BACKOFF)
                elif for_good or for_long:
                    backoff = 1.0
                    self._park(destination, str(error))
                else:
                    self._complain(destination, backoff, error)
                await self._clock.sleep(backoff)
                backoff = backoff if outbox.parked else min(backoff * 2, LONGEST_BACKOFF)
                continue
            backoff, since, commits = 0.1, self._clock.now(), self._commits
            if outbox.parked:
                outbox.parked = ""
                log.warning("outputs to %s are taken again; what was held back follows", _place(destination))
            outbox.confirmed(len(messages))
            self._done_with(destination, sent)

    def _done_with(self, destination: Destination, sent: Sequence[Output]) -> None:
        self._settled.setdefault(destination, []).extend(output_key(*destination, output.id) for output in sent)
        full = self.full
        self._count(sent, -1)
        self._changed()
        if full and not self.full:
            self._room()

    def _set_aside(self, destination: Destination, sent: Sequence[Output], reason: str) -> bool:
        """One of these is refused: of many, find it; a single one is given up, so that the others follow."""
        outbox = self._outboxes[destination]
        if len(sent) > 1:
            outbox.failed()
            outbox.singly = True
            return True
        if not self._refused(destination, sent[0].message, reason):
            return False
        outbox.confirmed(1)
        outbox.singly = False
        self._done_with(destination, sent)
        return True

    def _complain(self, destination: Destination, backoff: float, error: Exception) -> None:
        self._complaints.warn(
            f"outputs: {type(error).__name__}",
            "outputs to %s failed, again in %.1f s: %s",
            *(_place(destination), backoff, error),
            exc_info=None if isinstance(error, BrokerError) else error,
        )

    def _park(self, destination: Destination, reason: str) -> None:
        log.error(
            "outputs to %s are held back, and kept: %s. They follow by themselves once it takes them; when %d "
            "messages wait, the task's agents do too",
            *(_place(destination), reason, MOST),
        )
        self._outboxes[destination].parked = reason or "it failed"
        self._settled.setdefault(destination, [])  # so that the next commit notes it
        self._changed()

    async def settle(self) -> None:
        """Return when all that was committed has been sent or is held back, or after `SETTLE` seconds.

        Real ones: a destination that is away must not hold up a stop, and loses nothing by waiting for the next owner.
        """
        sending = [sending for to, sending in self._sending.items() if not self._outboxes[to].parked]
        if sending:
            await asyncio.wait(sending, timeout=SETTLE)

    async def stop(self) -> None:
        for sending in self._sending.values():
            sending.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)


def _place(destination: Destination) -> str:
    topic, partition = destination
    return topic if partition < 0 else f"{topic}/{partition}"
