"""What exactly-once costs: `make bench-guarantees` (with ARGS=… for options).

The same program, once with `guarantee="exactly_once"` and once with "at_least_once", in turns, in one process, on the
same backlog, on a broker of its own. Two programs: a sum by key in a table; and the same that also sends each sum to
another topic. What is told: messages a second of each, medians, and the one as a share of the other (wanted: 0.85 or
more on memory://, Redis, NATS and Kafka).
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
from typing import Any

from chaos.servers import KINDS, own_broker
from measuring import Figure, Run
from programs import PARTITIONS, Guarantee, Program, finished
from report import circumstances
from thalweg import App, Stream
from workload import Withdrawal, check_totals, withdrawals

RESULTS = Path(__file__).parent / "results" / "guarantees.json"
GUARANTEES: Sequence[Guarantee] = ("exactly_once", "at_least_once")
PROGRAMS = ("sum", "sum and send")

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


async def sample(broker: str, guarantee: Guarantee, sends: bool, messages: int) -> float:
    """Messages a second."""
    program, run = new_program(broker, guarantee, sends), Run(messages)
    async with program.app:
        with run.timed():
            program.begin.set()
            await finished(program, messages)
        assert program.totals is not None
        check_totals(dict(program.totals.items()), messages)
    return messages / run.seconds


async def measure(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    async with broker_of(kind) as broker, new_program(broker, "at_least_once", False).app.client() as app:
        await app.topic("withdrawals", key=str, value=Withdrawal).send_many(
            (w.account, w) for w in withdrawals(options.messages)
        )
        for what in PROGRAMS:
            rates: dict[Guarantee, list[float]] = {guarantee: [] for guarantee in GUARANTEES}
            for _ in range(options.rounds + 1):
                for guarantee, seen in rates.items():
                    seen.append(await sample(broker, guarantee, what != "sum", options.messages))
            exact, loose = (seen[1:] for seen in rates.values())  # the first of each warms up
            share = Figure.of([one / other for one, other in zip(exact, loose, strict=True)])
            figures = {"broker": kind, "program": what, "share": share.median, "lowest": share.low}
            figures |= {"highest": share.high, "exactly once": Figure.of(exact).median}
            found.append({**figures, "at least once": Figure.of(loose).median})
            print(
                f"{kind}, {what}: exactly once {Figure.of(exact).median:,.0f}/s, at least once "
                f"{Figure.of(loose).median:,.0f}/s: {share.median:.2f} ({share.low:.2f}-{share.high:.2f})",
                flush=True,
            )
    return found


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
    parser.add_argument("--messages", type=int, default=200_000, help="a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default: %(default)s)")
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
