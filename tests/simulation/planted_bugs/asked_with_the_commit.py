"""A question asked inside an event leaves with the event's commit, for which the event then waits."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.message import Message
from thalweg.runtime.context import current_lane
from thalweg.runtime.lane import Lane
from thalweg.runtime.running import Running

RULE = "11"

ask = Running._ask


async def later(self: Running, topic: str, partition: int, message: Message) -> None:
    lane = current_lane.get()
    if isinstance(lane, Lane) and lane.open:
        lane.send((topic, partition), message)
    else:
        await ask(self, topic, partition, message)


def planted() -> AbstractContextManager[object]:
    return patch.object(Running, "_ask", later)
