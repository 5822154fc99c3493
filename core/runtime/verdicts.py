"""What the policy decided for events that failed: carried out when the event comes up again, and kept until then.

A task that starts over from its last commit keeps them, also those that were carried out and in no commit yet:
without them the event would run, and fail, once more.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from thalweg.journal.rows import Parked
from thalweg.message import Position
from thalweg.policy import Decision

__all__ = ["Verdict", "Verdicts", "Where"]

Where = tuple[str, Position]
"""Input and position of an event."""


class Verdict(msgspec.Struct, frozen=True):
    decision: Decision | None  # None: run it alone (it was in a `take` that failed)
    attempts: int = 0
    trace: str = ""
    deaths: int = 0
    shared: int = 0


class Verdicts:
    """Of one task."""

    def __init__(self) -> None:
        self._pending: dict[Where, Verdict] = {}
        self._carried_out: dict[Where, Verdict] = {}
        self._committing: dict[Where, Verdict] = {}

    def __bool__(self) -> bool:
        """Whether any waits to be carried out."""
        return bool(self._pending)

    def __contains__(self, where: Where) -> bool:
        return where in self._pending

    def set(self, where: Where, verdict: Verdict) -> None:
        self._pending[where] = verdict

    def carry_out(self, where: Where) -> Verdict | None:
        """The verdict on the event that comes up, if there is one."""
        verdict = self._pending.pop(where, None) if self._pending else None
        if verdict is not None:
            self._carried_out[where] = verdict
        return verdict

    def cut(self) -> None:
        """A commit takes along what those carried out did."""
        self._committing, self._carried_out = self._carried_out, {}

    def committed(self) -> None:
        self._committing = {}

    def roll_back(self) -> None:
        """What was carried out since the last commit is undone."""
        self._pending = {**self._committing, **self._carried_out, **self._pending}
        self._carried_out, self._committing = {}, {}

    def forget(self, input_: str, reached: Position | None, parked: Mapping[Where, Parked]) -> None:
        """Those that turn out to be committed: the input was read up to `reached`, but for what is parked."""
        for where, verdict in list(self._pending.items()):
            if where in parked:
                done = parked[where]
                if done.attempts >= verdict.attempts > 0 or (
                    not verdict.attempts and done.shared >= verdict.shared > 0
                ):
                    del self._pending[where]
            elif where[0] == input_ and reached is not None and where[1] <= reached:
                del self._pending[where]
