"""Everything at once, at random under the seed: `--thalweg-mode=chaos`."""

from __future__ import annotations

from thalweg.channel import TopicSpec
from thalweg.contrib.conformance.link import Link
from thalweg.contrib.conformance.properties import Mode, Profile, Unavailable, prop
from thalweg.contrib.conformance.traffic import Member, Traffic
from thalweg.contrib.conformance.trial import Trial

from .groups import shared
from .messages import TOPICS


class Chaos:
    """What can befall the traffic of one trial. Each method is one thing, and leaves a state in which it can go on."""

    def __init__(self, trial: Trial, traffic: Traffic) -> None:
        self.trial, self.traffic = trial, traffic
        self.links: list[tuple[Member, Link]] = []
        self.restarts = True

    async def join(self) -> None:
        if len(self.traffic.members) < 4:
            await self.traffic.join()

    async def leave(self) -> None:
        if len(self.traffic.members) > 1:
            await self.traffic.leave(self.trial.dice.choice(self.traffic.members))

    async def kill(self) -> None:
        doomed = await self.traffic.join(await self.trial.open_elsewhere())
        await self.traffic.some(self.trial.dice.randint(0, 10))
        await self.traffic.kill(doomed)

    async def hang(self) -> None:
        hung = await self.traffic.join(await self.trial.open_elsewhere())
        await self.traffic.some(self.trial.dice.randint(0, 10))
        await self.traffic.hang(hung)
        await self.traffic.pass_time(self.trial.rig.lease * self.trial.dice.choice([0.1, 1.5]))
        await self.traffic.resume(hung)

    async def cut(self) -> None:
        if not self.links:
            transport, link = await self.trial.open_linked()
            self.links.append((await self.traffic.join(transport), link))
        member, link = self.links[0]
        self.traffic.history.given_back(member.name, "cut off")
        link.cut()
        await self.trial.step()
        link.heal()
        self.traffic.history.given_back(member.name, "connects anew")

    async def restart(self) -> None:
        if self.restarts:
            self.traffic.disturbed("restart")
            await self.trial.rig.restart_broker()
            self.traffic.disturbed("restarted")


@prop(Profile.DURABLE, cases=TOPICS, modes=frozenset({Mode.CHAOS}))
async def whatever_happens_nothing_is_lost_repeated_or_overtaken(trial: Trial, topic: TopicSpec) -> None:
    traffic = Traffic(trial, shared(topic))
    chaos = Chaos(trial, traffic)
    try:
        await trial.rig.own_broker()
    except Unavailable:
        chaos.restarts = False
    actions = [chaos.join, chaos.leave, chaos.kill, chaos.hang, chaos.cut, chaos.restart]
    await traffic.join()
    for _ in range(12 * trial.size):
        if trial.dice.random() < 0.4:
            await traffic.produce(await trial.producer(shared(topic)), trial.dice.randint(5, 60))
        try:
            await trial.dice.choice(actions)()
        except Unavailable:
            await traffic.some(5)
    await traffic.finish()
