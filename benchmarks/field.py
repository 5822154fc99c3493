"""A broker, workers in processes of their own, and payments at a steady rate: where the cases of ownership happen."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import quantiles

from chaos.history import History
from chaos.program import APP, Account, Options, Payment, Program, amount_of, key_of
from chaos.servers import Broker
from chaos.trace import Handled
from chaos.watching import Audit
from chaos.workers import Worker, Workers
from listing import listed

__all__ = ["Field", "gaps", "percentiles"]

KEYS = 1000
TICK = 0.02
PATIENCE = 120.0


class Field:
    """A broker, its workers, a stream of payments at a steady rate, and who claims which task."""

    def __init__(self, kind: str, broker: Broker, folder: Path, options: argparse.Namespace, partitions: int) -> None:
        self.kind, self.broker, self.rate, self.partitions = kind, broker, options.rate, partitions
        self.options = Options(broker=broker.url, partitions=partitions, lease=options.lease, repartition=False)
        self.journal = f"{APP}-journal-{partitions}"
        self.steady, self.quiet = options.steady, options.quiet
        self.keys = KEYS
        self.history = History()
        self.audit = Audit(broker.url, {self.journal: partitions}, self.history, broker.fenced)
        self.workers = Workers(folder, traced=True)
        self.sent = 0
        self.stalled: list[tuple[float, float]] = []  # when the producer was late, and by how much
        self._began = time.time() - self.history.now()

    def at(self, moment: float) -> float:
        """A time of the history as one of the clock."""
        return self._began + moment

    async def produce(self, program: Program, stop: asyncio.Event) -> None:
        batch, due = max(1, round(self.rate * TICK)), time.monotonic()
        while not stop.is_set():
            now = time.time()
            numbers = range(self.sent, self.sent + batch)
            payments = ((key_of(n, self.keys), Payment(n, amount_of(n), now)) for n in numbers)
            await program.payments.send_many(payments)
            self.sent = numbers.stop
            due += TICK
            late = time.monotonic() - due
            if late > 0.1:
                self.stalled.append((time.time(), late))
                due = time.monotonic()
            await asyncio.sleep(max(0.0, -late))

    def owners(self, until: float | None = None) -> dict[int, int]:
        """Who has claimed each task last, up to a time of the history."""
        found: dict[int, int] = {}
        for partition in range(self.partitions):
            claims = [c for c in self.history.owners[self.journal, partition] if until is None or c.at <= until]
            found[partition] = claims[-1].pid if claims else 0
        return found

    def claims(self, since: float) -> int:
        return sum(c.at > since for claims in self.history.owners.values() for c in claims)

    def claims_by_second(self, since: float) -> dict[int, int]:
        moments = Counter(int(c.at - since) for claims in self.history.owners.values() for c in claims if c.at > since)
        return {second: moments[second] for second in sorted(moments)}

    async def settled(self, workers: Sequence[Worker]) -> float:
        """Until these and no others own everything, evenly, and nothing has changed for a while. When that began."""
        pids = {worker.pid for worker in workers}
        least, more = divmod(self.partitions, len(pids))
        async with asyncio.timeout(PATIENCE):
            while True:
                last = max((c.at for claims in self.history.owners.values() for c in claims), default=0.0)
                shares = Counter(self.owners().values())
                even = (
                    shares.keys() <= pids
                    and sum(shares.values()) == self.partitions
                    and max(shares.values()) <= least + bool(more)
                )
                if even and self.history.now() - last > self.quiet:
                    return last
                await asyncio.sleep(0.1)

    async def taken_over(self, victim: Worker, mine: Sequence[int], since: float) -> None:
        async with asyncio.timeout(PATIENCE):
            while any(  # noqa: ASYNC110
                not any(c.at > since and c.pid != victim.pid for c in self.history.owners[self.journal, p])
                for p in mine
            ):
                await asyncio.sleep(0.05)

    async def drained(self) -> list[tuple[int, Handled]]:
        """Until every payment has been handled. By process, in order of time."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [(w.pid, handled) for w in self.workers.all for handled in w.handled()]
            done = len({handled.number for _, handled in found})
            if done >= self.sent:
                return sorted(found, key=lambda pair: pair[1].at)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{done:,} of {self.sent:,} messages were handled {PATIENCE:g} s after the last")
            await asyncio.sleep(0.5)

    async def check(self) -> None:
        """The workers have ended: each account must hold what was sent to it."""
        truth: dict[str, Account] = {}
        for number in range(self.sent):
            key = key_of(number, self.keys)
            before = truth.get(key, Account())
            truth[key] = Account(before.count + 1, before.total + amount_of(number))
        program = Program(self.options)
        async with program.app:
            deadline = time.monotonic() + PATIENCE
            while True:  # a task whose journal was truncated while it was read starts over
                found = listed(program.accounts)
                wrong = [key for key in truth if found.get(key) != truth[key]]
                if not wrong or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.2)
        if wrong:
            raise AssertionError(
                f"{self.kind}: {len(wrong)} accounts are wrong, as {wrong[0]!r}: {found.get(wrong[0])}"
            )


def gaps(events: Sequence[tuple[int, Handled]], partitions: Sequence[int], start: float, stop: float) -> float:
    """The longest time without an event of one of the partitions, between two times of the clock."""
    times: dict[int, list[float]] = {p: [start] for p in partitions}
    for _, handled in events:
        if handled.partition in times and start < handled.at < stop:
            times[handled.partition].append(handled.at)
    return max(
        (later - earlier for found in times.values() for earlier, later in pairwise([*found, stop])), default=0.0
    )


def percentiles(events: Sequence[tuple[int, Handled]], start: float, stop: float) -> dict[str, float]:
    """Of the seconds from a payment's sending until it was handled for good."""
    last = {h.number: h.latency for _, h in events if start <= h.at - h.latency < stop}
    if len(last) < 2:
        return {}
    cuts = quantiles(last.values(), n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98], "max": max(last.values())}
