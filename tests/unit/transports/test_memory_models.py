"""The memory broker against trivial models of what it must do, through random histories."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, precondition, rule
from thalweg.capabilities import Bounds
from thalweg.channel import TopicSpec
from thalweg.clock import VirtualClock
from thalweg.errors import BrokerError, Gap
from thalweg.message import Delivery, Message, QueueMessage
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport

T = TypeVar("T")
LEASE = 30.0
EFFORT = settings(max_examples=100, stateful_step_count=40, deadline=None)


class Machine(RuleBasedStateMachine):
    """Runs each call to its end: with a time-out of 0 nothing waits."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock(1_577_836_800.0)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def call(self, function, *args, **options):
        """A plain function, inside the loop."""

        async def inside():
            return function(*args, **options)

        return self.run(inside())

    def open(self, broker: MemoryBroker) -> MemoryTransport:
        transport = MemoryTransport(broker, MemoryOptions(lease=LEASE))
        self.run(transport.open())
        return transport

    def teardown(self) -> None:
        self.loop.close()


# --- a partition -------------------------------------------------------------------------------------------


class LogMachine(Machine):
    """The model: a list of (position, record), and the position of the last one that was dropped."""

    @initialize(step=st.sampled_from([1, 1, 3]))
    def start(self, step: int) -> None:
        self.transport = self.open(MemoryBroker(clock=self.clock, position_step=step))
        self.run(self.transport.declare([TopicSpec("t")]))
        self.log = self.run(self.transport.log("t"))
        self.kept: list[tuple[int, Message]] = []
        self.dropped = self.last = -1

    @rule(records=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6))
    def append(self, records: list[tuple[int, int]]) -> None:
        messages = [Message(b"x" * size, timestamp=timestamp) for size, timestamp in records]
        positions = self.run(self.log.append({0: messages}))[0]
        assert len(positions) == len(messages)
        for position, message in zip(positions, messages, strict=True):
            assert position > self.last
            self.last = position
            self.kept.append((position, message))

    @rule(where=st.floats(0, 1), limit=st.integers(1, 9), max_bytes=st.integers(1, 200), start=st.booleans())
    def read(self, where: float, limit: int, max_bytes: int, start: bool) -> None:
        after = None if start else min(int(where * (self.last + 1)), self.last)
        if after is not None and after < self.dropped:
            with pytest.raises(Gap) as caught:
                self.run(self.log.read({0: after}, limit, max_bytes, 0))
            assert caught.value.first == (self.kept[0][0] if self.kept else None)
            return
        found = self.run(self.log.read({0: after}, limit, max_bytes, 0))
        expected = [pair for pair in self.kept if after is None or pair[0] > after]
        got = list(zip(found[0].positions, found[0].records, strict=True)) if found else []
        assert got == expected[: len(got)]
        assert len(got) <= limit
        sizes = [record.size for _, record in expected]
        if expected:
            assert len(got) == 1 or (got and sum(sizes[: len(got)]) <= max_bytes)
            assert len(got) in (limit, len(expected)) or sum(sizes[: len(got) + 1]) > max_bytes

    @rule(where=st.floats(0, 1.1))
    def truncate(self, where: float) -> None:
        before = int(where * (self.last + 2))
        self.run(self.log.truncate(0, before))
        while self.kept and self.kept[0][0] < before:
            self.dropped = self.kept.pop(0)[0]

    @rule(timestamp=st.integers(0, 10))
    def find(self, timestamp: int) -> None:
        after = self.run(self.log.find(0, timestamp))
        expected = next((n for n, (_, r) in enumerate(self.kept) if r.timestamp >= timestamp), len(self.kept))
        found = self.run(self.log.read({0: after}, 1000, 10**6, 0))
        assert [*found[0].positions] if found else [position for position, _ in self.kept[expected:]] == []

    @rule()
    def bounds(self) -> None:
        expected = Bounds(self.kept[0][0], self.kept[-1][0]) if self.kept else Bounds(None, None)
        assert self.run(self.log.bounds(0)) == expected


LogMachine.TestCase.settings = EFFORT
test_a_partition_behaves_like_a_list = LogMachine.TestCase


# --- a consumer group over a log ---------------------------------------------------------------------------


class Member:
    def __init__(self, transport: MemoryTransport, channel: Any) -> None:
        self.transport, self.channel = transport, channel
        self.silent_since: float | None = None
        self.got: list[Delivery] = []  # all it ever got


