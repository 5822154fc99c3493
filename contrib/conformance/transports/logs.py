"""Topics as logs: totally ordered, durable, replayable from any position."""

from __future__ import annotations

import asyncio

import pytest
from thalweg.capabilities import Bounds, Log
from thalweg.channel import Capability, TopicSpec
from thalweg.contrib.conformance.properties import Profile, cases, prop
from thalweg.contrib.conformance.trial import LONG, Trial, numbered, values
from thalweg.errors import BrokerError, Gap, MessageTooLarge
from thalweg.message import Message

from .messages import BIG, ODD

# --- data --------------------------------------------------------------------------------------------------


@prop(Profile.REPLAY, Capability.LOG, cases=cases(ODD))
async def a_record_comes_back_as_it_was_written(trial: Trial, message: Message) -> None:
    _, log = await trial.log()
    await log.append({0: [message]})
    (record,) = await trial.records(log)
    assert (record.value, record.key, tuple(record.headers)) == (message.value, message.key, message.headers)
    if message.timestamp:
        assert record.timestamp == message.timestamp
    else:
        assert record.timestamp > 1_500_000_000_000  # now, in milliseconds


@prop(Profile.REPLAY, Capability.LOG)
async def a_record_of_the_largest_size_is_taken(trial: Trial) -> None:
    transport, log = await trial.log()
    message = Message(b"v" * (trial.message_bytes(transport) - 10), b"key", (("name", b"val"),))
    assert message.size == trial.message_bytes(transport)
    await log.append({0: [message]})
    assert await trial.read(log) == [message.value]


@prop(Profile.REPLAY, Capability.LOG, cases=cases(BIG))
async def an_oversize_record_is_refused_and_nothing_of_the_call_is_written(trial: Trial, big: object) -> None:
    assert callable(big)
    transport, log = await trial.log(partitions=2)
    limit = trial.message_bytes(transport)
    with pytest.raises(MessageTooLarge, match=str(limit)):
        await log.append({0: numbered(1), 1: [*numbered(2), big(limit + 1)]})
    assert await trial.read(log, 0) == await trial.read(log, 1) == []


@prop(Profile.REPLAY, Capability.LOG)
async def topics_and_partitions_are_separate(trial: Trial) -> None:
    transport, log = await trial.log(partitions=3)
    await trial.declare(transport, TopicSpec("other", partitions=3))
    other = await trial.reader(transport, "other")
    await log.append({0: numbered(1), 2: numbered(2)})
    assert [await trial.read(log, n) for n in range(3)] == [[b"1"], [], [b"2"]]
    assert [await trial.read(other, n) for n in range(3)] == [[], [], []]


@prop(Profile.REPLAY, Capability.LOG, cases=cases({"below": -1, "above": 2}))
async def a_partition_that_does_not_exist_is_an_error_and_nothing_is_written(trial: Trial, number: int) -> None:
    _, log = await trial.log(partitions=2)
    with pytest.raises(BrokerError):
        await log.append({0: numbered(1), number: numbered(2)})
    with pytest.raises(BrokerError):
        await log.read({number: None}, 1, LONG, 0)
    assert await trial.read(log) == []


# --- order and positions -----------------------------------------------------------------------------------


@prop(Profile.REPLAY, Capability.LOG)
async def append_says_where_each_record_lies_and_read_agrees(trial: Trial) -> None:
    _, log = await trial.log(partitions=2)
    first = await log.append({0: numbered(0, 1, 2), 1: numbered(7)})
    second = await log.append({0: numbered(3), 1: []})
    records, positions = await trial.positioned(log)
    assert values(records) == [b"0", b"1", b"2", b"3"]
    assert [*first[0], *second[0]] == positions == sorted(set(positions))
    assert [len(first[1]), len(second[1])] == [1, 0]


@prop(Profile.REPLAY, Capability.LOG)
async def reading_after_a_position_starts_with_the_next_record(trial: Trial) -> None:
    _, log = await trial.log()
    positions = (await log.append({0: numbered(*range(5))}))[0]
    for index, position in enumerate(positions):
        assert await trial.read(log, after=position) == [b"%d" % n for n in range(index + 1, 5)]


@prop(Profile.REPLAY, Capability.LOG)
async def reading_moves_nothing_and_readers_are_independent(trial: Trial) -> None:
    transport, log = await trial.log()
    other = await trial.reader(await trial.open())
    await log.append({0: numbered(1, 2)})
    for reader in (log, log, other, await trial.reader(transport)):
        assert await trial.read(reader) == [b"1", b"2"]


