"""A transport can do what it declares; what it does not declare raises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import pytest
from thalweg.capabilities import Fencing, Grouped, Locks, Logs, Peers, WorkQueue
from thalweg.channel import Capability, TopicSpec, Transport
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, numbered
from thalweg.errors import BrokerError, ConfigurationError, MissingCapability
from thalweg.message import Message, QueueMessage

from .messages import LOG, QUEUE

__all__ = ["refuses"]

PROTOCOLS: Mapping[Capability, type] = {
    Capability.LOG: Logs,
    Capability.LOCKS: Locks,
    Capability.PEERS: Peers,
    Capability.GROUPED: Grouped,
    Capability.FENCING: Fencing,
}
REFUSALS = (BrokerError, ConfigurationError)


@prop(Profile.CORE)
async def a_transport_has_the_methods_of_what_it_declares(trial: Trial) -> None:
    transport = await trial.open()
    assert transport.capabilities <= set(Capability)
    for capability in transport.capabilities & PROTOCOLS.keys():
        assert isinstance(transport, PROTOCOLS[capability]), f"{capability}: no {PROTOCOLS[capability].__name__}"
    if Capability.WORK_QUEUE in transport.capabilities:
        assert isinstance(await trial.channel(QUEUE, transport=transport), WorkQueue)


@prop(Profile.CORE)
async def what_a_transport_does_not_declare_raises(trial: Trial) -> None:
    transport = await trial.open()
    for capability in sorted(set(Capability) - transport.capabilities):
        await refuses(trial, transport, capability)


@prop(Profile.CORE)
async def capabilities_and_limits_stay_as_they_were_on_opening(trial: Trial) -> None:
    transport, other = await trial.open(), await trial.open()
    before = transport.capabilities, transport.limits
    await trial.channel(LOG, transport=transport)
    await trial.channel(QUEUE, transport=transport)
    assert (transport.capabilities, transport.limits) == before == (other.capabilities, other.limits)


async def refuses(trial: Trial, transport: Transport, capability: Capability) -> None:
    """Fails unless using this power raises, or is impossible for want of a method."""
    await _REFUSALS[capability](trial, transport)


async def _raises(call: Awaitable[object], what: str) -> None:
    try:
        await call
    except REFUSALS:
        return
    raise AssertionError(f"{what} did not raise, though its capability is not declared")


async def _log(trial: Trial, transport: Transport) -> None:
    if isinstance(transport, Logs):
        await trial.declare(transport, TopicSpec("t"))
        await _raises(transport.log(trial.name("t")), "log")


async def _locks(trial: Trial, transport: Transport) -> None:
    if isinstance(transport, Locks):
        await _raises(transport.try_lock(trial.name("x"), trial.rig.lease), "try_lock")


async def _peers(trial: Trial, transport: Transport) -> None:
    if isinstance(transport, Peers):

        async def join() -> None:
            await anext(transport.peers(trial.name("g"), "me", trial.rig.lease))

        await _raises(join(), "peers")


async def _grouped(trial: Trial, transport: Transport) -> None:
    if isinstance(transport, Grouped):

        async def join() -> None:
            await anext(transport.tasks(trial.name("g"), 1, "me", trial.rig.lease))

        await _raises(join(), "tasks")


async def _fencing(trial: Trial, transport: Transport) -> None:
    if isinstance(transport, Fencing):
        await trial.declare(transport, TopicSpec("t"))
        await _raises(transport.claim(trial.name("t"), 0, Message(b"m")), "claim")


async def _work_queue(trial: Trial, transport: Transport) -> None:
    queue = await trial.channel(QUEUE, transport=transport)
    if isinstance(queue, WorkQueue):
        await queue.put(numbered(1))
        (delivery,) = await trial.receive(queue, 1)
        await _raises(queue.extend([delivery], 1.0), "extend")
        await _raises(queue.retry(delivery, 0), "retry")
        await _raises(queue.reject(delivery, "no"), "reject")


def _field(message: QueueMessage, what: str) -> Callable[[Trial, Transport], Awaitable[None]]:
    async def refused(trial: Trial, transport: Transport) -> None:
        queue = await trial.channel(QUEUE, transport=transport)
        with pytest.raises(MissingCapability):
            await queue.put([message])
        assert not await trial.rest(queue), f"a message with {what} was refused and delivered all the same"

    return refused


_REFUSALS: Mapping[Capability, Callable[[Trial, Transport], Awaitable[None]]] = {
    Capability.LOG: _log,
    Capability.LOCKS: _locks,
    Capability.PEERS: _peers,
    Capability.GROUPED: _grouped,
    Capability.FENCING: _fencing,
    Capability.WORK_QUEUE: _work_queue,
    Capability.PRIORITY: _field(QueueMessage(b"p", b"k", priority=1), "a priority"),
    Capability.DELAY: _field(QueueMessage(b"d", b"k", delay=0.01), "a delay"),
    Capability.EXPIRY: _field(QueueMessage(b"e", b"k", expires=60.0), "an expiry"),
}
