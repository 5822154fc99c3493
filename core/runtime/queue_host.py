"""One agent on one queue (or on a topic, where the broker has no log): at least once, each message by itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from thalweg import headers as names
from thalweg.capabilities import FOLLOWING, WorkQueue
from thalweg.channel import Capability, Channel
from thalweg.codec import explain
from thalweg.errors import AccessDenied, BrokerError, ConfigurationError, MessageTooLarge, StaleDelivery
from thalweg.message import Delivery, Message, Record
from thalweg.plan import QUEUE_GROUP, AgentPlan, Destination, SourcePlan
from thalweg.policy import Action, Decision, Outcomes
from thalweg.signing import QUEUED

from .failures import dead_letter, log_failure, short_traceback
from .lane import Lane
from .lanes import Lanes
from .open_event import OpenEvent
from .tables import TablePlan, TableState
from .task import Answer, Failure
from .tickets import Part, Ticket, asked
from .turns import FOR_EVER
from .watermark import Segment
from .worker import Worker

__all__ = ["QueueRunner"]

log = logging.getLogger("thalweg")

LONGEST_BACKOFF = 2.0
LEASE = 30.0
"""Seconds that a delivery is kept for, renewed every third of it while it is being handled."""


class _Done(msgspec.Struct):
    """A finished event: what it sent and answered, then its acknowledgement.

    failed: what becomes of each delivery if what it sent cannot be; None for a dead letter.
    """

    deliveries: list[Delivery]
    outputs: list[tuple[tuple[str, int], Message]]
    answers: list[Answer]
    failed: Callable[[Exception], None] | None = None


class _QueueInput:
    def __init__(self, source: SourcePlan, name: str) -> None:
        self.name = name
        self.topic = source.topic
        self.ops = source.ops
        self.partition = 0


class QueueRunner:
    """Hosts the lanes of one agent on one queue."""

    takes_turns = False
    commit_waits = False

    def __init__(self, worker: Worker, plan: AgentPlan, source: SourcePlan) -> None:
        self.plan = plan
        self.app = worker.app
        self.settings = worker.settings
        self.clock = worker.settings.clock
        self.max_event_outputs = worker.settings.max_event_outputs
        self.outcomes = Outcomes()
        self.draining = False
        self._worker = worker
        self._input = _QueueInput(source, f"{plan.name}/{source.topic.name}")
        self._channel: Channel | None = None
        self._lanes = Lanes(self, plan.concurrency)
        self._ready: deque[tuple[Delivery, int]] = deque()  # with the number of attempts before this one
        self._held: dict[int, Delivery] = {}  # by id(): lent to this worker and not settled
        self._tickets: dict[int, Delivery] = {}  # id of a ticket's segment -> its delivery
        self._done: list[_Done] = []
        self._settle = asyncio.Event()
        self._settled = asyncio.Event()
        self._stopping = False
        self._room = asyncio.Event()
        self._services: list[asyncio.Task[None]] = []
        self._random = random.Random(plan.name)
        # Stands for the position of messages that have no id of ours (of foreign programs): never the same twice.
        self._count = int(worker.me[:15], 16)
        self._retries: set[asyncio.Task[None]] = set()

    # --- start and stop ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._channel = await self._worker.transport.channel(
            self._input.topic.name,
            QUEUE_GROUP if self._input.topic.spec.queue else f"{self._worker.app_id}-{self.plan.name}",
        )
        loop = asyncio.get_running_loop()
        services = [self._fetch(self._channel), self._settle_all(self._channel)]
        work_queue = self._work_queue
        if work_queue is not None:
            services.append(self._renew(work_queue))
        for coroutine in services:
            self._services.append(loop.create_task(coroutine, name=f"thalweg queue {self._input.name}"))
        for lane in self._lanes:
            lane.start(self._worker.context)
            assert lane.task is not None
            self._services.append(lane.task)
        for service in self._services:
            service.add_done_callback(self._service_done)

    @property
    def _work_queue(self) -> WorkQueue | None:
        """The channel, if each of its deliveries can be extended, retried and rejected."""
        able = Capability.WORK_QUEUE in self._worker.transport.capabilities
        return self._channel if able and isinstance(self._channel, WorkQueue) else None

    def _service_done(self, service: asyncio.Task[None]) -> None:
        """None of them ends by itself."""
        if not self._stopping:
            cancelled = service.cancelled()
            error = RuntimeError(f"{service.get_name()} was cancelled") if cancelled else service.exception()
            self._worker.give_up(error or RuntimeError(f"{service.get_name()} ended"))

    async def stop(self) -> None:
        if self._channel is None:
            return  # never started
        self.draining = True
        if not all(lane.task is not None and not lane.task.done() for lane in self._lanes):
            await self.kill()  # it never started, or has failed: there is nothing to wait for
            return
        for lane in self._lanes:
            lane.look_up()
        try:
            async with self.clock.timeout(self.settings.drain_timeout):
                await self._lanes.rested()
                while self._done:
                    self._settle.set()
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            log.warning("agent %s: messages still in progress go back to the queue", self.plan.name)
        await self.kill()

    async def kill(self) -> None:
        self._stopping = True
        tasks = [*self._services, *self._retries]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    # --- fetching ----------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> int:
        waiting = len(self._ready) + sum(len(lane.queue) for lane in self._lanes)
        return 2 * self.plan.concurrency + 8 - waiting

    async def _fetch(self, channel: Channel) -> None:
        backoff = 0.1
        while True:
            if self._wanted <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                deliveries = await channel.get(self._wanted, FOLLOWING)
                backoff = 0.1
            except BrokerError as error:
                self._worker.complaints.warn(
                    "reading", "reading %s failed, again in %.1f s: %s", self._input.topic.name, backoff, error
                )
                await self.clock.sleep(backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF)
                continue
            for delivery in deliveries:
                self._held[id(delivery)] = delivery
                self._ready.append((delivery, delivery.attempts - 1))
            self._lanes.wake(len(deliveries))

    async def _renew(self, channel: WorkQueue) -> None:
        """Slow work keeps its lease."""
        while True:
            await self.clock.sleep(LEASE / 3)
            if self._held:
                try:
                    await self._extend(channel, list(self._held.values()))
                except BrokerError as error:
                    self._worker.complaints.warn(
                        "leases", "agent %s: leases were not renewed: %s", self.plan.name, error
                    )

    async def _extend(self, channel: WorkQueue, deliveries: Sequence[Delivery]) -> None:
        try:
            await channel.extend(deliveries, LEASE)
        except StaleDelivery:
            if len(deliveries) == 1:
                self._held.pop(id(deliveries[0]), None)  # it comes again, here or elsewhere
                return
            for delivery in deliveries:
                await self._extend(channel, [delivery])

    async def next(self, lane: Lane, until: float | None = None) -> Part | None:
        while True:
            if not self.draining:
                part = self._take(lane)
                if part is not None:
                    return part
            if until is not None and self.clock.now() >= until:
                return None
            self._lanes.lie_down(lane)
            await self._lanes.woken(lane, until)

    def _take(self, lane: Lane) -> Part | None:
        if lane.queue:
            tickets = list(lane.queue)
            lane.queue.clear()
            self._room.set()
            return Part(self._input, tickets[0].segment, False, tickets)
        while self._ready:
            delivery, attempts = self._ready.popleft()
            self._room.set()
            ticket = self._ticket(delivery, attempts)
            if not self._lanes.hand(lane, ticket):
                continue
            return Part(self._input, ticket.segment, False, [ticket])
        return None

    def _ticket(self, delivery: Delivery, attempts: int) -> Ticket:
        self._count += 1
        record = self._believed(delivery.record)
        segment = Segment([record], [self._count])
        ticket = Ticket(self._input, record, self._count, segment, 0)
        ticket.attempts = attempts
        self._tickets[id(segment)] = delivery
        return ticket

    def _believed(self, record: Record) -> Record:
        signer = self._worker.settings.signer
        return record if signer is None else signer.believed(self._input.topic.name, QUEUED, record)

    # --- one event ---------------------------------------------------------------------------------------------

    def judged(self, ticket: Ticket) -> bool:
        return False

    def admit(self, lane: Lane, ticket: Ticket) -> bool:
        only = names.find(ticket.record.headers, names.ONLY) if ticket.record.headers else None
        if only is not None and only != self.plan.name.encode():
            self.finished(lane, (ticket,))
            return False
        return True

    def room(self, destination: Destination) -> int | None:
        return self._worker.message_bytes

    async def enter(self, timestamp: int) -> int:
        return FOR_EVER

    def waits(self) -> None: ...

    def adopt(self) -> None:
        return

    def leave(self) -> None:
        return

    async def let_commit(self) -> None:
        return

    def other_lanes(self, lane: OpenEvent) -> Sequence[OpenEvent]:
        return ()

    def table(self, plan: TablePlan) -> TableState | None:
        return None

    def finished(self, lane: Lane, tickets: Sequence[Ticket]) -> None:
        answers: list[Answer] = [(self.plan, record, data) for record, data in lane.answers]
        deliveries = [self._release(lane, ticket) for ticket in tickets]

        def failed(error: Exception) -> None:
            for delivery, ticket in zip(deliveries, tickets, strict=True):
                self._judge(delivery, ticket, lane, error, short_traceback(error))

        self._done.append(_Done(deliveries, list(lane.outputs), answers, failed))
        self.outcomes.finished(len(tickets))
        self._settle.set()

    def _release(self, lane: Lane, ticket: Ticket) -> Delivery:
        """The lane is through with this ticket."""
        self._lanes.through(lane, ticket)
        return self._tickets.pop(id(ticket.segment))

    async def failed(self, lane: Lane, tickets: list[Ticket], error: Exception) -> None:
        lane.discard()
        if len(tickets) > 1:
            for ticket in tickets:
                ticket.alone = True
            lane.give_back(tickets)
            return
        if not tickets:
            log.error("agent %s raised outside any event", self.plan.name, exc_info=error)
            await self.clock.sleep(1.0)
            return
        self._end(lane, tickets[0], error, short_traceback(error))

    async def returned(self, lane: Lane, progress: bool) -> None:
        if not progress:
            error = ConfigurationError(
                f"agent {self.plan.name!r} returned without reading its stream (is the `async for` missing?)"
            )
            log.error("%s", error)
            if self.settings.failures is not None:
                self.settings.failures(self.plan.name, error)
            await self.clock.sleep(1.0)

    def undecodable(self, lane: Lane, ticket: Ticket, error: Exception) -> None:
        self._end(lane, ticket, explain(self._input.topic.value, error, ticket.record.value or b""), "")

    def _end(self, lane: Lane, ticket: Ticket, error: Exception, trace: str) -> None:
        self._judge(self._release(lane, ticket), ticket, lane, error, trace)

    def _judge(self, delivery: Delivery, ticket: Ticket, lane: Lane, error: Exception, trace: str) -> None:
        """What the policy says of an event that failed."""
        attempts = ticket.attempts + 1
        if self.settings.failures is not None:
            self.settings.failures(self.plan.name, error)
            decision = Decision(Action.SKIP, str(error))
        else:
            decision = self.plan.policy.decide(error, attempts, self.outcomes, self._random.random)
        log_failure(self.plan.name, ticket, lane, attempts, decision, error)
        if decision.action is Action.RETRY:
            self._later(delivery, attempts, decision.delay)
            return
        if decision.action is Action.HALT:
            self._halt(decision.reason)
            return
        outputs: list[tuple[tuple[str, int], Message]] = []
        if decision.action is Action.DEAD_LETTER:
            self.outcomes.dead_lettered()
            destination = self._worker.dead_letter_destination(self._input.topic.name, None)
            limits = self._worker.message_bytes, self._worker.head_bytes
            letter = dead_letter(self.plan.name, ticket, decision.reason, trace, attempts, *limits)
            outputs.append((destination, letter))
        failure: list[Answer] = []
        if ticket.record.headers and asked(self.plan, ticket.record):
            failure.append((self.plan, ticket.record, Failure(decision.reason, trace)))
        self._done.append(_Done([delivery], outputs, failure))
        self._settle.set()

    def _halt(self, reason: str) -> None:
        self.draining = True
        log.critical("agent %s: halted: %s. Its messages wait", self.plan.name, reason)

    def _later(self, delivery: Delivery, attempts: int, delay: float) -> None:
        """Deliver it again: by the broker where it can wait, else here."""
        task = asyncio.get_running_loop().create_task(self._retry(delivery, attempts, delay))
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)

    async def _retry(self, delivery: Delivery, attempts: int, delay: float) -> None:
        channel = self._work_queue
        if channel is not None:
            try:
                await channel.retry(delivery, delay)
                self._held.pop(id(delivery), None)
                return
            except StaleDelivery:
                self._held.pop(id(delivery), None)  # it comes again as it is
                return
            except BrokerError as error:
                log.warning("agent %s: a retry waits in this worker instead of the queue: %s", self.plan.name, error)
        await self.clock.sleep(delay)
        self._ready.appendleft((delivery, attempts))
        self._lanes.wake(1)

    # --- settling ----------------------------------------------------------------------------------------------

    async def _settle_all(self, channel: Channel) -> None:
        """Send what finished events sent, then acknowledge, then answer: at least once."""
        backoff = 0.1
        alone = False
        while True:
            await self._settle.wait()
            self._settle.clear()
            while self._done:
                done = self._done[:1] if alone else self._done[:]
                try:
                    try:
                        await self._send([output for event in done for output in event.outputs])
                    except (
                        MessageTooLarge,
                        AccessDenied,
                    ) as error:  # a limit that the broker did not tell, or no rights
                        alone = len(done) > 1  # to find the event that sent it
                        if not alone:
                            await self._refused(self._done.pop(0), error)
                        continue
                    for event in done:
                        event.outputs = []
                    deliveries = [delivery for event in done for delivery in event.deliveries]
                    await channel.commit(deliveries)
                    backoff = 0.1
                except StaleDelivery as error:
                    log.warning("agent %s: handled, and will be again: %s", self.plan.name, error)
                except BrokerError as error:
                    self._worker.complaints.warn(
                        "settling", "agent %s: settling failed, again in %.1f s: %s", self.plan.name, backoff, error
                    )
                    await self.clock.sleep(backoff)
                    backoff = min(backoff * 2, LONGEST_BACKOFF)
                    continue
                for delivery in deliveries:
                    self._held.pop(id(delivery), None)
                answers = [answer for event in done for answer in event.answers]
                del self._done[: len(done)]
                alone = alone and bool(self._done)
                if answers:
                    self._worker.answer(answers)
            self._settled.set()

    async def _refused(self, event: _Done, error: MessageTooLarge | AccessDenied) -> None:
        if event.failed is not None:
            event.failed(error)
        elif isinstance(error, AccessDenied):  # a dead letter: what failed is kept until it can be one
            self._worker.complaints.warn("settling", "agent %s: a dead letter waits: %s", self.plan.name, error)
            self._done.append(event)
            await self.clock.sleep(LONGEST_BACKOFF)
        else:
            self._halt(f"a dead letter is too large, and what failed is kept: {error}")

    async def _send(self, outputs: Sequence[tuple[tuple[str, int], Message]]) -> None:
        by_topic: dict[str, dict[int, list[Message]]] = {}
        for (topic, partition), message in outputs:
            by_topic.setdefault(topic, {}).setdefault(partition, []).append(message)
        for topic, records in by_topic.items():
            await self._worker.send_now(topic, records)
