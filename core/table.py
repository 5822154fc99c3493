"""Tables: dict-like state, partitioned like the events that change it, committed with their positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from .codec import TypeCodec
from .errors import OutsideEvent, WrongType
from .runtime.context import current_lane
from .runtime.tables import MISSING, TablePlan, TableView

if TYPE_CHECKING:
    from .app import App
    from .runtime.changes import Change
    from .stream import Stream

__all__ = ["Reading", "Table"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class Reading(NamedTuple, Generic[V]):
    """What `table.ask(key, stale_ok=True)` answers. stale: it may be older than what is committed, or missing yet."""

    value: V | None
    stale: bool


class Table(Generic[K, V]):
    """Made by `app.table(…)`: a dict, kept exactly once.

    Written only inside an agent's event (else OutsideEvent), under keys of the event's partition (else
    WrongPartition). Read there, and anywhere on the worker that owns the key (else StaleRead), where it shows what
    finished events left. Values may be changed in place.
    """

    def __init__(
        self,
        app: App,
        plan: TablePlan,
        key: TypeCodec[K],
        check: tuple[type | None, Callable[[object], None]],
        read_only: bool = False,
    ) -> None:
        self._app, self._plan, self._key = app, plan, key
        self._exact, self._check = check
        self._read_only = read_only
        self._view: ContextVar[TableView | None] = ContextVar(f"thalweg_table_{plan.name}", default=None)

    @property
    def name(self) -> str:
        return self._plan.name

    @property
    def plan(self) -> TablePlan:
        """The declaration, compiled."""
        return self._plan

    # HOT PATH: `table[key] += 1` is one __getitem__ and one __setitem__, 0.4 µs together when the row is hot, where
    # a dict takes 0.1: two calls, the view of this context, the value before (for undoing), the mark that it changed.

    def __getitem__(self, key: K) -> V:
        view = self._view.get() or self._open_view()
        if view is None or (view.mutable and not view.lane.open):
            return self._outside(key)
        view.touched = True
        if view.strict:
            view.check(key)
        try:
            value = view.hot[key]
        except KeyError:
            value = view.load(key)
        if value is MISSING:
            return view.default(key)  # type: ignore[no-any-return]
        if view.mutable:
            view.lend(key)
        return value  # type: ignore[no-any-return]

    def __setitem__(self, key: K, value: V) -> None:
        view = self._view.get() or self._open_view()
        if view is None or self._read_only:
            raise self._not_here()
        lane = view.lane
        if lane.record is None and not lane.tickets:  # a task that the event left behind
            raise self._not_here()
        if value.__class__ is not self._exact:
            self._check_value(key, value)
        if view.strict:
            view.check(key)
        hot = view.hot
        try:
            old = hot[key]
        except KeyError:
            old = view.load(key)
        lane.undo = lane.undo, view.state, key, old
        view.dirty[key] = None
        hot[key] = value

    def __delitem__(self, key: K) -> None:
        """Raises KeyError if there is no such row."""
        view = self._view.get() or self._open_view()
        if view is None or self._read_only:
            raise self._not_here()
        lane = view.lane
        if not lane.open:
            raise self._not_here()
        old = self._peek(view, key)
        if old is MISSING:
            raise KeyError(key)
        lane.undo = lane.undo, view.state, key, old
        view.dirty[key] = None
        view.hot[key] = MISSING

    def __contains__(self, key: K) -> bool:
        view = self._view.get() or self._open_view()
        if view is None:
            return self._app.running.read_table(self._plan, key) is not MISSING
        return self._peek(view, key) is not MISSING

    @overload
    def get(self, key: K, default: None = None) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: Any = None) -> Any:
        """The row, or `default` (the table's own default is not used)."""
        return self[key] if key in self else default  # noqa: SIM401 - dict.get is what this is

    def items(self) -> Iterator[tuple[K, V]]:
        """All rows, in no given order: inside an event of its partition, with what the event did to them, and to be
        changed in place; else of this worker's partitions, as finished events left them.

        Raises StaleRead while one of these partitions is still being read, or its lease is over.
        """
        view = self._view.get() or self._open_view()
        inside = view is not None and view.lane.open
        return view.items() if view is not None and inside else self._app.running.table_items(self._plan)

    def __iter__(self) -> Iterator[K]:
        return self.keys()

    def keys(self) -> Iterator[K]:
        return (key for key, _ in self.items())

    def values(self) -> Iterator[V]:
        return (value for _, value in self.items())

    @overload
    async def ask(self, key: K, *, timeout: float = 10.0, stale_ok: Literal[False] = False) -> V | None: ...
    @overload
    async def ask(self, key: K, *, timeout: float = 10.0, stale_ok: Literal[True]) -> Reading[V]: ...
    async def ask(self, key: K, *, timeout: float = 10.0, stale_ok: bool = False) -> V | Reading[V] | None:
        """The row, from whichever worker has it, as committed; if missing, the table's default, else None.

        timeout: seconds; TimeoutError says who was last known to have it. Inside an event it is no part of that.
        stale_ok: where the owner cannot answer, as it died or is still reading its journal, a standby or what the owner
        has read so far will do; the answer is a `Reading`, which says so.
        """
        value, stale = await self._app.running.ask_table(self._plan, key, timeout, stale_ok)
        return Reading(value, stale) if stale_ok else value

    def changes(self) -> Stream[Change[K, V]]:
        """What commits do to the rows, as a stream for agents: exactly once where the table is, in order per key.

        What several events do to a row between two commits is one `Change`, from what it was to what it became. Asked
        for before the app starts, and told from then on. Partitioned as the table, keyed by the row's key.
        """
        return self._app.changes_of(self)

    def _put(self, key: K, value: V) -> None:
        """Write, though read-only to users: for the agent that keeps it."""
        self._writable().__setitem__(key, value)

    def _remove(self, key: K) -> None:
        if key in self:
            self._writable().__delitem__(key)

    def _writable(self) -> Table[K, V]:
        if self._inner is None:
            self._inner = Table(self._app, self._plan, self._key, (None, lambda _: None))
        return self._inner

    _inner: Table[K, V] | None = None

    def _peek(self, view: TableView, key: K) -> Any:
        view.touched = True
        if view.strict:
            view.check(key)
        try:
            return view.hot[key]
        except KeyError:
            return view.load(key)

    def _open_view(self) -> TableView | None:
        """The first touch by a lane; remembered in the lane's context."""
        lane = current_lane.get()
        if lane is None or lane.app is not self._app or not lane.open:
            return None
        view = lane.view(self._plan)
        if view is not None:
            self._view.set(view)
        return view

    def _outside(self, key: K) -> V:
        value = self._app.running.read_table(self._plan, key)
        if value is MISSING:
            if self._plan.default is None:
                raise KeyError(key)
            value = self._plan.default()
        return value  # type: ignore[no-any-return]

    def _not_here(self) -> OutsideEvent:
        if self._read_only:
            return OutsideEvent(
                f"table {self.name!r} is read-only: it mirrors a topic or a join; send to the topic instead"
            )
        return OutsideEvent(
            f"table {self.name!r} is written outside an agent's event, so no commit could carry the change. "
            "`await agent.cast(value, key=…)` to an agent that writes it"
        )

    def _check_value(self, key: K, value: object) -> None:
        try:
            self._check(value)
        except WrongType as error:
            raise WrongType(f"table {self.name!r}, key {key!r}: {error}") from None

    def __repr__(self) -> str:
        return f"Table({self.name!r})"
