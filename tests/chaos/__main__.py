"""Faults by a seeded plan, on brokers of the run's own: `make chaos SEEDS=20 SEED=1 BROKER=kafka,redis ROUNDS=2`.

`make chaos PROGRAM=bank` runs the bank of `examples/bank.py` instead: 100,000 transfers, faults until all are done.
"""

from __future__ import annotations

import argparse
import sys
import time

from chaos.ending import run_to_the_end
from chaos.run import Run, run
from chaos.servers import KINDS
from chaos.trial import Trial, in_memory, trial

MEMORY = "memory"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", help=f"some of {','.join(KINDS)}, and {MEMORY} for the bank (default: all)")
    parser.add_argument("--seeds", type=int, help="how many runs on each broker (default: 5; of the bank: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault comes in a run (default: 1)")
    parser.add_argument("--show", action="store_true", help="the faults of each run, and when they were")
    parser.add_argument("--program", choices=["payments", "bank"], default="payments", help="(default: payments)")
    parser.add_argument("--count", type=int, default=100_000, help="transfers of the bank (default: %(default)s)")
    options = parser.parse_args()
    bank = options.program == "bank"
    known = [*([MEMORY] if bank else []), *KINDS]
    kinds = options.broker.split(",") if options.broker else known
    if unknown := sorted(set(kinds) - set(known)):
        parser.error(f"no such broker: {', '.join(unknown)}; there are {', '.join(known)}")
    seeds = options.seeds or (1 if bank else 5)
    return run_to_the_end(all_runs(kinds, range(options.seed, options.seed + seeds), options))


async def all_runs(kinds: list[str], seeds: range, options: argparse.Namespace) -> int:
    failures = 0
    for seed in seeds:
        for kind in kinds:
            if kind != MEMORY and (lacking := KINDS[kind].lacking()):
                print(f"{kind}: {lacking}", file=sys.stderr, flush=True)
                failures += 1
                continue
            began = time.monotonic()
            try:
                told = await one(kind, seed, options)
            except AssertionError as failure:
                failures += 1
                print(f"FAILED after {time.monotonic() - began:.0f} s: {failure}", flush=True)
            else:
                print(f"ok {kind} seed {seed}, {time.monotonic() - began:.0f} s: {told}", flush=True)
    return min(failures, 100)


async def one(kind: str, seed: int, options: argparse.Namespace) -> str:
    """What there is to tell of a run in which all was well."""
    if kind == MEMORY:
        return f"{await in_memory(seed, options.count)} crashes, {options.count:,} transfers"
    if options.program == "bank":
        done: Run = await trial(kind, seed, options.count)
    else:
        done = await run(kind, seed, options.rounds)
    return "\n".join([summary(done), *(f"    {line}" for line in done.history.faults() if options.show)])


def summary(done: Run) -> str:
    marks = sum(len(claims) for claims in done.history.owners.values())
    what = f"{done.watcher.seen:,} receipts"
    if isinstance(done, Trial):
        what = f"{len(done.transfers):,} transfers, {done.struck} faults, {done.watcher.seen:,} lines"
    lines = [f"{what}, {done.audit.snapshots} compactions, {marks} claims, {done.audit.strays} records of stale owners"]
    lines += [
        f"    {t.fault.lower():4} of the owner of {t.partitions}: taken over after {t.taken:.2f} s; "
        f"the others' longest gap {t.gap:.2f} s"
        for t in done.takeovers
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
