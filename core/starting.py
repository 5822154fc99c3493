"""From a declared app to a running one: meet the broker, check what the app needs, create topics, start the parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from .channel import TopicInfo, Transport
from .dead_letters import dead_letter_topic
from .declaring import declare, delays_topic
from .errors import BrokerError, ConfigurationError
from .grouping import LEADER_GROUP, by_channel, groups_of, place_tables
from .mirror import Mirror, Mirrors, MirrorTable
from .needs import check_needs, guarantee_of
from .plan import Destination
from .registry import load_mirrors, load_stores, load_transport
from .runtime import delays, replies
from .runtime.clockwork import Clockwork
from .runtime.delays import Delays
from .runtime.queue_host import QueueRunner
from .runtime.recovery import Recovering
from .runtime.running import Running
from .runtime.settings import Settings
from .runtime.worker import Worker
from .signing import signer_of
from .store import Stores

if TYPE_CHECKING:
    from .app import App

__all__ = ["client_running", "looking", "mirrored", "worker_running"]

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
        place_tables(app)
        app.delays = delays_topic(app, transport, existing) if app.id + delays.SUFFIX in existing else None
        running = Running(app, app.id, transport, app.clock, app.topics, app.lease, signer_of(app.secret))
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
            if by_channel(source.topic, running.transport)
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
    existing = await declare(app, transport)
    running = Running(app, app.id, transport, app.clock, app.topics, app.lease, signer_of(app.secret))
    running.guarantee = guarantee_of(app, transport)
    if running.has_log:
        running.reply_partitions = existing[app.id + replies.SUFFIX].partitions
    if app.delays is not None:
        exists = app.delays.name in existing
        running.delays = Delays(
            app.delays, exists, transport, running.roster, running.send, app.clock, running.message_bytes
        )
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
        rows_bytes=app.rows_mb << 20,
        remember_ids=app.remember_ids,
        worker_id=app.worker_id,
        zone=app.zone,
        assignor=app.assignor,
        signer=running.signer,
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
        app.topics,
        dead_letters,
        running.send_any,
        running.roster,
        running.hear_answers,
        running.delays,
        recovering,
    )
