"""Commits by read-back: one stuck journal, a reader that fails, a journal that another has truncated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from thalweg.capabilities import Commit, Log
from thalweg.channel import TopicSpec
from thalweg.clock import VirtualClock
from thalweg.errors import AmbiguousCommit, BrokerError, Fenced, Gap
from thalweg.journal.readback import LONGEST_BACKOFF, PATIENCE, ReadBackWriter
from thalweg.journal.records import Marker, Rows, messages
from thalweg.journal.writer import JournalKey, Outcome, Written
from thalweg.message import Message
from thalweg.transports.memory import MemoryTransport
from thalweg.transports.memory.broker import MemoryBroker

encode = msgspec.msgpack.Encoder().encode


class Owner:
    """A writer with its tokens and numbers."""

    def __init__(self, transport: MemoryTransport, clock: VirtualClock) -> None:
        self.transport, self.opened = transport, 0
        self.writer = ReadBackWriter(self.open_log, clock)
        self.tokens: dict[int, bytes] = {}
        self.numbers: dict[int, int] = {}
        self.outcomes: dict[int, Outcome] = {}

    async def open_log(self, topic: str) -> Log:
        self.opened += 1
        return await self.transport.log(topic)

    async def claim(self, partition: int) -> None:
        self.tokens[partition] = f"{id(self)}/{partition}".encode()
        self.numbers[partition] = 0
        marker = Marker(self.tokens[partition], 0, 1, b"j", "me", 4, "murmur2")
        await self.writer.claim(("journal", partition), Message(encode(marker)))

    def record(self, partition: int, rows: dict[bytes, bytes | None]) -> Commit:
        self.numbers[partition] += 1
        entry = Rows(b"", 0, rows, True)
        return Commit(list(messages([entry], self.tokens[partition], self.numbers[partition], None, 0)))

    async def commit(self, *partitions: int) -> None:
        commits = {("journal", partition): self.record(partition, {b"k": b"v"}) for partition in partitions}

        def done(journal: JournalKey, outcome: Outcome) -> None:
            self.outcomes[journal[1]] = outcome

        await self.writer.commit(commits, done)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1_000_000.0)


@pytest.fixture
async def new_owner(clock: VirtualClock) -> AsyncIterator[Callable[[], object]]:
    broker = MemoryBroker(clock=clock)
    owners: list[Owner] = []

    async def make() -> Owner:
        transport = MemoryTransport(broker)
        await transport.open()
        await transport.declare([TopicSpec("journal", partitions=4)])
        owners.append(Owner(transport, clock))
        return owners[-1]

    yield make
    for owner in owners:
        await owner.writer.close()
        await owner.transport.close()
    assert len(asyncio.all_tasks()) == 1


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_commit_that_is_stuck_in_one_journal_is_known_at_once_in_the_others(new_owner, clock) -> None:
    owner = await new_owner()
    for partition in range(4):
        await owner.claim(partition)
    hold = owner.transport.broker.faults.hold("append", nth=2, topic="journal")
    committing = asyncio.create_task(owner.commit(0, 1, 2, 3))
    await hold.reached.wait()
    await turns()
    assert {partition for partition, outcome in owner.outcomes.items() if isinstance(outcome, Written)} == {0, 2, 3}
    await owner.commit(0, 2)  # and they go on
    hold.release()
    await committing
    assert isinstance(owner.outcomes[1], Written)


async def test_a_reader_that_fails_reads_again_on_a_log_opened_anew(new_owner, clock) -> None:
    owner = await new_owner()
    await owner.claim(0)
    opened = owner.opened
    owner.transport.broker.faults.fail("read", times=3, topic="journal")
    committing = asyncio.create_task(owner.commit(0))
    await turns()
    while not committing.done():
        assert clock.next() is not None
        clock.move(clock.next())
        await turns()
    assert isinstance(owner.outcomes[0], Written)
    assert owner.opened == opened + 3


async def test_what_cannot_be_read_back_is_ambiguous_and_says_why(new_owner, clock) -> None:
    owner = await new_owner()
    await owner.claim(0)
    faults = owner.transport.broker.faults
    faults.fail("read", times=1e9, topic="journal", error=BrokerError("the reader is broken"))
    committing = asyncio.create_task(owner.commit(0))
    start = clock.now()
    reads = 0
    await turns()
    while not committing.done():
        reads += 1
        clock.move(clock.next())
        await turns()
    outcome = owner.outcomes[0]
    assert isinstance(outcome, AmbiguousCommit)
    assert "the reader is broken" in str(outcome)
    assert clock.now() - start == pytest.approx(PATIENCE)
    assert reads < 30  # it does not spin
    faults.clear()
    clock.move(clock.now() + LONGEST_BACKOFF)
    await owner.claim(0)
    await owner.commit(0)
    assert isinstance(owner.outcomes[0], Written)


async def test_an_owner_whose_journal_another_has_truncated_ends_and_its_other_journals_go_on(new_owner, clock) -> None:
    old, new = await new_owner(), await new_owner()
    await old.claim(0)
    await old.claim(1)
    await new.claim(0)
    for _ in range(5):
        await new.commit(0)
    written = new.outcomes[0]
    assert isinstance(written, Written)
    log = await new.transport.log("journal")
    await log.truncate(0, written.position)
    await old.commit(0, 1)
    assert isinstance(old.outcomes[0], Gap)
    assert isinstance(old.outcomes[1], Written)


async def test_a_stale_owner_is_fenced(new_owner, clock) -> None:
    old, new = await new_owner(), await new_owner()
    await old.claim(0)
    await new.claim(0)
    await old.commit(0)
    await new.commit(0)
    assert isinstance(old.outcomes[0], Fenced)
    assert isinstance(new.outcomes[0], Written)


async def test_an_append_that_fails_fails_its_journal_only(new_owner, clock) -> None:
    owner = await new_owner()
    for partition in range(3):
        await owner.claim(partition)
    owner.transport.broker.faults.fail("append", nth=2, topic="journal")
    await owner.commit(0, 1, 2)
    kinds = {partition: type(outcome) for partition, outcome in owner.outcomes.items()}
    assert kinds == {0: Written, 1: BrokerError, 2: Written}


async def test_a_commit_that_is_cancelled_leaves_nothing_running_and_the_writer_working(new_owner, clock) -> None:
    owner = await new_owner()
    await owner.claim(0)
    for pause in range(12):
        committing = asyncio.create_task(owner.commit(0))
        await turns(pause)
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        await turns()
        assert len(asyncio.all_tasks()) == 1
        await owner.claim(0)
        await owner.commit(0)
        assert isinstance(owner.outcomes[0], Written)
