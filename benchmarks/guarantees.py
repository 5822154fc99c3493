"""What exactly-once costs: `make bench-guarantees` (with ARGS=… for options).

The same program, once with `guarantee="exactly_once"` and once with "at_least_once", in turns, in one process, on the
same backlog, on a broker of its own. Two programs: a sum by key in a table; and the same that also sends each sum to
another topic. A round runs both, and every other round the other one first; the ratio is of the two runs of a round.
There are more rounds, up to three times as many, until the middle half of the ratios is within a tenth of their median.

What is told: messages a second of each, and the one as a share of the other (wanted: 0.85 or more on memory://, Redis,
NATS and Kafka); the same by CPU time of this process, which neither others on the machine nor a slow disk falsify, but
which leaves out what the broker does. Medians, and in brackets the middle half.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from chaos.servers import KINDS, own_broker
from measuring import Run
from programs import PARTITIONS, Guarantee, Program, finished
from report import circumstances
from thalweg import App, Stream
from workload import Withdrawal, check_totals, withdrawals

RESULTS = Path(__file__).parent / "results" / "guarantees.json"
GUARANTEES: Sequence[Guarantee] = ("exactly_once", "at_least_once")
PROGRAMS = ("sum", "sum and send")
CLOSE = 0.1
"""How far, as a share of the median, the middle half of the rounds may lie from it."""

_numbers = itertools.count()


def new_program(broker: str, guarantee: Guarantee, sends: bool) -> Program:
    """With a journal and an output of its own; the input is shared."""
    name = f"cost-{next(_numbers)}"
    app = App(name, broker=broker, partitions=PARTITIONS, guarantee=guarantee, env_prefix="THALWEG_BENCHMARK")
    begin = asyncio.Event()
    source = app.topic("withdrawals", key=str, value=Withdrawal)
    sums = app.topic(f"{name}-sums", key=str, value=int)
    totals = app.table("totals", key=str, value=int, default=int)

    @app.agent(source)
    async def total(stream: Stream[Withdrawal]) -> None:
        await begin.wait()
        async for withdrawal in stream:
            totals[withdrawal.account] += withdrawal.amount
            if sends:
                await sums.send(totals[withdrawal.account], key=withdrawal.account)

    program = Program(app, total, source, begin)
    program.totals = totals
    return program


async def sample(broker: str, guarantee: Guarantee, sends: bool, messages: int) -> Run:
    program, run = new_program(broker, guarantee, sends), Run(messages)
    async with program.app:
        with run.timed():
            program.begin.set()
            await finished(program, messages)
        assert program.totals is not None
        check_totals(dict(program.totals.items()), messages)
    return run


class Shares:
    """Of exactly-once in at-least-once, round by round: 1 is equal, above 1 is faster."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def add(self, exact: float, loose: float) -> None:
        """What both took."""
        self.found.append(loose / exact)

    @property
    def half(self) -> tuple[float, float]:
        """The bounds of the middle half."""
        low, _, high = quantiles(self.found, n=4, method="inclusive")
        return low, high

    @property
    def settled(self) -> bool:
        middle, (low, high) = median(self.found), self.half
        return middle - low <= CLOSE * middle and high - middle <= CLOSE * middle

    def __str__(self) -> str:
        return f"{median(self.found):.2f} ({self.half[0]:.2f}-{self.half[1]:.2f})"


async def measure(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    async with broker_of(kind) as broker, new_program(broker, "at_least_once", False).app.client() as app:
        await app.topic("withdrawals", key=str, value=Withdrawal).send_many(
            (w.account, w) for w in withdrawals(options.messages)
        )
        for what in options.programs or PROGRAMS:
            found.append({"broker": kind, "program": what, **await compare(broker, what != "sum", options)})
            print(f"{kind}, {what}: {found[-1]['told']}", flush=True)
    return found


async def compare(broker: str, sends: bool, options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[Guarantee, list[float]] = {guarantee: [] for guarantee in GUARANTEES}
    wall, cpu = Shares(), Shares()
    for guarantee in GUARANTEES:  # warms up
        await sample(broker, guarantee, sends, options.messages)
    while len(wall.found) < options.rounds or (len(wall.found) < 3 * options.rounds and not wall.settled):
        runs: dict[Guarantee, Run] = {}
        for guarantee in GUARANTEES if len(wall.found) % 2 else reversed(GUARANTEES):
            runs[guarantee] = await sample(broker, guarantee, sends, options.messages)
            rates[guarantee].append(options.messages / runs[guarantee].seconds)
        exact, loose = (runs[guarantee] for guarantee in GUARANTEES)
        wall.add(exact.seconds, loose.seconds)
        cpu.add(exact.cpu, loose.cpu)
    fast, loose_fast = (median(seen) for seen in rates.values())
    told = (
        f"exactly once {fast:,.0f}/s, at least once {loose_fast:,.0f}/s: {wall}; by CPU time {cpu}; "
        f"{len(wall.found)} rounds"
    )
    return {"shares": wall.found, "by CPU time": cpu.found, "messages a second": rates, "told": told}


@contextlib.asynccontextmanager
async def broker_of(kind: str) -> AsyncIterator[str]:
    if kind == "memory":
        yield "memory://guarantees"
        return
    async with own_broker(kind) as broker:
        yield broker.url


async def main() -> int:
    kinds = ["memory", *KINDS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="BROKER", help=f"some of {', '.join(kinds)} (default: all)")
    parser.add_argument("--program", dest="programs", action="append", choices=PROGRAMS, help="(default: both)")
    parser.add_argument("--messages", type=int, default=200_000, help="a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="at least (default: %(default)s)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(kinds)):
        parser.error(f"no such broker: {', '.join(unknown)}; there are {', '.join(kinds)}")
    logging.getLogger("thalweg").setLevel(logging.ERROR)
    found = []
    for kind in options.names or kinds:
        if kind != "memory" and (lacking := KINDS[kind].lacking()):
            print(f"{kind}: {lacking}", file=sys.stderr)
            continue
        found += await measure(kind, options)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**circumstances(), "figures": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
