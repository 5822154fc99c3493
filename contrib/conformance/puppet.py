"""A transport in a process of its own, which a test drives as if it were its own, and can kill or stop."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

from thalweg.capabilities import Bounds, Claim, Commit, Part
from thalweg.channel import Capability, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError
from thalweg.message import Batch, Delivery, Message, Position

from .puppet_process import PID, STAGE
from .wire import Remote, dump, error_from, load, read_frame

__all__ = ["Nursery", "Puppet"]


class Nursery:
    """The process that puppets of one URL are forked from; lives as long as this process does."""

    _all: ClassVar[dict[tuple[int, str], Nursery]] = {}

    def __init__(self, url: str) -> None:
        self._control, theirs = socket.socketpair()
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__package__}.puppet_process import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno()), url], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._pid()  # it is ready

    @classmethod
    def of(cls, url: str) -> Nursery:
        key = (os.getpid(), url)
        if key not in cls._all:
            atexit.register(cls.close_all)
            cls._all[key] = Nursery(url)
        return cls._all[key]

    @classmethod
    def close_all(cls) -> None:
        for key in [key for key in cls._all if key[0] == os.getpid()]:
            cls._all.pop(key).close()

    def close(self) -> None:
        self._control.close()
        self._process.wait()

    async def open(self) -> Puppet:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"p"], [theirs.fileno()])
        puppet = Puppet(self._pid(), *await asyncio.open_unix_connection(sock=ours))
        try:
            await puppet.open()
        except BaseException:
            puppet.crash()
            raise
        return puppet

    def _pid(self) -> int:
        data = self._control.recv(PID.size, socket.MSG_WAITALL)
        if not data:
            raise BrokerError("the process for puppets has not come up; what it says is above")
        return int(PID.unpack(data)[0])


class Puppet:
    """Satisfies Transport and every capability protocol by asking its process. Calls fail once that is dead."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pid, self._writer = pid, writer
        self._calls = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._dead, self._hangs = "", False
        self._listening = asyncio.create_task(self._listen(reader))
        self.capabilities: frozenset[Capability] = frozenset()
        self.limits = Limits()
        self.description, self.warnings = "", ()

    # --- its life ------------------------------------------------------------------------------------------

    def crash(self) -> None:
        if not self._dead:
            self._dead = "the process of this transport was killed"
            os.kill(self._pid, signal.SIGKILL)
            self._writer.close()

    def hang(self) -> None:
        self._hangs = True
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        self._hangs = False
        os.kill(self._pid, signal.SIGCONT)

    async def block(self, seconds: float, computing: bool) -> None:
        """Returns when its event loop turns again."""
        await self.call(STAGE, "block", seconds, computing)

    async def close(self) -> None:
        """Close the transport and end its process."""
        if not self._dead and not self._hangs:
            with contextlib.suppress(BrokerError):
                await self.call(0, "close")
        self.crash()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (frame := await read_frame(reader)) is not None:
            call, good, result = load(frame, Remote)
            waiting = self._waiting.pop(call, None)
            if waiting is None or waiting.done():
                continue
            if good:
                waiting.set_result(result)
            else:
                waiting.set_exception(error_from(*result))
        self._dead = self._dead or "the process of this transport has died"
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(BrokerError(self._dead))

    async def call(self, number: int, method: str, *args: object) -> Any:
        if self._dead:
            raise BrokerError(self._dead)
        call = next(self._calls)
        answer = self._waiting[call] = asyncio.get_running_loop().create_future()
        self._writer.write(dump((call, number, method, args), _keep))
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled():  # the puppet's own cancellation came back
                raise
            if not self._dead:
                self._writer.write(dump((call, number, "", ()), _keep))
            raise

    # --- what a transport does -----------------------------------------------------------------------------

    async def open(self) -> None:
        await self.call(0, "open")
        self.capabilities = await self.call(0, "capabilities")
        self.limits = await self.call(0, "limits")
        self.description = await self.call(0, "description")
        self.warnings = await self.call(0, "warnings")

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        found: Sequence[TopicInfo] = await self.call(0, "declare", list(topics))
        return found

    async def topics(self) -> Sequence[TopicInfo]:
        found: Sequence[TopicInfo] = await self.call(0, "topics")
        return found

    async def channel(self, topic: str, group: str) -> PuppetChannel:
        return PuppetChannel(self, await self.call(0, "channel", topic, group))

    async def log(self, topic: str) -> PuppetLog:
        return PuppetLog(self, await self.call(0, "log", topic))

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        claim: Claim = await self.call(0, "claim", topic, partition, marker)
        return claim

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        positions: Mapping[Claim, Sequence[Position]] = await self.call(0, "commit", dict(commits))
        own = {claim.number: claim for claim in commits if isinstance(claim, Remote)}
        return {own[claim.number]: found for claim, found in positions.items() if isinstance(claim, Remote)}

    async def try_lock(self, name: str, lease: float) -> PuppetHeld | None:
        found = await self.call(0, "try_lock", name, lease)
        return None if found is None else PuppetHeld(self, found, await self.call(found.number, "number"))

    async def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        async for live in self._iterate(await self.call(0, "peers", group, me, lease)):
            yield live

    async def tasks(self, group: str, n: int, me: str, lease: float) -> AsyncGenerator[frozenset[int], None]:
        async for owned in self._iterate(await self.call(0, "tasks", group, n, me, lease)):
            yield owned

    def part(self, group: str, me: str) -> Part | None:
        raise NotImplementedError("an answer needs a moment to come from another process")

    def holds(self, group: str, me: str) -> bool:
        raise NotImplementedError("an answer needs a moment to come from another process; await still_holds()")

    async def still_holds(self, group: str, me: str) -> bool:
        return bool(await self.call(0, "holds", group, me))

    async def _iterate(self, remote: Remote) -> AsyncGenerator[Any, None]:
        try:
            while True:
                try:
                    value = await self.call(remote.number, "__anext__")
                except StopAsyncIteration:
                    return
                yield value
        finally:
            if not self._dead:
                await self.call(remote.number, "aclose")


