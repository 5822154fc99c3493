"""Faults that a test injects into a memory broker: it decides which call of which operation fails, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeAlias

import msgspec
from thalweg.errors import AmbiguousCommit, BrokerError

from .session import Session

__all__ = ["Call", "Faults", "Hold", "Operation"]

Operation: TypeAlias = Literal[
    "append", "read", "bounds", "find", "truncate", "claim", "commit", "put", "get", "ack", "try_lock"
]
"""`commit` is that of `Fencing`; `ack` is `Channel.commit`. A queue's extend, retry and reject count as `ack`."""

WRITES = frozenset({"append", "claim", "commit", "put"})


class HasSession(Protocol):
    @property
    def session(self) -> Session | None: ...


class Call(msgspec.Struct, frozen=True):
    """One call as an interceptor sees it: before its effect (`done` False), then after it (`done` True).

    topic: the topic's name; of `try_lock`, the lock's; of `commit`, the first claim's.
    """

    operation: Operation
    topic: str
    session: Session
    done: bool


class Hold:
    """A call that stands still. `await reached.wait()` until it has come; `release()` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def __call__(self, call: Call) -> None:
        self.reached.set()
        await self._released.wait()


class _Rule:
    """Lets `nth - 1` matching calls pass, strikes the next `times` ones, and is spent."""

    def __init__(
        self,
        strike: Callable[[Call], Awaitable[None]],
        operation: Operation,
        nth: int,
        times: float,
        after: bool,
        topic: str | None,
        transport: HasSession | None,
    ) -> None:
        self.strike, self.operation, self.after, self.topic, self.transport = strike, operation, after, topic, transport
        self._pass, self._times = nth - 1, times

    def due(self, call: Call) -> bool:
        if (
            self.operation != call.operation
            or self.after != call.done
            or self.topic not in (None, call.topic)
            or (self.transport is not None and self.transport.session is not call.session)
        ):
            return False
        if self._pass:
            self._pass -= 1
            return False
        self._times -= 1
        return True

    @property
    def spent(self) -> bool:
        return self._times <= 0


class Faults:
    """The faults of one broker. Drivers ask `if faults.armed` first, so unused they cost one attribute."""

    def __init__(self) -> None:
        self.armed = False
        self._rules: list[_Rule] = []
        self._interceptor: Callable[[Call], Awaitable[None]] | None = None

    def fail(
        self,
        operation: Operation,
        *,
        nth: int = 1,
        times: float = 1,
        after: bool = False,
        error: Exception | None = None,
        topic: str | None = None,
        transport: HasSession | None = None,
    ) -> None:
        """Fail the `nth` matching call from now (1: the next), and the `times - 1` that follow it.

        after: only once its effect has happened (an ambiguous failure); else nothing has happened.
        error: what to raise; by default `BrokerError`, and `AmbiguousCommit` for a write that has happened.
        """

        async def strike(call: Call) -> None:
            if error is not None:
                raise error
            if call.done and operation in WRITES:
                raise AmbiguousCommit(f"injected fault: the answer to {operation} on {call.topic!r} was lost")
            raise BrokerError(f"injected fault: {operation} on {call.topic!r} failed")

        self._add(_Rule(strike, operation, nth, times, after, topic, transport))

    def hold(
        self,
        operation: Operation,
        *,
        nth: int = 1,
        after: bool = False,
        topic: str | None = None,
        transport: HasSession | None = None,
    ) -> Hold:
        """Stop the `nth` matching call before (or after) its effect until the `Hold` is released."""
        hold = Hold()
        self._add(_Rule(hold, operation, nth, 1, after, topic, transport))
        return hold

    def intercept(self, interceptor: Callable[[Call], Awaitable[None]] | None) -> None:
        """Await `interceptor(call)` before and after the effect of every call; it may raise, or take its time.

        For simulators; it runs before the rules of `fail` and `hold`. None takes it away.
        """
        self._interceptor = interceptor
        self._rearm()

    def clear(self) -> None:
        """Forget all rules and the interceptor. Calls that are held stay held until released."""
        self._rules.clear()
        self._interceptor = None
        self._rearm()

    async def before(self, operation: Operation, topic: str, session: Session) -> None:
        await self._meet(Call(operation, topic, session, False))

    async def after(self, operation: Operation, topic: str, session: Session) -> None:
        await self._meet(Call(operation, topic, session, True))
        if session.down is not None:  # cut off while it was held: the answer does not arrive
            kind = AmbiguousCommit if operation in WRITES else BrokerError
            raise kind(f"{session.down}: the answer to {operation} on {topic!r} was lost")

    async def _meet(self, call: Call) -> None:
        if self._interceptor is not None:
            await self._interceptor(call)
        for rule in list(self._rules):
            if rule in self._rules and rule.due(call):
                if rule.spent:
                    self._rules.remove(rule)
                    self._rearm()
                await rule.strike(call)

    def _add(self, rule: _Rule) -> None:
        self._rules.append(rule)
        self._rearm()

    def _rearm(self) -> None:
        self.armed = bool(self._rules) or self._interceptor is not None
