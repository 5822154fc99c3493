"""The rows of a table in one task: plain Python objects in front of the store, with what changed since the last cut.

`TableView` is what one lane sees of it: the same rows, and the lane's own undo list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from thalweg.codec import DECODE_ERRORS, ENCODE_ERRORS, Form
from thalweg.errors import ConcurrentTableError, DecodeError, EncodeError, StoreError, WrongPartition
from thalweg.journal.rows import below, prefix
from thalweg.mirror import Mirrors
from thalweg.store import Store
from thalweg.text import shortened

if TYPE_CHECKING:
    from .open_event import OpenEvent

__all__ = ["MISSING", "TablePlan", "TableState", "TableView"]


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""A row known to be absent; never shown to users."""

FEWEST = 1000
"""Rows that a task keeps as Python objects per table, however large they are."""
ROW_BYTES = 250
"""What a small row takes in memory, beyond its bytes as encoded: key, value, its place in the table."""
MOST_FORGOTTEN = 10_000
"""How many rows one commit forgets beyond those that it must."""


class TablePlan(msgspec.Struct):
    """A declared table, compiled."""

    name: str
    group: str
    partitions: int
    encode_key: Callable[[Any], bytes]
    decode_key: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    default: Callable[[], Any] | None
    mutable: bool
    verify: bool  # the class of a value does not prove that it will decode
    partition_of: Callable[[bytes, int], int]
    key_form: Form = "bytes"
    value_form: Form = "bytes"
    mirror: str | Mirrors | None = None  # where other programs read it
    changes: str | None = None  # the topic that its changes go to, if anyone follows them
    standbys: int = 0  # how many other workers keep its rows too
    ttl: float | None = None  # seconds that a row lives after it was written

    def decoded(self, key: Any, raw: bytes) -> Any:
        """Raises DecodeError naming the table and the key."""
        try:
            return self.decode(raw)
        except DecodeError:
            raise
        except DECODE_ERRORS as error:
            raise DecodeError(
                f"table {self.name!r}, key {key!r}: the row was written as another type than the table has now: "
                f"{shortened(str(error))}. `upgrades=[(OldType, function)]` reads such rows"
            ) from error

    def raw_key(self, key: Any) -> bytes:
        """The key's bytes. Raises EncodeError naming the table and the key."""
        try:
            return self.encode_key(key)
        except ENCODE_ERRORS as error:
            hint = (
                " The event has no key: send it with `key=`, or declare the topic with `key_of=`" if key is None else ""
            )
            raise EncodeError(f"table {self.name!r}: {key!r} cannot be a key: {error}.{hint}") from error


