"""Who owns what, while a stream flows: `make bench-ownership` (with ARGS=… for options).

Cases, each on a broker of its own, on loopback, with 100-byte payments handled by worker processes:

kill     three workers; one is killed. How long until its tasks go on elsewhere, and how long did the others' pause?
hang     the same with SIGSTOP for a lease and a half, then SIGCONT: what does the zombie commit?
leave    the same with SIGTERM. How long did its tasks pause, and the others'?
rolling  three workers; each is told to stop and started again, one after the other. How long did a task pause at most?
scale    64 tasks; 1 worker, then 4, then 2. How many tasks move, how many must, and what does a message wait?
burst    30 workers start at once. When is who owns what settled, and how often did it change on the way?

The results are checked too: each account's sum must be what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from chaos.ending import run_to_the_end
from chaos.program import Program
from chaos.servers import KINDS, own_broker
from field import Field
from ownership_cases import CASES, late_outputs
from report import circumstances

RESULTS = Path(__file__).parent / "results" / "ownership.json"


class Figures(msgspec.Struct):
    """What was measured in one case on one broker. Times in seconds.

    missed: targets that were not met, a sentence each.
    """

    broker: str
    case: str
    figures: dict[str, Any]
    missed: list[str]
    load: float


async def measure(kind: str, case: str, options: argparse.Namespace) -> Figures:
    act, judge, partitions = CASES[case]
    folder = Path(tempfile.mkdtemp(prefix="thalweg-ownership-"))
    try:
        async with own_broker(kind) as broker:
            field = Field(kind, broker, folder, options, options.partitions or partitions)
            if case == "burst":
                field.rate = min(field.rate, 200)
            stop, program = asyncio.Event(), Program(field.options)
            audit = asyncio.create_task(field.audit.run())
            try:
                async with program.app.client():
                    producing = asyncio.create_task(field.produce(program, stop))
                    try:
                        noted, missed = await act(field)
                    finally:
                        stop.set()
                        await producing
                    events = await field.drained()
                for worker in field.workers.running:
                    worker.terminate()
                await asyncio.gather(*(worker.ended() for worker in field.workers.running))
                await field.check()
                if noted.get("resumed"):
                    noted["late"] = await late_outputs(field, noted["victim"], noted["resumed"])
            finally:
                audit.cancel()
                await asyncio.gather(audit, return_exceptions=True)
                field.workers.close()
            figures, more = judge(field, noted, events)
            seconds = events[-1][1].at - events[0][1].at
            figures |= {"messages": field.sent, "a second": field.sent / seconds}
            figures |= {"producer late by": max((late for _, late in field.stalled), default=0.0)}
            return Figures(
                kind, case, figures, [*missed, *more, *(v.what for v in field.history.violations)], os.getloadavg()[0]
            )
    finally:
        if options.keep:
            print(f"{kind} {case}: logs and traces are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def shown(figures: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + ", ".join(f"{name} {text(inner)}" for name, inner in value.items()) + ")"
        return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

    return "; ".join(f"{name} {text(value)}" for name, value in figures.items())


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join([*KINDS, *CASES])} (default: all)")
    parser.add_argument("--rate", type=int, default=5000, help="messages a second (default: %(default)s)")
    parser.add_argument("--lease", type=float, default=10.0, help="seconds (default: %(default)s)")
    parser.add_argument(
        "--steady",
        type=float,
        default=4.0,
        help="seconds of undisturbed flow before something happens, and after it is over (default: %(default)s)",
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=3.0,
        help="who owns what is settled when nobody has claimed anything for so many seconds (default: %(default)s)",
    )
    parser.add_argument("--partitions", type=int, help="instead of each case's own")
    parser.add_argument("--keep", action="store_true", help="leave what the workers logged and traced")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.names) - {*KINDS, *CASES}:
        parser.error(f"neither broker nor case: {', '.join(sorted(unknown))}")
    kinds = [kind for kind in KINDS if kind in options.names] or list(KINDS)
    cases = [case for case in CASES if case in options.names] or list(CASES)
    results: list[Figures] = []
    for kind in kinds:
        if lacking := KINDS[kind].lacking():
            print(f"{kind}: {lacking}", file=sys.stderr)
            continue
        for case in cases:
            try:
                done = await measure(kind, case, options)
            except (TimeoutError, AssertionError) as error:
                done = Figures(kind, case, {}, [f"it failed: {error or 'patience ended'}"], os.getloadavg()[0])
            results.append(done)
            verdict = "targets met" if not done.missed else "MISSED: " + "; ".join(done.missed)
            print(f"{kind} {case}: {verdict}\n    {shown(done.figures)}; load {done.load:.1f}", flush=True)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            settings = {"rate": options.rate, "lease": options.lease}
            text = json.dumps(
                {**circumstances(), "settings": settings, "cases": msgspec.to_builtins(results)}, indent=1
            )
            options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_the_end(main()))
