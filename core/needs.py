"""What an app needs of its transport, and what it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .capabilities import Logs, require
from .channel import Capability, Transport
from .errors import ConfigurationError
from .runtime.mutex import check_locks
from .schedule import Background, Crontab, Timer

if TYPE_CHECKING:
    from .app import App

__all__ = ["check_needs", "guarantee_of"]

LOG_URLS = "memory://, sqlite:///file, redis://host, nats://host, kafka://host, amqp://host"


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
