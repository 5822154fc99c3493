"""What sqlite:// promises beyond the contract: durability, several processes, crashes, errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
from thalweg.capabilities import Bounds, Commit
from thalweg.channel import TopicSpec
from thalweg.errors import AmbiguousCommit, BrokerError, ConfigurationError, Fenced, Gap, UnknownOption
from thalweg.message import Message, QueueMessage
from thalweg.transports.sqlite import SqliteOptions, SqliteTransport
from thalweg.url import Url

LONG = 1 << 30  # bytes, records or milliseconds: more than any test has
FOREVER = 3600.0  # seconds: a lease that cannot end within a test


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
async def transport(file: Path) -> AsyncIterator[SqliteTransport]:
    async with opened(file) as transport:
        yield transport


@asynccontextmanager
async def opened(file: Path, **options: object) -> AsyncIterator[SqliteTransport]:
    transport = SqliteTransport(file, SqliteOptions(**options))
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


class Child:
    """Another process with the file open. Its code says "ready" and so on; `tell` answers what it waits for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> str:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 30)
        return line.decode().strip()

    async def rest(self) -> list[str]:
        assert self.process.stdout is not None
        return (await self.process.stdout.read()).decode().split("\n")

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@pytest.fixture
async def spawn(file: Path) -> AsyncIterator[Callable[..., Awaitable[Child]]]:
    """Run the body of an async function that has `transport`, `say` and `told`; it must not end by itself."""
    children: list[Child] = []

    async def spawn(body: str, options: str = "") -> Child:
        code = textwrap.dedent("""\
            import asyncio, os, resource, sys, time
            from thalweg.capabilities import Commit
            from thalweg.channel import TopicSpec
            from thalweg.errors import *
            from thalweg.message import Message, QueueMessage
            from thalweg.transports.sqlite import SqliteOptions, SqliteTransport

            def say(*words):
                print(*words, flush=True)

            async def told():
                await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

            async def main():
                transport = SqliteTransport(sys.argv[1], SqliteOptions({options}))
                await transport.open()
            {body}
            asyncio.run(main())
            """)
        code = code.format(options=options, body=textwrap.indent(textwrap.dedent(body), "    "))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(file), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        child = Child(process)
        children.append(child)
        return child

    yield spawn
    for child in children:
        if child.process.returncode is None:
            child.process.send_signal(signal.SIGCONT)
            await child.kill()


async def read_values(transport: SqliteTransport, topic: str, partition: int = 0) -> list[bytes | None]:
    log = await transport.log(topic)
    found = await log.read({partition: None}, LONG, LONG, 0)
    return [record.value for record in found[partition].records] if found else []


# --- crashes -----------------------------------------------------------------------------------------------


