"""One transaction: all of its batches become visible together, or none does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest
from thalweg.errors import AmbiguousCommit, BrokerError, MessageTooLarge
from thalweg.message import Position

from .connection import RETRIABLE, TRANSACTION, Cluster, Lost, Unreachable
from .producing import CONCURRENT, FENCED, SERVER_ERROR, TOO_LARGE, Pause, Place, Producer, Refused
from .records import Outgoing

__all__ = ["FencedOut", "Undone", "transact"]

_LANE, _WRITE_LANE = "transactions", "commit"

_REQUEST_BYTES = 16 << 20


class FencedOut(Exception):
    """Another took the producer's id, or the transaction's time ran out: nothing of it is there."""


class Undone(Exception):
    """Who was asked before the end said no: the transaction was aborted, and the producer may go on."""


Written = Mapping[Place, Sequence[Position]]
"""For each place the offset of the first record of each batch."""


async def transact(
    cluster: Cluster,
    producer: Producer,
    batches: Mapping[Place, Sequence[Outgoing]],
    deadline: float,
    allowed: Callable[[Written], Awaitable[bool]] | None = None,
) -> Written:
    """Returns once all can be read. `allowed` is asked when everything lies there and before it counts.

    Raises FencedOut, Undone, AmbiguousCommit (nobody knows), MessageTooLarge or BrokerError (nothing was written).
    After all but Undone the producer must not be used again, and its id be taken anew: that undoes what it left open.
    """
    await _add(cluster, producer, list(batches), deadline)
    written = await _write(cluster, producer, batches, deadline)
    if allowed is not None and not await allowed(written):
        await _end(cluster, producer, False, deadline)
        raise Undone
    await _end(cluster, producer, True, max(deadline, time.monotonic() + cluster.endpoint.timeout))
    return written


async def _add(cluster: Cluster, producer: Producer, places: Sequence[Place], deadline: float) -> None:
    topics: dict[str, list[int]] = {}
    for topic, partition in places:
        topics.setdefault(topic, []).append(partition)
    name = producer.transactional_id or ""
    request = AddPartitionsToTxnRequest(name, producer.number, producer.epoch, list(topics.items()))
    pause = Pause(deadline, first=0.001, longest=0.05)
    while True:
        problem: BrokerError
        try:
            answer = await cluster.ask(await cluster.coordinator(TRANSACTION, name), request, _LANE)
        except (Unreachable, Lost) as error:
            problem, code = error, -1
        else:
            codes = {code for _, partitions in answer.errors for _, code in partitions} - {0, 55}  # 55: not tried
            if not codes:
                return
            if codes & FENCED:
                raise FencedOut
            hopeless = codes - RETRIABLE - {CONCURRENT, SERVER_ERROR}
            code = min(hopeless or codes)
            problem = cluster.explain(code, "adding to a transaction: ")
            if hopeless:
                raise problem
        if code != CONCURRENT:
            cluster.forget_coordinator(TRANSACTION, name)
        if not await pause.wait():
            raise problem


async def _write(
    cluster: Cluster, producer: Producer, batches: Mapping[Place, Sequence[Outgoing]], deadline: float
) -> Written:
    left = {place: deque(found) for place, found in batches.items() if found}
    written: dict[Place, list[Position]] = {place: [] for place in batches}
    while left:
        part: dict[Place, Outgoing] = {}
        size = 0
        for place, queue in left.items():
            if not part or size + queue[0].size <= _REQUEST_BYTES:
                part[place] = queue[0]
                size += queue[0].size
        for place, result in (await producer.deliver(part, _WRITE_LANE, deadline)).items():
            if isinstance(result, int):
                written[place].append(result)
                left[place].popleft()
                if not left[place]:
                    del left[place]
                continue
            what = f"writing to topic {place[0]!r} partition {place[1]} in a transaction"
            if not isinstance(result, Refused) or result.code == 0:
                raise cluster.explain(f"{what}: no answer within {cluster.endpoint.timeout:g} s; nothing was written")
            if result.code in FENCED:
                raise FencedOut
            if result.code in TOO_LARGE:
                raise MessageTooLarge(
                    f"{what}: the broker takes no batch of {part[place].size} bytes (max.message.bytes)"
                )
            raise cluster.explain(result.code, f"{what}: ")
    return written


async def _end(cluster: Cluster, producer: Producer, commit: bool, deadline: float) -> None:
    """Asked twice, so that it returns when readers see the end: the first answer comes when it is decided."""
    name = producer.transactional_id or ""
    request = EndTxnRequest(name, producer.number, producer.epoch, commit)
    pause = Pause(deadline, first=0.0005, longest=0.05)
    decided = unsure = False
    while True:
        try:
            answer = await cluster.ask(await cluster.coordinator(TRANSACTION, name), request, _LANE)
        except Unreachable as error:
            problem: BrokerError = error
        except Lost as error:
            problem, unsure = error, True
        else:
            code = answer.error_code
            if code == 0:
                if decided:
                    return
                decided = True
                continue
            if decided and code in FENCED:
                return  # a new owner waited for the end, too
            if code in FENCED and not unsure:
                raise FencedOut
            problem = cluster.explain(code, "ending a transaction: ")
            if code == SERVER_ERROR:
                unsure = True
            elif code not in RETRIABLE and code != CONCURRENT:
                break
            if code != CONCURRENT:
                cluster.forget_coordinator(TRANSACTION, name)
        if not await pause.wait():
            if decided:
                return
            break
    if commit and unsure:
        raise AmbiguousCommit(f"{problem} (whether the transaction was committed is unknown)")
    raise problem