class GroupMachine(Machine):
    """One history of what was put, delivered and committed; every step is judged for loss, duplicates and order."""

    members = Bundle("members")

    @initialize(partitions=st.integers(1, 3))
    def start(self, partitions: int) -> None:
        self.broker = MemoryBroker(clock=self.clock)
        self.writer = self.open(self.broker)
        self.run(self.writer.declare([TopicSpec("t", partitions=partitions)]))
        self.put_channel = self.run(self.writer.channel("t", "writer"))
        self.keys: list[bytes | None] = []  # of message n
        self.attempts: dict[int, int] = {}
        self.done: set[int] = set()
        self.lent: dict[int, tuple[Member, Delivery]] = {}
        self.committed_as: dict[int, Delivery] = {}
        self.all_members: list[Member] = []

    @rule(keys=st.lists(st.sampled_from([None, b"a", b"b", b"c"]), max_size=6))
    def put(self, keys: list[bytes | None]) -> None:
        first = len(self.keys)
        self.keys += keys
        self.run(self.put_channel.put([Message(b"%d" % (first + n), key) for n, key in enumerate(keys)]))

    @rule(target=members)
    def join(self) -> Member:
        transport = self.open(self.broker)
        member = Member(transport, self.run(transport.channel("t", "g")))
        self.all_members.append(member)
        return member

    @rule(member=members, limit=st.integers(1, 8))
    def get(self, member: Member, limit: int) -> None:
        if member.silent_since is not None:
            with pytest.raises(BrokerError, match="cut off"):
                self.run(member.channel.get(limit, 0))
            return
        self._judge(member, self.run(member.channel.get(limit, 0)), limit)

    def _judge(self, member: Member, deliveries: list[Delivery], limit: int) -> None:
        assert len(deliveries) <= limit
        for delivery in deliveries:
            number = int(delivery.record.value)
            assert number not in self.done, "delivered after its commit"
            assert number not in self.lent, "delivered twice at a time"
            assert delivery.attempts == self.attempts.get(number, 0) + 1
            self.attempts[number] = delivery.attempts
            if self.keys[number] is not None:
                for earlier in range(number):
                    if self.keys[earlier] == self.keys[number] and earlier not in self.done:
                        assert self.lent.get(earlier, (None,))[0] is member, "delivered before its predecessor"
            self.lent[number] = (member, delivery)
            member.got.append(delivery)
        if len(deliveries) < limit:
            held = {self.keys[n] for n, (holder, _) in self.lent.items() if holder is not member} - {None}
            for number, key in enumerate(self.keys):
                assert number in self.done or number in self.lent or key in held, "held back without a reason"

    @precondition(lambda self: self.lent)
    @rule(member=members, which=st.lists(st.integers(0, 30), max_size=8))
    def commit(self, member: Member, which: list[int]) -> None:
        chosen = [member.got[n] for n in which if n < len(member.got)]
        mine = [d for d in chosen if self.lent.get(int(d.record.value), (None, None))[1] is d]
        foreign = [d for d in chosen if d not in mine and int(d.record.value) not in self.done]
        late = [d for d in chosen if d not in mine and d not in foreign and not self._settled(d)]
        try:
            self.run(member.channel.commit(chosen))
        except BrokerError:
            assert member.silent_since is not None or foreign or late
            if member.silent_since is not None:
                return
        else:
            assert member.silent_since is None
            assert not foreign
            assert not late
        for delivery in mine:
            number = int(delivery.record.value)
            if number in self.lent:
                del self.lent[number]
                self.done.add(number)
                self.committed_as[number] = delivery

    def _settled(self, delivery: Delivery) -> bool:
        return self.committed_as.get(int(delivery.record.value)) is delivery

    @rule(member=consumes(members), how=st.sampled_from(["channel", "transport", "kill"]))
    def leave(self, member: Member, how: str) -> None:
        if how == "kill":
            self.call(member.transport.kill)
            member.silent_since = self.clock.now() if member.silent_since is None else member.silent_since
            return
        self.run(member.channel.close() if how == "channel" else member.transport.close())
        if member.silent_since is None:
            self._forget(member)

    @rule(member=members)
    def cut(self, member: Member) -> None:
        if member.silent_since is None:
            self.call(member.transport.cut)
            member.silent_since = self.clock.now()

    @rule(member=members)
    def heal(self, member: Member) -> None:
        if member.silent_since is not None:
            self.call(member.transport.heal)
            member.silent_since = None

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE]))
    def wait(self, seconds: float) -> None:
        now = self.clock.now() + seconds
        self.call(self.clock.move, now)
        for member in self.all_members:
            if member.silent_since is not None and now >= member.silent_since + LEASE:
                self._forget(member)

    def _forget(self, member: Member) -> None:
        for number in [n for n, (holder, _) in self.lent.items() if holder is member]:
            del self.lent[number]

    def teardown(self) -> None:
        try:
            self._drain()
        finally:
            super().teardown()

    def _drain(self) -> None:
        for member in self.all_members:
            self.run(member.transport.close())
            if member.silent_since is None:
                self._forget(member)
        self.wait(LEASE)
        last = self.join()
        while deliveries := self.run(last.channel.get(4, 0)):
            self._judge(last, deliveries, 4)
            self.run(last.channel.commit(deliveries))
            self.done |= {int(d.record.value) for d in deliveries}
            self.lent.clear()
        assert self.done == set(range(len(self.keys))), "lost"


