"""Groups on Kafka with real processes: queues worked off by several, tasks shared out, brokers and workers that die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from thalweg import App
from thalweg.capabilities import Role
from thalweg.channel import Channel, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, MissingCapability, StaleDelivery, Superseded
from thalweg.message import Delivery, Message, QueueMessage
from thalweg.transports.kafka import KafkaTransport
from thalweg.transports.kafka.group import Sessions
from thalweg.transports.kafka.line import MOST_OPEN
from thalweg.transports.kafka.progress import Progress
from thalweg.transports.kafka.queue import KafkaQueue

from brokers.kafka_server import Server, check_installed
from brokers.post import make_post
from brokers.test_kafka import admin, eventually, hosts, name, opened, shared_cluster

LEASE = 1.0


@pytest.fixture
async def cluster(broker_missing: Callable[[str, str], NoReturn]) -> AsyncIterator[str]:
    async with shared_cluster(broker_missing, f"&lease={LEASE}") as url:
        yield url


@pytest.fixture
def own_server(tmp_path: Path, broker_missing: Callable[[str, str], NoReturn]) -> Iterator[Callable[..., Server]]:
    """Starts a broker of the test's own, with these settings."""
    check_installed(broker_missing)
    servers: list[Server] = []

    def start(*settings: str) -> Server:
        servers.append(Server(tmp_path, *settings))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


# --- queues worked off by several processes ------------------------------------------------------------------


