"""One agent in one task: its inputs, its lanes, and what becomes of events that fail."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thalweg import headers as names
from thalweg.codec import explain
from thalweg.errors import ConfigurationError, TableMismatch, TopicMismatch
from thalweg.event import order_time
from thalweg.message import Batch
from thalweg.plan import AgentPlan, Destination
from thalweg.policy import Action, Decision, Outcomes

from .failures import log_failure, short_traceback
from .lane import Lane
from .lanes import Lanes
from .open_event import OpenEvent
from .parking import ParkedSegment, Parking
from .suspicion import Suspicion
from .tables import TablePlan, TableState
from .tickets import Part, Ticket
from .topic_input import TopicInput
from .turns import Turns
from .verdicts import Verdict

if TYPE_CHECKING:
    from .task import Task

__all__ = ["AgentTask"]

log = logging.getLogger("thalweg")

MAX_AHEAD = 10_000
"""With concurrency > 1: how many records may be handed out from the first unfinished one on; then the others wait."""


class AgentTask:
    """The host of an agent's lanes. See `Host` for what a lane asks of it."""

    def __init__(self, task: Task, plan: AgentPlan) -> None:
        self.task = task
        self.plan = plan
        self.app = task.app
        self.clock = task.settings.clock
        self.max_event_outputs = task.settings.max_event_outputs
        self.inputs = [TopicInput(self, source, task.index) for source in plan.sources]
        self.lanes = Lanes(self, plan.concurrency)
        self.turns = Turns(self)
        self.tables: set[str] = set()  # those it shares turns for
        self.outcomes = Outcomes()
        self.halted = ""
        self.stopping = False
        self._held_back = False  # lanes wait because of MAX_AHEAD
        self._shared: deque[Ticket] = deque()  # with concurrency > 1: not yet with a lane
        self.parking = Parking(self.clock, task.write_next, self.lanes.wake)
        self.suspicion = Suspicion(self)
        self.random = random.Random(f"{plan.name}/{task.index}")
        self._empty_returns = 0
        self._counted = 0

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
                    return await self.suspicion.note(part) if self.suspicion.falls_on(part) else part
            if until is not None and self.clock.now() >= until:
                return None
            self.lanes.lie_down(lane)
            self.task.idle(self)
            self.turns.next()  # what others waited for may have been no event of this agent's after all
            await self.lanes.woken(lane, until)

    @property
    def resting(self) -> bool:
        """Every lane waits for input, and there is none that could be had at once."""
        return self.lanes.all_wait and all(i.caught_up and not i.buffer for i in self.inputs)

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
                verdict = Verdict(Decision(Action.DEAD_LETTER, odd.refused), 1)
                self.task.verdicts.set((input_.name, odd.position), verdict)
        self.lanes.wake(len(batch.records))

    def halt(self, reason: str) -> None:
        """Handle nothing more here: what follows could only do harm. All events are kept."""
        self.halted = reason
        self.suspicion.end()
        log.critical(
            "agent %s, partition %d: halted: %s. Its events wait; mend the cause and restart the worker",
            *(self.plan.name, self.task.index, reason),
        )
        self.turns.next()

    def stop(self) -> None:
        """Begin no further event."""
        self.stopping = True
        self.suspicion.stop()
        self.parking.stop()
        for lane in self.lanes:
            lane.look_up()

    async def stopped(self) -> None:
        """Return when no event is open."""
        await self.lanes.rested()

    def _take(self, lane: Lane) -> Part | None:
        if self.suspicion.noted is not None:
            return None
        if lane.queue:
            tickets = list(lane.queue)
            lane.queue.clear()
            return Part(tickets[0].input, tickets[0].segment, False, tickets)
        if self.task.outputs_wait:
            return None
        parked = self.parking.take()
        if parked is not None:
            self.task.busy()
            return parked
        if self.parking.count >= self.task.settings.max_parked:
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
        fetched, segment = chosen.take(1 if self.suspicion.singly else count)
        self.task.fetch_more(chosen)
        plain = not (
            chosen.ops
            or self.suspicion.singly
            or self.parking
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
                    _, segment = input_.take(1 if self.suspicion.singly else None)
                    self._shared.extend(Part(input_, segment, False).tickets)
                    self.task.fetch_more(input_)
        while self._shared:
            ticket = self._shared.popleft()
            if not self.lanes.hand(lane, ticket):
                continue
            self.task.busy()
            return Part(ticket.input, ticket.segment, False, [ticket])
        return None

    def head(self) -> int | None:
        """When its next event is about to begin: the earliest fetched, unless one is open or none may begin."""
        if self.draining or self.suspicion.queueing or self.lanes.some_pause or any(lane.open for lane in self.lanes):
            return None
        if not any(lane.reading for lane in self.lanes):
            return None
        in_hand = [head for lane in self.lanes if not self.lanes.waits(lane) and (head := lane.head()) is not None]
        if in_hand or self.task.outputs_wait or self.parking.count >= self.task.settings.max_parked:
            return min(in_hand, default=None)
        return min((head for input_ in self.inputs if (head := input_.head()) is not None), default=None)

    # --- one event -----------------------------------------------------------------------------------------

    def judged(self, ticket: Ticket) -> bool:
        return (ticket.input.name, ticket.position) in self.task.verdicts

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
            and not isinstance(ticket.segment, ParkedSegment)
            and input_.was_finished(ticket.position)
        ):
            self._done(lane, ticket)
            return False
        if (
            ticket.record.headers
            and not isinstance(ticket.segment, ParkedSegment)
            and input_.is_copy(ticket.record, ticket.position)
        ):
            log.debug("agent %s: %s/%d is a copy, by its id", self.plan.name, input_.name, ticket.position)
            self._done(lane, ticket)
            return False
        where = (input_.name, ticket.position)
        verdict = self.task.verdicts.carry_out(where)
        if verdict is not None:
            if verdict.decision is None:
                ticket.alone = True
            else:
                self._carry_out(lane, ticket, verdict, verdict.decision)
                return False
        if isinstance(ticket.segment, ParkedSegment):
            return True
        if self.parking.holds(ticket.record.key):
            self.parking.park(ticket, input_, 0, self.clock.now(), "waits behind an earlier event of its key")
            self._done(lane, ticket)
            return False
        return True

    def _done(self, lane: Lane, ticket: Ticket) -> None:
        """The ticket needs no lane any more."""
        ticket.segment.finish(ticket.index)
        if self.suspicion.noted is not None:
            self.suspicion.clear(ticket)
        if not isinstance(ticket.segment, ParkedSegment):
            self.lanes.through(lane, ticket)
        if self._held_back:
            self._held_back = False
            self.lanes.wake(len(self.lanes))
        self.task.busy()

    @property
    def takes_turns(self) -> bool:
        return self.turns.contended

    async def enter(self, timestamp: int) -> int:
        return await self.turns.enter(self, timestamp)

    @property
    def commit_waits(self) -> bool:
        return self.task.held_up is not None

    async def let_commit(self) -> None:
        await self.task.let_commit()

    def waits(self) -> None:
        self.suspicion.waits()

    def adopt(self) -> None:
        self.turns.adopt(self)

    def leave(self) -> None:
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
        await self.task.until_restarted(error)
        if not tickets:
            await self._failed_outside(error)
            return
        for ticket in tickets:
            self.suspicion.clear(ticket)  # it raised, so it did not kill
        self._count_finished()
        trace = short_traceback(error)
        for ticket in tickets:
            attempts = ticket.attempts + 1
            decision = None
            if len(tickets) == 1:
                decision = self._decide(error, attempts)
                log_failure(self.plan.name, ticket, lane, attempts, decision, error)
            self.task.verdicts.set((ticket.input.name, ticket.position), Verdict(decision, attempts, trace))
        lane.give_back(tickets)
        if tainted:
            await self.task.roll_back()

    def _decide(self, error: Exception, attempts: int) -> Decision:
        if self.task.settings.failures is not None:
            self.task.settings.failures(self.plan.name, error)
            return Decision(Action.SKIP, str(error))
        if isinstance(error, TableMismatch):  # the program is wrong, and no event is to suffer for it
            return Decision(Action.HALT, str(error))
        return self.plan.policy.decide(error, attempts, self.outcomes, self.random.random)

    def other_lanes(self, lane: OpenEvent) -> Sequence[OpenEvent]:
        return [other for other in self.task.open_lanes() if other is not lane]

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
        with self.lanes.pausing():
            self.turns.next()
            await self.clock.sleep(delay)

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
            due = self.clock.now() + decision.delay
            self.parking.park(ticket, input_, verdict.attempts, due, decision.reason, verdict.deaths, verdict.shared)
            if isinstance(ticket.segment, ParkedSegment):
                self.suspicion.clear(ticket)
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
