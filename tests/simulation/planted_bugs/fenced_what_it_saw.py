"""A claim fences the owner that it saw when it set out, though another may have claimed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

from thalweg.capabilities import Claim, Commit
from thalweg.message import Message, Position
from thalweg.transports.memory import MemoryTransport
from thalweg.transports.memory.partition import MemoryClaim

from simulation.network import Link

RULE = "8"


def planted() -> AbstractContextManager[object]:
    fenced: set[MemoryClaim | None] = set()
    write = MemoryTransport._commit

    async def claim(self: Link, topic: str, partition: int, marker: Message) -> Claim:
        server = self.network.server
        seen = self.network.broker.log(topic).partition(partition).owner

        async def arrive() -> Claim:
            mine = await server.claim(topic, partition, marker)
            fenced.add(seen)
            return mine

        return await self.write(topic, arrive, (), [(topic, partition)])

    def commit(self: MemoryTransport, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        for one in commits:
            assert isinstance(one, MemoryClaim)
            one.home.owner = None if one in fenced else one
        return write(self, commits)

    stack = ExitStack()
    stack.enter_context(patch.object(Link, "claim", claim))
    stack.enter_context(patch.object(MemoryTransport, "_commit", commit))
    return stack
