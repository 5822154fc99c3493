"""Agents: async functions over a stream; also actors that can be asked."""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints, overload

from .codec import TypeCodec, codec_for
from .errors import ConfigurationError
from .message import Headers, Message
from .plan import AgentPlan, TopicPlan
from .policy import Policy
from .queue import Queue
from .runtime.lane import Lane
from .stream import Stream
from .table import Table
from .topic import Topic

if TYPE_CHECKING:
    from .app import App

__all__ = ["Agent", "AgentDecorator", "HandlerDecorator", "Sink", "answer_codec", "check_takes_stream"]

V = TypeVar("V")
R = TypeVar("R")


class Agent(Generic[V, R]):
    """Made by `@app.agent(source)` or `@app.handler(source)`. V: what it reads; R: what it answers.

    It runs by itself once the app does; ask it, cast to it, but do not call it.
    """

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
        body: Callable[[Stream[V]], Any],
        stream: Stream[V],
        *,
        name: str,
        concurrency: int,
        sinks: Sequence[Sink],
        policy: Policy,
    ) -> None:
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigurationError(f"agent {name!r}: concurrency={concurrency!r}; expected a whole number, 1 or more")
        if not isinstance(policy, Policy):
            raise ConfigurationError(
                f"agent {name!r}: on_error={policy!r}; expected a policy, such as Retry(5) or Skip(on=(KeyError,))"
            )
        self._app, self.function, self._stream = app, function, stream
        self.name = name

        def start(lane: Lane) -> Any:
            return body(stream.bound(lane))

        self.plan = AgentPlan(
            name=name,
            sources=stream.sources,
            body=start,
            policy=policy,
            concurrency=concurrency,
            sinks=[_sink(sink) for sink in sinks],
            tables={table.name for table in tables_used(function)},
        )
        self.__doc__ = function.__doc__

    async def ask(self, value: V, *, key: Any = None, timeout: float = 10.0) -> R:
        """Send `value` to the agent's (first) source and wait for its answer, which comes after the event's commit.

        Leaves at once, also inside an event (at least once, then). key: may be left out where the source has `key_of`.
        timeout: seconds. Raises AgentError with the remote traceback if the agent's policy gave up on the event,
        TimeoutError if no answer came: then nobody knows whether it was handled.
        """
        return await self._app.running.ask(self, value, key, timeout)  # type: ignore[no-any-return]

    async def cast(
        self,
        value: V,
        *,
        key: Any = None,
        reply_to: Agent[R, Any] | Topic[Any, R] | None = None,
        correlation: str | None = None,
    ) -> None:
        """Send `value` and wait for no answer. Inside an event: with its commit.

        reply_to: the agent or topic that the answer is sent to, under the same key, after the commit of the event that
        gave it (lost if the worker dies in that moment; errors are not sent). correlation: comes back in the answer's
        header `correlation`.
        """
        await self._app.running.cast(self, value, key, reply_to, correlation)

    async def ask_many(self, values: Iterable[V], *, key: Any = None, timeout: float = 10.0) -> AsyncIterator[R]:
        """Answers as they come. key: as for `ask`, or a function from a value to its key."""
        async for answer in self._app.running.ask_many(self, values, key, timeout):
            yield answer

    async def ask_all(self, values: Iterable[V], *, key: Any = None, timeout: float = 10.0) -> list[R]:
        """Answers in the order asked. key: as for `ask`, or a function from a value to its key."""
        return await self._app.running.ask_all(self, values, key, timeout)

    def question(self, value: V, key: Any, headers: Headers) -> tuple[TopicPlan, int, Message]:
        """Where a question goes, and its bytes (with headers of ours)."""
        return self._app.question(self._stream.sources[0].topic, value, key, headers)

    def __repr__(self) -> str:
        return f"Agent({self.name!r})"


class AgentDecorator(Protocol[V]):
    """What `@app.agent(source)` gives: an agent's answers are what its function yields."""

    @overload
    def __call__(self, function: Callable[[Stream[V]], AsyncIterator[R]], /) -> Agent[V, R]: ...
    @overload
    def __call__(self, function: Callable[[Stream[V]], Awaitable[None]], /) -> Agent[V, None]: ...


class HandlerDecorator(Protocol[V]):
    """What `@app.handler(source)` gives: a handler's answers are what it returns."""

    @overload
    def __call__(self, function: Callable[[V], Awaitable[R]], /) -> Agent[V, R]: ...
    @overload
    def __call__(self, function: Callable[[V], R], /) -> Agent[V, R]: ...


Sink = Agent[Any, Any] | Topic[Any, Any] | Queue[Any, Any] | Callable[[Any], Awaitable[object]]
"""What an agent's answers may go to: another agent (cast), a topic, a queue, or an async function of one argument.

Not generic, since no checker infers the common type of a list that mixes them."""


def answer_codec(function: Callable[..., Any]) -> TypeCodec[Any]:
    """The codec of what the function yields or returns, by its annotation; any JSON where it has none."""
    try:
        given = get_type_hints(function, include_extras=True).get("return", Any)
    except Exception:  # a name that is not importable at run time
        given = Any
    if get_origin(given) in (AsyncIterator, AsyncGenerator, AsyncIterable):
        given = get_args(given)[0]
    try:
        return codec_for(given)
    except ConfigurationError:
        return codec_for(Any)


def check_takes_stream(function: Callable[..., Any]) -> None:
    """An agent that says by its annotation that it takes a single value is meant to be a handler."""
    try:
        given = next(iter(get_type_hints(function).items()), ("return", Any))
    except Exception:  # a name that is not importable at run time
        return
    name, type_ = given
    plain = get_origin(type_) or type_
    if name == "return" or plain in (Any, object) or not isinstance(plain, type) or hasattr(plain, "__aiter__"):
        return
    raise ConfigurationError(
        f"agent {function.__name__!r} takes {name}: {inspect.formatannotation(type_)}; an agent takes the stream of "
        f"all values (`stream: Stream[…]`, `async for {name} in stream:`); what takes one value is a `@app.handler`"
    )


def _sink(sink: Sink) -> Callable[[Any], Awaitable[object]]:
    if isinstance(sink, Agent):
        return sink.cast
    if isinstance(sink, Topic | Queue):
        return sink.send
    if inspect.iscoroutinefunction(sink):
        return sink
    raise ConfigurationError(
        f"sinks=[{sink!r}]: expected a topic, a queue, an agent or an async function of one argument"
    )


def tables_used(function: Callable[..., Any], depth: int = 3) -> set[Table[Any, Any]]:
    """The tables that a function (or one that it names) refers to: known before the first event, mostly.

    What this misses is learned at the agent's first touch of a table.
    """
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or depth == 0:
        return set()
    named: list[object] = []
    for part in _codes(code):
        named.extend(function.__globals__[name] for name in part.co_names if name in function.__globals__)
    for cell in function.__closure__ or ():
        try:
            named.append(cell.cell_contents)
        except ValueError:
            pass  # not filled yet
    found = {value for value in named if isinstance(value, Table)}
    for value in named:
        if isinstance(value, types.FunctionType) and value is not function:
            found |= tables_used(value, depth - 1)
    return found


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