class PuppetChannel:
    def __init__(self, puppet: Puppet, remote: Remote) -> None:
        self._puppet, self._number = puppet, remote.number

    async def put(self, messages: Sequence[Message]) -> None:
        await self._puppet.call(self._number, "put", list(messages))

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deliveries: Sequence[Delivery] = await self._puppet.call(self._number, "get", limit, timeout)
        return deliveries

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        await self._puppet.call(self._number, "commit", list(deliveries))

    async def close(self) -> None:
        await self._puppet.call(self._number, "close")

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        await self._puppet.call(self._number, "extend", list(deliveries), lease)

    async def retry(self, delivery: Delivery, delay: float) -> None:
        await self._puppet.call(self._number, "retry", delivery, delay)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        await self._puppet.call(self._number, "reject", delivery, reason)


class PuppetLog:
    def __init__(self, puppet: Puppet, remote: Remote) -> None:
        self._puppet, self._number = puppet, remote.number

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        found: Mapping[int, Sequence[Position]] = await self._puppet.call(self._number, "append", records, positions)
        return found

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        found: Mapping[int, Batch] = await self._puppet.call(self._number, "read", after, limit, max_bytes, timeout)
        return found

    async def bounds(self, partition: int) -> Bounds:
        bounds: Bounds = await self._puppet.call(self._number, "bounds", partition)
        return bounds

    async def find(self, partition: int, timestamp: int) -> Position | None:
        position: Position | None = await self._puppet.call(self._number, "find", partition, timestamp)
        return position

    async def truncate(self, partition: int, before: Position) -> None:
        await self._puppet.call(self._number, "truncate", partition, before)

    async def close(self) -> None:
        await self._puppet.call(self._number, "close")


class PuppetHeld:
    """A lock that the puppet holds. `lost` lives there: ask `is_lost`."""

    def __init__(self, puppet: Puppet, remote: Remote, number: int) -> None:
        self._puppet, self._number, self.number = puppet, remote.number, number

    @property
    def lost(self) -> asyncio.Event:
        raise NotImplementedError("an event does not travel between processes; await is_lost()")

    async def is_lost(self) -> bool:
        event = await self._puppet.call(self._number, "lost")
        return bool(await self._puppet.call(event.number, "is_set"))

    async def release(self) -> None:
        await self._puppet.call(self._number, "release")


def _keep(value: object) -> tuple[int, dict[str, Any]] | None:
    """What came from the puppet goes back as its number."""
    if isinstance(value, Delivery) and isinstance(value.handle, Remote):
        return value.handle.number, {}
    return (value.number, {}) if isinstance(value, Remote) else None
