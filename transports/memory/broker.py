"""What the transports of one process share: topics, groups, locks, members, and the clock that rules them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from weakref import WeakValueDictionary

from thalweg.channel import TopicInfo, TopicSpec
from thalweg.clock import Clock, RealClock
from thalweg.errors import BrokerError, ConfigurationError

from .faults import Faults
from .group import LogGroup
from .locks import MemoryLock, PeerGroup
from .partition import Partition
from .queues import Queue
from .session import Session
from .tasks import TaskGroup

__all__ = ["LogTopic", "MemoryBroker"]


class LogTopic:
    """Partitions, and the groups that consume them."""

    def __init__(self, name: str, partitions: int, step: int, retention: float | None, clock: Clock) -> None:
        self.name = name
        self.partitions = [Partition(name, number, step, retention, clock) for number in range(partitions)]
        self.groups: dict[str, LogGroup] = {}

    @property
    def info(self) -> TopicInfo:
        return TopicInfo(self.name, len(self.partitions))

    def partition(self, number: int) -> Partition:
        if 0 <= number < len(self.partitions):
            return self.partitions[number]
        raise BrokerError(f"topic {self.name!r} has no partition {number}; it has {len(self.partitions)}, from 0")

    def group(self, name: str) -> LogGroup:
        if name not in self.groups:
            self.groups[name] = LogGroup(self.name, self.partitions)
        return self.groups[name]


class MemoryBroker:
    """A broker that lives in this process, and as long as something refers to it.

    clock: rules every time-out, lease, delay, expiry and retention; by default the machine's.
    position_step: distance between the positions of neighbouring records; above 1, they are not dense.
    """

    def __init__(self, *, clock: Clock | None = None, name: str = "", position_step: int = 1) -> None:
        self.name = name
        self.clock: Clock = clock if clock is not None else RealClock()
        self.faults = Faults()
        self._step = position_step
        self._topics: dict[str, LogTopic | Queue] = {}
        self._locks: dict[str, MemoryLock] = {}
        self._peers: dict[str, PeerGroup] = {}
        self.task_groups: dict[str, TaskGroup] = {}
        self._lock_numbers = itertools.count(1)

    @classmethod
    def named(cls, name: str) -> MemoryBroker:
        """The broker of this name that is in use in this process, or a new one."""
        broker = _in_use.get(name)
        if broker is None:
            broker = _in_use[name] = cls(name=name)
        return broker

    # --- topics --------------------------------------------------------------------------------------------

    def declare(self, specs: Sequence[TopicSpec]) -> list[TopicInfo]:
        for spec in specs:
            self._compare(spec)
        for spec in specs:
            if spec.name in self._topics:
                self._compare(spec)
            elif spec.queue:
                self._topics[spec.name] = self._new_queue(spec)
            else:
                count = spec.default_partitions if spec.partitions is None else spec.partitions
                self._topics[spec.name] = LogTopic(spec.name, count, self._step, spec.retention, self.clock)
        return [self._topics[spec.name].info for spec in specs]

    def _new_queue(self, spec: TopicSpec) -> Queue:
        dead_letters = None
        if (name := spec.options.get("dead_letter")) is not None:
            self.declare([TopicSpec(name, queue=True)])
            dead_letters = self.queue(name)
        return Queue(spec.name, self.clock, dead_letters)

    def _compare(self, spec: TopicSpec) -> None:
        count = spec.default_partitions if spec.partitions is None else spec.partitions
        if count < 1:
            raise ConfigurationError(f"topic {spec.name!r}: partitions={count}; expected 1 or more")
        topic = self._topics.get(spec.name)
        if topic is None:
            if not spec.declare:
                raise spec.absent("this memory broker")
            return
        spec.check(topic.info.queue, topic.info.partitions, "this memory broker")

    def topics(self) -> list[TopicInfo]:
        return [self._topics[name].info for name in sorted(self._topics)]

    def topic(self, name: str) -> LogTopic | Queue:
        topic = self._topics.get(name)
        if topic is None:
            raise BrokerError(f"no topic or queue {name!r} was declared on this broker")
        return topic

    def log(self, name: str) -> LogTopic:
        topic = self.topic(name)
        if isinstance(topic, LogTopic):
            return topic
        raise BrokerError(f"{name!r} is a queue: it is not a log, and is written by its channels' put")

    def queue(self, name: str) -> Queue:
        topic = self.topic(name)
        if isinstance(topic, Queue):
            return topic
        raise BrokerError(f"{name!r} is a topic (a log), not a queue")

    # --- locks and members ---------------------------------------------------------------------------------

    def holder(self, name: str) -> MemoryLock | None:
        """Who holds the lock, if its lease has not ended."""
        lock = self._locks.get(name)
        if lock is not None and lock.session.outlived(lock.lease):
            lock.expire()
        return self._locks.get(name)

    def lock(self, session: Session, name: str, lease: float) -> MemoryLock | None:
        """The lock, if it is free."""
        if self.holder(name) is not None:
            return None
        return MemoryLock(self._locks, session, name, lease, next(self._lock_numbers))

    def peers(self, group: str) -> PeerGroup:
        return self._peers.setdefault(group, PeerGroup())

    def task_group(self, name: str, n: int) -> TaskGroup:
        return self.task_groups.setdefault(name, TaskGroup(name, n))

    # --- faults of the broker itself -----------------------------------------------------------------------

    def lose_lock(self, name: str, *, silently: bool = False) -> None:
        """Take the lock from its holder at once. silently: the holder is not told."""
        lock = self._locks.pop(name, None)
        if lock is None:
            raise BrokerError(f"nobody holds the lock {name!r}")
        if not silently:
            lock.expire()

    def lose_suffix(self, topic: str, partition: int, count: int) -> None:
        """Lose the last `count` records of a partition; their positions will be used again."""
        log = self.log(topic)
        log.partition(partition).lose(count)
        for group in log.groups.values():
            group.forget_lost()


_in_use: WeakValueDictionary[str, MemoryBroker] = WeakValueDictionary()