class TableState:
    """One table's rows in one task."""

    __slots__ = ("_broken", "_prefix", "_sampled", "_samples", "_store", "dirty", "flying", "hot", "partition", "plan")

    def __init__(
        self, plan: TablePlan, partition: int, store: Store, broken: Callable[[StoreError], None] = lambda _: None
    ) -> None:
        """broken: told when the store cannot be read, whoever reads, and whatever they make of the error."""
        self.plan = plan
        self._broken = broken
        self.partition = partition
        self.hot: dict[Any, Any] = {}
        self.dirty: dict[Any, bool | None] = {}  # True: but for an open event's change, a cut has the row already
        self.flying: Mapping[bytes, bytes | None] = {}  # of the commit in flight: the store does not have it yet
        self._store = store
        self._prefix = prefix(plan.name)
        self._sampled, self._samples = 0, 1  # bytes of so many rows

    def fetch(self, key: Any) -> Any:
        """The value as it is now, or MISSING."""
        try:
            return self.hot[key]
        except KeyError:
            value = self.hot[key] = self.stored(key)
            return value

    def stored(self, key: Any) -> Any:
        """The value as the last commit has it, the one in flight included; a new object each time."""
        raw_key = self._prefix + self.plan.encode_key(key)
        raw = self.flying[raw_key] if raw_key in self.flying else self.committed(raw_key)
        if raw is None:
            return MISSING
        self._sample(raw)
        return self.plan.decoded(key, raw)

    def _sample(self, raw: bytes) -> None:
        self._sampled += len(raw)
        self._samples += 1
        if self._samples > FEWEST:
            self._sampled, self._samples = self._sampled // 2, self._samples // 2

    def committed(self, row: bytes) -> bytes | None:
        """What the store has in a row."""
        try:
            return self._store.get(row)
        except StoreError as error:
            self._broken(error)
            raise

    def key_of(self, row: bytes) -> bytes:
        """The key, encoded, of a row in the store."""
        return row[len(self._prefix) :]

    def row_of(self, raw_key: bytes) -> bytes:
        return self._prefix + raw_key

    def raw_row(self, key: Any, value: Any) -> tuple[bytes, bytes | None]:
        """The row as it would lie in the store."""
        return self._prefix + self.plan.encode_key(key), None if value is MISSING else self.plan.encode(value)

    def reread(self, key: Any) -> None:
        """Undo what was done in place to a value that had not changed since the last cut."""
        self.dirty.pop(key, None)
        self.hot.pop(key, None)
        if self._prefix + self.plan.encode_key(key) in self.flying:
            self.hot[key] = self.stored(key)  # a scan of the store would not find it

    def collect(self, rows: dict[bytes, bytes | None], open_lanes: Sequence[OpenEvent]) -> None:
        """Add to `rows` what finished events changed; what open events changed stays dirty, at its older value.

        Raises EncodeError naming the table and key.
        """
        before: dict[Any, Any] = {}
        for lane in open_lanes:
            before.update(lane.before(self))
        lent = self._lent(open_lanes)
        plan = self.plan
        raw: bytes | None = None
        for key, collected in self.dirty.items():
            if key in lent or (collected and key in before):
                continue
            value = before[key] if key in before else self.hot[key]
            try:
                raw_key = self._prefix + plan.encode_key(key)
                raw = None if value is MISSING else plan.encode(value)
                if plan.verify and raw is not None:
                    plan.decode(raw)  # a row that does not decode could not be recovered
            except ENCODE_ERRORS as error:
                raise EncodeError(
                    f"table {plan.name!r}, key {key!r}: {type(value).__name__} cannot be encoded: {error}"
                ) from error
            if plan.mutable and self._unchanged(raw_key, raw):
                continue
            rows[raw_key] = raw
        if raw is not None:
            self._sample(raw)
        kept = {key: key in before for key in self.dirty if key in before or key in lent}
        self.dirty.clear()
        self.dirty.update(kept)

    def _lent(self, open_lanes: Sequence[OpenEvent]) -> set[Any]:
        return {key for lane in open_lanes for state, key in lane.lent if state is self}

    def in_hand(self, open_lanes: Sequence[OpenEvent]) -> set[Any]:
        """Rows that open events have written, or could be changing in place."""
        return self._lent(open_lanes).union(*(lane.before(self) for lane in open_lanes))

    def _unchanged(self, raw_key: bytes, raw: bytes | None) -> bool:
        """A mutable value that was only looked at. A default that was only looked at is not stored either."""
        stored = self._store.get(raw_key)
        if stored is None and self.plan.default is not None:
            return raw is None or raw == self.plan.encode(self.plan.default())
        return raw == stored

    def trim(self, room: int) -> None:
        """Forget the oldest clean rows beyond `room`, in bytes; large ones count by the size of some of them.

        With no commit in flight: the store has what is clean.
        """
        most = max(FEWEST, room // (ROW_BYTES + self._sampled // self._samples))
        surplus = len(self.hot) - most
        if surplus > 0:
            clean = (key for key in self.hot if key not in self.dirty)
            count = surplus + min(most // 10, MOST_FORGOTTEN)
            for key in [key for _, key in zip(range(count), clean, strict=False)]:
                del self.hot[key]

    def look(self, key: Any, open_lanes: Sequence[OpenEvent]) -> Any:
        """The value as finished events left it, or MISSING."""
        before = self._before(open_lanes)
        return before[key] if key in before else self._apart(self.fetch(key))

    def _before(self, open_lanes: Sequence[OpenEvent]) -> dict[Any, Any]:
        """What open events have changed, or could be changing in place, as it was.

        Where an event has a value in its hands that finished events have changed since the last commit, nobody knows
        any more what those left: then it is as the last commit has it.
        """
        before: dict[Any, Any] = {}
        for lane in open_lanes:
            before.update((key, self._apart(value)) for key, value in lane.before(self).items())
            before.update((key, self.stored(key)) for state, key in lane.lent if state is self)
        return before

    def _apart(self, value: Any) -> Any:
        """For use outside of events, which must not change the row in place."""
        plan = self.plan
        return plan.decode(plan.encode(value)) if plan.mutable and value is not MISSING else value

    def items(self, open_lanes: Sequence[OpenEvent] = ()) -> Iterator[tuple[Any, Any]]:
        """Rows as finished events left them, in no given order."""
        before = self._before(open_lanes)
        changed = {key: before[key] if key in before else self._apart(value) for key, value in self.hot.items()}
        cut = len(self._prefix)
        try:
            for raw_key, raw in self._store.scan(self._prefix, below(self._prefix)):
                key = self.plan.decode_key(raw_key[cut:])
                if key not in changed:
                    yield key, self.plan.decoded(key, raw)
        except StoreError as error:
            self._broken(error)
            raise
        for key, value in changed.items():
            if value is not MISSING:
                yield key, value


class TableView:
    """A table as the events of one lane see it. Hot: every access of a table goes through one."""

    __slots__ = ("dirty", "hot", "lane", "mutable", "state", "strict", "touched")

    def __init__(self, state: TableState, lane: OpenEvent, strict: bool) -> None:
        self.state = state
        self.lane = lane
        self.hot = state.hot
        self.dirty = state.dirty
        self.strict = strict
        self.mutable = state.plan.mutable
        self.touched = False

    def load(self, key: Any) -> Any:
        """A row that is not hot: check that it is this task's, then ask the store. Hot rows were checked before."""
        plan = self.state.plan
        raw = plan.raw_key(key)
        if raw != self.lane.key_bytes:
            partition = plan.partition_of(raw, plan.partitions)
            if partition != self.state.partition:
                raise WrongPartition(
                    f"table {plan.name!r}: key {key!r} belongs to partition {partition}, but this event is in "
                    f"partition {self.state.partition} (its key is {self.lane.key_bytes!r}). Repartition the stream "
                    f"first: `.group_by(lambda value: <the key>, name='by-{plan.name}')` on the agent's source"
                )
        return self.state.fetch(key)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Rows of this task's partition, in no given order, as finished events left them and this one changed them."""
        self.touched = True
        for key, value in self.state.items(self.lane.host.other_lanes(self.lane)):
            if not self.mutable or self.strict:
                yield key, value
            elif (own := self.state.fetch(key)) is not MISSING:  # it may have been deleted since
                self.lend(key)
                yield key, own

    def check(self, key: Any) -> None:
        """With concurrency > 1: only the event's own key, since other lanes run in between."""
        if self.state.plan.raw_key(key) != self.lane.key_bytes:
            raise ConcurrentTableError(
                f"table {self.state.plan.name!r}: an agent with concurrency > 1 may touch only the row of its event's "
                f"own key, here {self.lane.key_bytes!r}, not {key!r}. Use concurrency=1, or `group_by` that key"
            )

    def default(self, key: Any) -> Any:
        """What a missing row reads as; a mutable default becomes the row, for the caller may change it in place."""
        make = self.state.plan.default
        if make is None:
            raise KeyError(key)
        value = make()
        if self.mutable:
            self.hot[key] = value
            self.lend(key)
        return value

    def lend(self, key: Any) -> None:
        """The caller holds a value that may change in place: it counts as changed, and undoing needs the store."""
        row = (self.state, key)
        if row in self.lane.lent:
            return
        self.lane.attention = True
        if key in self.dirty:
            self.lane.tainted = True  # older changes of finished events lie in the same object
        self.dirty[key] = None
        self.lane.lent[row] = None
