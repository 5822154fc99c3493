"""The program with all that one in production has: a queue, questions with answers, a crontab of the leader's."""

from __future__ import annotations

from collections.abc import AsyncIterator

from thalweg import Stream

from chaos.history import History
from chaos.program import Account, Options, Program
from chaos.trace import Trace
from chaos.watching import Watcher

__all__ = ["LETTER", "Production", "ProductionWatcher"]

LETTER = 20
"""One payment of so many is followed by a letter."""


class Production(Program):
    def __init__(self, options: Options, trace: Trace | None = None) -> None:
        super().__init__(options, trace)
        app = self.app
        letters = app.queue("letters", value=int)
        posted = app.topic("posted", key=str, value=int)
        minutes = app.topic("minutes", key=str, value=float)
        questions = app.topic("questions", key=str, value=str)

        @app.agent(self.payments)
        async def announce(stream: Stream) -> None:
            async for payment in stream:
                if payment.number % LETTER == 0:
                    await letters.send(payment.number)

        @app.handler(letters)
        async def post(number: int) -> None:
            await posted.send(number, key=str(number))

        @app.agent(questions)
        async def tell(stream: Stream[str]) -> AsyncIterator[Account]:
            async for name in stream:
                yield self.accounts[name]

        @app.crontab("* * * * *", on_leader=True)
        async def minute() -> None:
            await minutes.send(app.now(), key="minute")

        self.tell = tell


class ProductionWatcher(Watcher):
    """Reads also which letters were posted, and what the leader's crontab sent each minute."""

    def __init__(self, options: Options, keys: int, history: History) -> None:
        super().__init__(options, keys, history)
        self.unposted: set[int] = set()
        self.posted_early: set[int] = set()
        self.posted = 0
        self.minutes = self.app.table("minutes-seen", key=str, value=list[float], default=list)
        self.ticks = 0

        @self.app.agent(self.app.topic("posted", key=str, value=int))
        async def posted(stream: Stream[int]) -> None:
            async for number in stream:
                self.posted += 1
                if number in self.unposted:
                    self.unposted.discard(number)
                elif self.open or number in self.uncertain:
                    self.posted_early.add(number)

        @self.app.agent(self.app.topic("minutes", key=str, value=float))
        async def minutes(stream: Stream[float]) -> None:
            async for event in stream.events():
                self.minutes[event.key].append(event.value)
                self.check_minutes(self.minutes[event.key])

    def check_minutes(self, times: list[float]) -> None:
        """A run for each minute: none more, and none less."""
        self.ticks = len(times)
        passed = int(times[-1] // 60 - times[0] // 60)
        if len(times) > passed + 1:
            self.history.wrong(f"the crontab ran {len(times)} times in {passed} minutes: {times[-3:]}")
        if len(times) > 1 and times[-1] - times[-2] > 150:
            self.history.wrong(f"the crontab did not run for {times[-1] - times[-2]:.0f} s")

    def sent(self, numbers: range) -> None:
        super().sent(numbers)
        for number in numbers:
            if number % LETTER == 0 and number not in self.posted_early:
                self.unposted.add(number)
            self.posted_early.discard(number)

    def has_all(self) -> bool:
        return super().has_all() and not self.unposted
