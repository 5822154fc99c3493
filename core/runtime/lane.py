"""A lane runs one instance of an agent: it feeds events to it one after another, and knows which one is open.

An event is open from the moment the agent has it until the agent asks for the next (design rule 10). What it does
meanwhile (rows, sends, answers) is kept apart here, and joins the task's next commit when it is finished.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from itertools import chain
from time import perf_counter
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, Protocol

from thalweg.clock import Clock
from thalweg.codec import DECODE_ERRORS, ENCODE_ERRORS, explain_encode
from thalweg.errors import ConfigurationError, MessageTooLarge, TooManyOutputs
from thalweg.event import Event, event_time, order_time
from thalweg.headers import ANSWERS, REPLY, find
from thalweg.message import Message, Position, Record
from thalweg.ops import Op, run_ops
from thalweg.plan import AgentPlan, Destination, TopicPlan

from .context import current_lane
from .tables import TableState, TableView
from .watermark import Segment

if TYPE_CHECKING:
    from .tables import TablePlan

__all__ = ["EVENTS", "Host", "Input", "Lane", "Part", "Rerun", "Ticket", "asked"]

EVENTS = object()
"""In a chain of steps: from here on the values are `Event`s."""

SUSPEND_EVERY = 0.010
"""Seconds (design rule 16)."""


Change = tuple["Change | None", TableState, Any, Any]
"""The change before, and of this one: table, key, value before. A chain is 30 ns an event cheaper than a list."""


class Rerun(BaseException):
    """The event touched a table while another event had its turn: undo it and run it again, in its turn.

    Not an Exception, so that an agent's own `except Exception` lets it pass.
    """


def asked(plan: AgentPlan, record: Record) -> bool:
    """Whether somebody waits for this agent's answer to this record."""
    return find(record.headers, REPLY) is not None and find(record.headers, ANSWERS) == plan.name.encode()


class Input(Protocol):
    """One topic-partition as an agent reads it."""

    @property
    def name(self) -> str: ...
    @property
    def topic(self) -> TopicPlan: ...
    @property
    def ops(self) -> Sequence[Op]: ...
    @property
    def partition(self) -> int: ...


class Ticket:
    """One record handed to a lane. `alone`: a `take` that failed with it is given it in a list of one."""

    __slots__ = ("alone", "attempts", "index", "input", "position", "record", "segment")

    def __init__(self, input_: Input, record: Record, position: Position, segment: Segment, index: int) -> None:
        self.input = input_
        self.record = record
        self.position = position
        self.segment = segment
        self.index = index
        self.attempts = 0  # that went wrong before
        self.alone = False

    def event(self, value: Any, lane: Lane) -> Event[Any, Any]:
        return Event(self.input.topic, self.record, self.input.partition, self.position, value, lane)


class Part:
    """What a lane works on next. `plain`: whole segment, nothing special about any record: the fast path."""

    __slots__ = ("input", "plain", "segment", "tickets")

    def __init__(self, input_: Input, segment: Segment, plain: bool, tickets: Iterable[Ticket] | None = None) -> None:
        self.input = input_
        self.segment = segment
        self.plain = plain
        self.tickets = self.rest() if tickets is None else tickets

    def rest(self) -> Iterator[Ticket]:
        """Tickets for what is not finished, evaluated as it is asked for."""
        segment = self.segment
        for index in range(segment.done, len(segment.positions)):
            yield Ticket(self.input, segment.records[index], segment.positions[index], segment, index)


def _events_of(values: Iterable[tuple[Any, Ticket, bool]]) -> list[Ticket]:
    """The events that values came from, in order, each once."""
    return list(dict.fromkeys(ticket for _, ticket, _ in values))


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
    async def enter(self, lane: Lane, timestamp: int) -> int: ...
    def adopt(self, lane: Lane) -> None: ...
    def leave(self, lane: Lane) -> None: ...

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

    def table(self, plan: TablePlan) -> TableState | None:
        """None where tables cannot be written (queues)."""
        ...


