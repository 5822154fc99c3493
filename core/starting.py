"""From a declared app to a running one: meet the broker, check what the app needs, create topics, start the parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from .capabilities import Logs, require
from .channel import Capability, TopicInfo, TopicSpec, Transport
from .codec import codec_for
from .dead_letters import dead_letter_topic
from .errors import BrokerError, ConfigurationError
from .journal.leftovers import names_in, orphaned
from .mirror import Mirror, Mirrors, MirrorTable
from .partitioner import partitioner_for
from .plan import Destination, TopicPlan
from .registry import load_mirrors, load_stores, load_transport
from .runtime import delays, replies, roster
from .runtime.clockwork import Clockwork
from .runtime.delayed import delays_agent
from .runtime.delays import Delays
from .runtime.mutex import check_locks
from .runtime.queue_host import QueueRunner
from .runtime.recovery import Recovering
from .runtime.running import Running
from .runtime.settings import Settings
from .runtime.worker import Group, Worker
from .schedule import Background, Crontab, Timer
from .store import Stores

if TYPE_CHECKING:
    from .app import App

__all__ = [
    "check_leftovers",
    "check_needs",
    "client_running",
    "groups_of",
    "guarantee_of",
    "looking",
    "mirrored",
    "topics_of",
    "worker_running",
]

log = logging.getLogger("thalweg")

LOG_URLS = "memory://, sqlite:///file, redis://host, nats://host, kafka://host, amqp://host"
LEADER_GROUP = "leader"
SNAPSHOT_BYTES = 512 * 1024
"""A journal below this gets no snapshot: it replays fast as it is. See `Snapshotter`."""


@asynccontextmanager
async def client_running(app: App) -> AsyncIterator[App]:
    """Connected, for sends and questions; no agent runs."""
    if app.is_running:
        raise ConfigurationError(f"app {app.id!r} runs already")
    app.load()
    async with AsyncExitStack() as stack:
        await _connect(app, stack, load_transport(app.broker))
        yield app


@asynccontextmanager
async def looking(app: App, transport: Transport | None = None) -> AsyncIterator[Mapping[str, TopicInfo]]:
    """Connected, to look and not to touch: nothing is checked, created or run. Gives what exists, by name.

    A topic that does not exist yet counts with the partitions that it would get.
    """
    if app.is_running:
        raise ConfigurationError(f"app {app.id!r} runs already")
    app.load()
    transport = transport or load_transport(app.broker)
    async with AsyncExitStack() as stack:
        await transport.open()
        stack.push_async_callback(transport.close)
        existing = {info.name: info for info in await transport.topics()}
        existing |= await _of_others(app, transport, existing)
        for plan in app.topics.values():
            found = existing.get(plan.name)
            plan.partitions = found.partitions if found else plan.spec.partitions or plan.spec.default_partitions
        _place_tables(app)
        app.delays = _delays_topic(app, transport, existing) if app.id + delays.SUFFIX in existing else None
        running = Running(app, app.id, transport, app.clock, app.topics, app.lease)
        running.guarantee = guarantee_of(app, transport)
        stack.push_async_callback(running.close)
        app.set_running(running)
        stack.callback(app.set_running, None)
        yield existing


async def _of_others(app: App, transport: Transport, listed: Mapping[str, TopicInfo]) -> dict[str, TopicInfo]:
    """What is declared with declare=False and exists, though under a name of its own, so that it is not listed."""
    found: dict[str, TopicInfo] = {}
    for plan in app.topics.values():
        if not plan.spec.declare and plan.name not in listed:
            with suppress(BrokerError):  # there is none
                (found[plan.name],) = await transport.declare([plan.spec])
    return found


@asynccontextmanager
async def worker_running(
    app: App,
    *,
    transport: Transport | None = None,
    stores: Stores | None = None,
    failures: Callable[[str, BaseException], None] | None = None,
    mirror_urls: bool = True,
    recovering: Callable[[Recovering | None], None] | None = None,
) -> AsyncIterator[Worker]:
    """The whole worker: started in order, stopped in reverse. mirror_urls: False feeds only those given as objects.

    recovering: told now and then, from before the worker has started, how far it is with reading journals.
    """
    if app.is_running:
        raise ConfigurationError(f"app {app.id!r} runs already")
    app.load()
    async with AsyncExitStack() as stack:
        running = await _connect(app, stack, transport or load_transport(app.broker))
        if app.lifespan is not None:
            await stack.enter_async_context(app.lifespan(app))
        stores = stores or load_stores(app.store)
        stack.callback(stores.close)
        stack.callback(app.close_threads)
        mirrors = await _open_mirrors(app, stack, mirror_urls)
        worker = _make_worker(app, running, stores, mirrors, failures, recovering)
        running.worker = worker
        queues = [
            QueueRunner(worker, agent.plan, source)
            for agent in app.agents.values()
            for source in agent.plan.sources
            if _by_channel(source.topic, running.transport)
        ]
        clockwork = Clockwork(worker, app.timers, app.crontabs, app.backgrounds, leader_task=(LEADER_GROUP, 0))
        running.clockwork = clockwork
        stop = _Stop(worker, queues, clockwork)
        stack.push_async_callback(stop)
        await worker.start()
        for queue in queues:
            await queue.start()
        await clockwork.start()
        worker.stop_by_kill = stop.by_kill
        yield worker


class _Stop:
    """Stops the parts in reverse order, once: in good order, or as if the process had died."""

    def __init__(self, worker: Worker, queues: Sequence[QueueRunner], clockwork: Clockwork) -> None:
        self._worker, self._queues, self._clockwork = worker, queues, clockwork
        self._done = False

    async def __call__(self) -> None:
        if self._done:
            return
        self._done = True
        try:
            await self._clockwork.stop()
            await asyncio.gather(*(queue.stop() for queue in self._queues))
            await self._worker.stop()
        except asyncio.CancelledError:  # whoever stops us will not wait for open events
            await self.by_kill()
            raise

    async def by_kill(self) -> None:
        self._done = True
        await self._clockwork.stop()
        await asyncio.gather(*(queue.kill() for queue in self._queues))
        await self._worker.kill()


async def _connect(app: App, stack: AsyncExitStack, transport: Transport) -> Running:
    await transport.open()
    stack.push_async_callback(transport.close)
    app.last_transport = transport  # what a memory:// broker holds lasts as long as somebody refers to it: the app
    check_needs(app, transport)
    existing = await _declare(app, transport)
    running = Running(app, app.id, transport, app.clock, app.topics, app.lease)
    running.guarantee = guarantee_of(app, transport)
    if running.has_log:
        running.reply_partitions = existing[app.id + replies.SUFFIX].partitions
    if app.delays is not None:
        exists = app.delays.name in existing
        running.delays = Delays(app.delays, exists, transport, running.roster, running.send, app.clock)
    stack.push_async_callback(running.close)
    app.set_running(running)
    stack.callback(app.set_running, None)
    await _start_replicas(app, running, stack)
    return running


async def _start_replicas(app: App, running: Running, stack: AsyncExitStack) -> None:
    """Replicated tables are complete as of now before anything else begins."""
    loop = asyncio.get_running_loop()
    for replica in app.replicas:
        replica.clear()
        ready = loop.create_future()
        reader = await running.open_log(replica.topic_name)
        following = loop.create_task(replica.follow(reader, ready), name=f"thalweg table {replica.name}")
        stack.push_async_callback(_cancelled, following)
        both: list[asyncio.Future[None]] = [ready, following]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _by_channel(topic: TopicPlan, transport: Transport) -> bool:
    """Whether a source is read through a Channel: every queue, and topics where the transport has no log."""
    return topic.spec.queue or Capability.LOG not in transport.capabilities


def check_needs(app: App, transport: Transport) -> None:
    """Refuse in a sentence what this transport cannot do; never a silent downgrade."""

    def need_log(feature: str) -> None:
        require(transport, Capability.LOG, Logs, feature, LOG_URLS)  # type: ignore[type-abstract]

    for name in app.tables:
        need_log(f"table {name!r}")
    scheduled: list[Timer | Crontab | Background] = [*app.timers, *app.crontabs, *app.backgrounds]
    for part in scheduled:
        if part.on_leader:
            need_log(f"{part.what} with on_leader=True")
    for name in app.exclusives:
        check_locks(transport, f"@app.exclusive({name!r})")
    for name, agent in app.agents.items():
        if len(agent.plan.sources) > 1 and any(source.topic.spec.queue for source in agent.plan.sources):
            raise ConfigurationError(f"agent {name!r} merges a queue with other sources; give each its own agent")
    readers: dict[str, str] = {}
    for name, agent in app.agents.items():
        for source in agent.plan.sources:
            if source.topic.spec.queue and readers.setdefault(source.topic.name, name) != name:
                raise ConfigurationError(
                    f"agents {readers[source.topic.name]!r} and {name!r} read the queue {source.topic.name!r}: each "
                    "message would go to one of them by chance. Give each its own queue, or use a topic"
                )
    if app.wanted_guarantee == "exactly_once":
        need_log("guarantee='exactly_once'")
        for name, agent in app.agents.items():
            if agent.plan.tables and any(source.topic.spec.queue for source in agent.plan.sources):
                raise ConfigurationError(
                    f"agent {name!r} reads a queue, which is at least once, under guarantee='exactly_once'"
                )


def guarantee_of(app: App, transport: Transport) -> str:
    if app.wanted_guarantee == "at_least_once" or Capability.LOG not in transport.capabilities:
        return "at_least_once"
    return "exactly_once"


async def _declare(app: App, transport: Transport) -> Mapping[str, TopicInfo]:
    """Create what is missing, learn every topic's partition count, and put tables with their topics.

    Returns what is there, by name, but for topics of the program that were just made.
    """
    has_log = Capability.LOG in transport.capabilities
    plans = list(app.topics.values())
    of_changes = {table.changes: table for table in app.tables.values() if table.changes is not None}
    await _declare_topics(transport, [plan for plan in plans if plan.name not in of_changes])
    _place_tables(app)
    for name, table in of_changes.items():
        plan = app.topics[name]
        plan.spec = msgspec.structs.replace(plan.spec, partitions=table.partitions)
        await _declare_topics(transport, [plan])
        if plan.partitions != table.partitions:
            raise ConfigurationError(
                f"table {table.name!r} has {table.partitions} partitions, and the topic of its changes, {name!r}, has "
                f"{plan.partitions}: delete that topic, or give the table its old partition count"
            )
    existing = {info.name: info for info in await transport.topics()}
    app.delays = _delays_topic(app, transport, existing)
    if not has_log:
        internal: list[TopicSpec] = []
    else:
        internal = [
            TopicSpec(app.id + replies.SUFFIX, None, app.default_partitions, retention=600.0),
            TopicSpec(app.id + roster.SUFFIX, 1, retention=600.0),
        ]
        for group in groups_of(app, transport, app.delays).values():
            internal.append(TopicSpec(f"{app.id}-journal-{group.name}", group.partitions, truncated=True))
    internal.extend(
        TopicSpec(dead_letter_topic(app.id, plan.name), 1 if has_log else None, queue=not has_log, truncated=has_log)
        for plan in plans
    )
    made = {info.name: info for info in await transport.declare(internal)}
    if has_log:
        await check_leftovers(app, transport, existing)
    return existing | made


def _delays_topic(app: App, transport: Transport, existing: Mapping[str, TopicInfo]) -> TopicPlan | None:
    """Where delayed messages wait, once there are some: with tasks that the app has anyway, if it has any."""
    if Capability.LOG not in transport.capabilities or not app.topics:
        return None
    name = app.id + delays.SUFFIX
    if name in existing:
        partitions = existing[name].partitions
    else:
        groups = groups_of(app, transport, None).values()
        counts = [group.partitions for group in groups if group.name != LEADER_GROUP]
        partitions = app.default_partitions if app.default_partitions in counts else max(counts, default=1)
    spec = TopicSpec(name, None, partitions, truncated=True)
    raw = codec_for(bytes)
    return TopicPlan(spec, raw, raw, partitioner_for("murmur2"), "murmur2", partitions=partitions)


async def _declare_topics(transport: Transport, plans: Sequence[TopicPlan]) -> None:
    for plan, info in zip(plans, await transport.declare([plan.spec for plan in plans]), strict=True):
        plan.partitions = info.partitions


async def check_leftovers(
    app: App, transport: Transport, existing: Mapping[str, TopicInfo], everywhere: bool = False
) -> None:
    """State that lies in a journal of another partition count would be orphaned: refuse, naming the remedy.

    everywhere: look into the journals in use too, which reads all of them; a worker looks there as it opens each.
    """
    prefix = f"{app.id}-journal-"
    groups = groups_of(app, transport, app.delays)
    for info in existing.values():
        group = info.name.removeprefix(prefix)
        if not info.name.startswith(prefix) or not group.isdigit() or (group in groups and not everywhere):
            continue
        assert isinstance(transport, Logs)
        reader = await transport.log(info.name)
        try:
            names = await names_in(reader, range(info.partitions))
        finally:
            await reader.close()
        moved = [
            f"table {name!r}" for name, table in app.tables.items() if table.group != group and ("table", name) in names
        ]
        for agent in app.agents.values():
            moved.extend(
                f"agent {agent.name!r}'s position in {source.topic.name!r}"
                for source in agent.plan.sources
                if source.topic.group != group and ("input", f"{agent.name}/{source.topic.name}") in names
            )
        if moved:
            raise orphaned(moved, info.name, info.partitions)


def _place_tables(app: App) -> None:
    """A topic of changes has its table's partitions, and may be what another table is placed by: so, from one to the
    next.
    """
    app.resolve_partitions()
    for _ in app.tables:
        for name, table in app.tables.items():
            like = app.table_like[name]
            table.partitions = like.partitions if isinstance(like, TopicPlan) else like or _by_use(app, name)
            table.group = str(table.partitions)
            if table.changes is not None:
                app.topics[table.changes].partitions = table.partitions


def _by_use(app: App, table: str) -> int:
    """The partitions of the topics that the agents read which use the table, if these agree."""
    counts = {topic.partitions for topic in topics_of(app, table) if topic.partitions}
    return counts.pop() if len(counts) == 1 else app.default_partitions


def topics_of(app: App, table: str) -> Sequence[TopicPlan]:
    """What the agents read whose code mentions the table; if none does, what all agents read."""
    users = [agent for agent in app.agents.values() if table in agent.plan.tables] or app.agents.values()
    return [source.topic for agent in users for source in agent.plan.sources if not source.topic.spec.queue]


def groups_of(app: App, transport: Transport, delays: TopicPlan | None) -> Mapping[str, Group]:
    """Agents by the partition count of what they read; tables by theirs; `delays`, where delayed messages wait."""
    groups: dict[str, Group] = {}

    def group(partitions: int) -> Group:
        return groups.setdefault(str(partitions), Group(str(partitions), partitions))

    for name, agent in app.agents.items():
        topics = [source.topic for source in agent.plan.sources if not _by_channel(source.topic, transport)]
        if not topics:
            continue
        counts = {topic.name: topic.partitions for topic in topics}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{topic!r} has {count}" for topic, count in counts.items())
            raise ConfigurationError(
                f"agent {name!r} reads topics of different partition counts ({listed}); "
                "bring them to one count with .repartition(name=…, partitions=…)"
            )
        group(topics[0].partitions).agents.append(agent.plan)
    for table in app.tables.values():
        group(table.partitions).tables.append(table)
    if delays is not None:
        group(delays.partitions).agents.append(delays_agent(delays))
    scheduled: list[Timer | Crontab | Background] = [*app.timers, *app.crontabs, *app.backgrounds]
    if any(part.on_leader for part in scheduled):
        groups[LEADER_GROUP] = Group(LEADER_GROUP, 1)
    return groups


async def _open_mirrors(app: App, stack: AsyncExitStack, urls: bool) -> Mapping[str, Mirror]:
    """The mirror of each table that has one. Nothing connects yet."""
    opened: dict[str, Mirror] = {}
    for where, tables in mirrored(app):
        if isinstance(where, str) and not urls:
            continue
        database = load_mirrors(where)
        stack.push_async_callback(database.close)
        for table in tables:
            opened[table.name] = database.table(table)
    return opened


def mirrored(app: App) -> Sequence[tuple[str | Mirrors, Sequence[MirrorTable]]]:
    """What is mirrored where."""
    found: dict[object, tuple[str | Mirrors, list[MirrorTable]]] = {}
    for name, plan in app.tables.items():
        if plan.mirror is not None:
            where = plan.mirror
            key = where if isinstance(where, str) else id(where)
            table = MirrorTable(app.id, name, plan.partitions, plan.key_form, plan.value_form, plan.partition_of)
            found.setdefault(key, (where, []))[1].append(table)
    return list(found.values())


def _make_worker(
    app: App,
    running: Running,
    stores: Stores,
    mirrors: Mapping[str, Mirror],
    failures: Callable[[str, BaseException], None] | None,
    recovering: Callable[[Recovering | None], None] | None,
) -> Worker:
    settings = Settings(
        clock=app.clock,
        commit_interval=app.commit_interval,
        lease=app.lease,
        drain_timeout=app.drain_timeout,
        max_event_outputs=app.max_event_outputs,
        snapshot_bytes=SNAPSHOT_BYTES,
        exactly_once=running.guarantee == "exactly_once",
        remember_ids=app.remember_ids,
        worker_id=app.worker_id,
        zone=app.zone,
        assignor=app.assignor,
        failures=failures,
    )

    def dead_letters(topic: str, key: bytes | None) -> Destination:
        return dead_letter_topic(app.id, topic), 0

    return Worker(
        app,
        app.id,
        running.transport,
        stores,
        mirrors,
        settings,
        groups_of(app, running.transport, app.delays),
        "murmur2",
        running.replies.deliver,
        dead_letters,
        running.send_any,
        running.roster,
        running.hear_answers,
        running.delays,
        recovering,
    )
