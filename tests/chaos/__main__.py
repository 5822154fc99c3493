"""Faults by a seeded plan, on brokers of the run's own: `make chaos SEEDS=20 SEED=1 BROKER=kafka,redis ROUNDS=2`."""

from __future__ import annotations

import argparse
import sys
import time

from chaos.ending import run_to_the_end
from chaos.history import Failure
from chaos.run import Run, run
from chaos.servers import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default=",".join(KINDS), help="some of these (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="how many runs on each broker (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault comes in a run (default: 1)")
    parser.add_argument("--show", action="store_true", help="the faults of each run, and when they were")
    options = parser.parse_args()
    kinds = options.broker.split(",")
    if unknown := sorted(set(kinds) - set(KINDS)):
        parser.error(f"no such broker: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    seeds = range(options.seed, options.seed + options.seeds)
    return run_to_the_end(all_runs(kinds, seeds, options.rounds, options.show))


async def all_runs(kinds: list[str], seeds: range, rounds: int, show: bool) -> int:
    failures = 0
    for seed in seeds:
        for kind in kinds:
            if lacking := KINDS[kind].lacking():
                print(f"{kind}: {lacking}", file=sys.stderr, flush=True)
                failures += 1
                continue
            began = time.monotonic()
            try:
                done = await run(kind, seed, rounds)
            except Failure as failure:
                failures += 1
                print(f"FAILED after {time.monotonic() - began:.0f} s: {failure}", flush=True)
            else:
                print(f"ok {kind} seed {seed}, {time.monotonic() - began:.0f} s: {summary(done)}", flush=True)
                if show:
                    print("\n".join(f"    {line}" for line in done.history.faults()), flush=True)
    return min(failures, 100)


def summary(done: Run) -> str:
    marks = sum(len(claims) for claims in done.history.owners.values())
    lines = [f"{done.watcher.seen} receipts, {marks} claims, {done.audit.strays} records of stale owners"]
    lines += [
        f"    {t.fault.lower():4} of the owner of {t.partitions}: taken over after {t.taken:.2f} s; "
        f"the others' longest gap {t.gap:.2f} s"
        for t in done.takeovers
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
