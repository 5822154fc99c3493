"""Events that may kill the process (design rule 12): they run one at a time, each noted in the journal before.

Whoever takes over from a process that died finds the note, counts the death, and has the policy decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from thalweg.clock import in_time
from thalweg.errors import ProcessDied
from thalweg.journal.rows import Suspect, Suspects, encode, parked_key, suspect_key
from thalweg.message import Position
from thalweg.policy import Action, Decision

from .parking import ParkedSegment
from .tickets import Part, Ticket
from .verdicts import Verdict, Where

if TYPE_CHECKING:
    from .agent_task import AgentTask

__all__ = ["Suspicion"]

LONGEST_SUSPICION = 10.0
"""Seconds for which one event under suspicion keeps others from running beside it."""

DEATH_DELAY = 0.1
"""Seconds, doubled with each death, that an event waits in which the process died."""


def _deadly(part: Part) -> bool:
    """Whether the process died in this event before."""
    return isinstance(part.segment, ParkedSegment) and part.segment.deaths > 0


class Suspicion:
    """Of one agent in one task.

    careful: the last owner died, so that so many events are under suspicion. noted: the one that is.
    queueing: it waits for its turn among those of the whole process.
    """

    def __init__(self, agent: AgentTask) -> None:
        self.careful = 0
        self.noted: Where | None = None
        self.queueing = False
        self._agent, self._task, self._clock = agent, agent.task, agent.clock
        self._suspects: dict[Where, int] = {}  # still to come up: a process has died in them so often
        self._alone = False  # it has that turn

    def falls_on(self, part: Part) -> bool:
        return self.singly or _deadly(part)

    async def note(self, part: Part) -> Part:
        """Write down what is about to run, so that if it kills the process the next owner knows (design rule 12).

        An event in which the process died before is parked first, so that the others need not die with it again.
        """
        (ticket,) = part.tickets = list(part.tickets)[:1]
        ticket.alone = True
        where = self.noted = (ticket.input.name, ticket.position)
        died = self._suspects.pop(where, 0)
        if died:
            self._task.verdicts.set(where, self._after_death(died))
            return part
        deaths = part.segment.deaths if isinstance(part.segment, ParkedSegment) else 0
        if deaths:
            await self._be_alone()
        self._write(Suspect(*where, deaths + 1))
        self._task.noted.add(self._agent.plan.name)
        await self._task.flush()
        return part

    def _after_death(self, deaths: int) -> Verdict:
        error = ProcessDied(f"the process died {deaths} time(s) while it handled this event")
        decision = self._agent.plan.policy.decide(error, deaths, self._agent.outcomes, self._agent.random.random)
        if decision.action is Action.RETRY:
            delay = max(decision.delay, DEATH_DELAY * 2**deaths)
            if self._task.settings.failures is not None:
                delay = 0.0  # a test has killed it, and does not wait
            decision = Decision(Action.RETRY, decision.reason, delay)
        return Verdict(decision, deaths, deaths=deaths)

    def restore(self, suspects: Iterable[Suspect]) -> None:
        """What owners before had noted and died in. Where it is parked already, that death counts there."""
        for suspect in suspects:
            where = (suspect.input, suspect.position)
            parked = self._agent.parking.first(*where)
            if parked is None:
                if not self._is_behind(*where):
                    self._suspects[where] = suspect.deaths
                continue
            verdict = self._after_death(suspect.deaths)
            assert verdict.decision is not None
            parked.deaths = suspect.deaths
            if verdict.decision.action is Action.RETRY:
                parked.due = round((self._clock.now() + verdict.decision.delay) * 1000)
            else:
                self._task.verdicts.set(where, verdict)
            self._task.rows[parked_key(*where)] = encode(parked)

    def _is_behind(self, name: str, position: Position) -> bool:
        """Whether the input was read beyond this."""
        reached = next((input_.committed.position for input_ in self._agent.inputs if input_.name == name), position)
        return reached is not None and reached >= position

    async def _be_alone(self) -> None:
        """Other events in which the process has died wait meanwhile, in all its tasks: only one of them is to be blamed
        again. Those that have waited for long enough do so no longer.
        """
        turn = self._task.worker.under_suspicion
        self.queueing = turn.locked()
        try:
            self._agent.turns.next()  # whoever has that turn may need another agent's first
            self._alone = await in_time(self._clock, LONGEST_SUSPICION, turn.acquire())
        finally:
            self.queueing = False

    def end(self) -> None:
        """No event of this agent is under suspicion any more."""
        self.noted = None
        self.waits()

    def waits(self) -> None:
        """What the event does now cannot kill the process: it waits for others."""
        if self._alone:
            self._alone = False
            self._task.worker.under_suspicion.release()

    def _write(self, noted: Suspect | None) -> None:
        before = [Suspect(*where, deaths) for where, deaths in self._suspects.items()]
        key = suspect_key(self._agent.plan.name)
        self._task.rows[key] = encode(Suspects(noted, before)) if noted is not None or before else None

    @property
    def singly(self) -> bool:
        """Whether events run one at a time, for one of them may kill the process."""
        return self.careful > 0 or bool(self._suspects)

    def clear(self, ticket: Ticket) -> None:
        """If it is the event that was noted: it did not kill the process."""
        if self.noted != (ticket.input.name, ticket.position):
            return
        self.end()
        self.careful = max(0, self.careful - 1)
        self._write(None)
        self._agent.lanes.wake(len(self._agent.lanes))
