"""One agent in one task: its inputs, its lanes, and what becomes of events that fail."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from thalweg import headers as names
from thalweg.clock import Timer
from thalweg.codec import explain
from thalweg.errors import ConfigurationError, ProcessDied, TableMismatch, TopicMismatch
from thalweg.event import order_time
from thalweg.journal.rows import Parked, Suspect, encode, parked_key, suspect_key
from thalweg.message import Batch, Position, Record
from thalweg.plan import AgentPlan, Destination
from thalweg.policy import Action, Decision, Outcomes

from .failures import log_failure, short_traceback
from .lane import Lane, Part, Ticket
from .tables import TablePlan, TableState
from .topic_input import TopicInput
from .turns import Turns
from .watermark import Segment

if TYPE_CHECKING:
    from .task import Task

__all__ = ["AgentTask", "TopicInput", "Verdict"]

log = logging.getLogger("thalweg")

DEATH_DELAY = 0.1
"""Seconds, doubled with each death, that an event waits in which the process died."""

MAX_AHEAD = 10_000
"""With concurrency > 1: how many records may be handed out from the first unfinished one on; then the others wait."""


class Verdict(msgspec.Struct, frozen=True):
    """What the policy decided for an event; carried out when the event comes up again. Survives a rollback."""

    decision: Decision | None  # None: run it alone (it was in a `take` that failed)
    attempts: int = 0
    trace: str = ""
    deaths: int = 0


class _ParkedEvent(msgspec.Struct):
    input: TopicInput
    position: Position
    event: Parked
    trace: str = ""


class _ParkedSegment(Segment):
    """The record of a parked event: finishing it takes it out of the parking."""

    __slots__ = ("_agent", "_lane_key", "deaths")

    def __init__(self, agent: AgentTask, lane_key: object, parked: _ParkedEvent) -> None:
        super().__init__([parked.event], [parked.position])
        self.deaths = parked.event.deaths
        self._agent, self._lane_key = agent, lane_key

    def finish(self, index: int) -> None:
        if not self.done:
            self.done = 1
            self._agent.unpark(self._lane_key)


def _deadly(part: Part) -> bool:
    """Whether the process died in this event before."""
    return isinstance(part.segment, _ParkedSegment) and part.segment.deaths > 0


class AgentTask:
    """The host of an agent's lanes. See `lane.Host` for what a lane asks of it."""

    def __init__(self, task: Task, plan: AgentPlan) -> None:
        self.task = task
        self.plan = plan
        self.app = task.app
        self.clock = task.settings.clock
        self.max_event_outputs = task.settings.max_event_outputs
        self.inputs = [TopicInput(self, source, task.index) for source in plan.sources]
        self.lanes = [Lane(self, number) for number in range(plan.concurrency)]
        self.turns = Turns(self)
        self.tables: set[str] = set()  # those it shares turns for
        self.outcomes = Outcomes()
        self.halted = ""
        self.stopping = False
        self.careful = 0  # the last owner died: so many events run alone, each noted in the journal before
        self.suspect: Suspect | None = None  # what the last owner had noted
        self._noted = False
        self._held_back = False  # lanes wait because of MAX_AHEAD
        self._waiting: dict[Lane, asyncio.Future[None]] = {}
        self._shared: deque[Ticket] = deque()  # with concurrency > 1: not yet with a lane
        self._busy: dict[bytes, list[object]] = {}  # key -> [lane, number of its tickets there]
        self._parked: dict[object, deque[_ParkedEvent]] = {}
        self._parked_count = 0
        self._due: list[tuple[int, int, object]] = []
        self._alarm: Timer | None = None
        self._pushes = 0
        self._random = random.Random(f"{plan.name}/{task.index}")
        self._empty_returns = 0
        self._pausing = 0  # how many lanes do
        self._counted = 0
        self._at_rest: asyncio.Future[None] | None = None

    # --- feeding lanes -------------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self.stopping or bool(self.halted)

    def room(self, destination: Destination) -> int | None:
        return self.task.worker.room(destination)

    async def next(self, lane: Lane, until: float | None = None) -> Part | None:
        while True:
            if not self.draining:
                part = self._take(lane)
                if part is not None:
                    return await self._note(part) if self.careful or _deadly(part) else part
            if until is not None and self.clock.now() >= until:
                return None
            woken = self._waiting[lane] = asyncio.get_running_loop().create_future()
            self.task.idle(self)
            self.turns.next()  # what others waited for may have been no event of this agent's after all
            self._rests()
            timer = None if until is None else self.clock.call_later(until - self.clock.now(), lambda: self._wake(lane))
            try:
                await woken
            finally:
                self._waiting.pop(lane, None)
                if timer is not None:
                    timer.cancel()

    def _rests(self) -> None:
        if self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    def _wake(self, lane: Lane) -> None:
        woken = self._waiting.pop(lane, None)
        if woken is not None and not woken.done():
            woken.set_result(None)

    def wake(self, count: int = 1) -> None:
        """There is work for `count` lanes."""
        for lane in list(self._waiting)[:count]:
            self._wake(lane)

    @property
    def waits(self) -> bool:
        """Every lane does, for input."""
        return len(self._waiting) == len(self.lanes)

    @property
    def resting(self) -> bool:
        """Every lane waits for input, and there is none that could be had at once."""
        return self.waits and all(i.caught_up and not i.buffer for i in self.inputs)

    def arrived(self, input_: TopicInput, batch: Batch) -> None:
        try:
            odd_ones = input_.receive(batch)
        except TopicMismatch as error:
            self.halt(str(error))
            self.task.worker.stop_fetching(input_)
            self.task.worker.give_up(error)
            return
        for odd in odd_ones:
            if odd.warning:
                log.warning("agent %s: %s/%d: %s", self.plan.name, input_.name, odd.position, odd.warning)
            if odd.refused:
                self.task.verdicts[(input_.name, odd.position)] = Verdict(Decision(Action.DEAD_LETTER, odd.refused), 1)
        self.wake(len(batch.records))

    def halt(self, reason: str) -> None:
        """Handle nothing more here: what follows could only do harm. All events are kept."""
        self.halted = reason
        log.critical(
            "agent %s, partition %d: halted: %s. Its events wait; mend the cause and restart the worker",
            *(self.plan.name, self.task.index, reason),
        )
        self.turns.next()

    def stop(self) -> None:
        """Begin no further event."""
        self.stopping = True
        self._set_alarm()
        for lane in self.lanes:
            lane.look_up()

    async def stopped(self) -> None:
        """Return when no event is open."""
        while len(self._waiting) + self._pausing < len(self.lanes):
            self._at_rest = asyncio.get_running_loop().create_future()
            await self._at_rest

    async def _note(self, part: Part) -> Part:
        """Write down what is about to run, so that if it kills the process the next owner knows (design rule 12).

        An event in which the process died before is parked first, so that the others need not die with it again.
        """
        self._noted = True
        (ticket,) = part.tickets = list(part.tickets)[:1]
        ticket.alone = True
        where = (ticket.input.name, ticket.position)
        was, self.suspect = self.suspect, None
        if was is not None and (was.input, was.position) == where:
            self.task.verdicts[where] = self._after_death(was.deaths)
            return part
        deaths = part.segment.deaths if isinstance(part.segment, _ParkedSegment) else 0
        self.task.rows[suspect_key(self.plan.name)] = encode(Suspect(*where, deaths + 1))
        self.task.noted.add(self.plan.name)
        await self.task.flush()
        return part

    def _after_death(self, deaths: int) -> Verdict:
        error = ProcessDied(f"the process died {deaths} time(s) while it handled this event")
        decision = self.plan.policy.decide(error, deaths, self.outcomes, self._random.random)
        if decision.action is Action.RETRY:
            delay = max(decision.delay, DEATH_DELAY * 2**deaths)
            if self.task.settings.failures is not None:
                delay = 0.0  # a test has killed it, and does not wait
            decision = Decision(Action.RETRY, decision.reason, delay)
        return Verdict(decision, deaths, deaths=deaths)

    def restore_suspect(self, suspect: Suspect) -> None:
        """What the last owner had noted. If it is parked already, that death counts there."""
        self.suspect = suspect
        for line in self._parked.values():
            parked = line[0]
            if (parked.input.name, parked.position) == (suspect.input, suspect.position):
                self.suspect = None
                verdict = self._after_death(suspect.deaths)
                assert verdict.decision is not None
                if verdict.decision.action is Action.RETRY:
                    parked.event.deaths = suspect.deaths
                    parked.event.due = round((self.clock.now() + verdict.decision.delay) * 1000)
                    self.task.rows[parked_key(suspect.input, suspect.position)] = encode(parked.event)
                else:
                    self.task.verdicts[(suspect.input, suspect.position)] = verdict

    def _cleared(self) -> None:
        """The event that was noted did not kill the process."""
        self._noted = False
        self.careful = max(0, self.careful - 1)
        self.task.rows[suspect_key(self.plan.name)] = None
        self.wake(len(self.lanes))

    def _take(self, lane: Lane) -> Part | None:
        if self._noted:
            return None
        if lane.queue:
            tickets = list(lane.queue)
            lane.queue.clear()
            return Part(tickets[0].input, tickets[0].segment, False, tickets)
        parked = self._take_parked()
        if parked is not None:
            return parked
        if self._parked_count >= self.task.settings.max_parked:
            return None
        return self._take_alone() if self.plan.concurrency == 1 else self._take_shared(lane)

    def _take_alone(self) -> Part | None:
        """For the only lane: the earliest input, as far as it stays the earliest."""
        ready = [input_ for input_ in self.inputs if input_.buffer]
        if not ready:
            return None
        chosen = ready[0]
        count: int | None = None
        if len(ready) > 1:
            chosen = min(ready, key=lambda input_: input_.head() or 0)
            limit = min(input_.head() or 0 for input_ in ready if input_ is not chosen)
            records = chosen.buffer[0].records
            count = 1
            while count < len(records) and order_time(chosen.topic, records[count]) <= limit:
                count += 1
        fetched, segment = chosen.take(1 if self.careful else count)
        self.task.fetch_more(chosen)
        plain = not (
            chosen.ops
            or self.careful
            or self._parked
            or self.task.verdicts
            or self.task.checking
            or self.takes_turns
            or fetched.ours
            or chosen.has_finished
        )
        self.task.busy()
        return Part(chosen, segment, plain)

    def _take_shared(self, lane: Lane) -> Part | None:
        if not self._shared:
            for input_ in self.inputs:
                if input_.watermark.span >= MAX_AHEAD:
                    self._held_back = True
                elif input_.buffer:
                    _, segment = input_.take(1 if self.careful else None)
                    self._shared.extend(Part(input_, segment, False).tickets)
                    self.task.fetch_more(input_)
        while self._shared:
            ticket = self._shared.popleft()
            key = ticket.record.key
            if key is not None:
                owner = self._busy.setdefault(key, [lane, 0])
                owner[1] += 1  # type: ignore[operator]
                if owner[0] is not lane:
                    other = owner[0]
                    assert isinstance(other, Lane)
                    other.queue.append(ticket)
                    self._wake(other)
                    continue
            self.task.busy()
            return Part(ticket.input, ticket.segment, False, [ticket])
        return None

    def head(self) -> int | None:
        """When its next event is about to begin: the earliest fetched, unless one is open or none may begin."""
        if self.draining or self._pausing or any(lane.open for lane in self.lanes):
            return None
        if not any(lane.reading for lane in self.lanes):
            return None
        in_hand = [head for lane in self.lanes if lane not in self._waiting and (head := lane.head()) is not None]
        if in_hand or self._parked_count >= self.task.settings.max_parked:
            return min(in_hand, default=None)
        return min((head for input_ in self.inputs if (head := input_.head()) is not None), default=None)

    # --- one event -----------------------------------------------------------------------------------------

    def admit(self, lane: Lane, ticket: Ticket) -> bool:
        if ticket.record.headers:
            only = names.find(ticket.record.headers, names.ONLY)
            if only is not None and only != self.plan.name.encode():
                self._done(lane, ticket)
                return False
        input_ = ticket.input
        assert isinstance(input_, TopicInput)
        if (
            input_.has_finished
            and not isinstance(ticket.segment, _ParkedSegment)
            and input_.was_finished(ticket.position)
        ):
            self._done(lane, ticket)
            return False
        if (
            ticket.record.headers
            and not isinstance(ticket.segment, _ParkedSegment)
            and input_.is_copy(ticket.record, ticket.position)
        ):
            log.debug("agent %s: %s/%d is a copy, by its id", self.plan.name, input_.name, ticket.position)
            self._done(lane, ticket)
            return False
        where = (input_.name, ticket.position)
        verdict = self.task.verdicts.pop(where, None) if self.task.verdicts else None
        if verdict is not None:
            self.task.carried_out[where] = verdict
            if verdict.decision is None:
                ticket.alone = True
            else:
                self._carry_out(lane, ticket, verdict, verdict.decision)
                return False
        if isinstance(ticket.segment, _ParkedSegment):
            return True
        if self._parked and ticket.record.key is not None and ticket.record.key in self._parked:
            self._park(ticket, 0, self.clock.now(), "waits behind an earlier event of its key")
            self._done(lane, ticket)
            return False
        return True

    def _done(self, lane: Lane, ticket: Ticket) -> None:
        """The ticket needs no lane any more."""
        ticket.segment.finish(ticket.index)
        if self._noted:
            self._cleared()
        self._unbusy(lane, ticket)
        if self._held_back:
            self._held_back = False
            self.wake(len(self.lanes))
        self.task.busy()

    def _unbusy(self, lane: Lane, ticket: Ticket) -> None:
        key = ticket.record.key
        if key is not None and self.plan.concurrency > 1 and not isinstance(ticket.segment, _ParkedSegment):
            owner = self._busy.get(key)
            if owner is not None and owner[0] is lane:
                owner[1] -= 1  # type: ignore[operator]
                if not owner[1]:
                    del self._busy[key]

    @property
    def takes_turns(self) -> bool:
        return self.turns.contended

    async def enter(self, lane: Lane, timestamp: int) -> int:
        return await self.turns.enter(self, timestamp)

    @property
    def commit_waits(self) -> bool:
        return self.task.held_up is not None

    async def let_commit(self) -> None:
        await self.task.let_commit()

    def adopt(self, lane: Lane) -> None:
        self.turns.adopt(self)

    def leave(self, lane: Lane) -> None:
        self.turns.leave(self)

    def table(self, plan: TablePlan) -> TableState | None:
        return self.task.table_of(self, plan)

    def finished(self, lane: Lane, tickets: Sequence[Ticket]) -> None:
        task = self.task
        if task.checking:
            task.check(lane)
        for ticket in tickets:
            self._done(lane, ticket)
        if lane.outputs or lane.answers:
            task.collect(lane)
        task.busy()

    # --- events that fail ----------------------------------------------------------------------------------

    async def failed(self, lane: Lane, tickets: list[Ticket], error: Exception) -> None:
        tainted = lane.tainted
        lane.discard()
        if not tickets:
            await self._failed_outside(error)
            return
        if self._noted and len(tickets) == 1:
            self._noted = False  # it raised, so it did not kill
        self._count_finished()
        trace = short_traceback(error)
        for ticket in tickets:
            attempts = ticket.attempts + 1
            decision = None
            if len(tickets) == 1:
                decision = self._decide(error, attempts)
                log_failure(self.plan.name, ticket, lane, attempts, decision, error)
            self.task.verdicts[(ticket.input.name, ticket.position)] = Verdict(decision, attempts, trace)
        lane.give_back(tickets)
        if tainted:
            await self.task.roll_back()

    def _decide(self, error: Exception, attempts: int) -> Decision:
        if self.task.settings.failures is not None:
            self.task.settings.failures(self.plan.name, error)
            return Decision(Action.SKIP, str(error))
        if isinstance(error, TableMismatch):  # the program is wrong, and no event is to suffer for it
            return Decision(Action.HALT, str(error))
        return self.plan.policy.decide(error, attempts, self.outcomes, self._random.random)

    async def _failed_outside(self, error: Exception) -> None:
        """The agent raised before its first event, so no event can be blamed: nothing is lost, but nothing moves."""
        if self.task.settings.failures is not None:
            self.task.settings.failures(self.plan.name, error)
        self._empty_returns += 1
        delay = min(60.0, 0.1 * 2**self._empty_returns)
        log.error("agent %s raised outside any event; called again in %.1f s", self.plan.name, delay, exc_info=error)
        await self._pause(delay)

    async def returned(self, lane: Lane, progress: bool) -> None:
        self._empty_returns = 0 if progress else self._empty_returns + 1
        if not progress:
            delay = min(60.0, 0.1 * 2**self._empty_returns)
            error = ConfigurationError(
                f"agent {self.plan.name!r} returned without reading its stream (is the `async for` missing?)"
            )
            log.error("%s; called again in %.1f s", error, delay)
            if self.task.settings.failures is not None:
                self.task.settings.failures(self.plan.name, error)
            await self._pause(delay)

    async def _pause(self, delay: float) -> None:
        """The agent is broken: wait, and let the others go first."""
        self._pausing += 1
        self.turns.next()
        self._rests()
        try:
            await self.clock.sleep(delay)
        finally:
            self._pausing -= 1

    def undecodable(self, lane: Lane, ticket: Ticket, error: Exception) -> None:
        wrapped = explain(ticket.input.topic.value, error, ticket.record.value or b"")
        self._count_finished()
        attempts = ticket.attempts + 1
        decision = self._decide(wrapped, attempts)
        log_failure(self.plan.name, ticket, lane, attempts, decision, wrapped)
        self._carry_out(lane, ticket, Verdict(decision, attempts), decision)

    def _carry_out(self, lane: Lane, ticket: Ticket, verdict: Verdict, decision: Decision) -> None:
        input_ = ticket.input
        assert isinstance(input_, TopicInput)
        if decision.action is Action.HALT:
            lane.give_back([ticket])
            self.halt(decision.reason)
            return
        if decision.action is Action.RETRY:
            self._park(ticket, verdict.attempts, self.clock.now() + decision.delay, decision.reason, verdict.deaths)
            if isinstance(ticket.segment, _ParkedSegment):
                if self._noted:
                    self._cleared()
                return
        elif decision.action is Action.DEAD_LETTER:
            self.outcomes.dead_lettered()
            self._counted += 1
            self.task.send_dead_letter(self.plan.name, ticket, decision.reason, verdict.trace, verdict.attempts)
        if decision.action is not Action.RETRY:
            self.task.answer_error(self.plan, ticket.record, decision.reason, verdict.trace)
        self._done(lane, ticket)

    def _count_finished(self) -> None:
        total = sum(input_.watermark.finished for input_ in self.inputs)
        self.outcomes.finished(max(0, total - self._counted))
        self._counted = total

    # --- parking: events that wait for their next attempt, in the journal ------------------------------------

    def _park(self, ticket: Ticket, attempts: int, due: float, reason: str, deaths: int = 0) -> None:
        input_ = ticket.input
        assert isinstance(input_, TopicInput)
        parked = Parked.of(ticket.record, attempts, round(due * 1000), reason, deaths)
        self.task.rows[parked_key(input_.name, ticket.position)] = encode(parked)
        lane_key = self._lane_key(input_, parked, ticket.position)
        if isinstance(ticket.segment, _ParkedSegment):  # it is there already, as the first of its key
            self._parked[lane_key][0].event = parked
            self._push_due(lane_key, parked.due)
            return
        self.restore(input_, ticket.position, parked)

    def restore(self, input_: TopicInput, position: Position, parked: Parked) -> None:
        """Put an event into the parking (on recovery too: in order of position)."""
        lane_key = self._lane_key(input_, parked, position)
        line = self._parked.setdefault(lane_key, deque())
        line.append(_ParkedEvent(input_, position, parked))
        self._parked_count += 1
        if len(line) == 1:
            self._push_due(lane_key, parked.due)

    @staticmethod
    def _lane_key(input_: TopicInput, record: Record, position: Position) -> object:
        return (input_.name, position) if record.key is None else record.key

    def _push_due(self, lane_key: object, due: int) -> None:
        self._pushes += 1
        entry = (due, self._pushes, lane_key)
        heapq.heappush(self._due, entry)
        if self._due[0] is entry:
            self._set_alarm()

    def _set_alarm(self) -> None:
        """For the first event that is due."""
        if self._alarm is not None:
            self._alarm.cancel()
        wait = self._due[0][0] / 1000 - self.clock.now() if self._due and not self.stopping else None
        self._alarm = None if wait is None else self.clock.call_later(wait, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._is_due():
            self.wake()
        else:  # the time of day was set back meanwhile
            self._set_alarm()

    def _is_due(self) -> bool:
        return bool(self._due) and self._due[0][0] <= self.clock.now() * 1000 + 0.5

    def _take_parked(self) -> Part | None:
        if not self._is_due():
            return None
        lane_key = heapq.heappop(self._due)[2]
        self._set_alarm()
        parked = self._parked[lane_key][0]
        segment = _ParkedSegment(self, lane_key, parked)
        ticket = Ticket(parked.input, parked.event, parked.position, segment, 0)
        ticket.attempts = parked.event.attempts
        self.task.busy()
        return Part(parked.input, segment, False, [ticket])

    def unpark(self, lane_key: object) -> None:
        """The first event of the line is finished; the next one may run."""
        line = self._parked[lane_key]
        parked = line.popleft()
        self._parked_count -= 1
        self.task.rows[parked_key(parked.input.name, parked.position)] = None
        if line:
            self._push_due(lane_key, line[0].event.due)
        else:
            del self._parked[lane_key]
        self.wake()