async def test_what_was_acknowledged_survives_kill_9_and_batches_are_whole(transport, spawn):
    await transport.declare([TopicSpec("t", partitions=2)])
    for _ in range(3):
        before = len(await read_values(transport, "t"))
        child = await spawn("""\
            log = await transport.log("t")
            for number in range(1_000_000):
                batch = [Message(b"%d" % number)] * 50
                await log.append({0: batch, 1: batch})
                say(number)
            """)
        for _ in range(20):
            await child.says()
        await child.kill()
        acknowledged = 20 + sum(line != "" for line in (await child.rest())[:-1])
        seen = await read_values(transport, "t")
        assert seen == await read_values(transport, "t", 1)
        assert seen[before:] == [b"%d" % (n // 50) for n in range(len(seen) - before)]
        assert len(seen) - before in (acknowledged * 50, (acknowledged + 1) * 50)
        log = await transport.log("t")
        assert await log.bounds(0) == Bounds(0, len(seen) - 1)


async def test_kill_9_never_splits_a_commit_of_journals_and_outputs(transport, spawn):
    await transport.declare([TopicSpec("j", partitions=4), TopicSpec("out", partitions=4)])
    child = await spawn("""\
        claims = [await transport.claim("j", n, Message(b"marker")) for n in range(4)]
        for number in range(1_000_000):
            value = [Message(b"%d" % number)]
            await transport.commit({claim: Commit(value, {("out", claim.partition): value}) for claim in claims})
            say(number)
        """)
    for _ in range(20):
        await child.says()
    await child.kill()
    acknowledged = 20 + sum(line != "" for line in (await child.rest())[:-1])
    journal = (await read_values(transport, "j"))[1:]
    assert journal == [b"%d" % n for n in range(len(journal))]
    assert len(journal) in (acknowledged, acknowledged + 1)
    for partition in range(4):
        assert (await read_values(transport, "j", partition))[1:] == journal
        assert await read_values(transport, "out", partition) == journal


async def test_the_lock_of_a_killed_process_is_free_at_once(transport, spawn):
    child = await spawn(f"""\
        held = await transport.try_lock("x", {FOREVER})
        say(held.number)
        await told()
        """)
    number = int(await child.says())
    assert await transport.try_lock("x", FOREVER) is None
    await child.kill()
    heir = await transport.try_lock("x", FOREVER)
    assert heir is not None
    assert heir.number > number


async def test_a_stopped_holder_loses_its_lock_knows_it_when_it_goes_on_and_cannot_commit(transport, spawn):
    await transport.declare([TopicSpec("j")])
    child = await spawn("""\
        held = await transport.try_lock("x", 0.5)
        claim = await transport.claim("j", 0, Message(b"first"))
        say("ready")
        await told()
        say(held.lost.is_set())
        try:
            await transport.commit({claim: Commit([Message(b"stale")])})
        except Fenced as error:
            say(type(error).__name__, *error.partitions)
        await told()
        """)
    assert await child.says() == "ready"
    child.process.send_signal(signal.SIGSTOP)
    assert await transport.try_lock("x", 10) is None
    while (heir := await transport.try_lock("x", FOREVER)) is None:
        await transport.topics()
    await transport.claim("j", 0, Message(b"second"))
    child.tell()
    child.process.send_signal(signal.SIGCONT)
    assert await child.says() == "True"
    assert await child.says() == "Fenced ('j', 0)"
    assert not heir.lost.is_set()
    assert await read_values(transport, "j") == [b"first", b"second"]


async def test_a_blocked_event_loop_does_not_lose_its_lock(transport, spawn):
    child = await spawn("""\
        held = await transport.try_lock("x", 0.5)
        say("blocking")
        time.sleep(1.5)
        say("awake", held.lost.is_set())
        await told()
        """)
    assert await child.says() == "blocking"
    awake = asyncio.create_task(child.says())
    while not awake.done():
        assert await transport.try_lock("x", 10) is None
        await asyncio.sleep(0.05)
    assert await awake == "awake False"


@pytest.mark.parametrize("topic", [TopicSpec("t", partitions=2), TopicSpec("t", queue=True)], ids=["log", "queue"])
async def test_what_a_killed_consumer_had_comes_back_at_once(transport, spawn, topic):
    await transport.declare([topic])
    channel = await transport.channel("t", "g")
    await channel.put([Message(b"%d" % number, b"k") for number in range(10)])
    child = await spawn(
        """\
        channel = await transport.channel("t", "g")
        deliveries = await channel.get(5, 10)
        await channel.commit(deliveries[:2])
        say(len(deliveries))
        await told()
        """,
        options=f"lease={FOREVER}",
    )
    assert await child.says() == "5"
    await child.kill()
    deliveries = await channel.get(20, 0)
    assert [(d.record.value, d.attempts) for d in deliveries] == [
        *((b"%d" % n, 2) for n in (2, 3, 4)),
        *((b"%d" % n, 1) for n in range(5, 10)),
    ]


async def test_a_second_process_gets_what_the_first_has_not_in_hand(transport, spawn):
    await transport.declare([TopicSpec("q", queue=True)])
    channel = await transport.channel("q", "g")
    await channel.put([Message(b"%d" % number) for number in range(4)])
    mine = await channel.get(2, 10)
    child = await spawn("""\
        channel = await transport.channel("q", "g")
        deliveries = await channel.get(10, 10)
        await channel.commit(deliveries)
        say(*(d.record.value for d in deliveries))
        await told()
        """)
    assert await child.says() == "b'2' b'3'"
    assert [d.record.value for d in mine] == [b"0", b"1"]


async def test_a_killed_member_leaves_its_group_long_before_its_lease_ends(transport, spawn):
    child = await spawn(f"""\
        async for members in transport.peers("g", "child", {FOREVER}):
            say("joined")
        """)
    await child.says()
    async with aclosing(transport.peers("g", "me", FOREVER)) as seen:
        assert await anext(seen) == {"child", "me"}
        await child.kill()
        assert await asyncio.wait_for(anext(seen), 30) == {"me"}


async def test_doors_of_killed_processes_are_swept_away(file, spawn):
    child = await spawn("""\
        say("ready")
        await told()
        """)
    await child.says()
    await child.kill()
    doors = file.with_name("broker.db-doors")
    assert len(list(doors.iterdir())) == 1
    async with opened(file):
        assert len(list(doors.iterdir())) == 1
    assert not doors.exists()
    assert list(file.parent.iterdir()) == [file]


async def test_leases_of_the_time_before_a_reboot_hold_nothing(transport, file):
    """By then the boot clock had gone far, and the folder with the doors may be lost as well."""
    with sqlite3.connect(file) as shell:
        shell.execute(
            "INSERT INTO leases (kind, name, door, seconds, expires) VALUES ('lock', 'x', 'gone', 10, ?)",
            (time.clock_gettime(time.CLOCK_MONOTONIC) + 10_000_000,),
        )
    shell.close()
    assert await transport.try_lock("x", FOREVER) is not None


async def test_removing_the_doors_takes_no_lock_from_a_living_holder(transport, file):
    async with opened(file) as other:
        held = await transport.try_lock("x", FOREVER)
        for door in file.with_name("broker.db-doors").iterdir():
            door.unlink()
        assert await other.try_lock("x", FOREVER) is None
        await held.release()
        assert await other.try_lock("x", FOREVER) is not None


# --- several processes -------------------------------------------------------------------------------------


async def test_processes_that_create_the_file_at_the_same_time_share_it(file, spawn):
    children = [
        await spawn("""\
            await transport.declare([TopicSpec("t", partitions=3)])
            await (await transport.log("t")).append({0: [Message(b"v")]})
            say("done")
            await told()
            """)
        for _ in range(3)
    ]
    assert [await child.says() for child in children] == ["done"] * 3
    async with opened(file) as transport:
        assert await read_values(transport, "t") == [b"v"] * 3


async def test_a_write_of_another_process_wakes_a_waiting_read_and_get(transport, spawn):
    await transport.declare([TopicSpec("t"), TopicSpec("q", queue=True)])
    read = asyncio.create_task((await transport.log("t")).read({0: None}, 10, LONG, FOREVER))
    get = asyncio.create_task((await transport.channel("q", "g")).get(10, FOREVER))
    await spawn("""\
        await (await transport.log("t")).append({0: [Message(b"log")]})
        await (await transport.channel("q", "g")).put([Message(b"queue")])
        await told()
        """)
    assert [record.value for record in (await asyncio.wait_for(read, 30))[0].records] == [b"log"]
    assert [delivery.record.value for delivery in await asyncio.wait_for(get, 30)] == [b"queue"]


async def test_a_foreign_program_writes_by_one_insert_wakes_readers_and_reads_by_one_select(transport, file):
    await transport.declare([TopicSpec("t", partitions=2), TopicSpec("q", queue=True)])
    log = await transport.log("t")
    await log.append({1: [Message(b"first", b"k", (("a", "ü".encode()), ("b", b"\xff\x00")), 5)]})
    read = asyncio.create_task(log.read({1: 0}, 10, LONG, FOREVER))
    get = asyncio.create_task((await transport.channel("q", "g")).get(10, FOREVER))
    await asyncio.sleep(0)
    shell = sqlite3.connect(file)
    shell.execute("""INSERT INTO messages (topic, partition, key, value, headers)
                     VALUES ('t', 1, 'ada', '{"amount": 5}', '[["h", "text"], ["i", {"base64": "AP8="}]]')""")
    shell.execute("INSERT INTO messages (topic, value) VALUES ('q', 'work')")
    with pytest.raises(sqlite3.IntegrityError, match="no such topic"):
        shell.execute("INSERT INTO messages (topic, partition, value) VALUES ('t', 2, 'x')")
    shell.commit()
    batch = (await asyncio.wait_for(read, 30))[1]
    (record,) = batch.records
    assert (list(batch.positions), record.key, record.value) == ([1], b"ada", b'{"amount": 5}')
    assert record.headers == (("h", b"text"), ("i", b"\x00\xff"))
    assert record.timestamp > 1_500_000_000_000
    (delivery,) = await asyncio.wait_for(get, 30)
    assert delivery.record.value == b"work"
    row = shell.execute(
        "SELECT position, timestamp, CAST(key AS TEXT), CAST(value AS TEXT), headers FROM messages "
        "WHERE topic = 't' AND partition = 1 ORDER BY position"
    ).fetchone()
    assert row == (0, 5, "k", "first", '[["a","ü"],["b",{"base64":"/wA="}]]')
    shell.close()


async def test_a_stopped_consumer_of_a_log_loses_what_it_had_and_its_late_commit_is_refused(transport, spawn):
    await transport.declare([TopicSpec("t")])
    channel = await transport.channel("t", "g")
    await channel.put([Message(b"v", b"k")])
    child = await spawn(
        """\
        channel = await transport.channel("t", "g")
        deliveries = await channel.get(1, 10)
        say("ready")
        await told()
        try:
            await channel.commit(deliveries)
        except BrokerError as error:
            say(error)
        await told()
        """,
        options="lease=0.5",
    )
    await child.says()
    child.process.send_signal(signal.SIGSTOP)
    (delivery,) = await channel.get(1, 30)
    assert delivery.attempts == 2
    child.tell()
    child.process.send_signal(signal.SIGCONT)
    assert "gone back to the group" in await child.says()
    await channel.commit([delivery])


# --- the log -----------------------------------------------------------------------------------------------


async def test_positions_are_not_used_again_even_after_everything_was_truncated_and_all_have_left(file):
    async with opened(file) as transport:
        await transport.declare([TopicSpec("t")])
        log = await transport.log("t")
        await log.append({0: [Message(b"v")] * 5})
        await log.truncate(0, 5)
        assert await log.bounds(0) == Bounds(None, None)
    async with opened(file) as transport:
        log = await transport.log("t")
        assert list((await log.append({0: [Message(b"v")]}))[0]) == [5]
        assert len((await log.read({0: 4}, 10, LONG, 0))[0].records) == 1
        with pytest.raises(Gap):
            await log.read({0: 3}, 10, LONG, 0)


async def test_a_hole_in_the_middle_is_a_gap_once_reached(transport, file):
    await transport.declare([TopicSpec("t")])
    log = await transport.log("t")
    await log.append({0: [Message(b"%d" % n) for n in range(6)]})
    with sqlite3.connect(file) as shell:
        shell.execute("DELETE FROM records WHERE position IN (3, 4)")
    shell.close()
    assert list((await log.read({0: None}, 10, LONG, 0))[0].positions) == [0, 1, 2]
    with pytest.raises(Gap, match="starts at 5"):
        await log.read({0: 2}, 10, LONG, 0)


async def test_a_position_that_the_log_never_reached_is_a_gap(transport):
    await transport.declare([TopicSpec("t")])
    log = await transport.log("t")
    await log.append({0: [Message(b"v")]})
    with pytest.raises(Gap):
        await log.read({0: 1}, 10, LONG, 0)


async def test_retention_counts_from_the_writing_not_from_the_timestamp_of_a_record(transport):
    await transport.declare([TopicSpec("short", retention=0.05), TopicSpec("long", retention=FOREVER)])
    short, long = await transport.log("short"), await transport.log("long")
    for log in (short, long):
        await log.append({0: [Message(b"%d" % n, timestamp=1) for n in range(10)]})
    await asyncio.sleep(0.2)
    assert await short.bounds(0) == Bounds(None, None)
    assert await long.bounds(0) == Bounds(0, 9)
    await short.append({0: [Message(b"new", timestamp=1)]})
    assert (await short.bounds(0)).last == 10


async def test_truncating_a_large_partition_lets_others_write_in_between_and_its_space_is_used_again(transport, file):
    await transport.declare([TopicSpec("j")])
    log = await transport.log("j")
    sizes = []
    for _ in range(6):
        for _ in range(30):
            positions = (await log.append({0: [Message(b"x" * 100)] * 1000}))[0]
        truncating = asyncio.create_task(log.truncate(0, positions[-1]))
        while not truncating.done():
            await log.append({0: [Message(b"between")]})
        sizes.append(file.stat().st_size + file.with_name("broker.db-wal").stat().st_size)
    assert max(sizes[2:]) <= sizes[1] * 1.5


async def test_truncating_large_records_lets_others_write_in_between(transport):
    """Ten thousand of them at once took ten seconds, and no lease was renewed meanwhile."""
    await transport.declare([TopicSpec("j")])
    log = await transport.log("j")
    for _ in range(10):
        last = (await log.append({0: [Message(b"x" * 1_000_000)] * 2}))[0][-1]
    truncating = asyncio.create_task(log.truncate(0, last))
    await asyncio.sleep(0)  # its first step is with the thread that writes
    for _ in range(3):
        await log.append({0: [Message(b"between")]})
        assert not truncating.done()
    await truncating
    assert (await log.bounds(0)).first == last


async def test_readers_that_never_pause_do_not_make_the_write_ahead_log_grow_for_ever(transport, file, monkeypatch):
    await transport.declare([TopicSpec("t")])
    log = await transport.log("t")
    stop = threading.Event()

    def read() -> None:
        """Each of two readers begins before the other ends, so that there is one at every moment."""
        readers = [sqlite3.connect(file, isolation_level=None) for _ in range(2)]
        turn = 0
        while not stop.wait(0.001):
            turn += 1
            readers[turn % 2].execute("BEGIN")
            readers[turn % 2].execute("SELECT count(*) FROM topics").fetchone()
            if turn > 1:
                readers[(turn + 1) % 2].execute("ROLLBACK")
        for reader in readers:
            reader.close()

    reading = threading.Thread(target=read)
    reading.start()
    for _ in range(450):
        last = (await log.append({0: [Message(b"x" * 1000)] * 50}))[0][-1]
        await log.truncate(0, last - 100)
    stop.set()
    reading.join()
    assert file.with_name("broker.db-wal").stat().st_size < 40 << 20


# --- groups and queues -------------------------------------------------------------------------------------


async def test_a_long_backlog_of_a_key_that_another_has_in_hand_does_not_hide_other_keys(transport):
    await transport.declare([TopicSpec("t", partitions=1)])
    a, b = await transport.channel("t", "g"), await transport.channel("t", "g")
    await a.put([*(Message(b"%d" % n, b"hot") for n in range(500)), Message(b"v", b"cold")])
    await a.get(1, 10)
    assert [d.record.key for d in await b.get(10, 0)] == [b"cold"]


async def test_a_long_backlog_of_delayed_messages_does_not_hide_what_is_ready(transport):
    await transport.declare([TopicSpec("q", queue=True)])
    queue = await transport.channel("q", "g")
    await queue.put([*(QueueMessage(b"late", delay=FOREVER) for _ in range(25_000)), Message(b"now")])
    assert [d.record.value for d in await queue.get(10, 0)] == [b"now"]
    assert not await queue.get(10, 0)


async def test_a_queue_forgets_what_all_its_groups_have_committed(transport, file):
    await transport.declare([TopicSpec("q", queue=True)])
    a, b = await transport.channel("q", "a"), await transport.channel("q", "b")
    await a.put([Message(b"%d" % n) for n in range(10)])

    def kept() -> int:
        with sqlite3.connect(file) as shell:
            (count,) = shell.execute("SELECT count(*) FROM records").fetchone()
        shell.close()
        return int(count)

    await a.commit(await a.get(10, 0))
    assert kept() == 10
    await b.commit((await b.get(10, 0))[:7])
    assert kept() == 3


async def test_a_rejected_message_goes_to_the_dead_letter_queue_with_its_reason(transport):
    await transport.declare([TopicSpec("q", queue=True, options={"dead_letter": "dead"})])
    queue, dead = await transport.channel("q", "g"), await transport.channel("dead", "g")
    await queue.put([Message(b"v", b"k", (("h", b"1"),), 5)])
    (delivery,) = await queue.get(1, 0)
    await queue.reject(delivery, "bad")
    (buried,) = await dead.get(1, 0)
    headers = (("h", b"1"), ("rejected-from", b"q"), ("rejected-because", b"bad"))
    assert buried.record == Message(b"v", b"k", headers, 5)


@pytest.mark.parametrize("queue", [False, True])
async def test_a_get_that_was_cancelled_keeps_its_messages_for_the_next_one_of_the_channel(transport, queue):
    await transport.declare([TopicSpec("t", queue=queue)])
    channel = await transport.channel("t", "g")
    await channel.put([Message(b"%d" % n) for n in range(10)])
    got: list[bytes | None] = []
    for _ in range(10):
        cancelled = asyncio.create_task(channel.get(1, 10))
        waiting = asyncio.create_task(channel.get(1, 10))
        await asyncio.sleep(0)
        cancelled.cancel()
        (delivery,) = await waiting
        got.append(delivery.record.value)
        assert delivery.attempts == 1
        with suppress(asyncio.CancelledError):
            got += [d.record.value for d in await cancelled]
        await channel.commit([delivery])
    assert got == [b"%d" % n for n in range(10)]


# --- cancellation and concurrency --------------------------------------------------------------------------


async def test_a_cancelled_append_or_commit_is_whole_or_absent_and_the_transport_still_works(transport):
    await transport.declare([TopicSpec("t", partitions=2), TopicSpec("j")])
    log = await transport.log("t")
    claim = await transport.claim("j", 0, Message(b"marker"))
    for number in range(30):
        batch = [Message(b"%d" % number)] * 20
        tasks = [
            asyncio.create_task(log.append({0: batch, 1: batch})),
            asyncio.create_task(transport.commit({claim: Commit(batch[:1], {("t", 0): batch, ("t", 1): batch})})),
        ]
        for _ in range(number % 5):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await log.append({0: [Message(b"end")], 1: [Message(b"end")]})
    seen = await read_values(transport, "t")
    assert seen == await read_values(transport, "t", 1)
    assert seen[-1] == b"end"
    journal = await read_values(transport, "j")
    for number in range(30):
        assert seen.count(b"%d" % number) % 20 == 0
        assert seen.count(b"%d" % number) >= 20 * journal.count(b"%d" % number)


async def test_a_cancelled_try_lock_leaves_the_lock_free(transport, file):
    async with opened(file) as other:
        for _ in range(10):
            locking = asyncio.create_task(transport.try_lock("x", FOREVER))
            await asyncio.sleep(0)
            locking.cancel()
            with suppress(asyncio.CancelledError):
                held = await locking
                await held.release()
        while (held := await other.try_lock("x", FOREVER)) is None:
            await transport.topics()  # the release is on its way
        assert not held.lost.is_set()


async def test_of_writes_that_share_a_transaction_only_the_failing_one_fails(transport):
    await transport.declare([TopicSpec("t"), TopicSpec("j")])
    log = await transport.log("t")
    stale = await transport.claim("j", 0, Message(b"a"))
    await transport.claim("j", 0, Message(b"b"))
    results = await asyncio.gather(
        *(log.append({0: [Message(b"%d" % n)]}) for n in range(5)),
        transport.commit({stale: Commit([Message(b"no")])}),
        log.append({7: [Message(b"no")]}),
        *(log.append({0: [Message(b"%d" % n)]}) for n in range(5, 10)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [dict] * 5 + [Fenced, BrokerError] + [dict] * 5
    assert await read_values(transport, "t") == [b"%d" % n for n in range(10)]


async def test_opening_and_closing_a_hundred_times_leaks_no_thread_descriptor_or_file(file):
    async def once() -> None:
        async with opened(file) as transport:
            await transport.declare([TopicSpec("t"), TopicSpec("q", queue=True)])
            await transport.try_lock("x", FOREVER)
            await (await transport.channel("q", "g")).get(1, 0.001)
            with suppress(BrokerError):
                await transport.log("missing")

    await once()
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    for _ in range(100):
        await once()
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, descriptors)
    assert list(file.parent.iterdir()) == [file]


async def test_an_open_that_was_cancelled_leaves_nothing_behind(file):
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    for pauses in range(12):
        transport = SqliteTransport(file)
        opening = asyncio.create_task(transport.open())
        for _ in range(pauses):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        await transport.close()
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, descriptors)


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://", "names no file.*sqlite:///broker.db"),
        ("sqlite:///", "names no file"),
        ("sqlite://broker.db", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///f.db?sync=full", "synchronous"),
        ("sqlite:///f.db?synchronous=off", "'off'"),
        ("sqlite:///f.db?lease=0", "lease"),
        ("sqlite:///f.db?message_bytes=0", "message_bytes"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_remedy(url, says):
    with pytest.raises((ConfigurationError, UnknownOption), match=says):
        SqliteTransport.from_url(Url(url))


def test_options_come_from_the_url_and_one_that_is_not_durable_is_a_warning(tmp_path):
    transport = SqliteTransport.from_url(Url(f"sqlite:///{tmp_path}/f.db?synchronous=normal&message_bytes=1000"))
    assert transport.limits.message_bytes == 1000
    (warning,) = transport.warnings
    assert "synchronous=normal" in warning
    assert not SqliteTransport.from_url(Url(f"sqlite:///{tmp_path}/f.db")).warnings


async def refused(file: Path) -> str:
    transport = SqliteTransport(file, SqliteOptions(busy_timeout=0.05))
    threads = threading.active_count()
    with pytest.raises(BrokerError) as caught:
        await transport.open()
    await transport.close()
    assert threading.active_count() == threads
    assert str(file) in str(caught.value)
    return str(caught.value)


async def test_a_file_that_cannot_be_opened_is_one_clear_error(tmp_path):
    assert "create it" in await refused(tmp_path / "missing" / "f.db")
    assert "must be a file" in await refused(tmp_path)
    (tmp_path / "text.db").write_text("this is not a database, and longer than the header of one " * 10)
    assert "name another file" in await refused(tmp_path / "text.db")


async def test_the_database_of_another_program_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE records (mine)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    assert "another program" in await refused(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == before


async def test_a_file_of_a_later_version_is_refused(file):
    async with opened(file):
        pass
    with sqlite3.connect(file) as shell:
        shell.execute("PRAGMA user_version = 99")
    shell.close()
    assert "version 99" in await refused(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_file_that_may_not_be_written_is_one_clear_error(file):
    async with opened(file):
        pass
    file.chmod(0o400)
    assert "allowed to write" in await refused(file)


async def test_a_lock_that_another_program_keeps_too_long_is_named_and_passes(file):
    async with opened(file, busy_timeout=0.05) as transport:
        await transport.declare([TopicSpec("t")])
        log = await transport.log("t")
        shell = sqlite3.connect(file, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerError, match=r"broker.db.*busy_timeout=0\.05") as caught:
            await log.append({0: [Message(b"v")]})
        assert not isinstance(caught.value, AmbiguousCommit)
        assert await log.bounds(0) == Bounds(None, None)
        shell.execute("ROLLBACK")
        shell.close()
        await log.append({0: [Message(b"v")]})


async def test_a_full_database_is_one_clear_error_and_nothing_was_written(transport):
    await transport.declare([TopicSpec("t")])
    log = await transport.log("t")
    await transport._database.write(lambda tx: tx.execute("PRAGMA max_page_count = 40").fetchone())
    with pytest.raises(BrokerError, match=r"broker.db.*disk is full") as caught:
        await log.append({0: [Message(b"x" * 1000)] * 1000})
    assert not isinstance(caught.value, AmbiguousCommit)
    await log.append({0: [Message(b"small")]})
    assert await read_values(transport, "t") == [b"small"]


async def test_a_commit_that_failed_while_it_was_written_is_ambiguous_and_the_transport_goes_on(transport, spawn):
    """A limit on file sizes stands for a full disk: writing the write-ahead log fails in the middle of COMMIT."""
    await transport.declare([TopicSpec("t")])
    child = await spawn("""\
        log = await transport.log("t")
        await log.append({0: [Message(b"before")]})
        limit = os.path.getsize(sys.argv[1] + "-wal") + 10_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            await log.append({0: [Message(b"x" * 1000)] * 100})
        except BrokerError as error:
            say(type(error).__name__)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await log.append({0: [Message(b"after")]})
        say("after")
        await told()
        """)
    assert [await child.says(), await child.says()] == ["AmbiguousCommit", "after"]
    assert await read_values(transport, "t") == [b"before", b"after"]
