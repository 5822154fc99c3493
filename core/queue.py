"""Queues: work for competing consumers, each message acknowledged by itself; at least once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

from . import headers as names
from .channel import Capability
from .composing import encoded, named
from .duration import seconds
from .errors import ConfigurationError, MissingCapability
from .headers import UserHeaders
from .journal.rows import Waiting
from .message import Headers, QueueMessage
from .plan import TopicPlan
from .runtime.context import current_lane
from .topic import checked_id, delays_of

if TYPE_CHECKING:
    from .app import App
    from .stream import Stream

__all__ = ["Queue"]

K = TypeVar("K")
V = TypeVar("V")


class Queue(Generic[K, V]):
    """Made by `app.queue(…)`. More consumers than partitions may share one; a failed message holds up no other."""

    def __init__(self, app: App, plan: TopicPlan, check: tuple[type | None, Callable[[object], None]]) -> None:
        self._app, self._plan = app, plan
        self._exact, self._check = check[0], named(check[1], f"queue {plan.name!r}")

    @property
    def name(self) -> str:
        return self._plan.name

    async def send(
        self,
        value: V,
        *,
        key: K | None = None,
        headers: UserHeaders | None = None,
        priority: int = 0,
        delay: float | timedelta = 0.0,
        expires: float | timedelta | None = None,
        id: str | None = None,
    ) -> None:
        """Send one message; durable when this returns (inside an event: sent after its commit, at least once).

        priority: 0 to 9, higher first. delay: seconds before it may be delivered. expires: seconds until it is dropped
        undelivered. id: it goes by a task of the app, and of all with this id only the first that came in the last
        day (`App(remember_ids=)`) goes on to the queue; it is the `event.id` of whoever handles it.
        Raises MissingCapability where the broker has no such thing (an id needs a log).
        """
        if value.__class__ is not self._exact:
            self._check(value)
        if key is None and self._plan.key_of is not None:
            key = self._plan.key_of(value)
        if not 0 <= priority <= 9:
            raise ConfigurationError(f"queue {self.name!r}: priority={priority}; expected 0 to 9")
        raw_id = None if id is None else checked_id(id, f"queue {self.name!r}")
        wait = seconds(delay, "delay")
        life = None if expires is None else seconds(expires, "expires")
        running = self._app.running
        for used, capability in (
            (priority, Capability.PRIORITY),
            (wait, Capability.DELAY),
            (life is not None, Capability.EXPIRY),
        ):
            if used and capability not in running.transport.capabilities:
                raise MissingCapability(
                    f"queue {self.name!r}: {capability.value} is not offered by {running.transport.description}; "
                    "brokers that do: memory://, sqlite:///file"
                )
        message = QueueMessage(
            encoded(self._plan.value, value, f"queue {self.name!r}"),
            None if key is None else encoded(self._plan.key, key, f"queue {self.name!r}, key"),
            self._identified(names.stripped(headers), raw_id),
            round(self._app.now() * 1000),
            priority,
            wait,
            life,
        )
        running.check_head(f"queue {self.name!r}", message.head)
        running.check_size(f"queue {self.name!r}", message)
        lane = current_lane.get()
        if lane is not None and not (lane.app is self._app and lane.open):
            lane = None
        if raw_id is not None:
            once = self.name.encode() + b"\0" + raw_id
            delays = delays_of(running, f"queue {self.name!r}: send(id=)")
            await delays.put_once(f"queue {self.name!r}", once, Waiting(0, self.name, QUEUE, message), lane)
        elif lane is not None:
            lane.send((self.name, QUEUE), message)
        else:
            await running.put(self.name, [message])

    @staticmethod
    def _identified(headers: Headers, id: bytes | None) -> Headers:
        return names.identified(headers) if id is None else (*headers, (names.ID, id))

    def stream(self) -> Stream[V]:
        from .stream import Stream

        return Stream.of(self._app, self._plan)

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"


QUEUE = -1
"""Stands for the partition in the destination of a message to a queue."""
