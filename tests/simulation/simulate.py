"""One run of the whole runtime from a seed, and what it violated."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
import thalweg.starting
from thalweg import Topic
from thalweg.transports.memory import MemoryOptions
from thalweg.url import Url

from .cluster import START, Cluster
from .loop import STARVED, SimulatedLoop, TooManySteps
from .nemesis import Nemesis

__all__ = ["Run", "run"]

MOST_STEPS = 400_000
PATIENCE = 120.0
"""Seconds after the last fault within which all that was sent must be handled."""
LOOK = 1.0
"""Seconds between two looks at who owns what, and whether it is done."""

BROKERS = (
    "memory://",
    "memory://?grouped=true&locks=false&peers=false",
    "memory://?fencing=false",
    "memory://?fencing=false&grouped=true&locks=false&peers=false",
    "memory://?commit_messages=3",
    "memory://?message_bytes=500&commit_messages=2",
    "memory://?message_bytes=500&fencing=false",
)


FORGED = {"thalweg-only": b"nobody", "from": b"outside"}
"""Headers of a client that pretends to be a part of Thalweg."""

_GRAVEYARD: list[object] = []


class Run(msgspec.Struct):
    """What one seed came to. schedule: the faults and moves, with when; steps: the last ones, if they were kept."""

    seed: int
    violations: list[str]
    fingerprint: int
    steps: int
    commits: int
    openings: int
    changes: int
    schedule: list[str]
    last: list[str]
    logged: list[str]


def run(seed: int, keep: bool = False) -> Run:
    """Simulate one seed. keep: the last steps are kept by name, and what was logged: slow."""
    loop = SimulatedLoop(f"{seed} loop", MOST_STEPS, keep)
    schedule: list[str] = []
    logged = _Logged(loop)
    lost: list[str] = []

    def complain(_: object, about: dict[str, Any]) -> None:
        if not loop.process_of(about.get("task")).dead:
            lost.append(_told(about))

    loop.set_exception_handler(complain)
    simulation = _Simulation(seed, loop, schedule)
    gc.disable()  # when garbage is collected must not depend on what ran before
    with _sealed(seed, loop), logged.listening(keep):
        try:
            loop.run_until_complete(loop.create_task(simulation.run()))
        except TooManySteps as error:
            simulation.cluster.audit.violated(f"never comes to rest: {error}")
        if loop.longest > STARVED:
            simulation.cluster.audit.violated(f"a process did one thing for {loop.longest:.3f} s")
        gc.collect()  # exceptions that nobody has asked for are told of when their tasks are freed
    _GRAVEYARD.extend(loop.bury())
    gc.freeze()  # what is left is never looked at again
    audit = simulation.cluster.audit
    return Run(
        seed,
        [*audit.violations, *lost[:5]],
        loop.fingerprint,
        loop.steps,
        audit.commits,
        len([1 for _, _, what, _ in audit.moves if what == "opens"]),
        simulation.nemesis.changes,
        schedule,
        [f"{now:10.4f} {who:9} {what}" for now, who, what in loop.last],
        logged.lines,
    )


def _told(about: dict[str, object]) -> str:
    error = about.get("exception")
    return f"{about.get('message')}: {error!r} {about.get('task') or about.get('future') or ''}"


class _Simulation:
    def __init__(self, seed: int, loop: SimulatedLoop, schedule: list[str]) -> None:
        self.chance = chance = random.Random(f"{seed} simulation")
        self.loop, self.schedule = loop, schedule
        self.broker = chance.choice(BROKERS)
        options = Url(self.broker).options(MemoryOptions)
        self.lease = chance.choice([2.0, 5.0, 10.0])
        self.cluster = Cluster(loop, str(seed), options, self.lease, self.note)
        self.nemesis = Nemesis(self.cluster, chance)
        self.snapshot_bytes = chance.choice([300, 2000, 1 << 22])
        self.seconds = chance.choice([10.0, 30.0, 60.0])
        self.note(
            f"{self.broker}, lease {self.lease:g} s, snapshots of {self.snapshot_bytes} bytes, faults for "
            f"{self.seconds:g} s; {_described(self.cluster.client)}"
        )

    def note(self, what: str) -> None:
        self.schedule.append(f"{self.loop.time():10.4f} {what}")

    async def run(self) -> None:
        cluster, chance = self.cluster, self.chance
        with patch.object(thalweg.starting, "SNAPSHOT_BYTES", self.snapshot_bytes), cluster.audit.watching():
            await cluster.network.open()
            async with cluster.connected():
                for _ in range(chance.choice([1, 2, 3])):
                    cluster.start()
                    await asyncio.sleep(chance.choice([0.0, 0.0, 0.1, 1.0]))
                looking = asyncio.ensure_future(self.look())
                asking = asyncio.ensure_future(cluster.ask_on_and_on(random.Random(chance.random())))
                sending: asyncio.Future[Any] = asyncio.ensure_future(self.send())
                if (later := cluster.client.later) is not None:
                    sending = asyncio.gather(sending, later.from_outside(random.Random(chance.random()), self.seconds))
                await self.nemesis.rage(self.seconds)
                await sending
                self.note("no more faults")
                await self.come_to_rest()
                looking.cancel()
                asking.cancel()
                await self.stop()

    async def send(self) -> None:
        chance, program = self.chance, self.cluster.client
        count = chance.choice([5, 20, 40])
        if chance.random() < 0.25:
            await self.send_at_once(count)
            return
        twice: list[tuple[Topic[str, int], str, int]] = []
        for number in range(count):
            topic, key = chance.choice(program.sources), chance.choice("abcd")
            id = f"id {number}" if chance.random() < 0.2 else None
            if program.signs and id is None and chance.random() < 0.1:
                await self.cluster.forge(topic, key, number)
            else:
                await topic.send(number, key=key, headers=FORGED if chance.random() < 0.1 else None, id=id)
            program.sent.append((topic.name, key, number))
            if id is not None:
                twice.append((topic, key, number))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() * 2 * self.seconds / count)
            while twice and chance.random() < 0.3:
                topic, key, number = twice.pop(0)
                await topic.send(number, key=key, id=f"id {number}")

    async def send_at_once(self, count: int) -> None:
        chance, program = self.chance, self.cluster.client
        await asyncio.sleep(chance.random() * self.seconds)
        for topic in program.sources:
            pairs = [(chance.choice("abcd"), number) for number in range(count)]
            await topic.send_many(pairs)
            program.sent.extend((topic.name, key, number) for key, number in pairs)

    async def look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self.cluster.audit.look_at_owners()

    async def come_to_rest(self) -> None:
        cluster = self.cluster
        if difference := await self.becomes_right(PATIENCE):
            self.cluster.audit.violated(f"after {PATIENCE:g} s without faults: {difference}")
            return
        self.note("all is handled")
        calm = self.loop.time()
        await asyncio.sleep(40.0)
        # A marker that came late may have deposed an owner, who learns of it when it next commits, and starts over.
        if difference := await self.becomes_right(PATIENCE / 4):
            self.cluster.audit.violated(f"was right, and is no more: {difference}")
        if difference := await cluster.differs_when_asked():
            cluster.audit.violated(difference)
        for node in cluster.client.nodes:
            cluster.audit.look_at_late_readers(node.target.name)
        self.cluster.look_at_ticks(None if self.nemesis.jumped else calm)

    async def becomes_right(self, patience: float) -> str:
        """What is not as it ought to be even after so many seconds; empty if all is, or has become so."""
        cluster, until = self.cluster, self.loop.time() + patience
        while difference := await cluster.differs():
            if self.loop.time() > until:
                return difference
            await asyncio.sleep(LOOK)
        return ""

    async def stop(self) -> None:
        """Everybody leaves, in good order."""
        alive = self.cluster.alive()
        if not alive:
            return
        for member in alive:
            member.leave()
        _, late = await asyncio.wait([member.task for member in alive], timeout=60.0)
        for member in alive:
            if member.task in late:
                self.cluster.audit.violated(f"{member.name} has not left within 60 s")


def _described(program: object) -> str:
    app = program.app  # type: ignore[attr-defined]
    nodes = ", ".join(
        f"{node.name}({node.source.name}{' regrouped' if node.regroup else ''}, concurrency {node.concurrency}"
        f"{', take' if node.takes else ''})"
        for node in program.nodes  # type: ignore[attr-defined]
    )
    more = ", some later" if program.later is not None else ""  # type: ignore[attr-defined]
    more += ", signed" if program.signs else ""  # type: ignore[attr-defined]
    return f"{app.default_partitions} partitions, commits every {app.commit_interval:g} s: {nodes}{more}"


@contextmanager
def _sealed(seed: int, loop: SimulatedLoop) -> Iterator[None]:
    """Nothing from outside gets in: no entropy, no clock, no name of this machine or process."""
    chance = random.Random(f"{seed} secrets")
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        random.seed(f"{seed} random")
        for target, name, to in (
            (secrets, "token_bytes", lambda count=32: chance.randbytes(count)),
            (secrets, "token_hex", lambda count=32: chance.randbytes(count).hex()),
            (secrets, "randbelow", lambda below: chance.randrange(below)),
            (socket, "gethostname", lambda: "host"),
            (os, "getpid", lambda: 1),
            (time, "time", lambda: START + loop.time()),
        ):
            stack.enter_context(patch.object(target, name, to))
        for module in [module for name, module in sys.modules.items() if name.startswith("thalweg.")]:
            for name in ("perf_counter", "monotonic", "boot_clock"):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, loop.time))
        yield


class _Logged(logging.Handler):
    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{self._loop.time():10.4f} {record.levelname} {self.format(record)}")

    @contextmanager
    def listening(self, keep: bool) -> Iterator[None]:
        log = logging.getLogger("thalweg")
        level, propagate = log.level, log.propagate
        log.propagate = False
        log.setLevel(logging.DEBUG if keep else logging.CRITICAL + 1)
        log.addHandler(self)
        try:
            yield
        finally:
            log.removeHandler(self)
            log.setLevel(level)
            log.propagate = propagate
