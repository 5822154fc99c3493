"""Topics at the broker: what is missing is created, what is there is learned, and what would be orphaned refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from .capabilities import Logs
from .channel import Capability, TopicInfo, TopicSpec, Transport
from .codec import codec_for
from .dead_letters import dead_letter_topic
from .errors import ConfigurationError
from .grouping import LEADER_GROUP, groups_of, place_tables
from .journal.leftovers import names_in, orphaned
from .partitioner import partitioner_for
from .plan import TopicPlan
from .runtime import delays, replies, roster

if TYPE_CHECKING:
    from .app import App

__all__ = ["check_leftovers", "declare", "delays_topic"]


async def declare(app: App, transport: Transport) -> Mapping[str, TopicInfo]:
    """Create what is missing, learn every topic's partition count, and put tables with their topics.

    Returns what is there, by name, but for topics of the program that were just made.
    """
    has_log = Capability.LOG in transport.capabilities
    plans = list(app.topics.values())
    of_changes = {table.changes: table for table in app.tables.values() if table.changes is not None}
    await _declare_topics(transport, [plan for plan in plans if plan.name not in of_changes])
    place_tables(app)
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
    app.delays = delays_topic(app, transport, existing)
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


def delays_topic(app: App, transport: Transport, existing: Mapping[str, TopicInfo]) -> TopicPlan | None:
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
