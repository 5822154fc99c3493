"""Workers of one program, each an app with a connection of its own, as processes of a simulated loop."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

from thalweg import headers as names
from thalweg.clock import RealClock
from thalweg.errors import BrokerError, StaleRead, Superseded
from thalweg.event import Event
from thalweg.journal.inbox import Inbox
from thalweg.message import Message
from thalweg.runtime.worker import Worker
from thalweg.starting import client_running, worker_running
from thalweg.stores.memory import MemoryStores
from thalweg.topic import Topic
from thalweg.transports.memory import MemoryBroker, MemoryOptions

from .audit import Audit
from .loop import SimulatedLoop
from .network import Network
from .program import SOMETIMES, Program

LATE = 2.0
"""Seconds by which a tick may be late."""

__all__ = ["START", "Cluster", "Member", "ProcessClock"]

START = 1_577_836_800.0
"""2020-01-01T00:00:00Z: when the simulation begins, in seconds since the epoch."""
PACE = 2.0
"""Seconds after which a worker that ended with an error is started again, as a supervisor does."""


class ProcessClock(RealClock):
    """The loop's virtual time, plus what this machine's clock is wrong by: `offset` seconds."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop, self.offset = loop, 0.0

    def now(self) -> float:
        return START + self._loop.time() + self.offset


class Member:
    """One worker from its start to its end."""

    def __init__(self, cluster: Cluster, name: str, worker_id: str | None) -> None:
        self.cluster, self.name, self.worker_id = cluster, name, worker_id
        self.program = cluster.new_program()
        if worker_id is not None:
            self.program.app.worker_id = worker_id
        self.program.die = self.die  # type: ignore[method-assign]
        self.process = cluster.loop.process(name)
        self.link = cluster.network.link(self.process)
        self.link.misbehaved = cluster.audit.violated
        self.clock = self.program.app.clock = ProcessClock(cluster.loop)
        self.program.entered = lambda held: cluster.audit.alone(self, held)
        self.worker: Worker | None = None
        self.done = False
        self.leaving = asyncio.Event()
        self._troubles: list[str] = []
        self.task = cluster.loop.run_in(self.process, self._main())

    @property
    def alive(self) -> bool:
        return not (self.process.dead or self.done)

    @property
    def runs(self) -> bool:
        """It has started, and nothing keeps it from running now."""
        return self.alive and self.worker is not None and not self.process.paused

    @property
    def sound(self) -> bool:
        """Nothing is wrong with it."""
        return self.runs and not self._troubles and not self.leaving.is_set()

    async def _main(self) -> None:
        app, cluster = self.program.app, self.cluster
        try:
            async with worker_running(app, transport=self.link, stores=MemoryStores()) as worker:
                self.worker = worker
                cluster.note(f"{self.name} has started")
                leaving = asyncio.ensure_future(self.leaving.wait())
                await asyncio.wait([leaving, worker.failed], return_when=asyncio.FIRST_COMPLETED)
                leaving.cancel()
                if worker.failed.done():
                    worker.failed.result()
        except Superseded:
            cluster.note(f"{self.name} was replaced by a newer one")
        except BrokerError as error:
            cluster.note(f"{self.name} has ended: {error}")
            cluster.again(self.worker_id)
        except Exception as error:
            cluster.audit.violated(f"{self.name} ended with {error!r}")
        finally:
            self.done = True
        cluster.note(f"{self.name} is gone")

    # --- what befalls it -------------------------------------------------------------------------------------

    def crash(self) -> None:
        self.cluster.loop.crash(self.process)
        self.link.kill()

    async def die(self, by: Any) -> None:
        """By what it does itself: another is started in its place."""
        self.cluster.note(f"{self.name} is killed by event {by.id}")
        self.cluster.again(self.worker_id)
        self.cluster.loop.context_of(self.cluster.loop.world).run(self.crash)
        await asyncio.get_running_loop().create_future()

    def pause(self) -> None:
        self._troubles.append("paused")
        self.cluster.loop.pause(self.process)
        if self.link.session is not None:
            self.link.stop()

    def resume(self) -> None:
        self._troubles.remove("paused")
        if "cut" not in self._troubles:
            self.link.heal()
        self.cluster.loop.resume(self.process)
        self.cluster.audit.look_at_owners()

    def cut(self) -> None:
        self._troubles.append("cut")
        self.link.cut()

    def heal(self) -> None:
        self._troubles.remove("cut")
        if "paused" not in self._troubles:
            self.link.heal()

    def leave(self) -> None:
        self.leaving.set()


