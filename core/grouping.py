"""What belongs together: agents and tables of one partition count form a group, whose tasks are shared out as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .channel import Capability, Transport
from .errors import ConfigurationError
from .plan import TopicPlan
from .runtime.delayed import delays_agent
from .runtime.worker import Group
from .schedule import Background, Crontab, Timer

if TYPE_CHECKING:
    from .app import App

__all__ = ["LEADER_GROUP", "by_channel", "groups_of", "place_tables", "topics_of"]

LEADER_GROUP = "leader"


def groups_of(app: App, transport: Transport, delays: TopicPlan | None) -> Mapping[str, Group]:
    """Agents by the partition count of what they read; tables by theirs; `delays`, where delayed messages wait."""
    groups: dict[str, Group] = {}

    def group(partitions: int) -> Group:
        return groups.setdefault(str(partitions), Group(str(partitions), partitions))

    for name, agent in app.agents.items():
        topics = [source.topic for source in agent.plan.sources if not by_channel(source.topic, transport)]
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


def by_channel(topic: TopicPlan, transport: Transport) -> bool:
    """Whether a source is read through a Channel: every queue, and topics where the transport has no log."""
    return topic.spec.queue or Capability.LOG not in transport.capabilities


def place_tables(app: App) -> None:
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


def topics_of(app: App, table: str) -> Sequence[TopicPlan]:
    """What the agents read whose code mentions the table; if none does, what all agents read."""
    users = [agent for agent in app.agents.values() if table in agent.plan.tables] or app.agents.values()
    return [source.topic for agent in users for source in agent.plan.sources if not source.topic.spec.queue]


def _by_use(app: App, table: str) -> int:
    """The partitions of the topics that the agents read which use the table, if these agree."""
    counts = {topic.partitions for topic in topics_of(app, table) if topic.partitions}
    return counts.pop() if len(counts) == 1 else app.default_partitions
