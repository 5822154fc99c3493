"""The contract every transport must meet: `Transport` opens `Channel`s. What it may add is in `capabilities.py`."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from .errors import BrokerError, TopicMismatch
from .message import Delivery, Message

__all__ = ["Capability", "Channel", "Limits", "TopicInfo", "TopicSpec", "Transport"]


class Capability(enum.StrEnum):
    """What a transport says it can do, once it has met its server. An undeclared power must raise when used."""

    LOG = "log"
    LOCKS = "locks"
    PEERS = "peers"
    GROUPED = "grouped"
    FENCING = "fencing"
    WORK_QUEUE = "work_queue"
    PRIORITY = "priority"
    DELAY = "delay"
    EXPIRY = "expiry"


class Limits(msgspec.Struct, frozen=True):
    """Limits of the server as met.

    message_bytes: largest `Message.size` it takes; None: no limit worth a check.
    head_bytes: most bytes of key and headers together that it takes whatever they are; None: as many as of the value.
    commit_messages: how many messages (records and outputs) one `Fencing.commit` may carry; None: no limit.
    lease: seconds; the broker honours no shorter lease, and one that hangs keeps what it has for so long.
    """

    message_bytes: int | None = None
    commit_messages: int | None = None
    lease: float = 0.0
    head_bytes: int | None = None

    def lease_warning(self, lease: float) -> str | None:
        """What to say of an app's lease that the broker does not honour."""
        if lease >= self.lease:
            return None
        return (
            f"lease={lease:g} is shorter than the broker allows: the tasks of a worker that hangs move after "
            f"{self.lease:g} s; lower the broker's shortest session time-out if this is too long"
        )


class TopicSpec(msgspec.Struct, frozen=True):
    """A topic (a log) or a queue as the program wants it.

    partitions: None adopts what exists, or `default_partitions` when the topic must be created.
    retention: seconds after which records may be dropped; None keeps them for ever.
    compact: the broker may drop a record once a newer one of the same key exists.
    options: the broker's own settings, passed through by name.
    declare: False for a topic that belongs to others: it must exist, and is neither created nor altered.
    truncated: `Log.truncate` will be used, and must free space; without it, it may keep everything.
    lease: seconds after which a member of a group of it that hangs or died is missed, where that is settled for members
    and not for each delivery; None: the driver's own.
    """

    name: str
    partitions: int | None = None
    default_partitions: int = 1
    retention: float | None = None
    compact: bool = False
    queue: bool = False
    options: Mapping[str, str] = {}
    declare: bool = True
    truncated: bool = False
    lease: float | None = None

    def absent(self, broker: str) -> BrokerError:
        """What a driver raises if `declare` is False and the broker (as an error names it) has no such topic."""
        kind = "queue" if self.queue else "topic"
        return BrokerError(
            f"{kind} {self.name!r} is declared with declare=False, and {broker} has no such one: create it there, "
            "or leave declare=False out, and the program creates it"
        )

    def check(self, queue: bool, partitions: int, broker: str) -> None:
        """Raise TopicMismatch if what exists on the broker (as an error names it) is not what this asks for."""
        if queue != self.queue:
            kinds = {True: "a queue", False: "a topic (a log)"}
            raise TopicMismatch(
                f"{self.name!r} is {kinds[queue]} on {broker}, but is declared as {kinds[self.queue]}: use another "
                "name for one of them"
            )
        if not queue and self.partitions not in (None, partitions):
            raise TopicMismatch(
                f"topic {self.name!r} has {partitions} partitions on {broker}, but is declared with {self.partitions}: "
                f"declare partitions={partitions}, or leave it out to adopt what exists, or use another name"
            )


class TopicInfo(msgspec.Struct, frozen=True):
    """A topic as it is on the broker."""

    name: str
    partitions: int
    queue: bool = False


@runtime_checkable
class Channel(Protocol):
    """One topic as one consumer group sees it.

    Members of a group compete for messages; each group gets them all, from the oldest still kept (of a queue, a group
    that comes later than others may begin with what is put from then on). Members may get what they share in any way:
    by key, by partition (then at most as many of them work as a topic has partitions), message by message.

    Of a topic, messages of one key are in the hands of one member at a time, and come in their order. What a member
    has in hand stays its own as long as its process lives and runs; of a queue, for the lease of each delivery. When
    it is killed, hangs or is cut off, that comes back to the group within the lease. A channel goes on by itself when
    the network or the broker is back; meanwhile its calls raise `BrokerError`.
    """

    async def put(self, messages: Sequence[Message]) -> None:
        """Write `messages`, in order. Returns once the broker has durably accepted every one.

        Raises `MessageTooLarge` (nothing was written) or `BrokerError` (each may or may not be written: the caller
        decides). Cancelled: each message is written or not, and the channel still works.
        """
        ...

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """At most `limit` messages; waits at most `timeout` seconds for the first. Empty is a normal answer.

        It may be empty, most of all with `timeout=0`, although the broker has messages: deliveries take their time.
        Cancelled: loses nothing. Messages of one key come in order, a redelivered one before later ones of a topic (of
        a queue, as early as can be).
        """
        ...

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        """These are done: they never come back. Returns when the broker has taken it. Twice is harmless.

        What is not committed comes back, after a crash or a close, with `attempts` one higher. Raises `StaleDelivery`
        if some had gone back already, once the others are committed, and `BrokerError`, as for a delivery of another
        channel. Cancelled: each is committed or not, and the channel still works.
        """
        ...

    async def close(self) -> None:
        """Give back what is lent, at once, and free everything. Twice, and at once, is harmless.

        Calls under way end: a waiting `get` returns empty or raises, a `put` or `commit` returns if it is done, else
        raises `BrokerError`. Later calls raise it too.
        """
        ...


@runtime_checkable
class Transport(Protocol):
    """A broker as Thalweg sees it. A driver does no retrying, no prefetch policy, no payload logging, no error policy.

    A driver class is found by URL scheme through the entry point group `thalweg.transports`, and is built by its
    class method `from_url(url: Url)`; `url.options(Struct)` gives it typed query options. Nothing may bind an event
    loop before `open`.
    """

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Valid after `open`: a server may lack what the driver knows how to use."""
        ...

    @property
    def limits(self) -> Limits:
        """Valid after `open`."""
        ...

    @property
    def description(self) -> str:
        """One line for the start-up banner: product, version, address. Never a credential."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """Settings of the server that are not durable or not safe, a sentence each, with the remedy."""
        ...

    async def open(self) -> None:
        """Connect and learn what the server can do. Raises `BrokerError` within the driver's connect time-out."""
        ...

    async def close(self) -> None:
        """Close what is open, channels and logs too. Twice is harmless; no task, thread or connection stays behind.

        It can be opened again, and then finds what it left.
        """
        ...

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        """Create what is missing, durable; leave what exists as it is, and report it, in the order asked.

        Raises `TopicMismatch` where an existing topic has another partition count than a spec that names one, or is
        a queue where a log is wanted, or a log where a queue is; and `spec.absent(…)`, creating nothing at all, where
        one does not exist whose spec says `declare=False`.
        """
        ...

    async def topics(self) -> Sequence[TopicInfo]:
        """All topics and queues on this broker, internal ones included, sorted by name.

        A name may hold any character; a driver escapes what its broker cannot take, so that names which differ are
        different topics, and gives names back as they were declared.
        """
        ...

    async def channel(self, topic: str, group: str) -> Channel:
        """Open `topic` for consumer group `group`. The topic must have been declared."""
        ...