GroupMachine.TestCase.settings = EFFORT
test_a_group_loses_duplicates_and_reorders_nothing = GroupMachine.TestCase


# --- a work queue ------------------------------------------------------------------------------------------


class Job:
    """The model of one message of the queue."""

    def __init__(self, number: int, priority: int, due: float, expires_at: float) -> None:
        self.number, self.priority, self.due, self.expires_at = number, priority, due, expires_at
        self.attempts = 0
        self.lent: Delivery | None = None
        self.until = 0.0


class QueueMachine(Machine):
    """Each `get` must give exactly what the model says is due, in its order."""

    @initialize()
    def start(self) -> None:
        broker = MemoryBroker(clock=self.clock)
        self.transport = self.open(broker)
        self.run(self.transport.declare([TopicSpec("q", queue=True)]))
        self.channels = [self.run(self.transport.channel("q", "g")) for _ in range(2)]
        self.jobs: dict[int, Job] = {}
        self.held: list[tuple[int, Delivery]] = []  # (channel, delivery), the ended ones included
        self.finished: list[Delivery] = []
        self.count = 0

    @rule(
        priority=st.integers(0, 2), delay=st.sampled_from([0.0, 0.0, 5.0]), expires=st.sampled_from([None, None, 7.0])
    )
    def put(self, priority: int, delay: float, expires: float | None) -> None:
        number, now = self.count, self.clock.now()
        self.count += 1
        self.jobs[number] = Job(number, priority, now + delay, now + (1e9 if expires is None else expires))
        message = QueueMessage(b"%d" % number, priority=priority, delay=delay, expires=expires)
        self.run(self.channels[0].put([message]))

    @rule(which=st.integers(0, 1), limit=st.integers(1, 4))
    def get(self, which: int, limit: int) -> None:
        self._catch_up()
        now = self.clock.now()
        ready = [job for job in self.jobs.values() if job.lent is None and job.due <= now]
        expected = []
        for job in sorted(ready, key=lambda job: (-job.priority, job.number)):
            if len(expected) == limit:
                break
            if job.attempts == 0 and job.expires_at <= now:
                del self.jobs[job.number]
            else:
                expected.append(job)
        deliveries = self.run(self.channels[which].get(limit, 0))
        assert [int(d.record.value) for d in deliveries] == [job.number for job in expected]
        for job, delivery in zip(expected, deliveries, strict=True):
            job.attempts += 1
            assert delivery.attempts == job.attempts
            job.lent, job.until = delivery, now + LEASE
            self.held.append((which, delivery))

    def _catch_up(self) -> None:
        for job in self.jobs.values():
            if job.lent is not None and job.until <= self.clock.now():
                job.lent, job.due = None, 0.0

    def _job(self, delivery: Delivery) -> Job | None:
        """Its job, if this delivery still stands."""
        self._catch_up()
        job = self.jobs.get(int(delivery.record.value))
        return job if job is not None and job.lent is delivery else None

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0), action=st.sampled_from(["commit", "extend", "retry", "retry at once", "reject"]))
    def settle(self, pick: int, action: str) -> None:
        which, delivery = self.held[pick % len(self.held)]
        channel, job = self.channels[which], self._job(delivery)
        calls = {
            "commit": lambda: channel.commit([delivery]),
            "extend": lambda: channel.extend([delivery], 12.0),
            "retry": lambda: channel.retry(delivery, 3.0),
            "retry at once": lambda: channel.retry(delivery, 0),
            "reject": lambda: channel.reject(delivery, "no"),
        }
        harmless = action == "commit" and any(delivery is d for d in self.finished)
        try:
            self.run(calls[action]())
        except BrokerError:
            assert job is None
            assert not harmless
            return
        if harmless:
            return
        assert job is not None
        now = self.clock.now()
        if action == "extend":
            job.until = now + 12.0
        elif action in ("commit", "reject"):
            self.finished.append(delivery)
            del self.jobs[job.number]
        else:
            job.lent, job.due = None, now + (3.0 if action == "retry" else 0.0)

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self._catch_up()
        self.run(self.channels[which].close())
        for job in self.jobs.values():
            if job.lent is not None and any(w == which and d is job.lent for w, d in self.held):
                job.lent, job.due = None, 0.0
        self.held = [(w, d) for w, d in self.held if w != which]
        self.channels[which] = self.run(self.transport.channel("q", "g"))

    @rule(seconds=st.sampled_from([1.0, 5.0, 12.0, LEASE]))
    def wait(self, seconds: float) -> None:
        self.call(self.clock.move, self.clock.now() + seconds)


QueueMachine.TestCase.settings = EFFORT
test_a_queue_delivers_what_is_due_in_order_of_priority = QueueMachine.TestCase
