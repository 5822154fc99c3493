"""A worker: its tasks, the readers that feed them, the committer they share; started in order, stopped in reverse."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from thalweg.capabilities import Grouped, Log, Logs
from thalweg.channel import Capability, Transport
from thalweg.errors import BrokerError, ConfigurationError, Fenced, StoreDamaged, StoreError
from thalweg.journal.origin import HEADER_BYTES
from thalweg.journal.readback import writer_for
from thalweg.journal.rows import below, prefix, reached_key
from thalweg.journal.writer import JournalKey, JournalWriter
from thalweg.message import Message, Position
from thalweg.mirror import Mirror
from thalweg.plan import AgentPlan, Destination
from thalweg.signing import room_of
from thalweg.store import Store, Stores

from .agent_task import AgentTask
from .committer import Committer
from .complaints import Complaints
from .delays import Delays
from .growth import watch_growth
from .isolation import Isolation
from .membership import Membership
from .mirroring import Kept
from .ownership import Ownership
from .presence import Presence
from .recovery import Recoveries, Recovering
from .roster import Roster
from .settings import Settings
from .source import Source
from .standby import Standbys
from .tables import TablePlan
from .task import Answer, RolledBack, Task, TaskKey
from .tenure import Tenure
from .topic_input import TopicInput

__all__ = ["Group", "Worker"]

log = logging.getLogger("thalweg")

FIRST_BACKOFF, LONGEST_BACKOFF = 0.05, 5.0
"""Seconds until a task starts over, the first time and at most."""

AFTER_FENCED = 0.5
"""Seconds, at least, until a journal is claimed again that another owner has claimed (design rule 7)."""

RESTARTS = 10
"""How often in a row a task may fail without progress before the worker gives up and says so."""


class Group:
    """Topics of one partition count, the agents that read them and the tables that are co-partitioned with them."""

    def __init__(self, name: str, partitions: int) -> None:
        self.name, self.partitions = name, partitions
        self.agents: list[AgentPlan] = []
        self.tables: list[TablePlan] = []

    @property
    def standbys(self) -> int:
        """How many other workers keep each task's state as well: as many as the table that wants most."""
        return max((table.standbys for table in self.tables), default=0)


