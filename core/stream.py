"""Streams: what flows from topics through steps into an agent, another topic or a repartitioned stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, overload

from typing_extensions import TypeForm, TypeIs, TypeVar

from .duration import seconds
from .errors import ConfigurationError
from .event import Event
from .ops import Filter, FlatMap, Map
from .plan import SourcePlan, TopicPlan
from .runtime.lane import EVENTS, Lane

if TYPE_CHECKING:
    from .app import App
    from .queue import Queue
    from .topic import Topic

__all__ = ["Stream"]

V = TypeVar("V", covariant=True)
T = TypeVar("T")
K = TypeVar("K")


class Stream(Generic[V]):
    """Values in partition order. Each step gives a new stream; nothing runs until an agent or `.to()` takes it."""

    __slots__ = ("_after", "_app", "_lane", "_sources", "_steps", "_take")

    def __init__(
        self,
        app: App,
        sources: Sequence[SourcePlan],
        steps: tuple[Any, ...] = (),
        take: tuple[int, float | None] | None = None,
        after: tuple[Any, ...] = (),
        lane: Lane | None = None,
    ) -> None:
        self._app, self._sources = app, tuple(sources)
        self._steps, self._take, self._after = steps, take, after
        self._lane = lane

    @classmethod
    def of(cls, app: App, *topics: TopicPlan) -> Stream[Any]:
        return Stream(app, [SourcePlan(topic) for topic in topics])

    @property
    def sources(self) -> tuple[SourcePlan, ...]:
        return self._sources

    def bound(self, lane: Lane) -> Stream[V]:
        """This stream as one instance of an agent gets it."""
        return Stream(self._app, self._sources, self._steps, self._take, self._after, lane)

    def __aiter__(self) -> AsyncIterator[V]:
        if self._lane is None:
            raise ConfigurationError("a stream flows only inside an agent: give it to @app.agent(stream) or .to(topic)")
        return self._lane.stream(self._steps, self._take, self._after)

    # --- steps -------------------------------------------------------------------------------------------------

    @overload
    def filter(self, keep: Callable[[V], TypeIs[T]], /) -> Stream[T]: ...
    @overload
    def filter(self, keep: Callable[[V], object], /) -> Stream[V]: ...
    def filter(self, keep: Callable[[V], object], /) -> Stream[Any]:
        """Only values for which `keep` is true, or comes out true where it is async."""
        return self._step(Filter(keep))

    @overload
    def map(self, function: Callable[[V], Awaitable[T]], /) -> Stream[T]: ...
    @overload
    def map(self, function: Callable[[V], T], /) -> Stream[T]: ...
    def map(self, function: Callable[[V], Any], /) -> Stream[Any]:
        """Each value becomes what `function` makes of it (a plain or async function, as in all steps)."""
        return self._step(Map(function))

    @overload
    def flat_map(self, function: Callable[[V], Awaitable[Iterable[T]]], /) -> Stream[T]: ...
    @overload
    def flat_map(self, function: Callable[[V], Iterable[T]], /) -> Stream[T]: ...
    def flat_map(self, function: Callable[[V], Any], /) -> Stream[Any]:
        """Each value becomes any number of values."""
        return self._step(FlatMap(function))

    def events(self) -> Stream[Event[V, Any]]:
        """From here on `Event`s: values with all that came with them. Goes before `.take()`."""
        if EVENTS in self._steps or self._take is not None:
            raise ConfigurationError(".events() goes once, before .take(): a list has no key or position of its own")
        return self._step(EVENTS)

    def take(self, count: int, *, within: float | timedelta | None = None) -> Stream[list[V]]:
        """Lists of `count` values of one partition, or of fewer once `within` seconds passed since the first.

        All events of a list are open together; its agent's position waits for them.
        """
        if self._take is not None:
            raise ConfigurationError(".take() goes once in a stream")
        if count < 1:
            raise ConfigurationError(f"take({count}): expected 1 or more")
        limit = None if within is None else seconds(within, "take(within)")
        return Stream(self._app, self._sources, self._steps, (count, limit), (), self._lane)

    def _step(self, step: object) -> Stream[Any]:
        if self._take is not None:
            return Stream(self._app, self._sources, self._steps, self._take, (*self._after, step), self._lane)
        return Stream(self._app, self._sources, (*self._steps, step), None, (), self._lane)

    # --- joining and splitting ways ------------------------------------------------------------------------------

    def merge(self, *others: Stream[T]) -> Stream[V | T]:
        """The values of all, earliest first where several are waiting."""
        sources = [source for stream in (self, *others) for source in stream._folded("merge()")]
        return Stream(self._app, sources)

    def _folded(self, what: str) -> list[SourcePlan]:
        """The sources with this stream's steps as their own."""
        self._declared(what)
        if self._take is not None or EVENTS in self._steps:
            raise ConfigurationError(f"{what} goes before .events() and .take()")
        return [SourcePlan(source.topic, (*source.ops, *self._steps)) for source in self._sources]

    def _declared(self, what: str) -> None:
        if self._lane is not None:
            raise ConfigurationError(f"{what} is declared outside the agent: @app.agent(topic.stream().{what}…)")

    @overload
    def group_by(self, key_of: Callable[[V], str], *, name: str, value: TypeForm[Any] | None = ...) -> Stream[V]: ...
    @overload
    def group_by(
        self, key_of: Callable[[V], K], *, name: str, key: TypeForm[K], value: TypeForm[Any] | None = ...
    ) -> Stream[V]: ...
    def group_by(
        self,
        key_of: Callable[[V], Any],
        *,
        name: str,
        key: TypeForm[Any] = str,
        value: TypeForm[Any] | None = None,
    ) -> Stream[V]:
        """The same values under another key, through a topic named `<app id>-<name>-repartition`.

        key: the type of the new keys. value: the type of the values, where steps before this one changed it.
        """
        return self._through(name, key_of=key_of, key=key, value=value, partitions=None)

    def repartition(self, *, name: str, partitions: int | None = None, value: TypeForm[Any] | None = None) -> Stream[V]:
        """The same values and keys through a topic of another partition count."""
        return self._through(name, key_of=None, key=None, value=value, partitions=partitions)

    def _through(
        self, name: str, *, key_of: Callable[[V], Any] | None, key: Any, value: Any, partitions: int | None
    ) -> Stream[V]:
        sources = self._folded("group_by()" if key_of else "repartition()")
        topic = self._app.repartition_topic(name, sources, key=key, value=value, partitions=partitions)
        self._app.forward(f"repartition-{name}", Stream(self._app, sources), topic, key_of)
        return Stream.of(self._app, topic)

    def to(self, target: Topic[Any, V] | Queue[Any, V]) -> None:
        """Send every value on, with its key, headers and timestamp."""
        self._declared("to()")
        self._app.forward_to(self, target)
