"""What happens to an event whose handler raised: retry it, dead-letter it or skip it. Pure logic, no I/O, no clock.

    Retry(5, on=(HTTPError,), then=DeadLetter()) | Skip(on=(KeyError,))

Policies are tried from left to right and the first whose `on` matches the error decides. An error that none of them
names goes to the dead letter at once: nothing is lost, and nothing is retried that the program did not ask to retry.
The default policy is `Retry()`: five attempts in all, then the dead letter.

Two exceptions let a handler decide for itself, whatever the policy says: `RetryLater(delay)` has the event delivered
again after that delay, as often as the handler asks; `Reject(reason)` sends it to the dead letter at once, within the
limits of the policy's first `DeadLetter`. A `DecodeError` is never retried: the same bytes would fail again.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import msgspec

from .duration import seconds
from .errors import ConfigurationError, DecodeError, ThalwegError
from .text import shortened

__all__ = [
    "DEFAULT_POLICY",
    "Action",
    "Chain",
    "DeadLetter",
    "Decision",
    "Outcomes",
    "Policy",
    "Reject",
    "Retry",
    "RetryLater",
    "Skip",
]

Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]


def _describe(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:  # a broken __str__ in the program must not hide the error that it belongs to
        text = "(its text cannot be shown)"
    return shortened(f"{type(error).__name__}: {text}")


def _check_errors(name: str, on: object) -> None:
    for error in on if isinstance(on, tuple) else (on,):
        if not (isinstance(error, type) and issubclass(error, Exception)):
            raise ConfigurationError(f"{name}(on): {error!r} is not a class of exceptions, such as ValueError")


def _check_count(setting: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{setting}={value!r}; expected a whole number, 1 or more")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class RetryLater(ThalwegError):
    """Raised by a handler: not now; deliver this event again after `delay` (seconds or timedelta)."""

    def __init__(self, delay: float | timedelta, reason: str = "") -> None:
        self.delay = seconds(delay, "RetryLater(delay)")
        self.reason = reason
        super().__init__(reason or f"again in {self.delay:g} s")


class Reject(ThalwegError):
    """Raised by a handler: this event can never succeed; send it to the dead letter, for this reason."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason or "rejected by the handler")


class Action(enum.StrEnum):
    RETRY = "retry"
    DEAD_LETTER = "dead_letter"
    SKIP = "skip"
    HALT = "halt"


class Decision(msgspec.Struct, frozen=True):
    """What to do with a failed event.

    delay: seconds, for RETRY alone. reason: one line. HALT means that a limit on dead letters is exceeded: stop, and
    do not acknowledge this event.
    """

    action: Action
    reason: str
    delay: float = 0.0


class Outcomes:
    """How events ended of late: what limits on dead letters are judged by. One for each agent and task.

    The ratio looks back on the latest `WINDOW` events, give or take half of it.
    """

    WINDOW = 1000

    __slots__ = ("_current", "_previous", "consecutive")

    def __init__(self) -> None:
        self.consecutive = 0
        """Dead letters in a row, up to now."""
        self._current = self._previous = (0, 0)  # (events, dead letters) of each half of the window

    def finished(self, events: int = 1) -> None:
        """So many events succeeded, or were skipped."""
        if events:
            self.consecutive = 0
            self._count(events, 0)

    def dead_lettered(self) -> None:
        """One event has gone to the dead letter."""
        self.consecutive += 1
        self._count(1, 1)

    @property
    def events(self) -> int:
        """How many the window holds."""
        return self._current[0] + self._previous[0]

    @property
    def dead_letters(self) -> int:
        """How many of them went to the dead letter."""
        return self._current[1] + self._previous[1]

    def _count(self, events: int, dead_letters: int) -> None:
        self._current = (self._current[0] + events, self._current[1] + dead_letters)
        if self._current[0] >= self.WINDOW // 2:
            self._previous, self._current = self._current, (0, 0)


class Policy(ABC):
    """One policy, or several joined by `|`."""

    @property
    @abstractmethod
    def members(self) -> tuple[Single, ...]:
        """The single policies, in the order in which they are tried."""

    def __or__(self, other: Policy) -> Chain:
        return Chain((*self.members, *other.members)) if isinstance(other, Policy) else NotImplemented

    def decide(self, error: Exception, attempts: int, outcomes: Outcomes, random: Callable[[], float]) -> Decision:
        """What to do with an event whose attempt number `attempts` (the first is 1) ended in `error`.

        Pure: the caller counts in `outcomes` what it then really does. `random` gives numbers in [0, 1) as
        `random.Random(seed).random` does: the same source gives the same delays.
        """
        if isinstance(error, RetryLater):
            return Decision(Action.RETRY, _describe(error), error.delay)
        if isinstance(error, Reject):
            return self._dead_letter().end(error, outcomes)
        member = next((member for member in self.members if isinstance(error, member.on)), None)
        if isinstance(member, Retry):
            if not isinstance(error, DecodeError) and (member.attempts is None or attempts < member.attempts):
                return Decision(Action.RETRY, _describe(error), member.delay(attempts, random))
            member = member.then
        return (member or self._dead_letter()).end(error, outcomes)

    def _dead_letter(self) -> DeadLetter:
        """For an error that no member may decide on: the limits of the first `DeadLetter` still hold."""
        ends = (member.then if isinstance(member, Retry) else member for member in self.members)
        return next((end for end in ends if isinstance(end, DeadLetter)), _NO_LIMITS)


