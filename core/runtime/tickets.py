"""What a lane is handed: records of one topic-partition, each as a ticket, many as a part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from thalweg.event import Answering, Event
from thalweg.headers import ANSWERS, REPLY, find
from thalweg.message import Position, Record
from thalweg.ops import Op
from thalweg.plan import AgentPlan, TopicPlan

from .watermark import Segment

__all__ = ["Input", "Part", "Ticket", "asked"]


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

    def event(self, value: Any, answering: Answering) -> Event[Any, Any]:
        return Event(self.input.topic, self.record, self.input.partition, self.position, value, answering)


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
