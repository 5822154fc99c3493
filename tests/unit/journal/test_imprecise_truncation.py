"""A broker may keep more than it was told to: what a fenced owner left there must not be taken for the state."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from thalweg import App, Stream
from thalweg.capabilities import Log
from thalweg.channel import TopicSpec
from thalweg.journal.records import Begin, End, Entry, Marker, Part, Rows, messages
from thalweg.journal.replay import committed_rows
from thalweg.journal.rows import below, prefix
from thalweg.message import Message
from thalweg.runtime import replay as replay_module
from thalweg.runtime.replay import Replay
from thalweg.stores.memory import MemoryStores
from thalweg.testing import AppTest
from thalweg.transports.memory import MemoryTransport
from thalweg.transports.memory.faults import Call
from thalweg.transports.memory.partition import prepare

JOURNAL = "sums-journal-1"
encode = msgspec.msgpack.Encoder().encode
SUMS = prefix("sums")


def marker(name: bytes, epoch: int) -> Marker:
    return Marker(name, 0, epoch, b"j" * 16, "somebody", 1, "murmur2")


def records(owner: Marker, first: int, entries: Sequence[Entry]) -> list[Message]:
    return list(messages(list(entries), owner.token, first, None, 0))


ZOMBIE, OWNER = marker(b"zombie", 5), marker(b"owner", 6)
KEPT = [
    # The true owner's records before its snapshot, whose marker is gone.
    *records(OWNER, 1, [Rows(b"", 0, {SUMS + b"old": b"1"}, True)]),
    # The zombie's, which counted for nobody: the owner's marker was before them.
    *records(ZOMBIE, 7, [Begin(b"", 0, ZOMBIE), Rows(b"", 0, {SUMS + b"stale": b"666"}, True)]),
    *records(OWNER, 2, [Begin(b"", 0, OWNER), Part(b"", 0, {SUMS + b"old": b"1"})]),
    *records(ZOMBIE, 9, [Part(b"", 0, {SUMS + b"old": b"666"})]),
    *records(OWNER, 4, [Rows(b"", 0, {SUMS + b"new": b"2"}, True), End(b"", 0, 3)]),
]
STATE = {"old": 1, "new": 2}


async def kept(transport: MemoryTransport, partitions: int = 1) -> Log:
    await transport.declare([TopicSpec(JOURNAL, partitions=partitions)])
    log = await transport.log(JOURNAL)
    await log.append({0: KEPT})
    return log


class OneByOne:
    def __init__(self, log: Log) -> None:
        self._log = log

    async def read(self, after, limit, max_bytes, timeout):
        return await self._log.read(after, 1, max_bytes, timeout)


@pytest.fixture
async def transport():
    transport = MemoryTransport()
    await transport.open()
    yield transport
    await transport.close()


async def test_the_snapshot_of_the_newest_owner_counts(transport: MemoryTransport) -> None:
    log = await kept(transport)
    found = await committed_rows(log, 0, SUMS, below(SUMS))
    assert {key.removeprefix(SUMS).decode(): int(value) for key, value in found.items()} == STATE


@pytest.mark.parametrize("rows_at_once", [0, 10_000])
async def test_a_store_is_filled_from_it_whatever_it_was_given_before(
    transport: MemoryTransport, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "REPLAY_ROWS", rows_at_once)
    log = await kept(transport)
    store = MemoryStores().open("s")
    replay = Replay(OneByOne(log), 0, store)
    await replay.to_end()
    assert {key.removeprefix(SUMS).decode(): int(value) for key, value in store.scan(SUMS, below(SUMS))} == STATE
    assert replay.fold.marker == OWNER
    again = Replay(OneByOne(log), 0, store)  # and it is taken up where it stands
    await again.to_end()
    assert (again.fold.marker, again.fold.number) == (OWNER, replay.fold.number)


class Truncating(OneByOne):
    """The owner before truncates while its heir reads."""

    async def read(self, after, limit, max_bytes, timeout):
        found = await super().read(after, limit, max_bytes, timeout)
        if found and found[0].positions[0] == 1:
            await self._log.truncate(0, 3)  # where its snapshot begins
        return found


LONG = [
    Message(encode(ZOMBIE)),
    *records(ZOMBIE, 1, [Rows(b"", 0, {SUMS + b"old": b"1", SUMS + b"gone": b"1"}, True)] * 2),
    *records(ZOMBIE, 3, [Begin(b"", 0, ZOMBIE), Part(b"", 0, {SUMS + b"old": b"1"}), End(b"", 0, 3)]),
    *records(ZOMBIE, 6, [Rows(b"", 0, {SUMS + b"new": b"2"}, True)]),
    Message(encode(OWNER)),
]


@pytest.mark.parametrize("claimed", [False, True])
async def test_who_takes_over_reads_on_though_what_is_ahead_is_truncated(
    transport: MemoryTransport, claimed: bool
) -> None:
    await transport.declare([TopicSpec(JOURNAL, partitions=1)])
    log = await transport.log(JOURNAL)
    await log.append({0: LONG})
    store = MemoryStores().open("s")
    replay = Replay(Truncating(log), 0, store)
    await (replay.to_marker(OWNER.token) if claimed else replay.to_end())
    assert {key.removeprefix(SUMS).decode(): int(value) for key, value in store.scan(SUMS, below(SUMS))} == STATE
    assert replay.fold.marker == OWNER


async def test_a_program_goes_on_from_it(transport: MemoryTransport) -> None:
    app = App("sums", broker=transport, partitions=1)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value

    await kept(transport)
    async with app:
        assert dict(sums.items()) == STATE


async def test_a_store_that_was_filled_in_the_midst_of_pieces_is_not_taken_for_having_them(
    transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "REPLAY_ROWS", 0)
    await transport.declare([TopicSpec(JOURNAL, partitions=1)])
    log = await transport.log(JOURNAL)
    small = Rows(b"", 0, {SUMS + b"a": b"1"}, True)
    large = Rows(b"", 0, {SUMS + b"b%d" % number: b"2" * 20 for number in range(20)}, True)
    pieces = list(messages([small, large], OWNER.token, 1, 200, 0))
    assert len(pieces) > 3
    await log.append({0: [Message(encode(OWNER)), *pieces]})
    store = MemoryStores().open("s")
    dying = Replay(OneByOne(log), 0, store)
    for _ in range(3):  # the process dies while it replays
        await dying._step(0)
    await Replay(OneByOne(log), 0, store).to_end()
    assert len(list(store.scan(SUMS, below(SUMS)))) == 21


@pytest.mark.parametrize("broker", ["memory://", "memory://?fencing=false"])
async def test_an_owner_whose_marker_comes_after_a_newer_epoch_claims_again(broker: str) -> None:
    """Two claim at once, and the clock of the later one is behind: it must not own under an older epoch."""
    app = App("sums", partitions=1)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value

    t = AppTest(app, start=1000.0, errors="raise", broker=broker)
    rival = marker(b"rival", 5_000_000)
    operation = "claim" if broker == "memory://" else "append"

    async def claim_before_it(call: Call) -> None:
        if call.operation == operation and call.topic == JOURNAL and not call.done:
            t._broker.broker.faults.intercept(None)
            t._broker.broker.log(JOURNAL).partition(0).append(prepare([Message(encode(rival))], None, JOURNAL, t.clock))

    t._broker.broker.faults.intercept(claim_before_it)
    async with t:
        await t.advance(10)
        await source.send(1, key="k")
        await t.settle()
        assert sums["k"] == 1
        entries = [msgspec.msgpack.decode(message.value or b"") for _, _, message in t._broker.records(JOURNAL)]
        epochs = [entry[3] for entry in entries if entry[0] == "marker"]
        assert epochs[0] == 5_000_000
        assert epochs[1] == 1_000_000  # beaten
        assert epochs[2] == 5_000_001
        beaten = next(entry[1] for entry in entries if entry[0] == "marker" and entry[3] == 1_000_000)
        assert [entry[0] for entry in entries if entry[1] == beaten] == ["marker"]
