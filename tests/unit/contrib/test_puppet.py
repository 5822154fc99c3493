"""Puppets: transports in processes of their own, as good as here, until they are killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from thalweg.capabilities import Commit
from thalweg.channel import Capability, TopicSpec
from thalweg.contrib.conformance.puppet import Nursery, Puppet
from thalweg.errors import BrokerError, Fenced, Gap
from thalweg.message import Message


@pytest.fixture
async def puppet(tmp_path: Path) -> AsyncIterator[Puppet]:
    nursery = Nursery(f"sqlite:///{tmp_path}/broker.db")
    puppet = await nursery.open()
    yield puppet
    await puppet.close()
    nursery.close()


async def test_it_says_what_the_transport_says(puppet: Puppet) -> None:
    assert Capability.FENCING in puppet.capabilities
    assert puppet.limits.message_bytes
    assert puppet.description.startswith("SQLite")


async def test_deliveries_logs_and_claims_go_there_and_back(puppet: Puppet) -> None:
    (info,) = await puppet.declare([TopicSpec("t", partitions=1)])
    assert info.partitions == 1
    channel = await puppet.channel("t", "g")
    await channel.put([Message(b"v", b"k", (("h", b"x"),))])
    (delivery,) = await channel.get(1, 5)
    assert (delivery.record.value, delivery.record.key, delivery.attempts) == (b"v", b"k", 1)
    await channel.commit([delivery])
    log = await puppet.log("t")
    assert (await log.read({0: None}, 9, 9999, 0))[0].records[0].value == b"v"
    claim = await puppet.claim("t", 0, Message(b"m"))
    written = await puppet.commit({claim: Commit([Message(b"r")])})
    assert claim.position < written[claim][0]


async def test_errors_arrive_as_they_were(puppet: Puppet) -> None:
    await puppet.declare([TopicSpec("t", partitions=1)])
    log = await puppet.log("t")
    positions = (await log.append({0: [Message(b"%d" % n) for n in range(3)]}))[0]
    await log.truncate(0, positions[2])
    with pytest.raises(Gap) as gap:
        await log.read({0: positions[0] - 1}, 9, 9999, 0)
    assert (gap.value.topic, gap.value.partition, gap.value.first) == ("t", 0, positions[2])
    stale = await puppet.claim("t", 0, Message(b"m"))
    await puppet.claim("t", 0, Message(b"n"))
    with pytest.raises(Fenced) as fenced:
        await puppet.commit({stale: Commit([])})
    assert fenced.value.partitions == {("t", 0)}


async def test_a_cancelled_call_is_cancelled_there_too(puppet: Puppet) -> None:
    await puppet.declare([TopicSpec("t", partitions=1)])
    channel = await puppet.channel("t", "g")
    get = asyncio.create_task(channel.get(1, 3600))
    await asyncio.sleep(0)
    get.cancel()
    with pytest.raises(asyncio.CancelledError):
        await get
    await channel.put([Message(b"v")])
    assert [d.record.value for d in await channel.get(1, 5)] == [b"v"]


async def test_iterators_end_with_their_puppet_or_before(puppet: Puppet) -> None:
    live = puppet.peers("g", "me", 5.0)
    assert await anext(live) == {"me"}
    await live.aclose()
    live = puppet.peers("g", "again", 5.0)
    assert await anext(live) == {"again"}
    waiting = asyncio.ensure_future(anext(live))
    await asyncio.sleep(0)
    puppet.crash()
    with pytest.raises(BrokerError, match="killed"):
        await waiting
    with pytest.raises(BrokerError, match="killed"):
        await puppet.topics()