@prop(Profile.REPLAY, Capability.LOG)
async def appends_of_several_writers_are_in_one_order_that_all_readers_see(trial: Trial) -> None:
    _, log = await trial.log()
    other = await trial.reader(await trial.open())

    async def write(log: Log, name: bytes) -> None:
        for number in range(20):
            await log.append({0: [Message(b"%s%d" % (name, number))]})

    await asyncio.gather(write(log, b"a"), write(other, b"b"))
    seen = await trial.read(log)
    assert seen == await trial.read(other)
    for name in (b"a", b"b"):
        assert [value for value in seen if value and value.startswith(name)] == [b"%s%d" % (name, n) for n in range(20)]


@prop(Profile.REPLAY, Capability.LOG)
async def a_read_gives_at_most_limit_records_a_partition(trial: Trial) -> None:
    _, log = await trial.log(partitions=2)
    await log.append({0: numbered(*range(5)), 1: numbered(*range(2))})
    await trial.read(log)  # so that all is there to be had
    seen: dict[int, int] = {}
    async with trial.patience("a record of either partition"):
        while set(seen) != {0, 1}:
            await asyncio.sleep(0)
            for number, batch in (await log.read({0: None, 1: None}, 3, LONG, 1.0)).items():
                assert values(batch.records) == [b"%d" % n for n in range(len(batch.records))]
                assert len(batch.records) == len(batch.positions) <= 3
                seen[number] = len(batch.records)


@prop(Profile.REPLAY, Capability.LOG)
async def a_read_gives_about_max_bytes_and_at_least_one_record(trial: Trial) -> None:
    _, log = await trial.log()
    await log.append({0: [Message(b"x" * 100) for _ in range(50)]})
    assert 1 <= len((await trial.some(log, max_bytes=1000))[0].records) <= 20
    assert len((await trial.some(log, max_bytes=1))[0].records) == 1


@prop(Profile.REPLAY, Capability.LOG)
async def max_bytes_counts_all_partitions_together(trial: Trial) -> None:
    _, log = await trial.log(partitions=5)
    await log.append({n: [Message(b"x" * 100) for _ in range(10)] for n in range(5)})
    found = await trial.some(log, range(5), max_bytes=1000)
    assert 1 <= sum(len(batch.records) for batch in found.values()) <= 20


@prop(Profile.REPLAY, Capability.LOG)
async def one_large_record_does_not_make_later_reads_small(trial: Trial) -> None:
    transport, log = await trial.log()
    size = min(trial.message_bytes(transport) - 1, 1_000_000)
    large = (await log.append({0: [Message(b"x" * size)]}))[0][0]
    await log.append({0: [Message(b"x" * 10) for _ in range(100)]})
    await trial.read(log)
    reads = 0
    async with trial.patience("100 small records"):
        while (after := (await log.bounds(0)).last) != large:
            await asyncio.sleep(0)
            found = (await log.read({0: large}, LONG, size, 1.0)).get(0)
            if found is not None:
                reads, large = reads + 1, found.positions[-1]
    assert after == large
    assert reads <= 10, f"100 records of 10 bytes took {reads} reads of up to {size} bytes"


@prop(Profile.REPLAY, Capability.LOG)
async def partitions_take_turns_so_that_none_starves(trial: Trial) -> None:
    _, log = await trial.log(partitions=3)
    await log.append({n: [Message(b"x" * 100) for _ in range(10)] for n in range(3)})
    first: set[int] = set()
    async with trial.patience("each partition to have its turn"):
        while first != {0, 1, 2}:
            await asyncio.sleep(0)
            first |= set(await log.read({0: None, 1: None, 2: None}, LONG, 1, 1.0))


# --- waiting -----------------------------------------------------------------------------------------------


@prop(Profile.REPLAY, Capability.LOG)
async def a_waiting_read_wakes_when_any_of_its_partitions_is_written(trial: Trial) -> None:
    _, log = await trial.log(partitions=3)
    writer = await trial.reader(await trial.open())
    read = trial.start(log.read({0: None, 2: None}, LONG, LONG, 3600))
    await asyncio.sleep(0)
    await writer.append({1: numbered(1)})
    await writer.append({2: numbered(2)})
    found = await trial.soon(read, "a waiting read to return")
    assert list(found) == [2]
    assert values(found[2].records) == [b"2"]


@prop(Profile.REPLAY, Capability.LOG)
async def a_read_without_records_is_empty_at_its_time_out(trial: Trial) -> None:
    _, log = await trial.log()
    assert await log.read({0: None}, LONG, LONG, 0) == {}
    read = trial.start(log.read({0: None}, LONG, LONG, 0.2))
    await asyncio.sleep(0)
    assert not read.done()
    await trial.rig.pass_time(0.25)
    assert await trial.soon(read, "a read to end at its time-out") == {}