class Office:
    """Workers in processes of their own, and what they have handled."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.post: SimpleNamespace = make_post(url)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.handled: list[tuple[int, int]] = []
        self.sent = 0

    def start(self) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}
        self.workers.append(
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("post.py")), "worker"],
                env={**clean, "THALWEG_BROKER": self.url},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        return self.workers[-1]

    async def send(self, count: int) -> None:
        for start in range(self.sent, self.sent + count, 100):
            some = range(start, min(start + 100, self.sent + count))
            await asyncio.gather(*(self.post.letters.send(number) for number in some))
        self.sent += count

    async def send_until_each_works(self, workers: Sequence[subprocess.Popen[bytes]]) -> None:
        before = len(self.handled)
        while not {worker.pid for worker in workers} <= {pid for _, pid in self.handled[before:]}:
            await self.send(50)
            await asyncio.sleep(0.05)

    async def all_handled(self) -> None:
        await eventually(lambda: len(self.numbers) == self.sent, 60)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Office]:
        try:
            async with self.post.app.client(), opened(self.url) as transport:
                watching = asyncio.create_task(self._watch(transport))
                yield self
                watching.cancel()
                await asyncio.wait([watching])
        finally:
            for worker in self.workers:
                worker.kill()
                worker.wait()

    async def _watch(self, transport: KafkaTransport) -> None:
        after: int | None = None
        log = await transport.log("handled")
        while True:
            try:
                found = await log.read({0: after}, 1000, 1 << 20, 5)
            except BrokerError:  # it restarts
                await asyncio.sleep(0.05)
                continue
            for batch in found.values():
                after = batch.positions[-1]
                self.handled += [
                    msgspec.json.decode(record.value or b"", type=tuple[int, int]) for record in batch.records
                ]

    @property
    def numbers(self) -> set[int]:
        return {number for number, _ in self.handled}

    @property
    def is_each_handled_once(self) -> bool:
        return Counter(number for number, _ in self.handled) == dict.fromkeys(range(self.sent), 1)


async def test_three_workers_share_a_queue_and_handle_each_message_once(cluster: str) -> None:
    async with Office(cluster).open() as office:
        await office.send_until_each_works([office.start() for _ in range(3)])
        await office.send(600)
        await office.all_handled()
        assert office.is_each_handled_once


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=["killed", "hung", "stopped"])
async def test_what_a_worker_had_in_hand_goes_to_the_others(cluster: str, how: signal.Signals) -> None:
    async with Office(cluster).open() as office:
        workers = [office.start() for _ in range(3)]
        await office.send_until_each_works(workers)
        await office.send(2000)
        workers[0].send_signal(how)
        await office.all_handled()
        if how == signal.SIGTERM:
            assert await asyncio.to_thread(workers[0].wait, 30) == 0
            assert office.is_each_handled_once
        if how == signal.SIGSTOP:
            workers[0].send_signal(signal.SIGCONT)
            await office.send_until_each_works(workers[:1])
            await office.all_handled()


async def test_a_broker_that_restarts_twice_loses_no_message_of_a_queue(own_server: Callable[..., Server]) -> None:
    server = own_server()
    async with Office(f"{server.url}?lease={LEASE}").open() as office:
        workers = [office.start() for _ in range(3)]
        await office.send_until_each_works(workers)
        for _ in range(2):
            await office.send(1000)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await office.all_handled()
        assert all(worker.poll() is None for worker in workers)


async def test_handlers_of_one_worker_run_side_by_side(cluster: str) -> None:
    app = make_post(cluster).app
    calls = app.queue("calls", value=int)
    running = 0
    all_run = asyncio.Event()

    @app.handler(calls, concurrency=20)
    async def call(_: int) -> None:
        nonlocal running
        running += 1
        if running == 20:
            all_run.set()
        await all_run.wait()

    async with app:
        for number in range(20):
            await calls.send(number)
        await asyncio.wait_for(all_run.wait(), 30)


# --- channels ------------------------------------------------------------------------------------------------


async def open_channel(stack: AsyncExitStack, url: str, spec: TopicSpec, group: str = "g") -> KafkaQueue:
    """On a transport of its own."""
    transport = await stack.enter_async_context(opened(url))
    await transport.declare([spec])
    channel = await transport.channel(spec.name, group)
    assert isinstance(channel, KafkaQueue) == spec.queue
    return channel  # type: ignore[return-value]


async def receive(channel: Channel, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(got) < count:
            got += await channel.get(count - len(got), 1)
    return got


def values(deliveries: Sequence[Delivery]) -> list[bytes | None]:
    return [delivery.record.value for delivery in deliveries]


@pytest.mark.parametrize("spec", [TopicSpec("t", partitions=5), TopicSpec("q", queue=True)], ids=["topic", "queue"])
async def test_what_is_committed_stays_so_and_all_is_delivered_while_members_come_and_go(
    cluster: str, spec: TopicSpec
) -> None:
    total = 1500
    committed: set[bytes | None] = set()
    attempts: Counter[bytes | None] = Counter()

    async def member(number: int, turns: int, crashes: bool) -> None:
        """Gets a few, commits every second one, then leaves or breaks off."""
        async with AsyncExitStack() as stack:
            transport = await stack.enter_async_context(opened(cluster))
            channel = await transport.channel(spec.name, "g")
            for _ in range(turns):
                if len(committed) == total:
                    return
                before = frozenset(committed)
                deliveries = await channel.get(20, 0.2)
                for delivery in deliveries:
                    assert delivery.record.value not in before
                    assert delivery.attempts == attempts[delivery.record.value] + 1
                    attempts[delivery.record.value] = delivery.attempts
                done = deliveries[number % 2 :: 2] if turns < 1000 else deliveries
                await channel.commit(done)
                committed.update(values(done))
            if crashes:
                await transport._cluster.close()

    async def come_and_go(first: int) -> None:
        for number in range(first, first + 6):
            await member(number, 6, crashes=number % 3 == 2)

    async with AsyncExitStack() as stack:
        writer = await open_channel(stack, cluster, spec)
        for start in range(0, total, 50):
            await writer.put([Message(b"%d" % n, b"k%d" % n if n % 3 else None) for n in range(start, start + 50)])
        await asyncio.gather(come_and_go(0), come_and_go(10), come_and_go(20))
        async with asyncio.timeout(60):
            await asyncio.gather(member(0, 10_000, crashes=False), member(1, 10_000, crashes=False))
    assert committed == {b"%d" % n for n in range(total)}


async def test_a_retry_keeps_its_time_and_its_count_though_its_member_dies(cluster: str) -> None:
    spec = TopicSpec("q", queue=True, options={"partitions": "1"})
    async with AsyncExitStack() as stack:
        doomed = await open_channel(stack, cluster, spec)
        await doomed.put([Message(b"again"), Message(b"done"), Message(b"lost")])
        again, done, _ = await receive(doomed, 3)
        await doomed.retry(again, LEASE * 4)
        await doomed.commit([done])
        await doomed._cluster.close()
        heir = await open_channel(stack, cluster, spec)
        await heir.put([Message(b"new")])
        found: list[tuple[bytes | None, int]] = []
        for _ in range(3):
            (delivery,) = await receive(heir, 1)
            await heir.commit([delivery])
            found.append((delivery.record.value, delivery.attempts))
        assert found == [(b"lost", 2), (b"new", 1), (b"again", 2)]


async def test_delayed_messages_hold_up_nothing_and_come_one_by_one_when_due(cluster: str) -> None:
    spec = TopicSpec("q", queue=True, options={"partitions": "1"})
    async with AsyncExitStack() as stack:
        queue = await open_channel(stack, cluster, spec)
        later = [QueueMessage(b"later %d" % n, delay=1.0 + n / 1000) for n in range(50)]
        await queue.put([later[n // 2] if n % 2 else Message(b"now %d" % n) for n in range(100)])
        first = await receive(queue, 50)
        assert values(first) == [b"now %d" % n for n in range(0, 100, 2)]
        await queue.commit(first)
        assert values(await receive(queue, 50)) == [message.value for message in later]


async def test_many_delayed_messages_keep_no_other_of_their_partition_waiting(cluster: str) -> None:
    spec = TopicSpec("q", queue=True, options={"partitions": "2"})
    async with AsyncExitStack() as stack:
        queue = await open_channel(stack, cluster, spec)
        await queue.put([QueueMessage(b"later", key, delay=3600) for key in (b"a", b"k0") for _ in range(400)])
        await queue.put([QueueMessage(b"later", b"a", delay=3600) for _ in range(400)])
        await queue.put([Message(b"now", b"a"), Message(b"now", b"k0")])
        assert values(await receive(queue, 2)) == [b"now", b"now"]


async def test_a_partition_lends_no_more_than_its_gaps_can_be_told(cluster: str) -> None:
    spec = TopicSpec("t", partitions=1)
    async with AsyncExitStack() as stack:
        channel = await open_channel(stack, cluster, spec)
        await channel.put([Message(b"%d" % n) for n in range(MOST_OPEN + 100)])
        lent = await receive(channel, MOST_OPEN)
        waiting = asyncio.create_task(channel.get(1000, 30))
        await channel.commit(lent[1::2])
        assert values(await waiting)[0] == b"%d" % MOST_OPEN
        await channel.close()
        heir = await open_channel(stack, cluster, spec)
        again = await receive(heir, MOST_OPEN // 2 + 100)
        assert [(d.record.value, d.attempts) for d in again] == [
            *((b"%d" % n, 2) for n in range(0, MOST_OPEN, 2)),
            *((b"%d" % n, 2) for n in range(MOST_OPEN, MOST_OPEN + 100)),
        ]


async def test_what_is_rejected_lies_in_the_queue_that_was_named_for_it(cluster: str) -> None:
    async with AsyncExitStack() as stack:
        queue = await open_channel(stack, cluster, TopicSpec("q", queue=True, options={"dead_letter": "dead"}))
        await queue.put([Message(b"v", b"k", (("mine", b"1"),), 1_790_000_000_000)])
        (delivery,) = await receive(queue, 1)
        await queue.reject(delivery, "no address")
        with pytest.raises(StaleDelivery):
            await queue.retry(delivery, 0)
        (letter,) = await receive(await open_channel(stack, cluster, TopicSpec("dead", queue=True)), 1)
        record = letter.record
        assert (record.value, record.key, record.timestamp) == (b"v", b"k", 1_790_000_000_000)
        assert tuple(record.headers) == (("mine", b"1"), ("rejected-from", b"q"), ("rejected-because", b"no address"))


async def test_a_queue_says_what_it_cannot_do(cluster: str) -> None:
    async with AsyncExitStack() as stack:
        queue = await open_channel(stack, cluster, TopicSpec("q", queue=True))
        topic = await open_channel(stack, cluster, TopicSpec("t"))
        for channel, message in (
            (queue, QueueMessage(b"", priority=1)),
            (topic, QueueMessage(b"", delay=1)),
            (topic, QueueMessage(b"", expires=1)),
        ):
            with pytest.raises(MissingCapability):
                await channel.put([message])
        transport = await stack.enter_async_context(opened(cluster))
        with pytest.raises(ConfigurationError, match="'many'"):
            await transport.declare([TopicSpec("other", queue=True, options={"partitions": "many"})])


async def test_what_every_group_of_a_queue_has_finished_is_deleted(cluster: str) -> None:
    spec = TopicSpec("q", queue=True, options={"partitions": "2"})
    async with AsyncExitStack() as stack:
        one, two = [await open_channel(stack, cluster, spec, group) for group in ("one", "two")]
        transport = await stack.enter_async_context(opened(cluster))
        log = transport.open_log(await transport._topics.get("q"))

        async def firsts() -> list[int | None]:
            return [(await log.bounds(number)).first for number in range(2)]

        await one.put([Message(b"%d" % n) for n in range(20)])
        lent, same = await receive(one, 20), await receive(two, 20)
        one.sweep_every = 0.0
        await two.commit([delivery for delivery in same if delivery.record.value != b"14"])
        for delivery in lent:
            await one.commit([delivery])
            await until_swept(one)
        assert sorted(first or -1 for first in await firsts()) == [
            -1,
            7,
        ]  # one is empty, of the other 14 to 18 are left
        two.sweep_every = 0.0
        await two.commit(same)
        await until_swept(two)
        assert await firsts() == [None, None]
        await one.put([Message(b"new")])
        assert values(await receive(two, 1)) == [b"new"]


async def until_swept(queue: KafkaQueue) -> None:
    while queue._sweeping is not None:
        await asyncio.wait([queue._sweeping])


async def test_kafkas_own_tools_see_how_far_a_group_is(cluster: str) -> None:
    async with AsyncExitStack() as stack:
        channel = await open_channel(stack, cluster, TopicSpec("t", partitions=1))
        await channel.put([Message(b"%d" % n) for n in range(10)])
        lent = await receive(channel, 10)
        await channel.commit([*lent[:4], lent[7]])
        client = await stack.enter_async_context(admin(cluster))
        group = name(cluster, "t") + "/g"
        found = await client.list_consumer_group_offsets(group)
        offset, text = found[TopicPartition(name(cluster, "t"), 0)]
        assert offset == 4
        assert Progress.decode(offset, text).runs == [(4, 7, False, 1), (7, 8, True, 0), (8, 10, False, 1)]
        await channel.commit(lent)
        found = await client.list_consumer_group_offsets(group)
        assert tuple(found[TopicPartition(name(cluster, "t"), 0)]) == (10, "")


async def test_a_group_of_other_programs_is_not_disturbed_and_said_by_name(cluster: str) -> None:
    async with AsyncExitStack() as stack:
        channel = await open_channel(stack, cluster, TopicSpec("t", partitions=1))
        topic = name(cluster, "t")
        other = AIOKafkaConsumer(topic, bootstrap_servers=hosts(cluster), group_id=f"{topic}/g")
        await other.start()
        stack.push_async_callback(other.stop)
        with pytest.raises(BrokerError, match="other programs than Thalweg's"):
            await channel.get(1, 30)
        await other.stop()
        await channel.put([Message(b"v")])
        async with asyncio.timeout(30):
            while True:
                try:
                    if deliveries := await channel.get(1, 1):
                        break
                except BrokerError:
                    await asyncio.sleep(0.05)
        assert values(deliveries) == [b"v"]


async def test_many_that_come_and_go_leave_no_socket_and_no_task(cluster: str) -> None:
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(opened(cluster))
        await transport.declare([TopicSpec("t", partitions=3)])
        counts: list[tuple[int, int]] = []
        for number in range(12):
            channel = await transport.channel("t", f"g{number % 2}")
            await channel.put([Message(b"v")])
            await channel.commit(await receive(channel, 1))
            await channel.close()
            async with aclosing(transport.tasks("group", 3, f"member {number}", LEASE)) as sets:
                assert await anext(sets) == {0, 1, 2}
            counts.append((len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))))
        assert counts[-1][0] <= counts[2][0]
        assert counts[-1][1] <= counts[2][1]


# --- tasks ---------------------------------------------------------------------------------------------------


async def test_thirty_members_that_join_at_once_settle_in_a_few_rounds(cluster: str) -> None:
    owned: dict[int, frozenset[int]] = {}
    last_round = 0

    async def run(transport: KafkaTransport, number: int) -> None:
        nonlocal last_round
        async with aclosing(transport.tasks("group", 64, f"member {number}", 10)) as sets:
            async for share in sets:
                owned[number] = share
                tasks = [task for one in owned.values() for task in one]
                assert len(tasks) == len(set(tasks))
                last_round = max(last_round, *(member.place[0] for member in transport._task_groups._members.values()))

    def settled() -> bool:
        sizes = [len(share) for share in owned.values()]
        return len(sizes) == 30 and sum(sizes) == 64 and max(sizes) - min(sizes) <= 1

    async with AsyncExitStack() as stack:
        transports = [await stack.enter_async_context(opened(cluster)) for _ in range(30)]
        running = [asyncio.create_task(run(transport, n)) for n, transport in enumerate(transports)]
        await eventually(lambda: settled() or any(one.done() for one in running), 60)
        for one in running:
            one.cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    print(f"settled after {last_round} rounds")
    assert last_round < 30


async def until_of_size(sets: AsyncGenerator[frozenset[int], None], size: int) -> None:
    """A set comes again when the member's part in the agreement has changed."""
    while len(await anext(sets)) != size:
        pass