class Lane:
    """One instance of an agent and the event it has open."""

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.plan = host.plan
        self.app = host.app
        self._max_outputs = host.max_event_outputs
        smallest_room = host.room(("", -1))  # of a queue: its outputs never join a commit
        self._fits_anywhere = sys.maxsize if smallest_room is None else smallest_room
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
        self.queue: deque[Ticket] = deque()  # keyed tickets that must follow one this lane has
        self._part: Part | None = None
        self._tickets: Iterator[Ticket] = iter(())
        self._steps = 64
        self._suspended = perf_counter()
        self._streams: list[AsyncGenerator[Any, None]] = []
        self._how: object = None  # the steps of the stream that is open
        self.task: asyncio.Task[None] | None = None

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
        if record is not None and self._part is not None:
            topic = self._part.input.topic
            return record.timestamp if topic.timestamp_of is None else event_time(topic, record)
        return max((event_time(t.input.topic, t.record) for t in self.tickets), default=0)

    @property
    def event_id(self) -> str:
        """The id of the open event (its first one, in a `take`)."""
        ticket = self.tickets[0] if self.tickets else next(self._part.rest()) if self._part and self.record else None
        return "" if ticket is None else ticket.event(None, self).id

    def ask_id(self) -> str:
        """The id of this event's next question: the same at every attempt."""
        self.asks += 1
        return f"{self.event_id}/ask-{self.asks}"

    async def pause(self) -> None:
        """The open event waits for an answer: others may have the turn, unless it has touched a table."""
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
        self._turn_until = await self.host.enter(self, timestamp)
        self.entered = True

    def _leave(self) -> None:
        if self.entered:
            self.entered = False
            self.host.leave(self)

    def adopt_turn(self) -> None:
        """The open event turns out to need the turn, and has it; the next one must ask."""
        self.entered, self._turn_until = True, -1
        self.host.adopt(self)

    # --- what the open event does --------------------------------------------------------------------------

    def look_up(self) -> None:
        """Others want something: before its next event the lane asks whether that may begin, and whether in turn."""
        self.attention = self._disturbed = True

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

    def head(self) -> int | None:
        """Timestamp (ms) of the next event it has in hand, if any."""
        part = self._part
        if part is None or part.segment.done == len(part.segment.positions):
            return None
        return order_time(part.input.topic, part.segment.records[part.segment.done])

    @property
    def reading(self) -> bool:
        """Whether the agent has begun to read its stream."""
        return bool(self._streams)

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

    # --- feeding the agent ---------------------------------------------------------------------------------

    def stream(
        self, steps: Sequence[Any], take: tuple[int, float | None] | None, after: Sequence[Any]
    ) -> AsyncIterator[Any]:
        """The events of this lane through `steps`, in lists if `take` is (count, seconds), then through `after`."""
        how = (tuple(steps), take, tuple(after))
        if self._streams:
            if how != self._how:
                raise ConfigurationError(
                    f"agent {self.plan.name!r} iterates over its stream twice; merge what it does into one loop"
                )
            stream = self._streams[0]
            if isinstance(stream, AsyncGeneratorType) and stream.ag_frame is not None:
                return stream  # the loop was left, by `break` or an error that was caught: it goes on
            self._streams.clear()  # a step raised, and the agent caught it: that event is finished
            held = [ticket for ticket in self.gathering if ticket not in self.tickets]
            self.gathering, self._joins = (), False
            self._finish(self.tickets)
            self.give_back(held)
        self._how = how
        stream = self._values(steps) if take is None else self._takes(steps, *take, after)
        self._streams.append(stream)
        return stream

    async def _values(self, steps: Sequence[Any]) -> AsyncGenerator[Any, None]:
        """HOT PATH: about 0.2 µs an event beyond decoding. No await, call or allocation that is not needed."""
        host = self.host
        as_events = list(steps) == [EVENTS]
        simple = as_events or not steps
        while True:
            ticket = await self._next_ticket(plain=simple)
            if ticket is None:  # a plain part
                part = self._part
                assert part is not None
                segment, topic = part.segment, part.input.topic
                decode, partition, positions = topic.decode, part.input.partition, segment.positions
                while part.plain and (begin := segment.done) < len(positions):
                    self._disturbed = False
                    if host.takes_turns or host.draining or host.commit_waits:
                        self._slow_down()
                        break
                    for index, record in enumerate(segment.records[begin : begin + self._steps], begin):
                        self.record = record
                        raw = record.value
                        try:
                            value = None if raw is None else decode(raw)
                        except DECODE_ERRORS as error:
                            self._undecodable(next(part.rest()), error)
                            await self._breathe_if_due()
                            break
                        if as_events:
                            yield Event(topic, record, partition, positions[index], value, self)
                        else:
                            yield value
                        segment.done = index + 1
                        self.undo = None
                        if self.attention:
                            host.finished(self, ())
                            self._close()
                            if self._disturbed or host.commit_waits:
                                break
                    else:
                        self.record = None
                        await self._breathe()
                self.record = None
                continue
            if host.takes_turns:
                await self._enter(order_time(ticket.input.topic, ticket.record))
            self.tickets = (ticket,)
            try:
                value = self._decode(ticket)
            except DECODE_ERRORS as error:
                self._undecodable(ticket, error)
                continue
            for out in await self._through(chain(ticket.input.ops, steps), ticket, value):
                yield out
            self._finish(self.tickets)
            await self._breathe_if_due()

    async def _takes(
        self, steps: Sequence[Any], count: int, within: float | None, after: Sequence[Any]
    ) -> AsyncGenerator[Any, None]:
        """Lists of `count` values, or fewer once `within` seconds have passed since the first.

        Only the list given out is open: what is being gathered holds back this agent's position and nothing else.
        Where a list ends amid the values of one event (`flat_map`), it stays open with the next, which ends with them:
        all that is done with an event's values is one piece.
        """
        host, clock = self.host, self.host.clock
        gathered: deque[tuple[Any, Ticket, bool]] = deque()  # value, its event, whether it is that one's last
        deadline: float | None = None
        alone = split = False
        while True:
            while len(gathered) < count and not alone and not split:
                ticket = await self._next_ticket(until=deadline)
                if ticket is None:
                    break
                try:
                    value = self._decode(ticket)
                except DECODE_ERRORS as error:
                    if gathered:  # those come first
                        self.give_back([ticket])
                        break
                    self._undecodable(ticket, error)
                    continue
                self.tickets, self._joins = (ticket,), True  # an error in a step is this event's
                outs = list(await self._through(chain(ticket.input.ops, steps), ticket, value))
                self.tickets, self._joins = (), False
                if not outs:
                    self._finish((ticket,))
                gathered.extend((out, ticket, i == len(outs)) for i, out in enumerate(outs, 1))
                if within is not None and deadline is None:
                    deadline = clock.now() + within
                alone = ticket.alone
                self.gathering = _events_of(gathered)
            taken: list[tuple[Any, Ticket, bool]] = []
            while gathered and len(taken) < count and not (split and taken and taken[-1][2]):
                taken.append(gathered.popleft())
            deadline = clock.now() + within if within is not None and gathered else None
            alone = alone and bool(gathered)
            if not taken:
                continue
            tickets = [*self.tickets, *(ticket for ticket in _events_of(taken) if ticket not in self.tickets)]
            self.gathering = _events_of(gathered)
            if host.takes_turns and not split:
                await self._enter(max(order_time(t.input.topic, t.record) for t in tickets))
            self.tickets = tickets
            for out in await self._through(after, None, [value for value, _, _ in taken]):
                yield out
            split = not taken[-1][2]
            if not split:
                self._finish(tickets)
                await self._breathe_if_due()

    gathering: Sequence[Ticket] = ()
    """Taken from the input by an open `take`, not given out yet."""
    _joins = False
    """The open event is to join those that are being gathered: it comes after them."""

    async def _next_ticket(self, plain: bool = False, until: float | None = None) -> Ticket | None:
        """The next ticket to run. None: a plain part is ready in `_part` (only if `plain`), or it is `until`."""
        while True:
            if self.host.commit_waits and not self.host.draining:
                self._leave()
                await self.host.let_commit()
                self._suspended_now()
            while not self.host.draining and (ticket := next(self._tickets, None)) is not None:
                if self.gathering and self.host.judged(ticket):
                    self.give_back([ticket])  # what becomes of it must not come before those that are gathered
                    return None
                if self.host.admit(self, ticket):
                    return ticket
            self._leave()
            part = await self.host.next(self, until)
            self._suspended_now()
            if part is None:
                return None
            self._part = part
            if plain and part.plain:
                return None
            part.plain = False
            self._tickets = iter(part.tickets)

    def give_back(self, tickets: Iterable[Ticket]) -> None:
        """These come next, before what is left."""
        self._slow_down()
        self._tickets = chain(tickets, self._tickets)

    def _slow_down(self) -> None:
        """Go on with what is left of a plain part ticket by ticket."""
        part = self._part
        if part is not None and part.plain:
            part.plain = False
            self._tickets = part.rest()

    def _decode(self, ticket: Ticket) -> Any:
        raw = ticket.record.value
        return None if raw is None else ticket.input.topic.decode(raw)

    async def _through(self, steps: Iterable[Any], ticket: Ticket | None, value: Any) -> Iterable[Any]:
        ops: list[Op] = []
        values: list[Any] = [value]
        for step in steps:
            if step is EVENTS:
                assert ticket is not None
                values = [out for value in values for out in await run_ops(ops, value)]
                ops = []
                values = [ticket.event(value, self) for value in values]
            else:
                ops.append(step)
        return [out for value in values for out in await run_ops(ops, value)] if ops else values

    def _undecodable(self, ticket: Ticket, error: Exception) -> None:
        self.tickets = (ticket,)
        self.record = None
        self.host.undecodable(self, ticket, error)
        self._close()

    def _finish(self, tickets: Sequence[Ticket]) -> None:
        """The agent asked for the next event, so the open one is finished. Nothing here may wait."""
        self.host.finished(self, tickets)
        self._close()

    async def _breathe_if_due(self) -> None:
        if perf_counter() - self._suspended > SUSPEND_EVERY:
            self._leave()
            await asyncio.sleep(0)
            self._suspended_now()

    async def _breathe(self) -> None:
        """Called every `_steps` events; adapts their number so that the clock is read about once a millisecond."""
        elapsed = perf_counter() - self._suspended
        if elapsed > SUSPEND_EVERY:
            self._steps = max(1, self._steps // 2) if elapsed > 2 * SUSPEND_EVERY else self._steps
            await asyncio.sleep(0)
            self._suspended_now()
        elif elapsed < SUSPEND_EVERY / 8:
            self._steps = min(1024, self._steps * 2)

    def _suspended_now(self) -> None:
        self._suspended = perf_counter()

    # --- running the agent ---------------------------------------------------------------------------------

    def start(self, context: contextvars.Context) -> None:
        """Run in a copy of `context`: the worker's own, for a lane's would bring along its views of tables."""
        context = context.copy()
        context.run(current_lane.set, self)
        name = f"thalweg {self.plan.name} {self.number}"
        self.task = asyncio.get_running_loop().create_task(self._run(), name=name, context=context)

    async def _run(self) -> None:
        """Call the agent, again and again: after an error (which the policy deals with), or when it returned.

        What the policy itself raises (a broken store, a bug of ours) ends the lane; the task then starts over.
        """
        try:
            while True:
                error: Exception | None = None
                rerun = False
                try:
                    await self._call()
                except Rerun:
                    rerun = True
                except asyncio.CancelledError as caught:
                    current = asyncio.current_task()
                    if current is None or current.cancelling():
                        raise
                    error = RuntimeError(f"agent {self.plan.name!r}: what it waited for was cancelled")
                    error.__cause__ = caught
                except Exception as caught:
                    error = caught
                await self._after(error, rerun)
        finally:
            for stream in self._streams:
                await stream.aclose()

    async def _after(self, error: Exception | None, rerun: bool) -> None:
        tickets = [*self.tickets]
        was_open = self.record is not None
        self._slow_down()
        if was_open:
            tickets = [next(self._tickets)]
            self.record = None
            self.tickets = tickets
        held = [ticket for ticket in self.gathering if ticket not in tickets]
        before, after = (held, []) if self._joins else ([], held)
        self.gathering, self._joins = (), False
        for stream in self._streams:
            await stream.aclose()
        self._streams.clear()
        if rerun:
            self.discard()
            self.give_back([*before, *tickets, *after])
        elif error is not None:
            self.give_back(after)
            await self.host.failed(self, tickets, error)
            self.give_back(before)
        else:  # it returned: what it has seen is finished
            if tickets:
                self._finish(tickets)
            self.give_back(held)
            self._leave()
            await self.host.returned(self, bool(tickets or held))

    async def _call(self) -> None:
        result = self.plan.body(self)
        if not isinstance(result, AsyncGenerator):
            await result  # type: ignore[misc]
            return
        sinks = self.plan.sinks
        async with aclosing(result) as answers:
            async for answer in answers:
                record = self.open_record
                if record is not None and record.headers:
                    self.answer(record, answer)
                for sink in sinks:
                    await sink(answer)
