"""What goes wrong, and when: drawn from a seed before it begins to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from .cluster import Cluster, Member
from .network import Weather

__all__ = ["Nemesis"]

MOST_WORKERS = 4


class Nemesis:
    """Lets workers come and go, in good order and not, for `seconds`; then everything is mended."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self._cluster, self._chance = cluster, chance
        self._lease = cluster.lease
        self.changes = 0
        """How often the workers that there are became others: each may move tasks."""
        self.jumped = False
        """Whether clocks were set: who sleeps until a time of day may notice as late as a minute after."""
        self._mending: list[Callable[[], None]] = []
        deeds = [self._crash, self._crash, self._pause, self._pause, self._cut, self._cut, self._leave, self._join]
        deeds += [self._storm, self._bad_line, self._jump, self._rolling_restart, self._forget_lock, self._deny]
        if cluster.named:
            deeds += [self._restart, self._restart, self._twin]
        self._deeds = deeds
        self.faultless = chance.random() < 0.05
        self._climate = None if chance.random() < 0.6 else chance.choice([0.02, 0.1, 0.2])
        """The share of calls that fail all the time."""

    async def rage(self, seconds: float) -> None:
        chance, loop = self._chance, self._cluster.loop
        end = loop.time() + seconds
        if self._climate is not None and not self.faultless:
            self._note(f"{self._climate:.0%} of all calls fail, now and then more")
            self._cluster.network.weather.failing = self._climate
        for _ in range(0 if self.faultless else chance.choice([1, 2, 3, 5, 8])):
            await asyncio.sleep(chance.random() * max(0.0, end - loop.time()) * 0.5)
            await chance.choice(self._deeds)()
        await asyncio.sleep(max(0.0, end - loop.time()))
        self._climate = None
        for member in self._cluster.members:
            member.clock.offset = 0.0
        self._calm(self._cluster.network.weather)
        for mend in self._mending:
            mend()
        self._mending.clear()
        if not [member for member in self._cluster.alive() if not member.leaving.is_set()]:
            self._join_one()

    # --- one worker ------------------------------------------------------------------------------------------

    def _victim(self) -> Member | None:
        sound = [member for member in self._cluster.members if member.sound]
        return self._chance.choice(sound) if sound else None

    async def _crash(self) -> None:
        if member := self._victim():
            self._note(f"{member.name} crashes")
            self.changes += 1
            member.crash()
            if self._chance.random() < 0.7:
                self._cluster.network.later(self._chance.choice([0.1, 1.0, 2.0]) * self._lease, self._join_one)

    async def _pause(self) -> None:
        if member := self._victim():
            seconds = self._chance.choice([0.1, 0.9, 1.0, 1.1, 1.5, 3.0]) * self._lease
            self._note(f"{member.name} stands still for {seconds:.1f} s")
            self.changes += 2
            member.pause()
            self._mend_after(seconds, lambda: self._unless_gone(member, member.resume, "goes on"))

    async def _cut(self) -> None:
        if member := self._victim():
            seconds = self._chance.choice([0.05, 0.5, 0.99, 1.01, 2.0]) * self._lease
            self._note(f"{member.name} is cut off for {seconds:.1f} s")
            self.changes += 2
            member.cut()
            self._mend_after(seconds, lambda: self._unless_gone(member, member.heal, "is connected again"))

    async def _leave(self) -> None:
        if member := self._victim():
            self._note(f"{member.name} leaves")
            self.changes += 1
            member.leave()

    async def _restart(self) -> None:
        """Under its own worker id, mostly before its place is given away."""
        if member := self._victim():
            crashes = self._chance.random() < 0.5
            self._note(f"{member.name} {'crashes' if crashes else 'is stopped'}, to come back")
            self.changes += 2
            if crashes:
                member.crash()
            else:
                member.leave()
            self._cluster.again(member.worker_id, self._chance.choice([0.1, 0.5, 0.9, 1.5]) * self._lease)

    async def _twin(self) -> None:
        """A second worker under an id that is taken: the newer one stays."""
        if (member := self._victim()) and len(self._cluster.alive()) < MOST_WORKERS:
            self._note(f"a second {member.worker_id}")
            self.changes += 2
            self._cluster.start(member.worker_id)

    async def _jump(self) -> None:
        if member := self._victim():
            seconds = self._chance.choice([-1.0, 1.0]) * self._chance.choice([0.5, 5.0, 60.0])
            self._note(f"the clock of {member.name} jumps by {seconds:+.1f} s")
            member.clock.offset += seconds
            self.jumped = True
            if (later := self._cluster.client.later) is not None:
                later.on_time = False

    async def _bad_line(self) -> None:
        if member := self._victim():
            weather = member.link.weather = self._weather(f"of {member.name}")
            self._mend_after(self._chance.choice([1.0, 5.0, 15.0]), lambda: self._calm(weather))

    # --- all -------------------------------------------------------------------------------------------------

    async def _storm(self) -> None:
        network = self._cluster.network
        weather = network.weather = self._weather("of all")
        self._mend_after(self._chance.choice([1.0, 5.0, 15.0]), lambda: self._calm(weather))

    async def _join(self) -> None:
        if len(self._cluster.alive()) < MOST_WORKERS:
            self._join_one()

    async def _rolling_restart(self) -> None:
        for member in [member for member in self._cluster.members if member.sound]:
            self._note(f"{member.name} is replaced")
            self.changes += 1
            member.leave()
            await asyncio.sleep(self._chance.choice([0.0, 0.5, 2.0]))
            self._join_one()
            await asyncio.sleep(self._chance.choice([0.0, 1.0]))

    async def _forget_lock(self) -> None:
        """The broker takes a lock away from whoever holds it, as one that fails over may."""
        locks = list(self._cluster.broker._locks)
        if locks:
            name = self._chance.choice(locks)
            self._note(f"the broker takes back the lock {name}")
            self.changes += 1
            self._cluster.broker.lose_lock(name)

    async def _deny(self) -> None:
        """Somebody takes the right away to write to a topic, and gives it back."""
        network, client = self._cluster.network, self._cluster.client
        topics = [node.target.name for node in client.nodes]
        if client.later is not None:
            topics += [client.later.topic.name, client.app.id + "-delays"]
        topic = self._chance.choice(topics)
        self._note(f"nobody may write to {topic}")
        network.denied.add(topic)

        def allow() -> None:
            self._note(f"all may write to {topic} again")
            network.denied.discard(topic)

        self._mend_after(self._chance.choice([0.1, 3.0, 20.0]), allow)

    # --- helpers ---------------------------------------------------------------------------------------------

    def _note(self, what: str) -> None:
        self._cluster.note(what)

    def _join_one(self) -> None:
        self.changes += 1
        self._cluster.start()

    def _weather(self, whose: str) -> Weather:
        weather = Weather(self._chance.choice([0.0, 0.1, 0.3]), self._chance.choice([0.0, 0.5, 5.0]))
        self._note(f"the line {whose} loses {weather.failing:.0%} of its calls and takes up to {weather.slow:g} s")
        return weather

    def _calm(self, weather: Weather) -> None:
        whose_all = weather is self._cluster.network.weather
        weather.failing, weather.slow = (self._climate or 0.0) if whose_all else 0.0, 0.0

    def _unless_gone(self, member: Member, mend: Callable[[], None], what: str) -> None:
        if member.alive:
            self._note(f"{member.name} {what}")
            mend()

    def _mend_after(self, seconds: float, mend: Callable[[], None]) -> None:
        def due() -> None:
            if mend in self._mending:
                self._mending.remove(mend)
                mend()

        self._mending.append(mend)
        self._cluster.network.later(seconds, due)


Deed = Callable[[], Awaitable[None]]
