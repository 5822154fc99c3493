"""A Redis Cluster of the tests' own: all of a program's keys lie in one slot, and the driver follows the slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from missing import missing
from thalweg.capabilities import Commit
from thalweg.channel import TopicSpec
from thalweg.errors import BrokerError, Fenced
from thalweg.message import Message
from thalweg.transports.redis import RedisTransport
from thalweg.url import Url

from brokers.bank import Withdrawal, make_bank
from brokers.program_runs import LONG, becomes, eventually, handled, send_all, values
from brokers.redis_cluster import Cluster, Node, lacking


@pytest.fixture(params=[3])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """param: how many servers."""
    if reason := lacking():
        missing("redis", reason)
    cluster = Cluster(tmp_path, request.param)
    try:
        await cluster.form()
        yield cluster
    finally:
        cluster.kill()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisTransport]:
    transport = RedisTransport.from_url(Url(url))
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


def slot_of(node: Node, tag: str) -> int:
    found = node.ask("CLUSTER", "KEYSLOT", tag)
    assert isinstance(found, int)
    return found


async def test_a_program_runs_exactly_once_on_a_cluster_in_one_slot(cluster: Cluster) -> None:
    for node, prefix in zip(cluster.nodes, ("", "shop.", "{odd}"), strict=True):  # any node is an entrance
        url = f"redis://127.0.0.1:{node.port}?prefix={prefix.replace('{', '%7B').replace('}', '%7D')}"
        bank = make_bank(url)
        async with bank.app:
            assert bank.app.guarantee == "exactly_once"
            assert await bank.total.ask(Withdrawal(0, "ada", 5), key="ada") == 5
            assert await bank.total.ask(Withdrawal(1, "ada", 500), key="ada") == 505
            assert await bank.mail.ask("bob") == "BOB"
            await eventually(lambda bank=bank: sorted(bank.mailed) == ["ada", "bob"])  # type: ignore[misc]
        again = make_bank(url)
        async with again.app:
            assert await again.total.ask(Withdrawal(2, "ada", 1), key="ada") == 506
            assert handled(again) == [0, 1, 2]
    first = cluster.nodes[0]
    for tag in ("{thalweg}", "{shop.}", "{odd}"):
        slot = slot_of(first, tag)
        keys = cluster.owner(slot).ask("CLUSTER", "GETKEYSINSLOT", slot, 100_000)
        assert isinstance(keys, list)
        assert keys
        assert all(tag.encode() in key for key in keys)
    used = {slot_of(first, key.decode()) for node in cluster.nodes for key in node.client.keys("*")}
    assert len(used) == 3


async def test_a_foreign_program_finds_a_topic_under_its_name_on_a_cluster(cluster: Cluster) -> None:
    async with opened(f"redis://127.0.0.1:{cluster.nodes[0].port}") as transport:
        assert "cluster" in transport.description
        await transport.declare([TopicSpec("t", partitions=4)])
        log = await transport.log("t")
        with redis.RedisCluster(port=cluster.nodes[1].port, host="127.0.0.1") as other:
            other.xadd("{thalweg}{3}:t", {"key": "ada", "value": "1"})
            assert await values(log, 3) == [b"1"]


async def test_a_slot_that_is_moved_loses_and_repeats_nothing_and_no_call_fails(cluster: Cluster) -> None:
    entrance = cluster.nodes[0]
    slot = slot_of(entrance, "{thalweg}")
    source = cluster.owner(slot)
    target = next(node for node in cluster.nodes if node is not source)
    halfway, go_on, moved = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with opened(f"redis://127.0.0.1:{entrance.port}") as transport:
        specs = [TopicSpec("t", partitions=2), TopicSpec("q", queue=True), TopicSpec("j", partitions=1)]
        await transport.declare(specs)
        log = await transport.log("t")
        queue, channel = await transport.channel("q", "g"), await transport.channel("t", "g")
        claim = await transport.claim("j", 0, Message(b"m"))
        held = await transport.try_lock("x", 30)
        for _ in range(10):
            await channel.get(1, 0)

        written, got, queued = list[int](), list[bytes | None](), list[bytes | None]()

        async def produce() -> None:
            while not moved.is_set() or len(written) < 100:
                number = len(written)
                await transport.commit(
                    {claim: Commit([Message(b"%d" % number)], {("t", 0): [Message(b"%d" % number)]})}
                )
                await queue.put([Message(b"%d" % number)])
                written.append(number)

        async def consume(which: object, into: list[bytes | None]) -> None:
            assert which in (queue, channel)
            while not (producing.done() and len(into) >= len(written)):
                deliveries = await which.get(10, 0.1)  # type: ignore[attr-defined]
                await which.commit(deliveries)  # type: ignore[attr-defined]
                into += [delivery.record.value for delivery in deliveries]

        producing = asyncio.create_task(produce())
        consuming = [asyncio.create_task(consume(queue, queued)), asyncio.create_task(consume(channel, got))]
        await eventually(lambda: len(written) >= 20)
        waiting = asyncio.create_task(log.read({1: None}, LONG, LONG, 60))
        moving = asyncio.create_task(cluster.move(slot, source, target, halfway, go_on))
        await halfway.wait()
        go_on.set()
        await moving
        moved.set()
        await producing
        await log.append({1: [Message(b"last")]})
        assert [record.value for record in (await waiting)[1].records] == [b"last"]
        await asyncio.gather(*consuming)
        expected = [b"%d" % number for number in written]
        assert await values(log) == expected
        assert await values(await transport.log("j")) == [b"m", *expected]
        assert got == expected
        assert sorted(queued, key=lambda value: int(value or b"")) == expected
        assert cluster.owner(slot) is target
        assert held is not None
        assert not held.lost.is_set()
        async with opened(f"redis://127.0.0.1:{source.port}") as rival:  # the fence has moved along
            await rival.claim("j", 0, Message(b"n"))
            with pytest.raises(Fenced):
                await transport.commit({claim: Commit([Message(b"late")])})


async def test_a_call_in_the_middle_of_a_move_fails_within_its_time_out_and_has_done_nothing(cluster: Cluster) -> None:
    slot = slot_of(cluster.nodes[0], "{thalweg}")
    source = cluster.owner(slot)
    target = next(node for node in cluster.nodes if node is not source)
    halfway, go_on = asyncio.Event(), asyncio.Event()
    async with opened(f"redis://127.0.0.1:{source.port}?timeout=0.5") as transport:
        await transport.declare([TopicSpec("q", queue=True), TopicSpec("t", partitions=1)])
        queue = await transport.channel("q", "g")
        await queue.put([Message(b"%d" % number) for number in range(3)])
        first = await queue.get(2, 1)
        moving = asyncio.create_task(cluster.move(slot, source, target, halfway, go_on))
        await halfway.wait()
        for call in (queue.put([Message(b"x")]), queue.commit(first), queue.get(1, 0)):
            with pytest.raises(BrokerError, match="cluster"):
                await call
        go_on.set()
        await moving
        await queue.commit(first[:1])
        await queue.close()
        heir = await transport.channel("q", "g")
        again = [*await heir.get(10, 1)]
        assert sorted(delivery.record.value or b"" for delivery in again) == [b"1", b"2"]


@pytest.mark.parametrize("cluster", [5], indirect=True, ids=["two replicas"])
async def test_after_a_fail_over_the_promoted_node_is_found_and_has_all_that_was_done(cluster: Cluster) -> None:
    slot = slot_of(cluster.nodes[0], "{thalweg}")
    owner = cluster.owner(slot)
    await cluster.replicate(owner)
    bank = make_bank(f"redis://127.0.0.1:{owner.port}?replicas=1&timeout=5")  # one entrance, and it will die
    async with bank.app:
        await send_all(bank, range(100))
        await eventually(lambda: len(handled(bank)) == 100)
        await asyncio.to_thread(owner.kill)

        async def sent() -> bool:
            try:
                await bank.withdrawals.send(Withdrawal(100, "ada", 1), key="ada")
            except BrokerError:
                return False
            return True

        await becomes(sent, bool, 60)
        await eventually(lambda: len(handled(bank)) > 100, 60)  # partitions come back one by one
        assert handled(bank) == list(range(101))
    assert cluster.owner(slot) is not owner


async def test_a_database_number_is_refused_on_a_cluster(cluster: Cluster) -> None:
    with pytest.raises(BrokerError, match="cluster"):
        await RedisTransport.from_url(Url(f"redis://127.0.0.1:{cluster.nodes[0].port}/3")).open()