async def test_a_member_whose_event_loop_is_blocked_goes_on_being_one_and_lets_others_join(cluster: str) -> None:
    joined = threading.Event()

    async def join() -> None:
        await asyncio.sleep(3 * LEASE)
        async with opened(cluster) as transport, aclosing(transport.tasks("group", 4, "other", LEASE)) as sets:
            assert await anext(sets) == frozenset()  # nothing was given up yet
            joined.set()
            await until_of_size(sets, 2)

    async with opened(cluster) as transport, aclosing(transport.tasks("group", 4, "me", LEASE)) as sets:
        assert await anext(sets) == {0, 1, 2, 3}
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, join()))
        await asyncio.sleep(0)
        assert joined.wait(30)  # blocks the event loop
        assert transport.holds("group", "me")
        await until_of_size(sets, 2)
        waiting = asyncio.create_task(until_of_size(sets, 4))
        await other
        await waiting


async def test_a_member_whose_event_loop_is_stuck_leaves(cluster: str) -> None:
    taken = threading.Event()

    async def wait_for_all() -> None:
        async with opened(cluster) as transport, aclosing(transport.tasks("group", 4, "other", LEASE)) as sets:
            while await anext(sets) != {0, 1, 2, 3}:
                pass
            taken.set()

    url = f"{cluster}&stuck={2 * LEASE}"
    async with opened(url) as transport, aclosing(transport.tasks("group", 4, "me", LEASE)) as sets:
        assert await anext(sets) == {0, 1, 2, 3}
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, wait_for_all()))
        await asyncio.sleep(0)
        assert taken.wait(30)  # blocks the event loop
        assert not transport.holds("group", "me")
        with pytest.raises(BrokerError, match="stuck"):
            await anext(sets)
        await other