class Cluster:
    def __init__(
        self, loop: SimulatedLoop, seed: str, options: MemoryOptions, lease: float, note: Callable[[str], None]
    ) -> None:
        self.loop, self.note = loop, note
        self._seed, self.lease = seed, lease
        self.clock = ProcessClock(loop)
        self.broker = MemoryBroker(clock=self.clock, position_step=random.Random(f"{seed} step").choice([1, 3]))
        self.network = Network(loop, self.broker, options, f"{seed} network")
        self.members: list[Member] = []
        self.audit = Audit(self)
        self.network.written = self.audit.written
        self.client = self.new_program()
        self.named = random.Random(f"{seed} names").random() < 0.4
        """Whether workers have a `worker_id`."""
        self.starts = 0
        """How many workers are wanted that have not been started yet."""

    def new_program(self) -> Program:
        program = Program(random.Random(f"{self._seed} program"), clustered=True)
        program.compute = self.loop.compute  # type: ignore[method-assign]
        program.app.lease = self.lease
        program.app.clock = self.clock
        return program

    # --- workers ---------------------------------------------------------------------------------------------

    def start(self, worker_id: str | None = None) -> Member:
        if self.named and worker_id is None:
            taken = {member.worker_id for member in self.alive()}
            worker_id = next(name for n in range(len(taken) + 1) if (name := f"id{n}") not in taken)
        member = Member(self, f"worker{len(self.members) + 1}", worker_id)
        self.members.append(member)
        self.note(f"{member.name} starts{f' as {worker_id}' if worker_id else ''}")
        return member

    def again(self, worker_id: str | None, seconds: float = PACE) -> None:
        """A supervisor starts another worker after a while."""
        self.starts += 1

        def start() -> None:
            self.starts -= 1
            self.start(worker_id)

        self.network.later(seconds, start)

    def alive(self) -> list[Member]:
        return [member for member in self.members if member.alive]

    # --- the client ------------------------------------------------------------------------------------------

    def connected(self) -> Any:
        """A context in which `client` can send: nothing ever goes wrong with its connection."""
        app = self.client.app
        app.broker = self.network.server
        return client_running(app)

    def sent(self, topic: Topic[str, int]) -> list[Event[int, str]]:
        """What lies in a topic as an agent would see it: each message once."""
        plan = topic._plan
        inboxes = [Inbox(plan.name, partition) for partition in range(plan.partitions)]
        return [
            Event(plan, seen.record, partition, seen.position, plan.decode(seen.record.value or b""), None)
            for partition, position, record in self.network.server.records(plan.name)
            for seen in inboxes[partition].receive(position, record)
        ]

    async def forge(self, topic: Topic[str, int], key: str, number: int) -> None:
        """One who may write to a topic, but does not know the app's secret, says who is to have a message."""
        partition = topic._plan.partition_of(key.encode(), topic._plan.partitions)
        message = Message(
            str(number).encode(), key.encode(), ((names.ONLY, b"nobody"),), round(self.clock.now() * 1000)
        )
        await (await self.network.server.log(topic.name)).append({partition: [message]})

    async def differs(self) -> str:
        """What is not yet, or not at all, as it ought to be at the end; empty if all is."""
        if self.starts:
            return f"{self.starts} workers have still to start"
        running = [member for member in self.alive() if member.worker is not None and member.program.app.is_running]
        for key, owners in self.audit.owners().items():
            if len(owners) != 1:
                return f"task {key} has the owners {owners}"
        try:
            outcome = await self.client.outcome([member.program for member in running], self.sent)
        except (AssertionError, StaleRead) as error:
            return str(error)
        return self.client.differs(outcome, self.sent)

    async def differs_when_asked(self) -> str:
        """`table.ask` gives what is committed, from whichever worker has it."""
        for name, rows in self.client.expected().sums.items():
            table = next(node.sums for node in self.client.nodes if node.sums.name == name)
            for key, value in rows.items():
                try:
                    answer = await table.ask(key)
                except TimeoutError as error:
                    return f"{name}.ask({key!r}): {error}"
                if answer != value:
                    return f"{name}.ask({key!r}) gives {answer}, expected {value}"
        return ""

    async def ask_on_and_on(self, chance: random.Random) -> None:
        """Sums only grow, whoever answers: a worker that has lost a task must not answer from what it has of it."""
        seen: dict[tuple[str, str], int] = {}
        while True:
            await asyncio.sleep(1.0 + 3.0 * chance.random())
            node = chance.choice(self.client.nodes)
            key = node.key_of(chance.choice("abcd"), chance.randrange(4))
            try:
                value = await node.sums.ask(key, timeout=3.0) or 0
            except TimeoutError:
                continue
            last = seen.get((node.sums.name, key), 0)
            if value < last:
                self.audit.violated(f"{node.sums.name}.ask({key!r}) gave {last}, and later {value}")
            seen[node.sums.name, key] = value

    def look_at_ticks(self, since: float | None) -> None:
        """Each tick of the leader's schedules was committed once; from `since` (by the loop) on, none is missed."""
        ticks: dict[str, list[float]] = {"minutes": [], "sometimes": []}
        for event in self.sent(self.client.ticks):
            ticks[event.key].append(event.value)
        for name, due in ticks.items():
            if len(set(due)) < len(due):
                self.audit.violated(f"a tick of {name!r} was committed twice: {sorted(due)}")
        if since is None:
            return
        first, now = START + since, self.clock.now()
        minutes = range(math.ceil(first / 60) * 60, math.floor(now - LATE), 60)
        if missed := [minute - START for minute in minutes if minute not in ticks["minutes"]]:
            self.audit.violated(f"the crontab missed {missed}")
        ran = len([due for due in ticks["sometimes"] if first <= due <= now])
        if ran < (now - first - LATE) // SOMETIMES - 1:
            self.audit.violated(f"the leader's timer ran {ran} times in {now - first:.0f} s")
