"""A run of a timer or crontab on the leader: what it sends is kept until it ends, and joins the commit of its tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.clock import Clock
from thalweg.errors import MessageTooLarge, TooManyOutputs
from thalweg.message import Message
from thalweg.plan import Destination

if TYPE_CHECKING:
    from .tables import TablePlan
    from .worker import Worker

__all__ = ["ScheduledRun"]


class ScheduledRun:
    """Stands where an event's lane does for whatever the function calls. what: "crontab 'report'". id: of the tick."""

    def __init__(self, worker: Worker, what: str, id_: str) -> None:
        self.app = worker.app
        self.open = True
        self.outputs: list[tuple[Destination, Message]] = []
        self._worker, self._what, self._id = worker, what, id_
        self._clock: Clock = worker.settings.clock
        self._asks = 0

    @property
    def timestamp(self) -> int:
        """Of what it sends, in milliseconds: now, for the tick may be long past."""
        return round(self._clock.now() * 1000)

    def send(self, destination: Destination, message: Message) -> None:
        most = self._worker.settings.max_event_outputs
        if len(self.outputs) >= most:
            raise TooManyOutputs(
                f"{self._what}: one run sent more than max_event_outputs={most} messages. Send a message for each "
                "piece of the work, and let an agent go on from there"
            )
        room = self._worker.room(destination)
        if room is not None and message.size > room:
            raise MessageTooLarge(
                f"topic {destination[0]!r}: a message of {message.size} bytes is above the {room} that the broker "
                "leaves for what a run sends; nothing was sent"
            )
        self.outputs.append((destination, message))

    def view(self, plan: TablePlan) -> None:
        """Tables are written by events only."""

    def ask_id(self) -> str:
        """The id of the next question: the same if an heir repeats the run."""
        self._asks += 1
        return f"{self._id}/ask-{self._asks}"

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...