@pytest.mark.parametrize("how", ["leaves", "dies"])
async def test_a_worker_that_comes_back_under_its_id_finds_what_it_had_and_nobody_else_notices(
    cluster: str, how: str
) -> None:
    heard: list[frozenset[int]] = []

    async def stay(sets: AsyncGenerator[frozenset[int], None]) -> None:
        async for share in sets:
            heard.append(share)

    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(opened(cluster))
        others = await stack.enter_async_context(aclosing(other.tasks("group", 8, "other", 30, Role("b"))))
        staying = asyncio.create_task(stay(others))
        stack.push_async_callback(asyncio.wait, [staying])
        stack.callback(staying.cancel)
        async with opened(cluster) as first, aclosing(first.tasks("group", 8, "run 1", 30, Role("a"))) as sets:
            async for had in sets:
                if len(had) == 4:
                    break
            await eventually(lambda: heard[-1:] == [frozenset(range(8)) - had])
            if how == "dies":
                await first._quarters.aside.run(first._quarters.cluster.close())
        rounds, generation = len(heard), generation_of(other)
        second = await stack.enter_async_context(opened(cluster))
        again = await stack.enter_async_context(aclosing(second.tasks("group", 8, "run 2", 30, Role("a"))))
        assert await anext(again) == had
        assert second.holds("group", "run 2")
        assert (len(heard), generation_of(other), generation_of(second)) == (rounds, generation, generation)


