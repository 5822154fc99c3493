"""The producer's side of exactly-once where outputs do not commit atomically: an outbox a destination partition.

Outputs get their ids when a commit is built, lie in its journal record, and are sent only once that record counts.
They leave in order, many at a time, and each copy tells the newest id confirmed by then (see `origin.py`). After an
error everything from the first unconfirmed on is sent again under its original id; the consumer's inbox sorts it out.
Whoever takes the task over finds the unconfirmed outputs in the journal. How far they were confirmed is journaled with
the next commit only: too low a figure costs copies, never a loss.

Two limits make the consumer's work bounded and certain to end:
- At most `WINDOW` outputs are under way. So a consumer never has more than that of one producer to set aside.
- The last output waits until all before it are confirmed. So the newest record always says that nothing before it is
  missing, and a consumer that started in the middle need not wait for a next output that may never come. It costs the
  last output of a burst one more round trip; single ones leave at once.

Pure logic, no I/O. The order of calls: `add` while the commit is built, `committed` when its record counts, then
`to_send`, `confirmed` and `failed` as the broker answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec
from thalweg.message import Message, QueueMessage

from .origin import NONE_YET, Origin, OutputId, destination_of

__all__ = ["WINDOW", "Outbox", "OutboxRow", "Output"]

WINDOW = 1024
"""Most outputs that one outbox has under way."""


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An output as its commit's journal record holds it."""

    id: OutputId
    prev: OutputId
    message: Message | QueueMessage


class OutboxRow(msgspec.Struct, frozen=True, array_like=True):
    """What the journal keeps of an outbox besides its unconfirmed outputs: the newest id given, and confirmed.

    parked: why its destination takes nothing, if so.
    """

    last: OutputId = NONE_YET
    confirmed: OutputId = NONE_YET
    parked: str = ""


class Outbox:
    """The outputs of one task to one partition of one topic."""

    def __init__(
        self,
        journal: bytes,
        topic: str,
        partition: int,
        epoch: int,
        row: OutboxRow | None = None,
        outputs: Iterable[Output] = (),
    ) -> None:
        """`journal`: its UUID (16 bytes). `epoch`: of this owner, above every epoch before it.

        After a recovery, `row` is the newest in the journal and `outputs` are all of its committed outputs that may be
        unconfirmed, in order; those that `row` knows to be confirmed are left out.
        """
        row = row or OutboxRow()
        if epoch <= row.last[0]:
            raise ValueError(f"epoch {epoch} is not above {row.last[0]}, the epoch of the newest output")
        self.topic, self.partition = topic, partition
        self.parked = row.parked
        """Why the destination takes nothing, if so: then one output at a time is tried. To be set by the sender."""
        self.singly = False
        """Likewise, to find the one among many that is refused."""
        self._journal, self._destination, self._epoch = journal, destination_of(topic, partition), epoch
        self._last, self._confirmed = row.last, row.confirmed
        # The unconfirmed outputs in order: first `_sent` that are under way, up to `_committed` those that may leave.
        self._outputs: deque[Output] = deque(output for output in outputs if output.id > row.confirmed)
        self._committed = len(self._outputs)
        self._sent = 0

    # --- while a commit is built ---

    def add(self, message: Message) -> Output:
        """Give `message` the next id. It waits for `committed`; what is returned belongs into the journal record."""
        prev, self._last = self._last, (self._epoch, self._last[1] + 1)
        output = Output(self._last, prev, message)
        self._outputs.append(output)
        return output

    @property
    def clear(self) -> bool:
        """Whether nothing unconfirmed is ahead, so that outputs may join the commit itself (`direct`)."""
        return not self._outputs

    def direct(self, messages: Sequence[Message]) -> list[Message]:
        """As `add`, for outputs that are written in one atomic step with the journal record, in this order.

        Returns what to write. They count as confirmed at once: if the commit fails, the task ends with it.
        """
        if self._outputs:
            raise ValueError(
                f"{len(self._outputs)} unconfirmed outputs are ahead: only a clear outbox has direct outputs"
            )
        written = []
        for message in messages:
            prev = self._last
            self._last = self._confirmed = (self._epoch, prev[1] + 1)
            written.append(self._addressed(message, self._last, prev, prev))
        return written

    @property
    def row(self) -> OutboxRow:
        """For the journal record being built, and for snapshots."""
        return OutboxRow(self._last, self._confirmed, self.parked)

    # --- once commits count ---

    def committed(self, count: int) -> None:
        """The next `count` added outputs are in a journal record that counts: they may leave."""
        if not 0 <= count <= len(self._outputs) - self._committed:
            raise ValueError(
                f"{count} outputs committed, but {len(self._outputs) - self._committed} were waiting for it"
            )
        self._committed += count

    def to_send(self) -> list[Message]:
        """What may leave now, in order, ids attached. Report on it by `confirmed` or `failed`."""
        ready = self._committed if self._committed <= 1 else self._committed - 1
        first, self._sent = self._sent, max(self._sent, min(ready, 1 if self.parked or self.singly else WINDOW))
        return [
            self._addressed(output.message, output.id, output.prev, self._confirmed)
            for output in islice(self._outputs, first, self._sent)
        ]

    def confirmed(self, count: int) -> None:
        """The broker has durably taken the first `count` of those under way, or they are given up."""
        if not 0 <= count <= self._sent:
            raise ValueError(f"{count} outputs confirmed, but {self._sent} were under way")
        for _ in range(count):
            self._confirmed = self._outputs.popleft().id
        self._sent -= count
        self._committed -= count

    def failed(self) -> None:
        """Nobody knows about those under way: `to_send` gives all of them again."""
        self._sent = 0

    @property
    def unconfirmed(self) -> tuple[Output, ...]:
        """The committed outputs that are not known to be confirmed, in order: what a snapshot must hold."""
        return tuple(islice(self._outputs, self._committed))

    def _addressed(self, message: Message, id: OutputId, prev: OutputId, floor: OutputId) -> Message:
        header = Origin(self._journal, id, prev, floor).header(self._destination)
        return msgspec.structs.replace(message, headers=(*message.headers, header))