class Worker:
    def __init__(
        self,
        app: object,
        app_id: str,
        transport: Transport,
        stores: Stores,
        mirrors: Mapping[str, Mirror],
        settings: Settings,
        groups: Mapping[str, Group],
        partitioner: str,
        answer: Callable[[Sequence[Answer]], None],
        topics: Collection[str],
        dead_letters: Callable[[str, bytes | None], Destination],
        send_now: Callable[[str, Mapping[int, Sequence[Message]]], Coroutine[Any, Any, None]],
        roster: Roster,
        hear: Callable[[], Coroutine[Any, Any, str]],
        delays: Delays | None,
        recovering: Callable[[Recovering | None], None] | None = None,
    ) -> None:
        self.app, self.app_id = app, app_id
        self.transport, self.settings, self.partitioner = transport, settings, partitioner
        self.message_bytes = room_of(transport.limits.message_bytes, settings.signer)
        self.head_bytes = transport.limits.head_bytes
        self.commit_messages = transport.limits.commit_messages
        self.topics = topics
        """Those that the program declares: each has dead letters."""
        self.answer, self.dead_letter_destination, self.send_now = answer, dead_letters, send_now
        self.context = contextvars.copy_context()
        self.me = secrets.token_hex(8)
        self.complaints = Complaints(settings.clock)
        self.tasks: dict[TaskKey, Task] = {}
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception when the worker cannot go on."""
        self._stores, self._groups = stores, groups
        self._sizes = {group.name: (group.partitions, group.standbys) for group in groups.values()}
        self.mirrors = mirrors
        """By table, of those that have one."""
        self.kept_for_mirrors = Kept()
        self._logs: dict[str, Log] = {}
        self._sources: dict[tuple[str, str], Source] = {}
        self._services: list[asyncio.Task[Any]] = []
        self._restarting: dict[TaskKey, asyncio.Task[None]] = {}
        self._failures: dict[TaskKey, tuple[int, int]] = {}
        self._turns: defaultdict[TaskKey, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while a task is opened or closed: it may be had again before it was closed to the end."""
        self._stopping = False
        self.isolation = Isolation(settings.clock)
        self.tenures: defaultdict[JournalKey, Tenure] = defaultdict(Tenure)
        self._on_task: dict[TaskKey, tuple[Callable[[], None], Callable[[bool], Coroutine[Any, Any, None]]]] = {}
        self.stop_by_kill: Callable[[], Coroutine[Any, Any, None]] = self.kill
        self.roster, self._hear, self._delays = roster, hear, delays
        agents = [agent for group in groups.values() for agent in group.agents]
        self.delays_agent = next((agent for agent in agents if delays and agent.name == delays.plan.name), None)
        """The agent that reads the topic of delays."""
        self.delays_there = False
        """Whether that topic is there, to be read."""
        self._presence = self._make_presence()
        self.recoveries = Recoveries(settings.clock)
        if self._presence is not None:
            self.recoveries.watch.append(self._presence.recovering)
        if recovering is not None:
            self.recoveries.watch.append(recovering)
        self.standbys = Standbys(self.journal_topic, self.new_log, self._open_store, settings, self.complaints)
        self._standing_by: frozenset[TaskKey] = frozenset()
        self._closing_down: set[TaskKey] = set()  # tasks no more, but their stores are still theirs
        self.writer: JournalWriter = writer_for(transport, self.new_log, settings.clock)
        self.committer = Committer(self.writer, settings.clock, settings.commit_interval)
        self.ownership = self._make_ownership()

    def _make_presence(self) -> Presence | None:
        if Capability.LOG not in self.transport.capabilities:
            return None
        settings = self.settings
        me = self.me, settings.worker_id, settings.zone, self._sizes
        return Presence(self.roster, *me, self.send_now, settings.clock)

    def _make_ownership(self) -> Ownership | Membership:
        transport, settings, presence = self.transport, self.settings, self._presence
        sizes = self._sizes
        means = self._open_task, self._close_task, self.stand_by, presence
        if Capability.GROUPED in transport.capabilities and isinstance(transport, Grouped):
            return Membership(transport, self.app_id, self.me, sizes, settings, *means)
        return Ownership(transport, self.app_id, self.me, sizes, settings, *means, self.roster, self.send_now)

    # --- start and stop ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when the tasks of this worker's share run."""
        if self._presence is not None:
            self._run(self._presence.run(), "presence")
            if any(group.tables for group in self._groups.values()):
                self._run(self._be_asked(self._presence), "reply address")
        if not any(group.partitions for group in self._groups.values()):
            return
        if self._delays is not None:
            self._run(self._await_delays(self._delays), "delays")
        sources = [
            source.topic for group in self._groups.values() for agent in group.agents for source in agent.sources
        ]
        self._run(watch_growth(self.transport, sources, self.settings.clock), "growth")
        self._run(self.committer.run(), "committer")
        self._run(self.ownership.run(), "ownership")
        settled = asyncio.ensure_future(self.ownership.settled.wait())
        both: list[asyncio.Future[Any]] = [settled, self.failed]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._cancel([settled])
        if self.failed.done():
            self.failed.result()

    async def stop(self) -> None:
        """Drain, commit, release, close: in good order."""
        self._stopping = True
        if self._presence is not None:
            self._presence.leaving()
        await self.ownership.resign()
        await self._cancel([service for service in self._services if service.get_name() == "ownership"])
        await self._cancel(list(self._restarting.values()))
        await self.ownership.leave()
        await self._cancel(self._services)
        await self.committer.stop()
        if self._presence is not None:
            await self._presence.end()
        await self._close_logs()

    async def kill(self) -> None:
        """As if the process died: nothing is drained, committed or released."""
        self._stopping = True
        await self._cancel([*self._restarting.values(), *self._services])
        await self.committer.stop()
        await self.ownership.abandon()
        for task in self.tasks.values():
            await self._closing(task)
            await task.stop_lanes()
            task.close()
        self.tasks.clear()
        await self._close_logs()

    async def _close_logs(self) -> None:
        await self.standbys.close()
        for reader in self._logs.values():
            await reader.close()
        self._logs.clear()
        self._sources.clear()
        await self.writer.close()

    async def _be_asked(self, presence: Presence) -> None:
        """Hear questions about tables, and say where."""
        while True:
            try:
                presence.hears_at(await self._hear())
                return
            except BrokerError as error:
                self.complaints.warn("reply address", "questions cannot be heard, again in 1 s: %s", error)
                await self.settings.clock.sleep(1)

    async def _await_delays(self, delays: Delays) -> None:
        """The topic of delays is there from the first delayed message on."""
        self.delays_there = await delays.until_there()
        for task in self.tasks.values():
            if task.delayed is not None and self.delays_there:
                task.delayed.begin()

    def _run(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        service = asyncio.get_running_loop().create_task(coroutine, name=name)
        service.add_done_callback(self._service_done)
        self._services.append(service)

    def _service_done(self, service: asyncio.Task[Any]) -> None:
        if not service.cancelled() and (error := service.exception()) is not None:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """The worker cannot go on: whoever runs it learns why (`failed`)."""
        if not self.failed.done():
            log.critical("the worker cannot go on: %s", error, exc_info=error)
            self.failed.set_exception(error)
            self.failed.exception()  # retrieved: whoever waits gets it still

    @staticmethod
    async def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_task(
        self, key: TaskKey, opened: Callable[[], None], closing: Callable[[bool], Coroutine[Any, Any, None]]
    ) -> None:
        """Call back when this task runs here, and before it ceases to (True: it is given up in good order)."""
        self._on_task[key] = (opened, closing)

    async def _closing(self, task: Task, in_good_order: bool = False) -> None:
        hook = self._on_task.get(task.key)
        if hook is not None:
            await hook[1](in_good_order)

    # --- tasks -------------------------------------------------------------------------------------------------

    async def _open_task(self, key: TaskKey) -> None:
        async with self._turns[key]:
            group = self._groups[key[0]]
            task = Task(self, group.name, key[1], group.partitions, group.agents, group.tables)
            task.failed = lambda error: self._task_failed(task, error)
            self.tasks[key] = task
            try:
                await self._start_task(task)
            except Exception as error:
                self._task_failed(task, error)

    async def _start_task(self, task: Task) -> None:
        await task.open()
        self.committer.tasks[task.journal] = task
        self.committer.soon()
        hook = self._on_task.get(task.key)
        if hook is not None:
            hook[0]()

    async def _close_task(self, key: TaskKey, in_good_order: bool) -> None:
        async with self._turns[key]:
            await self._close_here(key, in_good_order)

    async def _close_here(self, key: TaskKey, in_good_order: bool) -> None:
        task = self.tasks.pop(key, None)  # first: what fails while a restart is being cancelled begins no other
        if task is None:
            return
        self._closing_down.add(key)
        try:
            restarting = self._restarting.pop(key, None)
            if restarting is not None:
                await self._cancel([restarting])
            await self._closing(task, in_good_order)
            if in_good_order and task.journal in self.committer.tasks:
                await task.drain()
                await self.committer.finish(task)
                await task.settle()
            await task.stop_lanes()
            if in_good_order and self.committer.tasks.get(task.journal) is task:
                await self.committer.finish(task)  # what finished while the others were being cancelled
                await self.committer.release(task)
        except asyncio.CancelledError:  # told not to wait: nobody else knows of this task any more
            await task.stop_lanes()
            raise
        finally:
            self.committer.tasks.pop(task.journal, None)
            task.close()
            self._closing_down.discard(key)
            if key in self._standing_by and not self._stopping:
                self.stand_by(self._standing_by)

    def _task_failed(self, task: Task, error: BaseException) -> None:
        """A commit was refused or nobody knows, a store broke, a rollback is wanted: start over from the journal."""
        self.committer.tasks.pop(task.journal, None)
        if self._stopping or task.key in self._restarting or self.tasks.get(task.key) is not task:
            return
        if isinstance(error, ConfigurationError):
            self.give_up(error)
            return
        self._restarting[task.key] = asyncio.get_running_loop().create_task(
            self._restart(task, error), name=f"restart {task.group}/{task.index}", context=self.context.copy()
        )

    async def _restart(self, task: Task, error: BaseException) -> None:
        """Until it runs. Whoever closes the task meanwhile cancels this."""
        try:
            while True:
                await self._closing(task)
                await task.stop_lanes()
                if not isinstance(error, RolledBack):
                    delay = self._backoff(task, error)
                    if delay is None:
                        return
                    await self.settings.clock.sleep(delay)
                if isinstance(error, StoreError):
                    task.forget_store(error)
                try:
                    if not self.ownership.holds(task.key):  # who watches that closes the task, if it lasts
                        raise BrokerError("another worker may own it")
                    await self._start_task(task)
                    return
                except ConfigurationError as refused:
                    self.give_up(refused)
                    return
                except Exception as again:
                    error = again
        finally:
            self._restarting.pop(task.key, None)

    def _backoff(self, task: Task, error: BaseException) -> float | None:
        """Seconds until the next try; None once there were too many without a commit in between."""
        count, commits = self._failures.get(task.key, (0, -1))
        count = count + 1 if commits == task.commits else 1
        self._failures[task.key] = (count, task.commits)
        known = isinstance(error, BrokerError | StoreError)
        if count > RESTARTS and not known:
            self.give_up(error)
            return None
        delay = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count - 1, 10))
        if isinstance(error, Fenced):
            delay = max(delay, AFTER_FENCED)
        says = ("task %s/%d starts over in %.2f s: %s", *task.key, delay, error or type(error).__name__)
        if isinstance(error, StoreDamaged):
            log.info(*says)  # the store itself has warned, or will as it sets aside what is damaged
        elif known:
            self.complaints.warn(f"restart: {type(error).__name__}", *says)
        else:
            log.warning(*says, exc_info=error)
        return delay * random.Random(f"{self.me}{task.key}{count}").uniform(0.5, 1.0)

    def serving(self, group: str, index: int) -> Task | None:
        """The task, if this worker may serve reads of its tables."""
        task = self.tasks.get((group, index))
        if task is None or task.journal not in self.committer.tasks or not self.ownership.holds(task.key):
            return None
        return task

    def copy_of(self, group: str, index: int) -> Store | None:
        """What this worker has of a task's state: as a standby, or as an owner that may not serve it (yet)."""
        task = self.tasks.get((group, index))
        return self.standbys.store(group, index) if task is None else task.store

    def joins_commits(self, destination: Destination) -> bool:
        """Whether outputs to this destination may be part of the commit itself; else they go through an outbox."""
        return self.writer.atomic_outputs and destination[1] >= 0

    def room(self, destination: Destination) -> int | None:
        """The largest message, in bytes, that an event may send there: an outbox adds a header of its own."""
        if self.message_bytes is None or (self.joins_commits(destination) and self.commit_messages is None):
            return self.message_bytes
        return self.message_bytes - HEADER_BYTES

    def room_for_rows(self) -> int:
        """Bytes that each table of each task may keep as Python objects: they share evenly."""
        return self.settings.rows_bytes // max(1, sum(len(task.tables) for task in self.tasks.values()))

    def kept_elsewhere(self, group: str, store: Store) -> list[str]:
        """Which tables and positions of other groups have rows in this group's store: they were moved between two."""
        found: list[str] = []
        for other in self._groups.values():
            if other.name == group:
                continue
            for table in other.tables:
                start = prefix(table.name)
                if next(iter(store.scan(start, below(start))), None) is not None:
                    found.append(f"table {table.name!r}")
            found.extend(
                f"agent {agent.name!r}'s position in {source.topic.name!r}"
                for agent in other.agents
                for source in agent.sources
                if store.get(reached_key(f"{agent.name}/{source.topic.name}")) is not None
            )
        return found

    # --- what tasks use ------------------------------------------------------------------------------------------

    def journal_topic(self, group: str) -> str:
        return f"{self.app_id}-journal-{group}"

    async def log(self, topic: str) -> Log:
        """One shared reader a topic, for looking things up."""
        if topic not in self._logs:
            self._logs[topic] = await self.new_log(topic)
        return self._logs[topic]

    async def new_log(self, topic: str) -> Log:
        """A reader of the caller's own."""
        assert isinstance(self.transport, Logs)
        return await self.transport.log(topic)

    def open_store(self, group: str, index: int) -> Store:
        """Of a task that this worker is to run: its standby's, if it was one."""
        return self.standbys.take((group, index)) or self._open_store(group, index)

    def _open_store(self, group: str, index: int) -> Store:
        return self._stores.open(f"{self.app_id}-{group}-{index}")

    def stand_by(self, keys: Collection[TaskKey], coming: Collection[TaskKey] = ()) -> None:
        """See `StandBy`. A task that runs here is followed when it has ceased to."""
        self._standing_by = frozenset(keys)
        if self._presence is not None:
            self._presence.standing_by(self._standing_by)
        coming = self.standbys.keys.intersection(coming)
        self.standbys.follow((self._standing_by | coming) - self.tasks.keys() - self._closing_down)

    async def start_position(self, input_: TopicInput) -> Position | None:
        start = input_.topic.start
        reader = await self.log(input_.topic.name)
        if start == "earliest":
            return None
        if start == "latest":
            return (await reader.bounds(input_.partition)).last
        return await reader.find(input_.partition, round(start * 1000))

    def fetch(self, agent: AgentTask, input_: TopicInput) -> None:
        key = (agent.plan.name, input_.topic.name)
        if key not in self._sources:
            self._sources[key] = Source(input_.topic.name, self.new_log, self.settings, self.complaints)
            self._run(self._sources[key].run(), f"source {key[0]} {key[1]}")
        self._sources[key].add(input_)

    def fetch_more(self, input_: TopicInput) -> None:
        self._sources[(input_.agent.plan.name, input_.topic.name)].more(input_)

    def stop_fetching(self, input_: TopicInput) -> None:
        source = self._sources.get((input_.agent.plan.name, input_.topic.name))
        if source is not None:
            source.remove(input_)
