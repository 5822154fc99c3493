"""Topics and queues that belong to other programs: `declare=False`, and options that the broker gets as they are."""

from __future__ import annotations

import pytest
from thalweg import App
from thalweg.channel import TopicSpec
from thalweg.errors import BrokerError
from thalweg.transports.memory import MemoryTransport


class Noting(MemoryTransport):
    """Notes what it is asked to declare."""

    specs: list[TopicSpec]

    async def declare(self, topics):
        self.specs = [*getattr(self, "specs", []), *topics]
        return await super().declare(topics)


@pytest.mark.parametrize("kind", ["topic", "queue"])
async def test_the_start_fails_if_what_belongs_to_others_is_not_there(kind: str) -> None:
    app = App("guest", broker=MemoryTransport())
    getattr(app, kind)("theirs", declare=False)
    with pytest.raises(BrokerError, match=rf"{kind} 'theirs'.*declare=False"):
        async with app:
            pass


async def test_what_is_there_is_used_with_its_own_partitions() -> None:
    transport = MemoryTransport()
    await transport.open()
    await transport.declare([TopicSpec("theirs", partitions=3), TopicSpec("jobs", queue=True)])
    app = App("guest", broker=transport)
    topic, jobs = app.topic("theirs", value=str, declare=False), app.queue("jobs", value=str, declare=False)
    async with app:
        assert topic.partitions == 3
        await topic.send("x", key="k")
        await jobs.send("y")
        assert [message.value for _, _, message in transport.records("theirs")] == [b"x"]


async def test_options_reach_the_driver_as_they_are() -> None:
    transport = Noting()
    app = App("guest", broker=transport)
    app.topic("t", options={"cleanup.policy": "compact"})
    app.queue("q", options={"x-max-priority": "9"})
    async with app:
        options = {spec.name: spec.options for spec in transport.specs}
    assert options["t"] == {"cleanup.policy": "compact"}
    assert options["q"] == {"x-max-priority": "9"}
