"""The event that a lane has open: what it is, and what the agent has done for it.

Its rows, sends and answers are kept apart here, and join the task's next commit when it is finished.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from thalweg.clock import Clock
from thalweg.codec import ENCODE_ERRORS, explain_encode
from thalweg.errors import MessageTooLarge, TooManyOutputs
from thalweg.event import event_time, order_time
from thalweg.message import Message, Record
from thalweg.plan import AgentPlan, Destination

from .tables import TableState, TableView
from .tickets import Part, Ticket, asked

if TYPE_CHECKING:
    from .lane import Lane
    from .tables import TablePlan

__all__ = ["Host", "OpenEvent", "Rerun"]

Change = tuple["Change | None", TableState, Any, Any]
"""The change before, and of this one: table, key, value before. A chain is 30 ns an event cheaper than a list."""


class Rerun(BaseException):
    """The event touched a table while another event had its turn: undo it and run it again, in its turn.

    Not an Exception, so that an agent's own `except Exception` lets it pass.
    """


class Host(Protocol):
    """What a lane asks of the task (or queue) that it works for."""

    plan: AgentPlan
    clock: Clock
    max_event_outputs: int

    def room(self, destination: Destination) -> int | None:
        """The largest message, in bytes, that an event may send there; None: no limit."""
        ...

    @property
    def draining(self) -> bool:
        """No further event may begin: `next` never returns."""
        ...

    @property
    def app(self) -> object:
        """Whose events these are: sends to another app's topics are not part of the commit."""
        ...

    def judged(self, ticket: Ticket) -> bool:
        """Whether `admit` has a verdict to carry out on it."""
        ...

    async def next(self, lane: Lane, until: float | None = None) -> Part | None:
        """The next part; None when the clock reached `until` (seconds since the epoch)."""
        ...

    @property
    def commit_waits(self) -> bool:
        """An open event held up a commit: `let_commit` before another one does."""
        ...

    async def let_commit(self) -> None: ...

    def admit(self, lane: Lane, ticket: Ticket) -> bool:
        """False: the ticket has been dealt with (parked, dead-lettered, a duplicate…), do not run it."""
        ...

    @property
    def takes_turns(self) -> bool: ...
    async def enter(self, timestamp: int) -> int: ...
    def adopt(self) -> None: ...
    def leave(self) -> None: ...

    def waits(self) -> None:
        """The open event waits for what others do."""
        ...

    def finished(self, lane: Lane, tickets: Sequence[Ticket]) -> None:
        """Outputs and answers of a finished event, and (outside the fast path) its tickets."""
        ...

    async def failed(self, lane: Lane, tickets: list[Ticket], error: Exception) -> None:
        """Undo, decide, and give the tickets back to the lane (`lane.give_back`) or keep them."""
        ...

    async def returned(self, lane: Lane, progress: bool) -> None:
        """The agent function returned though its stream goes on: it will be called again."""
        ...

    def undecodable(self, lane: Lane, ticket: Ticket, error: Exception) -> None: ...

    def other_lanes(self, lane: OpenEvent) -> Sequence[OpenEvent]:
        """Those whose open events have changed rows."""
        ...

    def table(self, plan: TablePlan) -> TableState | None:
        """None where tables cannot be written (queues)."""
        ...


