"""What a transport may add to `Channel`s: small protocols, each declared in `Transport.capabilities` and checked.

A transport implements those that its broker can honour as methods of the transport object itself (`WorkQueue`: of its
channels). The runtime asks for one through `require`, so a program that needs what is missing is refused at start-up
in a sentence, never downgraded in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from .assignment import Assignor, sticky
from .channel import Capability, Channel, Transport
from .errors import MissingCapability
from .message import Batch, Delivery, Message, Position

__all__ = [
    "FOLLOWING",
    "Bounds",
    "Claim",
    "Commit",
    "Fencing",
    "Grouped",
    "Held",
    "Locks",
    "Log",
    "Logs",
    "Part",
    "Passing",
    "Peers",
    "Role",
    "WorkQueue",
    "require",
]


class Bounds(msgspec.Struct, frozen=True):
    """The ends of a partition: positions of its first and last record; both None when it holds none."""

    first: Position | None
    last: Position | None


class Log(Protocol):
    """One topic as a totally ordered, durable, replayable list per partition."""

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        """Append to each partition, in order; returns where each record lies, once all are durable.

        positions: False from a caller who does not ask where they lie; a driver whose broker does not tell (learning it
        costs reading back what was written) may then answer with empty sequences.
        Atomic per call where the broker allows it. Raises `MessageTooLarge` (nothing written), `AmbiguousCommit`
        (nobody knows) or `BrokerError`.
        """
        ...

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        """Records that follow the given position in each partition (None: from the first kept), committed ones only.

        At most `limit` records a partition and about `max_bytes` bytes in all, but at least one record if there is
        one; partitions take turns at being first, so that none starves. Waits at most `timeout` seconds for the first
        record; empty is normal. Purely positional: reading moves nothing, cancelling loses nothing.
        Raises `Gap` if records *after* a given position may be gone, or, where the broker can tell, if the position
        lies beyond the end of the log (a recreated topic); not because the record at it is gone.
        """
        ...

    async def bounds(self, partition: int) -> Bounds:
        """First and last position now (of committed records)."""
        ...

    async def find(self, partition: int, timestamp: int) -> Position | None:
        """The position to read after so that the first record is the earliest with a timestamp >= `timestamp` ms.

        None: from the beginning. Where all are older: the last position.
        """
        ...

    async def truncate(self, partition: int, before: Position) -> None:
        """Drop every record whose position is below `before`; may keep some longer, never drops more."""
        ...

    async def close(self) -> None: ...


FOLLOWING = 20.0
"""Seconds that whoever follows a log, or takes from a channel, lets one call wait: what comes ends it before."""


@runtime_checkable
class Passing(Protocol):
    """What a `Log` adds whose positions hold more than records (Kafka: ends of transactions, and what was aborted).

    Where all has expired, the broker cannot tell whether it was records; a reader that keeps what it has passed can.
    """

    def passed(self, partition: int, after: Position) -> Position:
        """The last position up to which, as is known by now, no reader will ever see anything after `after`."""
        ...


@runtime_checkable
class Logs(Protocol):
    """Capability.LOG."""

    async def log(self, topic: str) -> Log:
        """Open a declared topic as a log. Each call gives an independent reader."""
        ...


class Held(Protocol):
    """A lock that is held until released, or until `lost` is set."""

    @property
    def lost(self) -> asyncio.Event:
        """Set as soon as this process knows, or must assume, that the lock may be another's.

        Asking for it checks the lease by the machine's own clock: a process that was stopped does not believe, in
        the moment it goes on, that it still holds the lock.
        """
        ...

    @property
    def number(self) -> int:
        """A fencing number: larger for each new holder of the same name."""
        ...

    async def release(self) -> None:
        """Give it back at once. Twice is harmless."""
        ...


@runtime_checkable
class Locks(Protocol):
    """Capability.LOCKS. For liveness only: safety is the journal's."""

    async def try_lock(self, name: str, lease: float) -> Held | None:
        """Take the lock if it is free; None if another holds it.

        A holder that dies or hangs loses it within `lease` seconds. One whose event loop is blocked keeps it; if that
        gives no sign of life for long (`thalweg.pulse.STUCK`), it is lost too.
        """
        ...


