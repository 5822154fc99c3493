"""One run: a broker of its own, three workers, a stream of payments, a plan of faults; and then all is checked."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path

import msgspec
from thalweg.errors import BrokerError

from chaos.checking import check_outcome
from chaos.history import History, Seen, longest_gap
from chaos.plan import Fault, Plan, Step
from chaos.production import ProductionWatcher
from chaos.program import KEYS, Options
from chaos.programs import program_of
from chaos.servers import KINDS, Broker, SQLite, Way, own_broker
from chaos.watching import Audit, Reader, Watcher
from chaos.workers import Worker, Workers

__all__ = ["Run", "Takeover", "faults_for", "run"]

PARTITIONS = 6
WORKERS = 3
LEASE = 1.5
RATE = 200
"""Payments a second."""
TICK = 0.05
MOST_WORKERS = 4
PATIENCE = 90.0


def faults_for(kind: str) -> Sequence[Fault]:
    """What can befall a broker of this kind and its workers."""
    if KINDS[kind] is SQLite:
        return [fault for fault in Fault if fault not in (Fault.CUT, Fault.PART, Fault.RESTART)]
    return [fault for fault in Fault if fault is not Fault.LOCK]


class Takeover(msgspec.Struct, frozen=True):
    """Of one death or hang. Seconds, by the receipts as the watcher gets them.

    taken: from the fault until each of the victim's partitions had a receipt of another worker; the last of them.
    gap: the longest time in which one of the others' partitions had none, from the fault until `taken`.
    """

    fault: str
    partitions: int
    taken: float
    gap: float
    gap_partition: int


class Run:
    most_open = 1_000_000
    """How many payments may wait to be done before no more are sent."""

    def __init__(
        self, broker: Broker, plan: Plan, folder: Path, history: History, options: Options, rate: int = RATE
    ) -> None:
        self.broker, self.plan, self.folder, self.history, self.options = broker, plan, folder, history, options
        self.rate = rate
        self.program = program_of(options)
        self.journal = f"{self.program.app.id}-journal-{options.partitions}"
        self.watcher = self.watcher_of(options)
        self.audit = Audit(broker.url, {self.journal: options.partitions}, history, broker.fenced)
        self.workers = Workers(folder)
        self.takeovers: list[Takeover] = []
        self.sent = 0  # numbers below this have been tried
        self._ways: dict[str, Way] = {}
        self._draining: set[asyncio.Task[None]] = set()

    def watcher_of(self, options: Options) -> Reader:
        kind = ProductionWatcher if options.program == "production" else Watcher
        return kind(options, KEYS, self.history)

    # --- the stream of payments ------------------------------------------------------------------------------

    async def produce(self, stop: asyncio.Event) -> None:
        """At a steady rate until told to stop, but for what waits to be done. What fails may have been sent or not, and
        is never sent again.
        """
        batch = max(1, round(self.rate * TICK))
        due = time.monotonic()
        while not stop.is_set():
            if len(self.watcher.open) < self.most_open:
                await self._send(range(self.sent, self.sent + batch))
            due = max(due + TICK, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _send(self, numbers: range) -> bool:
        self.sent = numbers.stop
        self.watcher.uncertain.update(numbers)  # until it is known
        try:
            await self.program.send(numbers)
        except BrokerError:
            return False
        self.watcher.uncertain.difference_update(numbers)
        self.watcher.sent(numbers)
        return True

    async def send_last(self) -> None:
        """One payment for each account that has certainly been sent: what came before it has come when it comes."""
        for key in range(KEYS):
            async with asyncio.timeout(PATIENCE):
                while True:
                    number = self.sent + (key - self.sent) % KEYS
                    if await self._send(range(number, number + 1)):
                        break
                    await asyncio.sleep(0.2)

    # --- workers ---------------------------------------------------------------------------------------------

    async def start_worker(self) -> Worker:
        way = await self.broker.way()
        worker = self.workers.start(msgspec.structs.replace(self.options, broker=way.url))
        self._ways[worker.name] = way
        self.history.struck(f"started {worker.name}", worker.pid)
        return worker

    async def end_worker(self, worker: Worker) -> None:
        self.history.struck(f"SIGTERM to {worker.name}", worker.pid)
        worker.terminate()
        await worker.ended()
        self.history.struck(f"ended: {worker.name}", worker.pid)

    def _chosen(self, step: Step) -> Worker:
        """Of those that own something, if there are any."""
        owners = {self.history.owner(self.journal, partition) for partition in range(self.options.partitions)}
        running = [worker for worker in self.workers.running if worker.pid in owners] or self.workers.running
        return running[step.who % len(running)]

    # --- faults ----------------------------------------------------------------------------------------------

    async def strike(self, step: Step) -> None:
        match step.fault:
            case Fault.KILL:
                async with self._takeover(step):
                    victim = self._chosen(step)
                    victim.kill()
                    self.history.struck(f"kill -9 of {victim.name}", victim.pid)
                    await self._taken_over(victim)
                await self.start_worker()
            case Fault.HANG:
                async with self._takeover(step):
                    victim = self._chosen(step)
                    self.history.struck(f"SIGSTOP of {victim.name}", victim.pid)
                    await self.broker.stop_still(victim)
                    await self._taken_over(victim)
                victim.resume()
                self.history.struck(f"SIGCONT of {victim.name}", victim.pid)
            case Fault.AGAIN:
                victim = self._chosen(step)
                mine = self.owned_by(victim)
                victim.kill()
                self.history.struck(f"kill -9 of {victim.name}", victim.pid)
                heir = self.workers.by_pid(await self._claimed(mine, victim))
                assert heir is not None
                mine += self.owned_by(heir)
                heir.kill()
                self.history.struck(f"kill -9 of {heir.name}, its first heir", heir.pid)
                await asyncio.gather(self.start_worker(), self.start_worker())
                await self._taken_over(victim, heir, doomed=mine)
            case Fault.HANDOVER:
                victim = self._chosen(step)
                mine = self.owned_by(victim)
                self.history.struck(f"SIGTERM to {victim.name}", victim.pid)
                victim.terminate()
                await self._claimed(mine, victim)
                victim.kill()
                self.history.struck(f"kill -9 of {victim.name} while it hands over", victim.pid)
                await self._taken_over(victim, doomed=mine)
                await self.start_worker()
            case Fault.BLINK:
                victim = self._chosen(step)
                victim.hang()
                self.history.struck(f"SIGSTOP of {victim.name} for a moment", victim.pid)
                await asyncio.sleep(self.options.lease * 0.6 * step.chance)
                victim.resume()
            case Fault.CUT:
                victim = self._chosen(step)
                self._ways[victim.name].cut()
                self._ways[victim.name].heal()
                self.history.struck(f"cut: {victim.name}", victim.pid)
            case Fault.PART:
                async with self._takeover(step):
                    victim = self._chosen(step)
                    self._ways[victim.name].cut()
                    self.history.struck(f"cut off: {victim.name}", victim.pid)
                    await self._taken_over(victim)
                self._ways[victim.name].heal()
                self.history.struck(f"connected again: {victim.name}", victim.pid)
            case Fault.RESTART:
                self.history.struck("the broker dies")
                await self.broker.restart()
                self.history.struck("the broker is back")
            case Fault.LOCK:
                assert isinstance(self.broker, SQLite)
                with await asyncio.to_thread(self.broker.lock):
                    self.history.struck("the file is locked")
                    await asyncio.sleep(self.options.lease * 0.8 * step.chance)
                self.history.struck("the file is free")
            case Fault.ROLL:
                for worker in list(self.workers.running):
                    await self.end_worker(worker)
                    await (await self.start_worker()).started_up()
            case Fault.GROW:
                if len(self.workers.running) < MOST_WORKERS:
                    await self.start_worker()
            case Fault.SHRINK:
                if len(self.workers.running) > 2:
                    await self.end_worker(self._chosen(step))

    def owned_by(self, worker: Worker) -> list[int]:
        return [p for p in range(self.options.partitions) if self.history.owner(self.journal, p) == worker.pid]

    async def _taken_over(self, *victims: Worker, doomed: Collection[int] | None = None) -> None:
        """Every task of theirs has been claimed by another since, and that one has got something done.

        doomed: their tasks, if others may have claimed some by now.
        """
        pids = {victim.pid for victim in victims}
        if doomed is None:
            doomed = [partition for victim in victims for partition in self.owned_by(victim)]
        began = self.history.now()

        def heirs_work() -> bool:
            seen = {m.partition for m in self.history.since(began) if isinstance(m, Seen) and m.pid not in pids}
            return seen >= set(doomed)

        await self.watcher.until(heirs_work, f"others to take over {sorted(doomed)} of {victims}", PATIENCE)

    async def _claimed(self, tasks: Sequence[int], victim: Worker) -> int:
        """The process that is the first to claim one of these tasks of the victim's."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.audit.reached.clear()
                for task in tasks:
                    if (owner := self.history.owner(self.journal, task)) != victim.pid:
                        return owner
                await self.audit.reached.wait()

    @contextlib.asynccontextmanager
    async def _takeover(self, step: Step) -> AsyncIterator[None]:
        owners = {p: self.history.owner(self.journal, p) for p in range(self.options.partitions)}
        began = self.history.now()
        yield
        ended = self.history.now()
        victim = next(m.pids[0] for m in self.history.since(began) if hasattr(m, "pids") and m.pids)
        times: dict[int, list[float]] = defaultdict(list)
        for moment in self.history.since(began - 1):
            if isinstance(moment, Seen):
                times[moment.partition].append(moment.at)
        others = {p: times[p] for p, pid in owners.items() if pid != victim}
        gap, partition = longest_gap(others, began, ended)
        mine = sum(pid == victim for pid in owners.values())
        self.takeovers.append(Takeover(step.fault.name, mine, ended - began, gap, partition))

    async def recovered(self) -> None:
        """Every partition has got a payment done that was sent from now on."""
        mark = self.sent

        def all_moved() -> bool:
            return len(self.watcher.highest) == self.options.partitions and min(self.watcher.highest.values()) >= mark

        await self.watcher.until(all_moved, f"every partition to go on; they are at {self.watcher.highest}", PATIENCE)

    # --- the whole -------------------------------------------------------------------------------------------

    async def execute(self, act: Callable[[], Awaitable[None]] | None = None) -> None:
        """Raises `Failure` with the plan and the history if anything is wrong. act: instead of the plan."""
        stop = asyncio.Event()
        audit = asyncio.create_task(self.audit.run())
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._started(stack)
                async with self.program.app.client():
                    await asyncio.gather(*(self.start_worker() for _ in range(WORKERS)))
                    producing = asyncio.create_task(self.produce(stop))
                    try:
                        await self.recovered()
                        await (act() if act else self.carry_out(self.plan))
                    finally:
                        stop.set()
                        await producing
                    await self.send_last()
                    await self.watcher.until(self.watcher.has_all, "all receipts", PATIENCE)
                for worker in list(self.workers.running):
                    await self.end_worker(worker)
                await self.check()
        except (TimeoutError, AssertionError) as error:
            self.history.wrong(str(error) or type(error).__name__)
        finally:
            audit.cancel()
            await asyncio.gather(audit, return_exceptions=True)
            self.workers.close()
        self.history.check(f"{self.plan}{self._logs()}" if self.history.violations else "")

    async def check(self) -> None:
        """All workers have ended: whether the outcome is right."""
        assert isinstance(self.watcher, Watcher)
        await check_outcome(self.broker, self.options, self.watcher, self.audit, self.history, self.journal)

    async def _started(self, stack: contextlib.AsyncExitStack) -> None:
        """A server that has just started may answer, and not have all its parts yet."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await stack.enter_async_context(self.watcher.app)
                    return
                except BrokerError:
                    await asyncio.sleep(0.5)

    async def carry_out(self, plan: Plan) -> None:
        self.plan = plan
        for step in plan.steps:
            goal = self.watcher.seen + step.wait
            await self.watcher.until(lambda goal=goal: self.watcher.seen >= goal, f"{step.wait} receipts", PATIENCE)
            await self.strike(step)
            await self._replace_the_dead(step.fault in (Fault.RESTART, Fault.LOCK, Fault.CUT, Fault.PART))
            if self.history.violations:
                return
            if not step.hurry:
                await self.recovered()

    async def _replace_the_dead(self, broker_was_away: bool) -> None:
        """A worker that finds no broker at its start gives up, and whoever supervises it starts another."""
        for worker in self.workers.died():
            if worker.ready or not broker_was_away:
                self.history.wrong(f"{worker} ended by itself with exit code {worker.exit_code}")
                return
            worker.state = "ended"
            self.history.struck(f"{worker.name} could not start while the broker was away", worker.pid)
            await self.start_worker()

    def _logs(self) -> str:
        last = "\n".join(f"  {worker}:\n{worker.last_words(15)}" for worker in self.workers.all[-6:])
        return f"\n  last words of the last workers:\n{last}"


async def run(kind: str, seed: int, rounds: int = 1, faults: Collection[Fault] = tuple(Fault)) -> Run:
    """A run on a broker of its own, with those of the faults that can befall it; it has passed all checks then."""
    async with own_broker(kind) as broker:
        folder = Path(tempfile.mkdtemp(prefix="thalweg-chaos-"))
        options = Options(broker=broker.url, partitions=PARTITIONS, lease=LEASE)
        try:
            plan = Plan.of(kind, seed, [fault for fault in faults_for(kind) if fault in faults], rounds)
            done = Run(broker, plan, folder, History(), options)
            await done.execute()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return done