@prop(Profile.REPLAY, Capability.LOG)
async def a_cancelled_read_loses_nothing_and_the_reader_still_works(trial: Trial) -> None:
    _, log = await trial.log()
    read = trial.start(log.read({0: None}, LONG, LONG, 3600))
    await asyncio.sleep(0)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    await log.append({0: numbered(1)})
    assert await trial.read(log) == [b"1"]


@prop(Profile.REPLAY, Capability.LOG)
async def many_tasks_share_one_reader(trial: Trial) -> None:
    _, log = await trial.log()
    reads = [trial.start(log.read({0: None}, LONG, LONG, 3600)) for _ in range(100)]
    await asyncio.sleep(0)
    await log.append({0: numbered(1)})
    found = await trial.soon(asyncio.gather(*reads), "100 reads to return")
    assert [values(batches[0].records) for batches in found] == [[b"1"]] * 100


@prop(Profile.REPLAY, Capability.LOG)
async def closing_a_reader_ends_its_waiting_read_and_no_other(trial: Trial) -> None:
    transport, log = await trial.log()
    other = await trial.reader(transport)
    reads = [trial.start(reader.read({0: None}, LONG, LONG, 3600)) for reader in (log, other)]
    await asyncio.sleep(0)
    await log.close()
    with pytest.raises(BrokerError):
        await trial.soon(reads[0], "a read to end with its reader")
    await other.append({0: numbered(1)})
    assert values((await trial.soon(reads[1], "the other read to return"))[0].records) == [b"1"]
    await log.close()


# --- its ends ----------------------------------------------------------------------------------------------


@prop(Profile.REPLAY, Capability.LOG)
async def bounds_are_the_first_and_the_last_position(trial: Trial) -> None:
    _, log = await trial.log(partitions=2)
    assert await log.bounds(0) == Bounds(None, None)
    positions = (await log.append({0: numbered(1, 2, 3)}))[0]
    assert await log.bounds(0) == Bounds(positions[0], positions[-1])
    assert await log.bounds(1) == Bounds(None, None)


@prop(Profile.REPLAY, Capability.LOG)
async def truncate_drops_nothing_at_or_after_the_position(trial: Trial) -> None:
    _, log = await trial.log(partitions=2)
    positions = (await log.append({0: numbered(*range(6)), 1: numbered(9)}))[0]
    await log.truncate(0, positions[2])
    assert (await trial.read(log, after=positions[1])) == [b"2", b"3", b"4", b"5"]
    bounds = await log.bounds(0)
    assert bounds.first is not None
    assert bounds.first <= positions[2]
    assert bounds.last == positions[5]
    assert (await trial.read(log))[-4:] == [b"2", b"3", b"4", b"5"]
    assert await trial.read(log, 1) == [b"9"]


@prop(Profile.REPLAY, Capability.LOG)
async def a_position_whose_followers_may_be_gone_is_a_gap_and_one_that_is_itself_gone_is_not(trial: Trial) -> None:
    _, log = await trial.log()
    positions = (await log.append({0: numbered(*range(6))}))[0]
    await log.truncate(0, positions[4])
    first = (await log.bounds(0)).first
    assert await trial.read(log, after=positions[3]) == [b"4", b"5"]
    for index, position in enumerate(positions[:4]):
        if first is not None and positions[index + 1] < first:
            with pytest.raises(Gap) as caught:
                await log.read({0: position}, LONG, LONG, 1.0)
            error = caught.value
            assert (error.topic, error.partition, error.after, error.first) == (trial.name("t"), 0, position, first)


@prop(Profile.REPLAY, Capability.LOG)
async def a_log_that_was_emptied_goes_on_after_its_last_position(trial: Trial) -> None:
    _, log = await trial.log()
    last = (await log.append({0: numbered(1, 2)}))[0][-1]
    await log.truncate(0, last + 1)
    assert await trial.read(log, after=last) == []
    later = (await log.append({0: numbered(3)}))[0][0]
    assert later > last
    assert await trial.read(log, after=last) == [b"3"]


@prop(Profile.REPLAY, Capability.LOG)
async def truncate_twice_or_below_the_start_is_harmless(trial: Trial) -> None:
    _, log = await trial.log()
    positions = (await log.append({0: numbered(1, 2)}))[0]
    for before in (positions[1], positions[1], positions[0], 0):
        await log.truncate(0, before)
    assert (await trial.read(log))[-1:] == [b"2"]