@runtime_checkable
class Peers(Protocol):
    """Capability.PEERS."""

    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        """Join `group` as `me` while the iterator is open; yields the live members at once and at each change.

        A member that dies or hangs is gone within `lease` seconds; one that closes its iterator at once. One whose
        event loop is blocked stays, as the holder of a lock does. Cancelling a waiting `anext` closes the iterator.
        """
        ...


class Role(msgspec.Struct, frozen=True):
    """What a member of a group is beside its name, which only this run of this process has.

    worker_id: a name that its restarts share, and nobody else has: while it restarts, what it owned is kept for it, for
    a lease. zone: where it runs. assignor, standbys: how it shares out, if that falls to it, and among how many others
    each task's standbys; the same for all members.
    """

    worker_id: str | None = None
    zone: str = ""
    assignor: Assignor = sticky
    standbys: int = 0


class Part(msgspec.Struct, frozen=True):
    """What the members of a group have agreed that one of them is to own, once others have given it up, and what it
    stands by for.
    """

    owned: frozenset[int]
    standbys: frozenset[int] = frozenset()


@runtime_checkable
class Grouped(Protocol):
    """Capability.GROUPED: instead of Locks and Peers, where the members of a group share tasks out (Kafka)."""

    def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role | None = None
    ) -> AsyncGenerator[frozenset[int], None]:
        """Join `group`, whose tasks are 0 to n-1, as `me` while the iterator is open; yields what this member owns.

        The first set comes as soon as there is one, be it empty, the next at each change. Asking for the next says
        that what is in the last set no more has been given up (drained, committed, released): until then no other
        member gets it. What stays in the set is never interrupted.

        A member that dies or hangs loses all within `lease` seconds (or what the broker's settings allow). One that
        closes the iterator, or is cancelled while it waits for the next set, leaves at once; with a worker id, what it
        owned waits for its next run for a lease, even so. Raises `BrokerError` when the membership is lost: what was
        owned may be another's by now; `Superseded` if a newer member has come in under its worker id.
        """
        ...

    def part(self, group: str, me: str) -> Part | None:
        """This member's; None as long as it has none. Where it changes, `tasks` yields, be it the same set."""
        ...

    def holds(self, group: str, me: str) -> bool:
        """Whether the set last yielded is certainly still this member's, by the machine's own clock.

        It reads the clock at each call: a process that was stopped does not believe, in the moment it goes on, that
        it still owns what it owned.
        """
        ...


class Claim(Protocol):
    """Ownership of one journal partition, until a newer claim fences it. Hashable by identity."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def position(self) -> Position:
        """Where the marker lies in the journal: all that was committed before lies below."""
        ...


class Commit(msgspec.Struct, gc=False):
    """What one task commits: journal records, and outputs by (topic, partition), all or none.

    release: the owner gives the journal back by this: its claim ends, and who claims next need not fence it.
    """

    records: Sequence[Message]
    outputs: Mapping[tuple[str, int], Sequence[Message]] = {}
    release: bool = False


@runtime_checkable
class Fencing(Protocol):
    """Capability.FENCING: the broker itself rejects a stale owner, and outputs commit with the journal record."""

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        """Append `marker` to the journal and fence every earlier claim on it, in one atomic step."""
        ...

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        """Append all, atomically; returns where each claim's records lie.

        Raises `Fenced` naming the (topic, partition) pairs lost (nothing at all was written), `AmbiguousCommit`,
        `MessageTooLarge` (nothing was written) or `BrokerError`.
        """
        ...


@runtime_checkable
class WorkQueue(Channel, Protocol):
    """Capability.WORK_QUEUE: what channels of a queue can do per delivery."""

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        """Keep these for another `lease` seconds from now."""
        ...

    async def retry(self, delivery: Delivery, delay: float) -> None:
        """Give it back; it is delivered again, with `attempts` one higher, not before `delay` seconds."""
        ...

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Remove it for good, to the broker's own dead-letter queue where one is configured."""
        ...


P = TypeVar("P")


def require(transport: Transport, capability: Capability, protocol: type[P], feature: str, urls: str) -> P:
    """The transport as `protocol`, or `MissingCapability` naming the feature, the capability and URLs that would do."""
    if capability in transport.capabilities and isinstance(transport, protocol):
        return transport
    raise MissingCapability(
        f"{feature} needs a transport with the capability {capability.value!r}, which {transport.description} does not "
        f"offer. Brokers that do: {urls}"
    )
