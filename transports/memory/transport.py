"""The transport over a memory broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from math import inf
from typing import Annotated

import msgspec
from thalweg.capabilities import Claim, Commit, Held, Log, Part, Role
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.clock import Clock
from thalweg.errors import BrokerError, Fenced, MissingCapability
from thalweg.message import Message, Position
from thalweg.url import Url

from .broker import LogTopic, MemoryBroker
from .group import LogChannel
from .locks import PeerMember
from .log import MemoryLog
from .partition import MemoryClaim, Partition, Prepared, prepare
from .queues import QueueChannel
from .session import Session
from .tasks import sets_of

__all__ = ["MemoryOptions", "MemoryTransport"]


class MemoryOptions(msgspec.Struct, frozen=True):
    """Query options of `memory://`. Each capability can be switched off, to run a program as on a lesser broker.

    grouped: tasks are shared out by groups instead of locks and peers, as on Kafka.
    message_bytes: largest message taken. commit_messages: most messages in one fenced commit (default: any number).
    lease: seconds until what was lent comes back: counted for a queue from delivery, for a log from a member's death.
    """

    message_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576
    commit_messages: Annotated[int, msgspec.Meta(ge=1)] | None = None
    lease: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    log: bool = True
    locks: bool = True
    peers: bool = True
    grouped: bool = False
    fencing: bool = True
    work_queue: bool = True
    priority: bool = True
    delay: bool = True
    expiry: bool = True

    @property
    def capabilities(self) -> frozenset[Capability]:
        offered = {
            Capability.LOG: self.log,
            Capability.LOCKS: self.locks,
            Capability.PEERS: self.peers,
            Capability.GROUPED: self.grouped,
            Capability.FENCING: self.fencing and self.log,
            Capability.WORK_QUEUE: self.work_queue,
            Capability.PRIORITY: self.priority,
            Capability.DELAY: self.delay,
            Capability.EXPIRY: self.expiry,
        }
        return frozenset(capability for capability, on in offered.items() if on)


class MemoryTransport:
    """One connection to a memory broker; `memory://name` shares that of this name with the rest of the process.

    No call suspends unless it has to wait for something. `kill` and `cut` take the transport away as a crash or a
    broken network would; both need a running event loop. One that was killed or closed can be opened again.
    """

    def __init__(self, broker: MemoryBroker | None = None, options: MemoryOptions | None = None) -> None:
        self.broker = broker if broker is not None else MemoryBroker()
        self.options = options if options is not None else MemoryOptions()
        self.session: Session | None = None
        self.capabilities = self.options.capabilities
        self.limits = Limits(self.options.message_bytes, self.options.commit_messages)

    @classmethod
    def from_url(cls, url: Url) -> MemoryTransport:
        return cls(MemoryBroker.named(url.hosts + url.path), url.options(MemoryOptions))

    def private(self, clock: Clock) -> MemoryTransport:
        """For tests: a connection to a new broker of its own, ruled by `clock`."""
        return MemoryTransport(MemoryBroker(clock=clock), self.options)

    def again(self) -> MemoryTransport:
        """Another connection to the same broker."""
        return MemoryTransport(self.broker, self.options)

    def records(self, topic: str) -> Iterator[tuple[int, Position, Message]]:
        """For tests: what lies in a log now: partition, position, message."""
        for partition in self.broker.log(topic).partitions:
            for index, message in enumerate(partition.records):
                yield partition.number, partition.first + index * partition.step, message

    @property
    def description(self) -> str:
        name = f" {self.broker.name!r}" if self.broker.name else ""
        return f"memory{name} (in this process)"

    @property
    def warnings(self) -> Sequence[str]:
        return ("memory:// keeps nothing: all messages and state are lost with the process; use a broker for more.",)

    async def open(self) -> None:
        if self.session is not None and not self.session.ended:
            self.session.check()
        else:
            self.session = Session(self.broker.clock)

    async def close(self) -> None:
        if self.session is not None:
            for channel in list(self.session.channels):
                await channel.close()
            self.session.end(f"{self.description}: the transport is closed")

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self._up()
        return self.broker.declare(topics)

    async def topics(self) -> Sequence[TopicInfo]:
        self._up()
        return self.broker.topics()

    async def channel(self, topic: str, group: str) -> Channel:
        session, options = self._up(), self.options
        found = self.broker.topic(topic)
        if isinstance(found, LogTopic):
            return LogChannel(self.broker.faults, session, found.group(group), options.lease, options.message_bytes)
        return QueueChannel(
            self.broker.faults, session, found, group, options.lease, options.message_bytes, self.capabilities
        )

    # --- logs and fencing ----------------------------------------------------------------------------------

    async def log(self, topic: str) -> Log:
        session = self._up(Capability.LOG)
        return MemoryLog(self.broker, session, self.broker.log(topic), self.options.message_bytes)

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        session = self._up(Capability.FENCING)
        faults = self.broker.faults
        if faults.armed:
            await faults.before("claim", topic, session)
            session.check()
        home = self.broker.log(topic).partition(partition)
        ready = prepare([marker], self.options.message_bytes, topic, self.broker.clock)
        claim = home.owner = MemoryClaim(home, home.end)
        home.append(ready)
        if faults.armed:
            await faults.after("claim", topic, session)
        return claim

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        session = self._up(Capability.FENCING)
        faults = self.broker.faults
        about = next(iter(commits)).topic if commits else ""
        if faults.armed:
            await faults.before("commit", about, session)
            session.check()
        positions = self._commit(commits)
        if faults.armed:
            await faults.after("commit", about, session)
        return positions

    def _commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        """All checks come first, and nothing is awaited: all or none."""
        lost: set[tuple[str, int]] = set()
        records: list[tuple[MemoryClaim, Prepared]] = []
        outputs: list[tuple[Partition, Prepared]] = []
        limit, clock, total = self.options.message_bytes, self.broker.clock, 0
        for claim, commit in commits.items():
            if not isinstance(claim, MemoryClaim):
                raise BrokerError(f"{claim!r} is not a claim of a memory broker")
            if claim.home.owner is not claim:
                lost.add((claim.topic, claim.partition))
                continue
            records.append((claim, prepare(commit.records, limit, claim.topic, clock)))
            total += len(commit.records)
            for (topic, number), messages in commit.outputs.items():
                outputs.append((self.broker.log(topic).partition(number), prepare(messages, limit, topic, clock)))
                total += len(messages)
        if lost:
            raise Fenced(f"newer owners have claimed {sorted(lost)}; nothing was written", frozenset(lost))
        most = self.options.commit_messages
        if most is not None and total > most:
            raise BrokerError(f"a commit of {total} messages is above commit_messages={most}; nothing was written")
        positions: dict[Claim, Sequence[Position]] = {claim: claim.home.append(ready) for claim, ready in records}
        for partition, ready in outputs:
            partition.append(ready)
        return positions

    # --- locks and members ---------------------------------------------------------------------------------

    async def try_lock(self, name: str, lease: float) -> Held | None:
        session = self._up(Capability.LOCKS)
        faults = self.broker.faults
        if faults.armed:
            await faults.before("try_lock", name, session)
            session.check()
        lock = self.broker.lock(session, name, lease)
        if faults.armed:
            await faults.after("try_lock", name, session)
        return lock

    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        return self._members(self._up(Capability.PEERS), group, me, lease)

    async def _members(
        self, session: Session, name: str, me: str, lease: float
    ) -> AsyncGenerator[frozenset[str], None]:
        group = self.broker.peers(name)
        member = PeerMember(group, session, me, lease)
        seen: frozenset[str] | None = None
        try:
            while True:
                session.check()
                group.join(member)  # again, if it was cut off for longer than its lease
                live = group.live()
                if live != seen:
                    seen = live
                    yield live
                else:
                    await session.wait((group.waiters,), inf)
        finally:
            session.give_up(member)

    def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role | None = None
    ) -> AsyncGenerator[frozenset[int], None]:
        return sets_of(self._up(Capability.GROUPED), self.broker.task_group(group, n), me, lease, role or Role())

    def part(self, group: str, me: str) -> Part | None:
        found = self.broker.task_groups.get(group)
        return None if self.session is None or found is None else found.part(self.session, me)

    def holds(self, group: str, me: str) -> bool:
        found = self.broker.task_groups.get(group)
        return self.session is not None and found is not None and found.has(self.session, me)

    # --- as if the process or the network died -----------------------------------------------------------------

    def kill(self) -> None:
        """As if the process died: calls raise, nothing is released; what it held is free when its leases end."""
        if self.session is not None:
            self.session.silence(f"{self.description}: this transport was killed", for_ever=True)

    def cut(self) -> None:
        """Cut the network of this transport until `heal`: calls raise, and leases run out."""
        if self.session is not None and self.session.down is None:
            self.session.silence(f"{self.description}: this transport is cut off", for_ever=False)

    def heal(self) -> None:
        """Undo `cut`. What was lost meanwhile stays lost."""
        if self.session is not None:
            self.session.resume()

    def _up(self, capability: Capability | None = None) -> Session:
        if capability is not None and capability not in self.capabilities:
            raise MissingCapability(
                f"{self.description} was opened without the capability {capability.value!r}; "
                + (
                    f"leave out {capability}=false from"
                    if capability is not Capability.GROUPED
                    else "add grouped=true to"
                )
                + " its URL"
            )
        if self.session is None:
            raise BrokerError(f"{self.description}: the transport is not open; await open() first")
        self.session.check()
        return self.session
