"""Random programs, and the sequential model of what each of them ought to do."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from listing import listed
from thalweg import App, DeadLetter, Event, Retry, Skip, Stream, Table, Topic
from thalweg.errors import BrokerError, LockLost, OutsideEvent, ProcessDied
from thalweg.exclusion import HeldLock
from thalweg.runtime.context import current_lane
from thalweg.runtime.scheduled_run import ScheduledRun

from .later import Later

__all__ = ["SOMETIMES", "Bad", "Flaky", "Node", "Outcome", "Program"]

SOMETIMES = 11.0
"""Seconds between two runs of the leader's timer."""
SLOW = 0.008
"""Seconds for which an agent that computes keeps its process from doing anything else, an event."""
POISON, SECOND_POISON = 7, 13
"""Numbers that kill their process: the second once it has waited for others, where its agent does."""
DEATHS = 3
"""After so many deaths of its process an event is given up."""


class Flaky(Exception):
    """Raised at an event's first attempt only."""


class Bad(Exception):
    """Raised at every attempt."""


class Node:
    """One agent of the program, with all that it does and what it ought to have done."""

    def __init__(self, program: Program, number: int) -> None:
        self.program, chance = program, program.chance
        app = program.app
        self.name = f"agent{number}"
        self.concurrency = chance.choice([1, 1, 2, 3])
        self.regroup = chance.random() < 0.3
        self.flaky = chance.choice([0, 3, 5])
        self.bad = chance.choice([0, 0, 4])
        self.skips = chance.random() < 0.5
        self.pauses = chance.choice([0, 0, 1, 3])
        self.sleeps = chance.random() < 0.2
        self.takes = chance.choice([0, 0, 0, 2]) if self.concurrency == 1 and not self.bad else 0
        self.deadly = (
            program.clustered and not self.takes and chance.random() < 0.1 and not any(n.deadly for n in program.nodes)
        )
        self.asks = program.clustered and chance.random() < 0.2
        self.computes = program.clustered and chance.random() < 0.3
        if self.computes:
            self.pauses, self.sleeps = 0, False
        standbys = chance.choice([0, 0, 0, 1, 2]) if program.clustered else 0
        self.source = chance.choice(program.sources)
        self.target = app.topic(f"target{number}", key=str, value=int)
        shared = program.nodes and self.concurrency == 1 and chance.random() < 0.3
        self.sums = (
            program.nodes[-1].sums
            if shared
            else app.table(f"sums{number}", key=str, value=int, default=int, standbys=standbys)
        )
        self.lists = app.table(f"lists{number}", key=str, value=list[int], default=list)
        self.failed_once: set[str] = set()
        stream = self.source.stream()
        if self.regroup:
            stream = stream.group_by(lambda number: f"r{number % 4}", name=f"regroup{number}")
        given_up = Skip() if self.skips else DeadLetter()
        passing = (Flaky, TimeoutError, BrokerError) if self.deadly else (Flaky, TimeoutError, BrokerError, ProcessDied)
        policy = Retry(None, backoff=0.1, max_backoff=5.0, on=passing) | given_up
        if self.deadly:
            policy = Retry(DEATHS, backoff=0.1, on=(ProcessDied,), then=given_up) | policy
        body = self.take if self.takes else self.body
        self.agent = app.agent(stream, name=self.name, concurrency=self.concurrency, on_error=policy)(body)

    def key_of(self, key: str, number: int) -> str:
        return f"r{number % 4}" if self.regroup else key

    def in_order(self, lists: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """As they can be compared: events of different partitions come together in a regrouping in any order."""
        return {key: sorted(numbers) if self.regroup else list(numbers) for key, numbers in lists.items()}

    def fails(self, number: int) -> bool:
        return (bool(self.bad) and number % self.bad == 1) or self.kills(number)

    def kills(self, number: int) -> bool:
        return self.deadly and (number == POISON or (number == SECOND_POISON and self.program.has_more_poison))

    async def body(self, stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            await self.handle(event)
            yield self.sums[event.key]

    async def take(self, stream: Stream[int]) -> None:
        async for events in stream.events().take(self.takes, within=1.0):
            for event in events:
                await self.handle(event)

    async def handle(self, event: object) -> None:
        key, number = event.key, event.value  # type: ignore[attr-defined]
        if number == POISON and self.kills(number):
            await self.program.die(event)
        if self.asks and number % 3 == 1:
            assert await self.program.echo.ask(number, key=key, timeout=5.0) == number
        if self.kills(number):
            await self.program.die(event)
        if self.computes:
            self.program.compute(SLOW)
        before = self.sums[key]
        await self.target.send(number, key=key)
        if self.program.queued and self is self.program.nodes[0]:
            await self.program.jobs.send(number, key=key)
        if self.program.later is not None and self is self.program.nodes[0]:
            await self.program.later.in_event(key, number)
        for _ in range(self.pauses):
            await asyncio.sleep(0)
        if self.sleeps:
            await self.agent._app.sleep(0.05)
        self.lists[key].append(number)
        self.sums[key] = before + number
        if self.flaky and number % self.flaky == 0 and event.id not in self.failed_once:  # type: ignore[attr-defined]
            self.failed_once.add(event.id)  # type: ignore[attr-defined]
            raise Flaky(number)
        if self.fails(number):
            raise Bad(number)


class Outcome(msgspec.Struct):
    """What came of it: rows and outputs by agent, sums by table, dead letters by topic, what came through the queue."""

    lists: dict[str, dict[str, list[int]]] = {}
    outputs: dict[str, dict[str, list[int]]] = {}
    sums: dict[str, dict[str, int]] = {}
    letters: dict[str, list[tuple[str, int]]] = {}
    jobs: dict[str, list[int]] = {}

    def differs(self, expected: Outcome) -> str:
        """The first thing that is not as expected; empty if all is."""
        for part in self.__struct_fields__:
            real, wanted = getattr(self, part), getattr(expected, part)
            for name in sorted(real.keys() | wanted.keys()):
                if real.get(name) != wanted.get(name):
                    return f"{part} of {name}: {real.get(name)}, expected {wanted.get(name)}"
        return ""


class Program:
    """What it consists of comes from `chance`: the same state gives the same program.

    clustered: it also has what takes several workers: timers and crontabs on the leader, standbys, questions to other
    agents, a queue, events that kill their process.
    """

    def __init__(self, chance: random.Random, clustered: bool = False) -> None:
        self.chance, self.clustered = chance, clustered
        self.app = App("random", partitions=chance.choice([1, 1, 2, 3]), commit_interval=chance.choice([0.0, 0.1, 1.0]))
        self.sources = [self.app.topic(f"source{n}", key=str, value=int) for n in range(chance.choice([1, 2]))]
        self.nodes: list[Node] = []
        for number in range(chance.choice([1, 2, 3])):
            self.nodes.append(Node(self, number))
        self.sent: list[tuple[str, str, int]] = []
        if clustered:
            self._lead()
            self._echo()
            self._queue()
            if chance.random() < 0.3:
                self.later = Later(self.app)
            self._more_poison = chance.random() < 0.5
            self.signs = chance.random() < 0.25
            if self.signs:
                self.app._secret = "known-to-the-app-alone"

    @property
    def has_more_poison(self) -> bool:
        """Where each death costs no more than a short lease."""
        return self._more_poison and self.app.lease <= 5.0

    # --- what takes several workers --------------------------------------------------------------------------

    async def die(self, by: object) -> None:
        """The process is killed, by what this event does."""
        raise NotImplementedError

    def compute(self, seconds: float) -> None:
        """The process does nothing else meanwhile."""
        raise NotImplementedError

    def _echo(self) -> None:
        questions = self.app.topic("questions", key=str, value=int)

        @self.app.agent(questions, name="echo", on_error=Retry(None))
        async def echo(stream: Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                yield number

        self.echo = echo

    def _queue(self) -> None:
        """The first agent gives work to a queue, and it is done at least once."""
        self.queued = self.chance.random() < 0.25
        if not self.queued:
            return
        self.jobs = self.app.queue("jobs", key=str, value=int)
        self.done = self.app.topic("done", key=str, value=int)

        @self.app.agent(self.jobs, name="worker", on_error=Retry(None))
        async def work(stream: Stream[int]) -> None:
            async for event in stream.events():
                await self.done.send(event.value, key=event.key)

    def _lead(self) -> None:
        self.ticks = self.app.topic("ticks", key=str, value=float)
        """What the leader ran: by schedule, when it was due."""
        self.app.crontab("* * * * *", on_leader=True, name="minutes")(self.tick("minutes"))
        self.app.timer(SOMETIMES, on_leader=True, name="sometimes")(self.tick("sometimes"))
        if self.chance.random() < 0.3:
            self.app.background(self.be_alone)
        if self.chance.random() < 0.3:
            self.app.background(self.write_outside)

    async def write_outside(self) -> None:
        """Nobody can: it would be part of no commit."""
        while True:
            await self.app.sleep(7.0)
            with contextlib.suppress(OutsideEvent):
                self.nodes[0].sums["a"] = 1_000_000

    queued = signs = _more_poison = False
    later: Later | None = None
    held: HeldLock | None = None
    """The lock under which this worker does something by itself now."""
    entered: Callable[[HeldLock], None] = staticmethod(lambda held: None)

    async def be_alone(self) -> None:
        """On every worker, but never on two at a time."""
        while True:
            try:
                async with self.app.lock("alone") as held:
                    self.entered(held)
                    self.held = held
                    try:
                        await self.app.sleep(1.0)
                    finally:
                        self.held = None
            except (LockLost, BrokerError):
                pass
            await self.app.sleep(6.0)

    def tick(self, name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            scheduled = current_lane.get()
            assert isinstance(scheduled, ScheduledRun)
            await self.ticks.send(float(scheduled._id.rpartition("/")[2]), key=name)

        return run

    def differs(self, outcome: Outcome, sent: Callable[[Topic[str, int]], Iterable[Event]]) -> str:
        """What is not as it ought to be, of the outcome and of what leaves later; empty if all is."""
        expected = self.expected()
        difference = outcome.differs(expected)
        if self.later is None or difference:
            return difference
        handled = [number for numbers in expected.lists[self.nodes[0].name].values() for number in numbers]
        return self.later.differs(handled, sent(self.later.topic))

    def expected(self) -> Outcome:
        """What it ought to come to, given what was sent."""
        outcome = Outcome()
        sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        letters: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for node in self.nodes:
            lists: dict[str, list[int]] = defaultdict(list)
            for topic, key, number in self.sent:
                if topic == node.source.name:
                    key = node.key_of(key, number)
                    if not node.fails(number):
                        lists[key].append(number)
                        sums[node.sums.name][key] += number
                    elif not node.skips:
                        letters[node.agent.plan.sources[0].topic.name].append((node.name, number))
            outcome.lists[node.name] = outcome.outputs[node.name] = node.in_order(lists)
        outcome.sums = {node.sums.name: _without_zeros(sums[node.sums.name]) for node in self.nodes}
        outcome.letters = {name: sorted(found) for name, found in letters.items()}
        if self.queued:
            outcome.jobs["jobs"] = sorted(
                {one for found in outcome.lists[self.nodes[0].name].values() for one in found}
            )
        return outcome

    async def outcome(self, running: Sequence[Program], sent: Callable[[Topic[str, int]], Iterable[Event]]) -> Outcome:
        """What it came to, where `running` are the workers' programs and this is one of them or a client's."""
        outcome = Outcome()
        for number, node in enumerate(self.nodes):
            twins = [program.nodes[number] for program in running]
            outcome.lists[node.name] = node.in_order(_together(twin.lists for twin in twins))
            outputs: dict[str, list[int]] = defaultdict(list)
            for event in sent(node.target):
                outputs[event.key].append(event.value)
            outcome.outputs[node.name] = node.in_order(outputs)
            outcome.sums[node.sums.name] = _without_zeros(_together(twin.sums for twin in twins))
            if (node.bad or node.deadly) and not node.skips:
                source = node.agent.plan.sources[0].topic.name
                outcome.letters[source] = sorted(
                    [
                        (letter.agent, int(letter.value or b""))
                        async for letter in self.app.dead_letters(self.app.source(source))
                    ]
                )
        outcome.letters = {name: letters for name, letters in outcome.letters.items() if letters}
        if self.queued:
            outcome.jobs["jobs"] = sorted({event.value for event in sent(self.done)})
        return outcome


def _together(tables: Iterable[Table[str, Any]]) -> dict[str, Any]:
    """The rows of all workers. Raises AssertionError if two have the same one."""
    together: dict[str, Any] = {}
    for table in tables:
        for key, value in listed(table).items():
            assert key not in together, f"two workers serve {key!r} of table {table._plan.name!r}"
            together[key] = value
    return together


def _without_zeros(sums: Mapping[str, int]) -> dict[str, int]:
    return {key: value for key, value in sums.items() if value}
