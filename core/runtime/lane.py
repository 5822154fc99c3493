"""A lane runs one instance of an agent: it feeds events to it one after another, and knows which one is open.

An event is open from the moment the agent has it until the agent asks for the next (design rule 10).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from itertools import chain
from time import perf_counter
from types import AsyncGeneratorType
from typing import Any

from thalweg.codec import DECODE_ERRORS
from thalweg.errors import ConfigurationError
from thalweg.event import Event, order_time
from thalweg.ops import Op, run_ops

from .context import current_lane
from .escaped import escaped
from .open_event import Host, OpenEvent, Rerun
from .tickets import Ticket

__all__ = ["EVENTS", "Lane"]

EVENTS = object()
"""In a chain of steps: from here on the values are `Event`s."""

SUSPEND_EVERY = 0.010
"""Seconds (design rule 16)."""
FEW, MANY = 8, 128
"""Events, at first and at most, between two looks at the clock."""


def _events_of(values: Iterable[tuple[Any, Ticket, bool]]) -> list[Ticket]:
    """The events that values came from, in order, each once."""
    return list(dict.fromkeys(ticket for _, ticket, _ in values))


class Lane(OpenEvent):
    """One instance of an agent and the event it has open."""

    def __init__(self, host: Host, number: int) -> None:
        super().__init__(host)
        self.number = number
        self.queue: deque[Ticket] = deque()  # keyed tickets that must follow one this lane has
        self._tickets: Iterator[Ticket] = iter(())
        self._steps = FEW
        self._suspended = perf_counter()
        self._streams: list[AsyncGenerator[Any, None]] = []
        self._how: object = None  # the steps of the stream that is open
        self.task: asyncio.Task[None] | None = None

    def look_up(self) -> None:
        """Others want something: before its next event the lane asks whether that may begin, and whether in turn."""
        self.attention = self._disturbed = True

    @property
    def reading(self) -> bool:
        """Whether the agent has begun to read its stream."""
        return bool(self._streams)

    def head(self) -> int | None:
        """Timestamp (ms) of the next event it has in hand, if any."""
        part = self.part
        if part is None or part.segment.done == len(part.segment.positions):
            return None
        return order_time(part.input.topic, part.segment.records[part.segment.done])

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
                part = self.part
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
                self.suspended()
            while not self.host.draining and (ticket := next(self._tickets, None)) is not None:
                if self.gathering and self.host.judged(ticket):
                    self.give_back([ticket])  # what becomes of it must not come before those that are gathered
                    return None
                if self.host.admit(self, ticket):
                    return ticket
            self._leave()
            part = await self.host.next(self, until)
            if part is None:
                return None
            self.part = part
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
        part = self.part
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
            self.suspended()

    async def _breathe(self) -> None:
        """Called every `_steps` events; adapts their number so that the clock is read about once a millisecond, and
        keeps it small enough that events which suddenly take long are noticed soon.
        """
        elapsed = perf_counter() - self._suspended
        if elapsed > SUSPEND_EVERY:
            self._steps = max(1, self._steps // 2) if elapsed > 2 * SUSPEND_EVERY else self._steps
            await asyncio.sleep(0)
            self.suspended()
        elif elapsed < SUSPEND_EVERY / 8:
            self._steps = min(MANY, self._steps * 2)

    def suspended(self) -> None:
        """All others had their turn. (That something was awaited does not tell: it may have been there at once.)"""
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
                except BaseException as caught:
                    error = escaped(caught)
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
