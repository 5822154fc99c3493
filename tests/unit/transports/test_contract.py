"""What every transport must do, as the contracts in `core/` put it. `conftest.py` names the rigs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from thalweg.capabilities import Bounds, Commit, Fencing, Locks, Logs, Peers, WorkQueue
from thalweg.channel import Capability, Channel, TopicInfo, TopicSpec, Transport
from thalweg.errors import BrokerError, Fenced, Gap, MessageTooLarge, TopicMismatch
from thalweg.message import Delivery, Message, QueueMessage

LONG = 1_000_000  # bytes or records: more than any test writes


def values(records: Sequence) -> list[bytes | None]:
    return [record.value for record in records]


def numbered(*numbers: int, key: bytes | None = None) -> list[Message]:
    return [Message(b"%d" % number, key) for number in numbers]


async def open_log(rig, partitions: int = 1, name: str = "t"):
    transport = await rig.open()
    await transport.declare([TopicSpec(name, partitions=partitions)])
    return transport, await transport.log(name)


async def read_values(log, partition: int = 0, after: int | None = None) -> list[bytes | None]:
    found = await log.read({partition: after}, LONG, LONG, 0)
    return values(found[partition].records) if partition in found else []


async def open_channels(rig, members: int, topic: TopicSpec, group: str = "g") -> list[Channel]:
    """Each on its own transport."""
    channels = []
    for _ in range(members):
        transport = await rig.open()
        await transport.declare([topic])
        channels.append(await transport.channel(topic.name, group))
    return channels


LOG = TopicSpec("t", partitions=2)
QUEUE = TopicSpec("q", queue=True)
ANY = pytest.mark.parametrize("topic", [LOG, QUEUE], ids=["log", "queue"])

ODD = {
    "empty value": Message(b""),
    "tombstone": Message(None, b"k"),
    "tombstone without key": Message(None),
    "empty key": Message(b"v", b""),
    "binary": Message(bytes(range(256)), bytes(range(256))),
    "headers": Message(b"v", b"k", (("a", b"1"), ("a", b""), ("\N{SNOWMAN}", b"\x00\xff"), ("", b"x"))),
    "timestamp": Message(b"v", timestamp=1_234_567_890_123),
}


# --- the transport -----------------------------------------------------------------------------------------


async def test_a_transport_implements_what_it_declares(rig):
    transport = await rig.open()
    protocols = {
        Capability.LOG: Logs,
        Capability.LOCKS: Locks,
        Capability.PEERS: Peers,
        Capability.FENCING: Fencing,
    }
    for capability in transport.capabilities & protocols.keys():
        assert isinstance(transport, protocols[capability])
    if Capability.WORK_QUEUE in transport.capabilities:
        await transport.declare([QUEUE])
        assert isinstance(await transport.channel("q", "g"), WorkQueue)
    assert isinstance(transport, Transport)
    assert transport.description


async def test_declare_creates_what_is_missing_and_reports_what_exists_in_the_order_asked(rig):
    transport, other = await rig.open(), await rig.open()
    first = await transport.declare([TopicSpec("b", partitions=3), TopicSpec("a", default_partitions=2), QUEUE])
    again = await other.declare([TopicSpec("a", default_partitions=9), TopicSpec("b")])
    assert [(info.name, info.partitions) for info in first[:2]] == [("b", 3), ("a", 2)]
    assert first[2].queue
    assert again == [TopicInfo("a", 2), TopicInfo("b", 3)]


async def test_topics_are_listed_sorted_whoever_declared_them(rig):
    transport, other = await rig.open(), await rig.open()
    await transport.declare([TopicSpec("b"), QUEUE])
    await other.declare([TopicSpec("-internal-"), TopicSpec("\N{SNOWMAN} ü/x y")])
    topics = await transport.topics()
    assert [(info.name, info.queue) for info in topics] == [
        ("-internal-", False),
        ("b", False),
        ("q", True),
        ("\N{SNOWMAN} ü/x y", False),
    ]


@pytest.mark.parametrize(
    "spec", [TopicSpec("t", partitions=3), TopicSpec("t", queue=True), TopicSpec("q", partitions=1)], ids=repr
)
async def test_a_topic_that_exists_otherwise_is_a_mismatch_and_stays_as_it_is(rig, spec):
    transport = await rig.open()
    declared = await transport.declare([TopicSpec("t", partitions=2), QUEUE])
    with pytest.raises(TopicMismatch, match=repr(spec.name)):
        await transport.declare([spec])
    assert set(await transport.topics()) == set(declared)


@pytest.mark.parametrize("queue", [False, True])
async def test_what_belongs_to_others_must_exist_and_is_not_created(rig, queue):
    transport = await rig.open()
    theirs = TopicSpec("theirs", queue=queue, declare=False)
    with pytest.raises(BrokerError, match=r"'theirs'.*declare=False"):
        await transport.declare([TopicSpec("ours"), theirs])
    assert await transport.topics() == []
    created = await transport.declare([TopicSpec("theirs", queue=queue)])
    assert await transport.declare([theirs]) == created


async def test_a_topic_that_was_not_declared_is_an_error(rig):
    transport = await rig.open()
    with pytest.raises(BrokerError, match="'nowhere'"):
        await transport.log("nowhere")
    with pytest.raises(BrokerError, match="'nowhere'"):
        await transport.channel("nowhere", "g")


async def test_close_is_harmless_twice_and_at_once_and_later_calls_raise(rig):
    transport, log = await open_log(rig)
    channel = await transport.channel("t", "g")
    await asyncio.gather(transport.close(), transport.close())
    await transport.close()
    for call in (transport.topics(), log.append({0: numbered(1)}), channel.get(1, 0), channel.put(numbered(1))):
        with pytest.raises(BrokerError):
            await call


async def test_a_closed_transport_can_be_opened_again_and_finds_what_was_written(rig):
    transport, log = await open_log(rig)
    await log.append({0: numbered(1, 2)})
    other = await rig.open()  # a broker may live only as long as someone uses it
    await transport.close()
    await transport.open()
    assert await read_values(await transport.log("t")) == [b"1", b"2"]
    assert await read_values(await other.log("t")) == [b"1", b"2"]


# --- the log: data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ODD.values(), ids=ODD)
async def test_a_record_comes_back_as_it_was_written(rig, message):
    _, log = await open_log(rig)
    await log.append({0: [message]})
    record = (await log.read({0: None}, 1, LONG, 0))[0].records[0]
    assert (record.value, record.key, tuple(record.headers)) == (message.value, message.key, message.headers)
    if message.timestamp:
        assert record.timestamp == message.timestamp
    else:
        assert record.timestamp > 1_500_000_000_000  # now, in milliseconds


async def test_a_record_of_the_largest_size_is_taken(rig):
    _, log = await open_log(rig)
    message = Message(b"v" * (rig.message_bytes - 10), b"key", (("name", b"val"),))
    assert message.size == rig.message_bytes
    await log.append({0: [message]})
    assert (await log.read({0: None}, 1, LONG, 0))[0].records[0].value == message.value


@pytest.mark.parametrize(
    "big",
    [
        lambda size: Message(b"v" * size),
        lambda size: Message(None, b"k" * size),
        lambda size: Message(b"v", b"k", (("n" * size, b""),)),
        lambda size: Message(b"v", b"k", (("n", b"h" * size),)),
    ],
    ids=["value", "key", "header name", "header value"],
)
async def test_an_oversize_record_is_refused_and_nothing_of_the_call_is_written(rig, big):
    _, log = await open_log(rig, partitions=2)
    with pytest.raises(MessageTooLarge, match=str(rig.message_bytes)):
        await log.append({0: numbered(1), 1: [*numbered(2), big(rig.message_bytes + 1)]})
    assert await log.read({0: None, 1: None}, LONG, LONG, 0) == {}


async def test_topics_and_partitions_are_separate(rig):
    transport, log = await open_log(rig, partitions=3)
    await transport.declare([TopicSpec("other", partitions=3)])
    await log.append({0: numbered(1), 2: numbered(2)})
    assert [await read_values(log, n) for n in range(3)] == [[b"1"], [], [b"2"]]
    assert await (await transport.log("other")).read(dict.fromkeys(range(3)), LONG, LONG, 0) == {}


@pytest.mark.parametrize("number", [-1, 2])
async def test_a_partition_that_does_not_exist_is_an_error_and_nothing_is_written(rig, number):
    _, log = await open_log(rig, partitions=2)
    with pytest.raises(BrokerError):
        await log.append({0: numbered(1), number: numbered(2)})
    with pytest.raises(BrokerError):
        await log.read({number: None}, 1, LONG, 0)
    assert await read_values(log) == []


# --- the log: order and positions --------------------------------------------------------------------------


async def test_append_says_where_each_record_lies_and_read_agrees(rig):
    _, log = await open_log(rig, partitions=2)
    first = await log.append({0: numbered(0, 1, 2), 1: numbered(7)})
    second = await log.append({0: numbered(3), 1: []})
    batch = (await log.read({0: None}, LONG, LONG, 0))[0]
    assert values(batch.records) == [b"0", b"1", b"2", b"3"]
    assert [*first[0], *second[0]] == list(batch.positions)
    assert list(batch.positions) == sorted(set(batch.positions))
    assert [len(first[1]), len(second[1])] == [1, 0]


async def test_reading_after_a_position_starts_with_the_next_record(rig):
    _, log = await open_log(rig)
    positions = (await log.append({0: numbered(*range(5))}))[0]
    for index, position in enumerate(positions):
        assert await read_values(log, after=position) == [b"%d" % n for n in range(index + 1, 5)]


async def test_reading_moves_nothing_and_readers_are_independent(rig):
    transport, log = await open_log(rig)
    other = await (await rig.open()).log("t")
    await log.append({0: numbered(1, 2)})
    for reader in (log, log, other, await transport.log("t")):
        assert await read_values(reader) == [b"1", b"2"]


async def test_appends_of_several_writers_are_in_one_order_that_all_readers_see(rig):
    _, log = await open_log(rig)
    other = await (await rig.open()).log("t")

    async def write(log, name: bytes) -> None:
        for number in range(20):
            await log.append({0: [Message(b"%s%d" % (name, number))]})

    await asyncio.gather(write(log, b"a"), write(other, b"b"))
    seen = await read_values(log)
    assert seen == await read_values(other)
    for name in (b"a", b"b"):
        assert [value for value in seen if value.startswith(name)] == [b"%s%d" % (name, n) for n in range(20)]


async def test_a_read_gives_at_most_limit_records_a_partition(rig):
    _, log = await open_log(rig, partitions=2)
    await log.append({0: numbered(*range(5)), 1: numbered(*range(2))})
    found = await log.read({0: None, 1: None}, 3, LONG, 0)
    assert {n: values(batch.records) for n, batch in found.items()} == {0: [b"0", b"1", b"2"], 1: [b"0", b"1"]}


async def test_a_read_gives_about_max_bytes_and_at_least_one_record(rig):
    _, log = await open_log(rig)
    await log.append({0: [Message(b"x" * 100) for _ in range(50)]})
    assert 1 <= len((await log.read({0: None}, LONG, 1000, 0))[0].records) <= 20
    assert len((await log.read({0: None}, LONG, 1, 0))[0].records) == 1


async def test_max_bytes_counts_all_partitions_together(rig):
    _, log = await open_log(rig, partitions=5)
    await log.append({n: [Message(b"x" * 100) for _ in range(10)] for n in range(5)})
    found = await log.read(dict.fromkeys(range(5)), LONG, 1000, 0)
    assert 1 <= sum(len(batch.records) for batch in found.values()) <= 20


async def test_one_large_record_does_not_make_later_reads_small(rig):
    _, log = await open_log(rig)
    large = (await log.append({0: [Message(b"x" * (rig.message_bytes - 1))]}))[0][0]
    await log.append({0: [Message(b"x" * 10) for _ in range(100)]})
    found = await log.read({0: large}, LONG, rig.message_bytes, 0)
    assert len(found[0].records) == 100


async def test_partitions_take_turns_so_that_none_starves(rig):
    _, log = await open_log(rig, partitions=3)
    await log.append({n: [Message(b"x" * 100) for _ in range(10)] for n in range(3)})
    first: set[int] = set()
    for _ in range(3):
        first |= set(await log.read({0: None, 1: None, 2: None}, LONG, 1, 0))
    assert first == {0, 1, 2}


# --- the log: waiting --------------------------------------------------------------------------------------


async def test_a_waiting_read_wakes_when_any_of_its_partitions_is_written(rig):
    _, log = await open_log(rig, partitions=3)
    writer = await (await rig.open()).log("t")
    read = asyncio.create_task(log.read({0: None, 2: None}, LONG, LONG, 60))
    await asyncio.sleep(0)
    await writer.append({1: numbered(1)})
    await writer.append({2: numbered(2)})
    found = await read
    assert list(found) == [2]
    assert values(found[2].records) == [b"2"]


async def test_a_read_without_records_is_empty_at_its_time_out(rig):
    _, log = await open_log(rig)
    assert await log.read({0: None}, LONG, LONG, 0) == {}
    read = asyncio.create_task(log.read({0: None}, LONG, LONG, rig.lease / 10))
    await asyncio.sleep(0)
    assert not read.done()
    await rig.pass_time(rig.lease / 5)
    assert await read == {}


async def test_a_cancelled_read_loses_nothing_and_the_reader_still_works(rig):
    _, log = await open_log(rig)
    read = asyncio.create_task(log.read({0: None}, LONG, LONG, 60))
    await asyncio.sleep(0)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    await log.append({0: numbered(1)})
    assert await read_values(log) == [b"1"]


async def test_many_tasks_share_one_reader(rig):
    _, log = await open_log(rig)
    reads = [asyncio.create_task(log.read({0: None}, LONG, LONG, 60)) for _ in range(100)]
    await asyncio.sleep(0)
    await log.append({0: numbered(1)})
    assert [values(found[0].records) for found in await asyncio.gather(*reads)] == [[b"1"]] * 100


async def test_closing_a_reader_ends_its_waiting_read_and_no_other(rig):
    transport, log = await open_log(rig)
    other = await transport.log("t")
    reads = [asyncio.create_task(reader.read({0: None}, LONG, LONG, 60)) for reader in (log, other)]
    await asyncio.sleep(0)
    await log.close()
    with pytest.raises(BrokerError):
        await reads[0]
    await other.append({0: numbered(1)})
    assert values((await reads[1])[0].records) == [b"1"]
    await log.close()


# --- the log: its ends -------------------------------------------------------------------------------------


async def test_bounds_are_the_first_and_the_last_position(rig):
    _, log = await open_log(rig, partitions=2)
    assert await log.bounds(0) == Bounds(None, None)
    positions = (await log.append({0: numbered(1, 2, 3)}))[0]
    assert await log.bounds(0) == Bounds(positions[0], positions[-1])
    assert await log.bounds(1) == Bounds(None, None)


async def test_truncate_drops_nothing_at_or_after_the_position(rig):
    _, log = await open_log(rig, partitions=2)
    positions = (await log.append({0: numbered(*range(6)), 1: numbered(9)}))[0]
    await log.truncate(0, positions[2])
    assert (await read_values(log, after=positions[1])) == [b"2", b"3", b"4", b"5"]
    bounds = await log.bounds(0)
    assert bounds.first <= positions[2]
    assert bounds.last == positions[5]
    assert (await read_values(log))[-4:] == [b"2", b"3", b"4", b"5"]
    assert await read_values(log, 1) == [b"9"]


async def test_a_position_whose_followers_may_be_gone_is_a_gap_and_one_that_is_itself_gone_is_not(rig):
    _, log = await open_log(rig)
    positions = (await log.append({0: numbered(*range(6))}))[0]
    await log.truncate(0, positions[4])
    first = (await log.bounds(0)).first
    assert await read_values(log, after=positions[3]) == [b"4", b"5"]
    for index, position in enumerate(positions[:4]):
        if first is not None and positions[index + 1] < first:
            with pytest.raises(Gap) as caught:
                await read_values(log, after=position)
            error = caught.value
            assert (error.topic, error.partition, error.after, error.first) == ("t", 0, position, first)


async def test_a_log_that_was_emptied_goes_on_after_its_last_position(rig):
    _, log = await open_log(rig)
    last = (await log.append({0: numbered(1, 2)}))[0][-1]
    await log.truncate(0, last + 1)
    assert await read_values(log, after=last) == []
    later = (await log.append({0: numbered(3)}))[0][0]
    assert later > last
    assert await read_values(log, after=last) == [b"3"]


async def test_truncate_twice_or_below_the_start_is_harmless(rig):
    _, log = await open_log(rig)
    positions = (await log.append({0: numbered(1, 2)}))[0]
    for before in (positions[1], positions[1], positions[0], 0):
        await log.truncate(0, before)
    assert (await read_values(log))[-1:] == [b"2"]


@pytest.mark.parametrize(
    ("timestamp", "follows"), [(1, 0), (1000, 0), (1001, 1), (2000, 1), (3000, 1), (3001, 4), (4000, 4), (4001, 5)]
)
async def test_find_leads_to_the_earliest_record_of_a_time_even_if_times_go_back(rig, timestamp, follows):
    _, log = await open_log(rig)
    times = [1000, 3000, 2000, 3000, 4000]
    await log.append({0: [Message(b"%d" % n, timestamp=time) for n, time in enumerate(times)]})
    after = await log.find(0, timestamp)
    assert await read_values(log, after=after) == [b"%d" % n for n in range(follows, 5)]
    if follows == 5:
        assert after == (await log.bounds(0)).last


async def test_find_in_an_empty_partition_means_from_the_beginning(rig):
    _, log = await open_log(rig)
    assert await log.find(0, 1000) is None


# --- fencing -----------------------------------------------------------------------------------------------


async def open_fenced(rig):
    """Two rivals over a journal of two partitions, and an output topic."""
    rivals = [await rig.open(), await rig.open()]
    await rivals[0].declare([TopicSpec("j", partitions=2), TopicSpec("out", partitions=2), QUEUE])
    return rivals, await rivals[0].log("j"), await rivals[0].log("out")


async def test_a_claim_appends_its_marker_after_all_that_was_committed_before(rig):
    (a, b), journal, _ = await open_fenced(rig)
    first = await a.claim("j", 0, Message(b"marker a"))
    written = (await a.commit({first: Commit(numbered(1))}))[first]
    second = await b.claim("j", 0, Message(b"marker b"))
    assert first.position < written[0] < second.position
    assert (first.topic, first.partition) == (second.topic, second.partition) == ("j", 0)
    assert await read_values(journal) == [b"marker a", b"1", b"marker b"]
    assert await read_values(journal, after=written[0]) == [b"marker b"]


async def test_a_commit_appends_records_and_outputs_and_says_where_the_records_lie(rig):
    (a, _), journal, out = await open_fenced(rig)
    claims = [await a.claim("j", n, Message(b"m")) for n in range(2)]
    positions = await a.commit(
        {
            claims[0]: Commit(numbered(1, 2), {("out", 0): numbered(10), ("out", 1): numbered(11)}),
            claims[1]: Commit(numbered(3), {("out", 0): numbered(12)}),
        }
    )
    assert await read_values(journal, 0, claims[0].position) == [b"1", b"2"]
    assert await read_values(journal, 1, claims[1].position) == [b"3"]
    assert list(positions[claims[0]]) == list((await journal.read({0: claims[0].position}, 9, LONG, 0))[0].positions)
    assert await read_values(out, 0) == [b"10", b"12"]
    assert await read_values(out, 1) == [b"11"]


async def test_a_fenced_commit_names_what_is_lost_and_writes_nothing_at_all(rig):
    (a, b), journal, out = await open_fenced(rig)
    stale, good = await a.claim("j", 0, Message(b"m")), await a.claim("j", 1, Message(b"m"))
    await b.claim("j", 0, Message(b"n"))
    with pytest.raises(Fenced) as caught:
        await a.commit(
            {good: Commit(numbered(1), {("out", 0): numbered(2)}), stale: Commit([], {("out", 1): numbered(3)})}
        )
    assert caught.value.partitions == frozenset({("j", 0)})
    assert await read_values(journal, 0) == [b"m", b"n"]
    assert await read_values(journal, 1) == [b"m"]
    assert await out.read({0: None, 1: None}, LONG, LONG, 0) == {}
    await a.commit({good: Commit(numbered(1))})
    assert await read_values(journal, 1) == [b"m", b"1"]


async def test_of_rival_claims_only_the_last_can_commit_and_a_lost_one_never_can_again(rig):
    rivals, journal, _ = await open_fenced(rig)
    claims = await asyncio.gather(*(rivals[n % 2].claim("j", 0, Message(b"%d" % n)) for n in range(6)))
    order = sorted(claims, key=lambda claim: claim.position)
    for _ in range(2):
        for number, claim in enumerate(claims):
            if claim is order[-1]:
                await rivals[number % 2].commit({claim: Commit(numbered(99))})
            else:
                with pytest.raises(Fenced):
                    await rivals[number % 2].commit({claim: Commit(numbered(number))})
    assert (await read_values(journal))[6:] == [b"99", b"99"]


async def test_a_claim_fences_a_crashed_owner(rig):
    (a, b), _, _ = await open_fenced(rig)
    claim = await a.claim("j", 0, Message(b"m"))
    await a.commit({claim: Commit(numbered(1))})
    await rig.crash(a)
    heir = await b.claim("j", 0, Message(b"n"))
    await b.commit({heir: Commit(numbered(2))})
    assert await read_values(await b.log("j")) == [b"m", b"1", b"n", b"2"]


async def test_an_oversize_record_or_output_stops_the_whole_commit(rig):
    (a, _), journal, out = await open_fenced(rig)
    claims = [await a.claim("j", n, Message(b"m")) for n in range(2)]
    big = [Message(b"x" * (rig.message_bytes + 1))]
    for commit in (Commit(big), Commit(numbered(1), {("out", 0): numbered(2), ("out", 1): big})):
        with pytest.raises(MessageTooLarge):
            await a.commit({claims[0]: Commit(numbered(0), {("out", 0): numbered(3)}), claims[1]: commit})
    assert await read_values(journal, 0) == await read_values(journal, 1) == [b"m"]
    assert await out.read({0: None, 1: None}, LONG, LONG, 0) == {}


async def test_a_queue_takes_no_fenced_outputs_and_nothing_else_is_written(rig):
    (a, _), journal, out = await open_fenced(rig)
    claim = await a.claim("j", 0, Message(b"m"))
    with pytest.raises(BrokerError, match="'q'"):
        await a.commit({claim: Commit(numbered(1), {("out", 0): numbered(2), ("q", 0): numbered(3)})})
    assert await read_values(journal) == [b"m"]
    assert await read_values(out) == []


async def test_a_waiting_reader_sees_a_commit(rig):
    (a, b), _, _ = await open_fenced(rig)
    read = asyncio.create_task((await b.log("out")).read({1: None}, LONG, LONG, 60))
    await asyncio.sleep(0)
    claim = await a.claim("j", 0, Message(b"m"))
    await a.commit({claim: Commit(numbered(1), {("out", 1): numbered(2)})})
    assert values((await read)[1].records) == [b"2"]


# --- locks -------------------------------------------------------------------------------------------------


async def test_a_lock_has_one_holder_until_it_is_released(rig):
    a, b = await rig.open(), await rig.open()
    held = await a.try_lock("x", rig.lease)
    assert await b.try_lock("x", rig.lease) is None
    assert await a.try_lock("x", rig.lease) is None
    other = await b.try_lock("y", rig.lease)
    assert not held.lost.is_set()
    await held.release()
    await held.release()
    heir = await b.try_lock("x", rig.lease)
    assert heir.number > held.number
    await held.release()
    assert await a.try_lock("x", rig.lease) is None
    assert not other.lost.is_set()


async def test_rivals_for_a_lock_have_one_winner(rig):
    transports = [await rig.open() for _ in range(4)]
    won = await asyncio.gather(*(transport.try_lock("x", rig.lease) for transport in transports))
    assert sum(held is not None for held in won) == 1


async def test_a_living_holder_keeps_its_lock_beyond_the_lease(rig):
    a, b = await rig.open(), await rig.open()
    held = await a.try_lock("x", rig.lease)
    for _ in range(5):
        await rig.pass_time(rig.lease / 2)
        assert await b.try_lock("x", rig.lease) is None
    assert not held.lost.is_set()


async def test_a_lock_of_a_crashed_holder_is_free_when_its_lease_has_ended(rig):
    a, b = await rig.open(), await rig.open()
    held = await a.try_lock("x", rig.lease)
    await rig.crash(a)
    assert await b.try_lock("x", rig.lease) is None
    await rig.pass_time(rig.lease * 1.1)
    heir = await b.try_lock("x", rig.lease)
    assert heir.number > held.number


async def test_closing_a_transport_frees_its_locks_at_once_and_says_so(rig):
    a, b = await rig.open(), await rig.open()
    held = await a.try_lock("x", rig.lease)
    await a.close()
    assert held.lost.is_set()
    assert await b.try_lock("x", rig.lease) is not None


# --- peers -------------------------------------------------------------------------------------------------


async def test_a_member_sees_itself_at_once_then_each_change(rig):
    a, b = await rig.open(), await rig.open()
    async with aclosing(a.peers("g", "a", rig.lease)) as seen:
        assert await anext(seen) == {"a"}
        change = asyncio.ensure_future(anext(seen))
        async with aclosing(b.peers("g", "b", rig.lease)) as seen_by_b:
            assert await anext(seen_by_b) == {"a", "b"}
            assert await change == {"a", "b"}
            change = asyncio.ensure_future(anext(seen))
        assert await change == {"a"}


async def test_groups_of_peers_are_separate(rig):
    a = await rig.open()
    async with aclosing(a.peers("g", "a", rig.lease)) as one, aclosing(a.peers("h", "b", rig.lease)) as other:
        assert await anext(one) == {"a"}
        assert await anext(other) == {"b"}


async def test_a_crashed_member_is_gone_when_its_lease_has_ended_and_a_living_one_stays(rig):
    a, b = await rig.open(), await rig.open()
    seen, dying = a.peers("g", "a", rig.lease), b.peers("g", "b", rig.lease)
    async with aclosing(seen), aclosing(dying):
        await anext(dying)
        assert await anext(seen) == {"a", "b"}
        await rig.crash(b)
        change = asyncio.ensure_future(anext(seen))
        await rig.pass_time(rig.lease * 1.1)
        assert await change == {"a"}
        change = asyncio.ensure_future(anext(seen))
        await rig.pass_time(rig.lease * 3)
        assert not change.done()
        change.cancel()
        await asyncio.wait([change])


# --- channels: of logs and of queues -----------------------------------------------------------------------


@ANY
@pytest.mark.parametrize("message", ODD.values(), ids=ODD)
async def test_a_message_is_delivered_as_it_was_put(rig, topic, message):
    (channel,) = await open_channels(rig, 1, topic)
    await channel.put([message])
    (delivery,) = await channel.get(10, 60)
    record = delivery.record
    assert (record.value, record.key, tuple(record.headers)) == (message.value, message.key, message.headers)
    assert record.timestamp == message.timestamp if message.timestamp else record.timestamp > 1_500_000_000_000
    assert delivery.attempts == 1


@ANY
async def test_an_oversize_put_writes_nothing(rig, topic):
    (channel,) = await open_channels(rig, 1, topic)
    with pytest.raises(MessageTooLarge):
        await channel.put([*numbered(1), Message(b"x" * (rig.message_bytes + 1))])
    assert not await channel.get(10, 0)


@ANY
async def test_messages_of_one_key_come_in_order_and_at_most_limit_at_a_time(rig, topic):
    (channel,) = await open_channels(rig, 1, topic)
    await channel.put(numbered(*range(4), key=b"k"))
    await channel.put(numbered(*range(4, 10), key=b"k"))
    got = []
    while deliveries := await channel.get(3, 0):
        assert len(deliveries) <= 3
        got += values([delivery.record for delivery in deliveries])
    assert got == [b"%d" % n for n in range(10)]


@ANY
async def test_what_was_put_before_a_group_existed_is_delivered_to_it(rig, topic):
    (first,) = await open_channels(rig, 1, topic)
    await first.put(numbered(1, 2))
    (late,) = await open_channels(rig, 1, topic, group="late")
    assert sorted(values([d.record for d in await late.get(10, 60)])) == [b"1", b"2"]


@ANY
async def test_each_group_gets_every_message(rig, topic):
    (a,), (b,) = await open_channels(rig, 1, topic, "a"), await open_channels(rig, 1, topic, "b")
    await a.put(numbered(*range(5)))
    for channel in (a, b):
        deliveries = await channel.get(10, 60)
        assert sorted(values([d.record for d in deliveries])) == [b"%d" % n for n in range(5)]
        await channel.commit(deliveries)


@ANY
async def test_members_of_a_group_share_the_messages_without_duplicates(rig, topic):
    channels = await open_channels(rig, 3, topic)
    await channels[0].put(numbered(*range(30)))
    shares: list[list[Delivery]] = [[], [], []]
    for _ in range(5):
        for channel, share in zip(channels, shares, strict=True):
            share += await channel.get(2, 0)
    assert all(shares)
    got = [d.record.value for share in shares for d in share]
    assert sorted(got, key=int) == [b"%d" % n for n in range(30)]


@ANY
async def test_a_waiting_get_wakes_for_a_message_of_another_transport(rig, topic):
    a, b = await open_channels(rig, 2, topic)
    get = asyncio.create_task(a.get(10, 60))
    await asyncio.sleep(0)
    await b.put(numbered(1))
    assert values([d.record for d in await get]) == [b"1"]


@ANY
async def test_a_get_without_messages_is_empty_at_its_time_out(rig, topic):
    (channel,) = await open_channels(rig, 1, topic)
    assert not await channel.get(1, 0)
    get = asyncio.create_task(channel.get(1, rig.lease / 10))
    await asyncio.sleep(0)
    assert not get.done()
    await rig.pass_time(rig.lease / 5)
    assert not await get


@ANY
async def test_a_cancelled_get_loses_nothing(rig, topic):
    a, b = await open_channels(rig, 2, topic)
    get = asyncio.create_task(a.get(10, 60))
    await asyncio.sleep(0)
    await b.put(numbered(1))  # may well have woken it already
    get.cancel()
    delivered = []
    try:
        delivered += await get
    except asyncio.CancelledError:
        pass
    await a.close()
    again = await b.get(10, rig.lease)
    assert values([d.record for d in again]) == [b"1"]


@ANY
async def test_what_is_committed_never_comes_back_and_the_rest_does_with_one_more_attempt(rig, topic):
    (channel,) = await open_channels(rig, 1, topic)
    await channel.put(numbered(*range(5), key=b"k"))
    deliveries = await channel.get(10, 60)
    await channel.commit([deliveries[3], deliveries[1]])  # gaps, and out of order
    await channel.close()
    (heir,) = await open_channels(rig, 1, topic)
    again = await heir.get(10, 60)
    assert [(d.record.value, d.attempts) for d in again] == [(b"0", 2), (b"2", 2), (b"4", 2)]
    await heir.commit(again)
    await heir.close()
    (last,) = await open_channels(rig, 1, topic)
    assert not await last.get(10, 0)


@ANY
async def test_what_a_crashed_member_had_in_hand_comes_back_when_the_lease_has_ended(rig, topic):
    transport = await rig.open()
    await transport.declare([topic])
    doomed = await transport.channel(topic.name, "g")
    (other,) = await open_channels(rig, 1, topic)
    await doomed.put(numbered(1, 2, 3, key=b"k"))
    deliveries = await doomed.get(10, 60)
    await doomed.commit(deliveries[:1])
    await rig.crash(transport)
    get = asyncio.create_task(other.get(10, rig.lease * 4))
    await asyncio.sleep(0)
    assert not get.done()
    await rig.pass_time(rig.lease * 1.1)
    assert [(d.record.value, d.attempts) for d in await get] == [(b"2", 2), (b"3", 2)]


@ANY
async def test_closing_a_transport_gives_back_what_its_channels_had_in_hand_at_once(rig, topic):
    transport = await rig.open()
    await transport.declare([topic])
    channel = await transport.channel(topic.name, "g")
    (other,) = await open_channels(rig, 1, topic)
    await channel.put(numbered(1))
    await channel.get(1, 60)
    get = asyncio.create_task(other.get(1, 60))
    await asyncio.sleep(0)
    await transport.close()
    assert [d.attempts for d in await get] == [2]


@ANY
async def test_commit_twice_is_harmless(rig, topic):
    (channel,) = await open_channels(rig, 1, topic)
    await channel.put(numbered(1, 2))
    deliveries = await channel.get(10, 60)
    await channel.commit(deliveries[:1])
    await channel.commit(deliveries)
    await channel.commit(deliveries)
    await channel.commit([])
    await channel.close()
    (heir,) = await open_channels(rig, 1, topic)
    assert not await heir.get(10, 0)


@ANY
async def test_a_delivery_of_another_channel_cannot_be_committed(rig, topic):
    a, b = await open_channels(rig, 2, topic)
    await a.put(numbered(1))
    deliveries = await a.get(1, 60)
    with pytest.raises(BrokerError):
        await b.commit(deliveries)
    await a.close()
    assert [d.attempts for d in await b.get(1, 60)] == [2]


@ANY
async def test_close_is_harmless_twice_and_wakes_a_waiting_get(rig, topic):
    (channel,) = await open_channels(rig, 1, topic)
    get = asyncio.create_task(channel.get(1, 60))
    await asyncio.sleep(0)
    await asyncio.gather(channel.close(), channel.close())
    try:
        assert not await get
    except BrokerError:
        pass
    await channel.close()
    with pytest.raises(BrokerError):
        await channel.get(1, 0)


@ANY
async def test_many_tasks_share_one_channel_and_each_message_is_delivered_once(rig, topic):
    (channel,) = await open_channels(rig, 1, topic)
    got: list[bytes | None] = []

    async def consume() -> None:
        for delivery in await channel.get(1, 60):
            got.append(delivery.record.value)
            await channel.commit([delivery])

    consumers = [asyncio.create_task(consume()) for _ in range(50)]
    await asyncio.gather(*(channel.put(numbered(n)) for n in range(50)))
    await asyncio.gather(*consumers)
    assert sorted(got, key=int) == [b"%d" % n for n in range(50)]


# --- channels of logs --------------------------------------------------------------------------------------


async def test_a_key_stays_with_one_member_while_it_has_messages_of_it_in_hand(rig):
    a, b = await open_channels(rig, 2, LOG)
    await a.put([*numbered(1, 2, 3, key=b"k"), *numbered(9, key=b"other")])
    mine = await a.get(1, 60)
    key = mine[0].record.key
    others = await b.get(10, 0)
    assert key not in {d.record.key for d in others}
    rest = [d for d in await a.get(10, 0) if d.record.key == key]
    await a.commit([*mine, *rest])
    assert not [d for d in await b.get(10, 0) if d.record.key == key]


async def test_what_was_passed_over_goes_to_another_member_once_its_key_is_free(rig):
    a, b = await open_channels(rig, 2, TopicSpec("t", partitions=1))
    await a.put([*numbered(1, 2, 3, key=b"k"), *numbered(4)])
    mine = await a.get(1, 60)
    assert values([d.record for d in await b.get(10, 0)]) == [b"4"]
    assert not await b.get(10, 0)
    get = asyncio.create_task(b.get(10, 60))
    await asyncio.sleep(0)
    assert not get.done()
    await a.commit(mine)
    assert values([d.record for d in await get]) == [b"2", b"3"]


async def test_what_came_back_is_delivered_before_later_messages_of_its_key(rig):
    a, b = await open_channels(rig, 2, LOG)
    await a.put(numbered(1, 2, key=b"k"))
    await a.get(2, 60)
    await a.put(numbered(3, 4, key=b"k"))
    await a.close()
    assert [(d.record.value, d.attempts) for d in await b.get(10, 60)] == [(b"1", 2), (b"2", 2), (b"3", 1), (b"4", 1)]


async def test_slow_work_of_a_living_member_stays_its_own(rig):
    a, b = await open_channels(rig, 2, LOG)
    await a.put(numbered(1))
    deliveries = await a.get(1, 60)
    await rig.pass_time(rig.lease * 3)
    assert not await b.get(1, 0)
    await a.commit(deliveries)


async def test_a_log_and_its_channels_see_the_same_messages(rig):
    transport, log = await open_log(rig)
    channel = await transport.channel("t", "g")
    await log.append({0: numbered(1)})
    await channel.put(numbered(2))
    assert await read_values(log) == [b"1", b"2"]
    assert values([d.record for d in await channel.get(10, 60)]) == [b"1", b"2"]


async def test_a_group_goes_on_after_a_truncation_with_what_is_kept(rig):
    transport, log = await open_log(rig)
    channel = await transport.channel("t", "g")
    positions = (await log.append({0: numbered(*range(6), key=b"k")}))[0]
    deliveries = await channel.get(2, 60)
    await log.truncate(0, positions[4])
    await channel.close()
    heir = await transport.channel("t", "g")
    assert values([d.record for d in await heir.get(10, 60)])[-2:] == [b"4", b"5"]
    assert len(deliveries) == 2


# --- work queues -------------------------------------------------------------------------------------------


async def test_higher_priority_goes_first_and_equal_priority_in_order(rig):
    (queue,) = await open_channels(rig, 1, QUEUE)
    for number, priority in enumerate([0, 9, 4, 9, 0]):
        await queue.put([QueueMessage(b"%d" % number, priority=priority)])
    assert values([d.record for d in await queue.get(10, 60)]) == [b"1", b"3", b"2", b"0", b"4"]


async def test_a_delayed_message_is_not_delivered_before_its_time_and_wakes_a_waiting_get_then(rig):
    (queue,) = await open_channels(rig, 1, QUEUE)
    await queue.put([QueueMessage(b"later", delay=rig.lease / 2), QueueMessage(b"now")])
    assert values([d.record for d in await queue.get(10, 60)]) == [b"now"]
    get = asyncio.create_task(queue.get(10, rig.lease))
    await rig.pass_time(rig.lease / 4)
    assert not get.done()
    await rig.pass_time(rig.lease / 2)
    assert values([d.record for d in await get]) == [b"later"]


async def test_an_expired_message_is_not_delivered(rig):
    (queue,) = await open_channels(rig, 1, QUEUE)
    await queue.put([QueueMessage(b"short", expires=rig.lease / 4), QueueMessage(b"long", expires=rig.lease * 9)])
    await rig.pass_time(rig.lease / 2)
    assert values([d.record for d in await queue.get(10, 60)]) == [b"long"]


async def test_a_delivery_comes_back_when_its_lease_ends_and_wakes_a_waiting_get(rig):
    a, b = await open_channels(rig, 2, QUEUE)
    get = asyncio.create_task(b.get(1, rig.lease * 2))  # waits since before the delivery
    await asyncio.sleep(0)
    await b.put(numbered(1))
    first = await get
    get = asyncio.create_task(a.get(1, rig.lease * 2))
    await rig.pass_time(rig.lease * 1.1)
    assert [d.attempts for d in await get] == [2]
    with pytest.raises(BrokerError):
        await b.commit(first)
    await a.close()
    assert [d.attempts for d in await b.get(1, 60)] == [3]


async def test_a_late_commit_does_not_settle_the_delivery_of_another(rig):
    a, b = await open_channels(rig, 2, QUEUE)
    await a.put(numbered(1, 2))
    late = await a.get(2, 60)
    await rig.pass_time(rig.lease * 1.1)
    others = await b.get(2, 60)
    with pytest.raises(BrokerError):
        await a.commit(late)
    await b.commit(others[:1])
    await b.close()
    assert [(d.record.value, d.attempts) for d in await a.get(10, 60)] == [(b"2", 3)]


async def test_an_extended_delivery_stays_and_comes_back_when_the_extension_ends(rig):
    a, b = await open_channels(rig, 2, QUEUE)
    await a.put(numbered(1, 2))
    first, second = await a.get(2, 60)
    for _ in range(4):
        await rig.pass_time(rig.lease / 2)
        await a.extend([first], rig.lease)
    assert values([d.record for d in await b.get(10, 0)]) == [b"2"]
    with pytest.raises(BrokerError):
        await a.extend([second], rig.lease)
    await rig.pass_time(rig.lease * 1.1)
    assert b"1" in values([d.record for d in await b.get(10, 60)])


async def test_a_retried_delivery_comes_back_after_its_delay_with_one_more_attempt(rig):
    (queue,) = await open_channels(rig, 1, QUEUE)
    await queue.put(numbered(1, 2))
    one, two = await queue.get(2, 60)
    await queue.retry(one, rig.lease / 2)
    await queue.retry(two, 0)
    assert [(d.record.value, d.attempts) for d in await queue.get(10, 60)] == [(b"2", 2)]
    with pytest.raises(BrokerError):
        await queue.retry(one, 0)
    with pytest.raises(BrokerError):
        await queue.commit([one])
    await rig.pass_time(rig.lease * 0.6)
    assert [(d.record.value, d.attempts) for d in await queue.get(1, 60)] == [(b"1", 2)]


async def test_a_rejected_delivery_is_gone_for_good(rig):
    (queue,) = await open_channels(rig, 1, QUEUE)
    await queue.put(numbered(1))
    (delivery,) = await queue.get(1, 60)
    await queue.reject(delivery, "because")
    await rig.pass_time(rig.lease * 2)
    await queue.close()
    (heir,) = await open_channels(rig, 1, QUEUE)
    assert not await heir.get(1, 0)
