"""Events that may kill the process (design rule 12): they run one at a time, each noted in the journal before.

Whoever takes over from a process that died finds the note, counts the death, and has the policy decide. A death is an
attempt only of an event that ran while no other one that was noted did in that process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING

from thalweg.clock import in_time
from thalweg.errors import ProcessDied
from thalweg.journal.rows import Suspect, Suspects, encode, parked_key, suspect_key
from thalweg.message import Position
from thalweg.policy import Action, Decision

from .isolation import LONGEST_SUSPICION, Noted
from .parking import ParkedSegment
from .tickets import Part, Ticket
from .verdicts import Verdict, Where

if TYPE_CHECKING:
    from .agent_task import AgentTask

__all__ = ["Suspicion"]

DEATH_DELAY, LONGEST_DELAY = 0.1, 60.0
"""Seconds that an event waits in which the process died: doubled with each death, and at most."""

MOST_SHARED = 3
"""So often a process may die in an event beside others; then each such death counts as well, for it has to end."""


class Suspicion:
    """Of one agent in one task.

    careful: the last owner died, so that so many events are under suspicion. noted: the one that is.
    alone: a process has died in that one before, so it runs beside no other that is noted.
    queueing: it waits until it may. finishing: none is any more, but the journal has still to know.
    """

    def __init__(self, agent: AgentTask) -> None:
        self.careful = 0
        self.noted: Where | None = None
        self.alone = self.queueing = self.finishing = False
        self._agent, self._task, self._clock = agent, agent.task, agent.clock
        self._isolation = agent.task.worker.isolation
        self._suspects: dict[Where, Suspect] = {}  # still to come up: a process has died in them
        self._deaths, self._shared = 0, 0  # of the one that is noted
        self._has_company = False  # it is written down that others ran beside it
        self.known_with = 0  # the commit of the task that takes along what was written down last

    def falls_on(self, part: Part) -> bool:
        return self.singly or self.finishing or _has_killed(part)

    async def note(self, part: Part) -> Part:
        """Write down what is about to run, so that if it kills the process the next owner knows (design rule 12).

        An event in which the process died before is parked first, so that the others need not die with it again.
        """
        if not (self.singly or _has_killed(part)):
            await self.committed()  # else the one before would be blamed for what this one does
            return part
        (ticket,) = part.tickets = list(part.tickets)[:1]
        ticket.alone = True
        where = self.noted = (ticket.input.name, ticket.position)
        segment = part.segment
        self._deaths, self._shared = (segment.deaths, segment.shared) if isinstance(segment, ParkedSegment) else (0, 0)
        self.alone = _has_killed(part)
        suspect = self._suspects.pop(where, None)
        if suspect is not None:
            self._task.verdicts.set(where, self._after_death(suspect))
            return part
        if self.alone and where not in self._task.verdicts:
            verdict = self._after_death(Suspect(*where, self._deaths, self._shared))
            if verdict.decision is not None and verdict.decision.action is not Action.RETRY:
                self._task.verdicts.set(where, verdict)  # it was given up, by an owner that died before it could say so
                return part
        beside = await self._may_run()
        if beside is not None:
            await self._write_down(beside)
        return part

    async def _may_run(self) -> Collection[Noted] | None:
        """Wait until it may: which others that are noted run beside it. None: no event is to begin any more."""
        self.queueing = not self._isolation.is_free(self)
        if self.queueing:
            self._agent.turns.next()  # whoever runs may need another agent's turn first
        try:
            return await self._isolation.enter(self)
        finally:
            self.queueing = False

    async def _write_down(self, beside: Collection[Noted]) -> None:
        """Before it begins, it is committed that it runs, and whether beside others: for those too."""
        company = sum(other.joined() for other in beside)
        known_with = [(other, other.known_with) for other in beside]
        self.finishing = False
        self._write(self._if_it_dies(alone=not company))
        self._task.tenure.noted.add(self._agent.plan.name)
        await self.committed()
        late = [other.committed() for other, commit in known_with if not other.is_known(commit)]
        if late:
            await in_time(self._clock, LONGEST_SUSPICION, asyncio.gather(*late))

    def joined(self) -> bool:
        if self.noted is None or self.finishing:  # what it has noted by now, if anything, does not run yet
            return False
        if not self._has_company:
            self._write(self._if_it_dies(alone=False))
        return True

    def is_known(self, commit: int) -> bool:
        return self._task.commits >= commit

    async def committed(self) -> None:
        finishing = self.finishing
        await self._task.flush()
        if finishing and self.finishing and self.noted is None:
            self.end()

    def _if_it_dies(self, alone: bool) -> Suspect:
        assert self.noted is not None
        self._has_company = not alone
        return Suspect(*self.noted, self._deaths + alone, self._shared + (not alone))

    def _after_death(self, suspect: Suspect) -> Verdict:
        attempts, shared = suspect.deaths, suspect.shared
        attempts += max(0, shared - MOST_SHARED)
        delay = min(LONGEST_DELAY, DEATH_DELAY * 2.0 ** min(suspect.deaths + shared, 10))
        if attempts:
            error = ProcessDied(f"the process died {attempts} time(s) while it handled this event")
            decision = self._agent.plan.policy.decide(error, attempts, self._agent.outcomes, self._agent.random.random)
            delay = max(delay, decision.delay)
        else:
            decision = Decision(Action.RETRY, "the process died while it handled this event, beside others")
        if decision.action is Action.RETRY:
            if self._task.settings.failures is not None:
                delay = 0.0  # a test has killed it, and does not wait
            decision = Decision(Action.RETRY, decision.reason, delay)
        return Verdict(decision, attempts, deaths=suspect.deaths, shared=shared)

    def restore(self, row: Suspects, died: bool) -> None:
        """What owners before had noted and died in. Where it is parked already, that death counts there.

        died: also the last one, and in what it had noted.
        """
        suspects = [*row.before] if row.noted is None or not died else [row.noted, *row.before]
        for suspect in suspects:
            where = (suspect.input, suspect.position)
            parked = self._agent.parking.first(*where)
            if parked is None:
                if not self._is_behind(*where):
                    self._suspects[where] = suspect
                continue
            verdict = self._after_death(suspect)
            assert verdict.decision is not None
            parked.deaths, parked.shared = suspect.deaths, suspect.shared
            if verdict.decision.action is Action.RETRY:
                parked.due = round((self._clock.now() + verdict.decision.delay) * 1000)
            else:
                self._task.verdicts.set(where, verdict)
            self._task.rows[parked_key(*where)] = encode(parked)
        if row.noted is not None:
            self._write(None)

    def _is_behind(self, name: str, position: Position) -> bool:
        """Whether the input was read beyond this."""
        reached = next((input_.committed.position for input_ in self._agent.inputs if input_.name == name), position)
        return reached is not None and reached >= position

    def end(self) -> None:
        """No event of this agent is under suspicion any more."""
        self.noted = None
        self.finishing = False
        self._isolation.leave(self)

    def stop(self) -> None:
        """None is to begin."""
        if self.queueing:
            self.end()

    def waits(self) -> None:
        """What the event does now cannot kill the process: it waits for others."""
        self._isolation.waits(self)

    def _write(self, noted: Suspect | None) -> None:
        before = list(self._suspects.values())
        key = suspect_key(self._agent.plan.name)
        self._task.write_next(key, encode(Suspects(noted, before)) if noted is not None or before else None)
        self.known_with = self._task.commits + self._task.in_flight + 1

    @property
    def singly(self) -> bool:
        """Whether events run one at a time, for one of them may kill the process."""
        return self.careful > 0 or bool(self._suspects)

    def clear(self, ticket: Ticket) -> None:
        """If it is the event that was noted: it did not kill the process."""
        if self.noted != (ticket.input.name, ticket.position):
            return
        self.noted, self.finishing = None, True
        self._isolation.finish(self)
        self.careful = max(0, self.careful - 1)
        self._write(None)
        self._agent.lanes.wake(len(self._agent.lanes))


def _has_killed(part: Part) -> bool:
    """Whether the process died in this event before."""
    segment = part.segment
    return isinstance(segment, ParkedSegment) and segment.deaths + segment.shared > 0