@dataclass(frozen=True)
class Chain(Policy):
    """Policies joined by `|`: the first whose `on` matches decides."""

    policies: tuple[Single, ...]

    @property
    def members(self) -> tuple[Single, ...]:
        return self.policies


@dataclass(frozen=True)
class DeadLetter(Policy):
    """Send the event to the dead letter, with its reason, unless too many have gone there of late: then halt.

    max_consecutive: so many in a row at most; None: no limit.
    max_ratio: the largest share (above 0, up to 1) of the latest 1000 events or so; not judged before 100 events have
    ended. None: no limit.
    """

    max_consecutive: int | None = None
    max_ratio: float | None = None
    on: Errors = (Exception,)

    FEWEST_EVENTS = 100

    def __post_init__(self) -> None:
        _check_errors("DeadLetter", self.on)
        if self.max_consecutive is not None:
            _check_count("DeadLetter(max_consecutive)", self.max_consecutive)
        if self.max_ratio is not None and not (_is_number(self.max_ratio) and 0 < self.max_ratio <= 1):
            raise ConfigurationError(f"DeadLetter(max_ratio)={self.max_ratio!r}; expected a number above 0, up to 1")

    @property
    def members(self) -> tuple[Single, ...]:
        return (self,)

    def end(self, error: Exception, outcomes: Outcomes) -> Decision:
        """Dead letter, or halt if this one more would exceed a limit."""
        reason = _describe(error)
        if self.max_consecutive is not None and outcomes.consecutive >= self.max_consecutive:
            return Decision(
                Action.HALT,
                f"{self.max_consecutive} events in a row went to the dead letter (max_consecutive), "
                f"and the next one failed too: {reason}",
            )
        events, dead_letters = outcomes.events + 1, outcomes.dead_letters + 1
        if self.max_ratio is not None and events > self.FEWEST_EVENTS and dead_letters > self.max_ratio * events:
            return Decision(
                Action.HALT,
                f"{dead_letters} of the latest {events} events would be dead letters "
                f"(max_ratio={self.max_ratio:g}); the last error: {reason}",
            )
        return Decision(Action.DEAD_LETTER, reason)


@dataclass(frozen=True)
class Skip(Policy):
    """Drop the event: it counts as handled. The runtime logs and counts it."""

    on: Errors = (Exception,)

    def __post_init__(self) -> None:
        _check_errors("Skip", self.on)

    @property
    def members(self) -> tuple[Single, ...]:
        return (self,)

    def end(self, error: Exception, outcomes: Outcomes) -> Decision:
        return Decision(Action.SKIP, _describe(error))


_NO_LIMITS = DeadLetter()


@dataclass(frozen=True)
class Retry(Policy):
    """Deliver the event again after a growing delay; after the last attempt, do what `then` says, whatever its `on`.

    attempts: in all, the first one included; None: without end.
    backoff: delay before the second attempt (seconds or timedelta); each further one is `factor` times the last, up
    to `max_backoff`. jitter: the share of the delay (0 to 1) that is left to chance, so that many events which failed
    together do not come back together.
    """

    attempts: int | None = 5
    backoff: float | timedelta = 0.1
    factor: float = 2.0
    max_backoff: float | timedelta = 60.0
    jitter: float = 0.1
    on: Errors = (Exception,)
    then: DeadLetter | Skip = _NO_LIMITS

    def __post_init__(self) -> None:
        _check_errors("Retry", self.on)
        if self.attempts is not None:
            _check_count("Retry(attempts)", self.attempts)
        seconds(self.backoff, "Retry(backoff)")
        seconds(self.max_backoff, "Retry(max_backoff)")
        if not (_is_number(self.factor) and 1 <= self.factor < float("inf")):
            raise ConfigurationError(f"Retry(factor)={self.factor!r}; expected a number, 1 or more")
        if not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            raise ConfigurationError(f"Retry(jitter)={self.jitter!r}; expected a number from 0 to 1")
        if not isinstance(self.then, (DeadLetter, Skip)):
            raise ConfigurationError(f"Retry(then)={self.then!r}; expected DeadLetter(…) or Skip()")

    @property
    def members(self) -> tuple[Single, ...]:
        return (self,)

    def delay(self, attempts: int, random: Callable[[], float]) -> float:
        """Seconds to wait after attempt number `attempts` (the first is 1) has failed."""
        longest = seconds(self.max_backoff, "Retry(max_backoff)")
        try:
            delay = min(seconds(self.backoff, "Retry(backoff)") * self.factor ** (attempts - 1), longest)
        except OverflowError:
            delay = longest
        return delay * (1 - self.jitter * random())


Single: TypeAlias = Retry | DeadLetter | Skip

DEFAULT_POLICY = Retry()