class OpenEvent:
    """Part of a lane, which opens one event after another."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.plan = host.plan
        self.app = host.app
        self._max_outputs = host.max_event_outputs
        smallest_room = host.room(("", -1))  # of a queue: its outputs never join a commit
        self._fits_anywhere = sys.maxsize if smallest_room is None else smallest_room
        self.part: Part | None = None  # what the lane works on
        self.record: Record | None = None  # open in the fast path
        self.tickets: Sequence[Ticket] = ()  # open in the slow path
        self.undo: Change | None = None  # the newest
        self.lent: dict[tuple[TableState, Any], None] = {}
        self.tainted = False  # a mutable value with older uncommitted changes was lent out: only a rollback undoes it
        self.entered = False  # it is this agent's turn, for events up to `_turn_until` (ms)
        self._turn_until = -1
        self.outputs: list[tuple[Destination, Message]] = []
        self.answers: list[tuple[Record, bytes]] = []
        self.asks = 0
        self._paused = False
        self.attention = False  # after this event there is more to do than to go on
        self._disturbed = False  # others wait for a turn, or no event may begin any more
        self.views: dict[str, TableView] = {}

    # --- what the open event is ---------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        return self.record is not None or bool(self.tickets)

    @property
    def open_record(self) -> Record | None:
        """The open event's record; None for a `take` of several."""
        return self.record or (self.tickets[0].record if len(self.tickets) == 1 else None)

    @property
    def key_bytes(self) -> bytes | None:
        """The open event's key (None too for a `take` of several)."""
        record = self.open_record
        return None if record is None else record.key

    @property
    def timestamp(self) -> int:
        """The open event's, in milliseconds; of a `take`, the latest."""
        record = self.record
        if record is not None and self.part is not None:
            topic = self.part.input.topic
            return record.timestamp if topic.timestamp_of is None else event_time(topic, record)
        return max((event_time(t.input.topic, t.record) for t in self.tickets), default=0)

    @property
    def event_id(self) -> str:
        """The id of the open event (its first one, in a `take`)."""
        ticket = self.tickets[0] if self.tickets else next(self.part.rest()) if self.part and self.record else None
        return "" if ticket is None else ticket.event(None, self).id

    def ask_id(self) -> str:
        """The id of this event's next question: the same at every attempt."""
        self.asks += 1
        return f"{self.event_id}/ask-{self.asks}"

    async def pause(self) -> None:
        """The open event waits for an answer: others may have the turn, unless it has touched a table."""
        self.host.waits()
        self._paused = self.entered and not self.touched
        if self._paused:
            self._leave()

    async def resume(self) -> None:
        if self._paused:
            self._paused = False
            await self._enter(max((order_time(t.input.topic, t.record) for t in self.tickets), default=0))

    async def _enter(self, timestamp: int) -> None:
        """Have the turn for an event of this timestamp; kept from event to event while no other agent's is earlier."""
        if self.entered:
            if timestamp <= self._turn_until:
                return
            self._leave()
        self._turn_until = await self.host.enter(timestamp)
        self.entered = True

    def _leave(self) -> None:
        if self.entered:
            self.entered = False
            self.host.leave()

    def adopt_turn(self) -> None:
        """The open event turns out to need the turn, and has it; the next one must ask."""
        self.entered, self._turn_until = True, -1
        self.host.adopt()

    # --- what the open event does --------------------------------------------------------------------------

    def send(self, destination: Destination, message: Message) -> None:
        if len(self.outputs) >= self._max_outputs:
            raise TooManyOutputs(
                f"agent {self.plan.name!r}: one event sent more than max_event_outputs={self._max_outputs} messages. "
                "Split the work: send it to a topic in pieces and let another agent go on from there"
            )
        if message.headers or len(message.value or b"") + len(message.key or b"") > self._fits_anywhere:
            self._check_room(destination, message)
        self.outputs.append((destination, message))
        self.attention = True

    def _check_room(self, destination: Destination, message: Message) -> None:
        room = self.host.room(destination)
        if room is not None and message.size > room:
            raise MessageTooLarge(
                f"topic {destination[0]!r}: a message of {message.size} bytes is above the {room} that the broker "
                "leaves for what an event sends; nothing was sent"
            )

    def answer(self, record: Record, value: Any) -> None:
        """Encoded at once: later events may change the value in place. Raises EncodeError."""
        if not asked(self.plan, record):
            return
        try:
            data = self.plan.answer.encode(value)
        except ENCODE_ERRORS as error:
            raise explain_encode(self.plan.answer, error, value) from error
        self.answers.append((record, data))
        self.attention = True

    def view(self, plan: TablePlan) -> TableView | None:
        """This lane's view of a table; None where events cannot write tables."""
        view = self.views.get(plan.name)
        if view is None:
            state = self.host.table(plan)
            if state is None:
                return None
            view = self.views[plan.name] = TableView(state, self, self.plan.concurrency > 1)
        return view

    @property
    def touched(self) -> bool:
        return bool(self.undo or self.lent) or any(view.touched for view in self.views.values())

    def changes(self) -> Iterator[tuple[TableState, Any, Any]]:
        """What the open event assigned: table, key and the value before; the newest first."""
        change = self.undo
        while change is not None:
            change, state, key, old = change
            yield state, key, old

    def before(self, table: TableState) -> dict[Any, Any]:
        """Rows of this table that the open event assigned, as they were before."""
        return {key: old for state, key, old in self.changes() if state is table}  # the oldest comes last, and stays

    def discard(self) -> None:
        """Undo what the open event did: assigned values by their old ones, values lent out by reading them anew."""
        for state, key, old in self.changes():
            state.hot[key] = old
        for state, key in self.lent:
            state.reread(key)
        self._close()
        self._leave()

    def _close(self) -> None:
        self.undo = None
        self.lent.clear()
        self.outputs.clear()
        self.answers.clear()
        self.tainted = self.attention = False
        self.asks = 0
        self.record, self.tickets = None, ()
        for view in self.views.values():
            view.touched = False
