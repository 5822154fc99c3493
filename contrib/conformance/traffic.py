"""Producers and members of a group at work, while a property does its worst to them; everything goes into a history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from thalweg.channel import Channel, TopicSpec, Transport
from thalweg.errors import BrokerError, StaleDelivery
from thalweg.message import Delivery, Message

from .history import History
from .trial import Trial

__all__ = ["Member", "Traffic"]


class Member:
    """One consumer. away: it may have lost what it has in hand; ended: it takes no more."""

    def __init__(self, name: str, transport: Transport, channel: Channel) -> None:
        self.name, self.transport, self.channel = name, transport, channel
        self.ended = False


class Traffic:
    """pace: whether producers and members take their time, so that what a property does falls in between."""

    def __init__(self, trial: Trial, topic: TopicSpec, keys: int = 6) -> None:
        self.trial, self.topic = trial, topic
        self.history = History(not topic.queue, trial.rig.counts_survive_restarts)
        self.members: list[Member] = []
        self._keys = [f"key{number}" for number in range(keys)]
        self._producers: list[asyncio.Task[None]] = []
        self._working: list[asyncio.Task[None]] = []
        self._stopped = False
        self._named = 0

    async def produce(self, channel: Channel, count: int) -> None:
        """Starts to put so many messages, in puts of one to five."""
        self._named += 1
        self._producers.append(self.trial.start(self._produce(f"p{self._named}", channel, count)))

    async def join(self, transport: Transport | None = None) -> Member:
        """Starts one more member of the group."""
        transport = transport or await self.trial.open()
        self._named += 1
        member = Member(f"m{self._named}", transport, await self.trial.channel(self.topic, transport=transport))
        self.members.append(member)
        self._working.append(self.trial.start(self._work(member)))
        return member

    async def leave(self, member: Member) -> None:
        """It closes its channel in the middle of what it does."""
        member.ended = True
        self.history.given_back(member.name, "closed")
        self.members.remove(member)
        await member.channel.close()

    async def kill(self, member: Member) -> None:
        member.ended = True
        self.history.given_back(member.name, "killed")
        self.members.remove(member)
        await self.trial.rig.crash(member.transport)

    async def hang(self, member: Member) -> None:
        self.history.given_back(member.name, "hangs")
        await self.trial.rig.hang(member.transport)

    async def resume(self, member: Member) -> None:
        self.history.given_back(member.name, "went on")
        await self.trial.rig.resume(member.transport)

    def disturbed(self, why: str) -> None:
        """Whatever any member has in hand may be another's by now."""
        for member in self.members:
            self.history.given_back(member.name, why)

    async def pass_time(self, seconds: float) -> None:
        """Of a queue, what a member has in hand meanwhile may outlive its lease."""
        for _ in range(8):
            await self.trial.rig.pass_time(seconds / 8)
            if self.topic.queue:
                self.disturbed("time passes")

    async def some(self, count: int) -> None:
        """Until so many more messages are settled, or all are."""
        goal = len(self.history.settled) + count
        await self._until(lambda: len(self.history.settled) >= goal or self._all_settled(), f"{count} more messages")

    async def finish(self) -> None:
        """Until every put has ended and every message that was acknowledged is settled; then judge."""
        try:
            await self._until(self._all_settled, "all messages to be settled")
            if self.history.acknowledged - self.history.settled:  # time for those that were not settled to come again
                await self.pass_time(self.trial.rig.lease * 1.3)
        except AssertionError:
            self.history.check()  # says which are missing
            raise
        finally:
            self._stopped = True
        ending = asyncio.gather(*self._producers, *self._working)
        async with self.trial.patience("producers and members to end"):
            while not ending.done():
                await self.trial.step()
        await ending
        self.history.check()

    async def _until(self, reached: Callable[[], bool], what: str) -> None:
        """Patience ends when nothing has been settled for so long."""
        while not reached():
            before = len(self.history.settled)
            async with self.trial.patience(what):
                while len(self.history.settled) == before and not reached():
                    await self._tick()

    def _all_settled(self) -> bool:
        open_ones = self.history.acknowledged - self.history.settled - self.history.uncertain
        return all(task.done() for task in self._producers) and not open_ones

    async def _tick(self) -> None:
        for task in (*self._producers, *self._working):
            if task.done():
                task.result()  # raises what ended it
        await self.trial.step()

    async def _produce(self, name: str, channel: Channel, count: int) -> None:
        dice, sent = self.trial.dice, 0
        while sent < count:
            batch = [(f"{name}-{sent + n}", dice.choice(self._keys)) for n in range(dice.randint(1, 5))]
            sent += len(batch)
            began, outcome = self.history.now(), "done"
            try:
                await channel.put([Message(message.encode(), key.encode()) for message, key in batch])
            except BrokerError:
                outcome = "failed"
            for message, key in batch:
                self.history.put(message, key, name, began, outcome)
            if outcome == "failed" or dice.random() < 0.3:
                await self.trial.step()

    async def _work(self, member: Member) -> None:
        dice = self.trial.dice
        while not self._stopped and not member.ended:
            began, since, asked = self.history.now(), self.history.now(), time.monotonic()
            try:
                deliveries = await member.channel.get(dice.randint(1, 8), 0.1)
            except BrokerError:
                await self.trial.step()
                continue
            for delivery in deliveries:
                self.history.delivered(_name(delivery), _key(delivery), member.name, delivery.attempts, began)
            if dice.random() < 0.5:
                await self.trial.step()
            await self._commit(member, deliveries)
            if time.monotonic() - asked > 0.7 * self.trial.rig.lease:  # this machine is too busy to keep a lease
                self.history.given_back(member.name, "slow", since)

    async def _commit(self, member: Member, deliveries: Sequence[Delivery]) -> None:
        """Tried until it is known how it went."""
        while deliveries and not member.ended and not self._stopped:
            began, outcome = self.history.now(), "done"
            try:
                await member.channel.commit(deliveries)
            except StaleDelivery:
                outcome = "stale"
            except BrokerError:
                outcome = "failed"
            if outcome == "stale" and len(deliveries) > 1:  # some are, the others are committed
                for delivery in deliveries:
                    await self._commit(member, [delivery])
                return
            for delivery in deliveries:
                self.history.committed(_name(delivery), member.name, began, outcome)
            if outcome != "failed":
                return
            await self.trial.step()


def _name(delivery: Delivery) -> str:
    return (delivery.record.value or b"").decode()


def _key(delivery: Delivery) -> str:
    return (delivery.record.key or b"").decode()
