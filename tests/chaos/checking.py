"""Whether the outcome of a run is the one that it would have had without any fault."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from listing import listed
from thalweg.capabilities import Log, Logs
from thalweg.message import Record
from thalweg.registry import load_transport

from chaos.history import History
from chaos.program import Account, Options, Payment, Program, Receipt, kind_of
from chaos.servers import Broker, Kafka
from chaos.watching import Audit, Watcher

__all__ = ["bytes_of", "check_outcome", "consumed", "everything", "partitions_of"]

LONG = 1_000_000


async def check_outcome(
    broker: Broker, options: Options, watcher: Watcher, audit: Audit, history: History, journal: str
) -> None:
    """All workers have ended. What is wrong goes into the history."""
    payments = [payment for _, payment in await everything(options, "payments", Payment)]
    truth = _by_key(await everything(options, "payments", Payment))
    _compare(history, "the watcher's sums", watcher.truth(), truth)
    watcher.check_owners(journal)
    await _check_tables(options, history, truth, payments)
    receipts = await everything(options, "receipts", Receipt)
    if broker.fenced:
        _check_receipts(history, "a foreign reader", receipts, payments)
    if isinstance(broker, Kafka):
        receipts = await consumed(broker, options, "receipts", Receipt)
        _check_receipts(history, "a read_committed consumer", receipts, payments)


async def _check_tables(
    options: Options, history: History, truth: Mapping[str, Account], payments: Sequence[Payment]
) -> None:
    kinds: dict[str, Account] = {}
    for payment in payments:
        before = kinds.get(kind_of(payment.number), Account())
        kinds[kind_of(payment.number)] = Account(before.count + 1, before.total + payment.amount)
    program = Program(options)

    def is_right() -> bool:
        by_kind = not options.repartition or listed(program.kinds) == kinds
        return by_kind and listed(program.accounts) == truth

    async with program.app as app:
        try:
            async with asyncio.timeout(60):  # what was repartitioned last may still be to do, and tasks to be had
                while not is_right():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            _compare(history, "the table by kind", listed(program.kinds), kinds)
            _compare(history, "the table of accounts", listed(program.accounts), truth)
        for letter in [letter async for letter in app.dead_letters(program.payments)]:
            history.wrong(f"payment {letter.value!r} is a dead letter: {letter.reason}")


def _by_key(payments: Sequence[tuple[str, Payment]]) -> Mapping[str, Account]:
    sums: dict[str, Account] = {}
    for key, payment in payments:
        before = sums.get(key, Account())
        sums[key] = Account(before.count + 1, before.total + payment.amount)
    return sums


def _compare(history: History, what: str, found: Mapping[str, Account], wanted: Mapping[str, Account]) -> None:
    wrong = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    for key in wrong[:3]:
        history.wrong(f"{what}, {key!r}: found {found.get(key)}, expected {wanted.get(key)} ({len(wrong)} are wrong)")


def _check_receipts(
    history: History, who: str, receipts: Sequence[tuple[str, Receipt]], payments: Sequence[Payment]
) -> None:
    """Each once, and those of an account in the order of its payments."""
    counts = Counter(receipt.number for _, receipt in receipts)
    wanted = {payment.number for payment in payments}
    for number in sorted(wanted ^ counts.keys() | {n for n, count in counts.items() if count > 1})[:3]:
        history.wrong(f"{who} finds {counts[number]} receipts of payment {number}")
    by_key: dict[str, list[int]] = defaultdict(list)
    for key, receipt in receipts:
        by_key[key].append(receipt.count)
    for key, counted in by_key.items():
        if counted != sorted(counted):
            history.wrong(f"{who} finds the receipts of {key!r} out of order")


S = TypeVar("S", bound=msgspec.Struct)


async def everything(options: Options, topic: str, kind: type[S]) -> list[tuple[str, S]]:
    """Key and value of all that lies in a topic."""
    return [pair for found in (await partitions_of(options, topic, kind)).values() for pair in found]


async def partitions_of(options: Options, topic: str, kind: type[S]) -> dict[int, list[tuple[str, S]]]:
    """The same by partition."""
    transport = load_transport(options.broker)
    await transport.open()
    try:
        assert isinstance(transport, Logs)
        log = await transport.log(topic)
        return {
            partition: [
                ((record.key or b"").decode(), msgspec.json.decode(record.value or b"", type=kind))
                for record in await _records(log, partition)
            ]
            for partition in range(options.partitions)
        }
    finally:
        await transport.close()


async def bytes_of(broker: str, topic: str, partitions: int) -> int:
    """Of all values that lie in a topic."""
    transport = load_transport(broker)
    await transport.open()
    try:
        assert isinstance(transport, Logs)
        log = await transport.log(topic)
        found = [record for partition in range(partitions) for record in await _records(log, partition)]
        return sum(len(record.value or b"") for record in found)
    finally:
        await transport.close()


async def _records(log: Log, partition: int) -> list[Record]:
    found: list[Record] = []
    after, last = None, (await log.bounds(partition)).last
    while last is not None and (after is None or after < last):
        batch = (await log.read({partition: after}, LONG, 100 * LONG, 10)).get(partition)
        if batch is None:
            break
        found += batch.records
        after = batch.positions[-1]
    return found


async def consumed(broker: Kafka, options: Options, topic: str, kind: type[S]) -> list[tuple[str, S]]:
    """What a plain consumer of Kafka's finds in a topic, with `read_committed`."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=f"127.0.0.1:{broker.server.port}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        places = [TopicPartition(topic, number) for number in range(options.partitions)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        found: list[tuple[str, S]] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += [(r.key.decode(), msgspec.json.decode(r.value, type=kind)) for r in records]
        return found
    finally:
        await consumer.stop()