@prop(
    Profile.REPLAY,
    Capability.LOG,
    cases={
        f"from {time}": (time, n)
        for time, n in [(1, 0), (1000, 0), (1001, 1), (2000, 1), (3000, 1), (3001, 4), (4000, 4), (4001, 5)]
    },
)
async def find_leads_to_the_earliest_record_of_a_time_even_if_times_go_back(
    trial: Trial, timestamp: int, follows: int
) -> None:
    _, log = await trial.log()
    times = [1000, 3000, 2000, 3000, 4000]
    await log.append({0: [Message(b"%d" % n, timestamp=time) for n, time in enumerate(times)]})
    after = await log.find(0, timestamp)
    assert await trial.read(log, after=after) == [b"%d" % n for n in range(follows, 5)]
    if follows == 5:
        assert after == (await log.bounds(0)).last


@prop(Profile.REPLAY, Capability.LOG)
async def find_in_an_empty_partition_means_from_the_beginning(trial: Trial) -> None:
    _, log = await trial.log()
    assert await log.find(0, 1000) is None


@prop(Profile.REPLAY, Capability.LOG)
async def find_after_a_truncation_leads_to_what_is_kept(trial: Trial) -> None:
    _, log = await trial.log()
    messages = [Message(b"%d" % n, timestamp=1000 * (n + 1)) for n in range(6)]
    positions = (await log.append({0: messages}))[0]
    await log.truncate(0, positions[3])
    for timestamp in (1, 4000):
        found = await trial.read(log, after=await log.find(0, timestamp))
        assert found[-3:] == [b"3", b"4", b"5"]
    assert await trial.read(log, after=await log.find(0, 5500)) == [b"5"]


@prop(Profile.REPLAY, Capability.LOG)
async def a_log_of_records_of_all_sizes_is_read_whole_in_small_bites(trial: Trial) -> None:
    transport, log = await trial.log()
    largest = min(trial.message_bytes(transport), 20_000)
    sizes = [trial.dice.choice([0, 1, 10, 100, 1000, largest]) for _ in range(60 * trial.size)]
    for size in sizes:
        await log.append({0: [Message(b"x" * size)]})
    after, seen = None, list[int]()
    async with trial.patience("every record"):
        while len(seen) < len(sizes):
            batch = (await log.read({0: after}, trial.dice.randint(1, 20), trial.dice.randint(1, 3000), 1.0)).get(0)
            await asyncio.sleep(0)
            if batch is not None:
                seen += [len(record.value or b"") for record in batch.records]
                after = batch.positions[-1]
    assert seen == sizes


@prop(Profile.REPLAY, Capability.LOG)
async def a_cancelled_append_is_written_once_at_most_and_the_log_goes_on(trial: Trial) -> None:
    _, log = await trial.log()
    returned = set[bytes]()
    count = 20 * trial.size
    for number in range(count):
        append = asyncio.create_task(log.append({0: numbered(2 * number, 2 * number + 1)}))
        for _ in range(trial.dice.randrange(8)):
            await asyncio.sleep(0)
        append.cancel()
        await asyncio.wait([append])
        if not append.cancelled():
            append.result()
            returned |= {b"%d" % (2 * number), b"%d" % (2 * number + 1)}
    await log.append({0: [Message(b"last")]})
    seen = await trial.read(log)
    assert len(seen) == len(set(seen)), "a cancelled append was written twice"
    assert {*returned, b"last"} <= set(seen)


@prop(Profile.REPLAY, Capability.LOG)
async def an_append_that_does_not_ask_for_positions_writes_the_same(trial: Trial) -> None:
    _, log = await trial.log(partitions=2)
    for number in range(5 * trial.size):
        await log.append({0: numbered(number), 1: numbered(number)}, positions=False)
    for partition in range(2):
        assert await trial.read(log, partition) == [b"%d" % n for n in range(5 * trial.size)]


@prop(Profile.REPLAY, Capability.LOG)
async def a_compacted_topic_keeps_the_newest_record_of_each_key(trial: Trial) -> None:
    transport = await trial.open()
    await trial.declare(transport, TopicSpec("t", partitions=1, compact=True))
    log = await trial.reader(transport)
    for turn in range(3):
        await log.append({0: [Message(b"%d" % turn, b"%d" % key) for key in range(10)]})
    await log.append({0: [Message(None, b"0")]})
    newest = {record.key: record.value for record in await trial.records(log)}
    newest.setdefault(b"0", None)  # a tombstone may go with what it deletes
    assert newest == {b"%d" % key: b"2" if key else None for key in range(10)}


@prop(Profile.REPLAY, Capability.LOG)
async def appends_made_at_once_by_one_writer_lie_in_the_order_they_were_called(trial: Trial) -> None:
    _, log = await trial.log()
    count = 50 * trial.size
    await asyncio.gather(*(log.append({0: numbered(n)}) for n in range(count)))
    assert await trial.read(log) == [b"%d" % n for n in range(count)]