async def test_of_two_live_workers_of_one_id_the_newer_has_the_tasks_and_the_older_is_told(cluster: str) -> None:
    async with opened(cluster) as first, opened(cluster) as second:
        older = first.tasks("group", 4, "older", LEASE, Role("a"))
        assert await anext(older) == {0, 1, 2, 3}
        told = asyncio.create_task(anext(older))
        async with aclosing(second.tasks("group", 4, "newer", LEASE, Role("a"))) as newer:
            assert await anext(newer) == {0, 1, 2, 3}
            with pytest.raises(Superseded, match="worker id 'a'"):
                await told
            assert not first.holds("group", "older")
            assert second.holds("group", "newer")


def generation_of(transport: KafkaTransport) -> int:
    return max(member.place[0] for member in transport._task_groups._members.values())


async def test_members_are_missed_after_the_lease_or_what_the_broker_allows_and_the_difference_is_said(
    own_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = own_server("group.min.session.timeout.ms=6000", "group.max.session.timeout.ms=20000")
    async with opened(f"{server.url}?lease=2") as transport:
        assert any("group.min.session.timeout.ms" in text and "6 s" in text for text in transport.warnings)
        assert "after 6 s" in (transport.limits.lease_warning(2) or "")
        assert transport.limits.lease_warning(6) is None
        await transport.declare([TopicSpec("t", partitions=1)])
        channel = await transport.channel("t", "g")
        await channel.put([Message(b"v")])
        await channel.commit(await receive(channel, 1))
        async with aclosing(transport.tasks("group", 3, "me", 2)) as sets:
            assert await anext(sets) == {0, 1, 2}
        assert any("lease=2" in message and "6 s" in message for message in caplog.messages)
        transport._task_groups._sessions = Sessions()  # as where the user may not read the broker's settings
        async with aclosing(transport.tasks("group", 3, "me", 2)) as sets:
            assert await anext(sets) == {0, 1, 2}
            assert transport.holds("group", "me")
    caplog.clear()
    apps = {lease: App("post", lease=lease) for lease in (2.0, 8.0, 60.0)}
    for lease, app in apps.items():
        app.queue(f"letters-{lease:g}")
    async with opened(server.url) as transport:
        await transport.declare([plan.spec for app in apps.values() for plan in app.topics.values()])
        sessions = {}
        for lease in apps:
            channel = await transport.channel(f"letters-{lease:g}", "post")
            await channel.put([Message(b"v")])
            await channel.commit(await receive(channel, 1))
            sessions[lease] = channel._member.session if channel._member else None
        assert sessions == {2.0: 6.0, 8.0: 8.0, 60.0: 20.0}
        warned = [message for message in caplog.messages if "session.timeout.ms" in message]
        assert len(warned) == 2
        assert "lease=2 is below the brokers' group.min" in warned[0]
        assert "lease=60 is above the brokers' group.max" in warned[1]
        async with aclosing(transport.tasks("group", 3, "me", 60)) as sets:
            assert await anext(sets) == {0, 1, 2}
