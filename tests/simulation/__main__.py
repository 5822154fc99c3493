"""Simulate many seeds in parallel processes: `python -m simulation --seeds 10000`, see docs/simulation.md."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from . import planted_bugs
from .simulate import Run, run

SEEDS_A_PROCESS = 50
"""Crashed workers are never cleaned up, so that a process grows with each seed: it is replaced in time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--step", type=int, default=1, help="from one to the next (default: 1)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time (default: one a core)")
    parser.add_argument("--seed", type=int, help="simulate this one alone, and print all that happened")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more seeds after so long")
    parser.add_argument("--bug", default="", help="with this planted bug (a module of simulation.planted_bugs)")
    parser.add_argument("--bugs", action="store_true", help="find all planted bugs, each within --seeds: a table")
    parser.add_argument("--until-found", action="store_true", help="stop at the first violation")
    parser.add_argument("--courses", action="store_true", help="print a fingerprint of each seed's course")
    options = parser.parse_args()
    if options.seed is not None:
        return one(options.seed, options.bug)
    if options.bugs:
        return table(options)
    return many(range(options.first, options.first + options.seeds * options.step, options.step), options)


def one(seed: int, bug: str) -> int:
    found = simulated((seed, bug, True))
    for line in sorted([*found.schedule, *found.logged]):
        print(line)
    print(f"\nThe last {len(found.last)} steps:")
    for line in found.last:
        print(line)
    print(f"\nseed {seed}: {found.steps} steps, fingerprint {found.fingerprint:x}")
    for violation in found.violations:
        print("VIOLATED", violation)
    return bool(found.violations)


def many(seeds: range, options: argparse.Namespace) -> int:
    begin, failed, steps, commits, done = time.monotonic(), list[Run](), 0, 0, 0
    for found in runs(seeds, options.bug, options.processes):
        done, steps, commits = done + 1, steps + found.steps, commits + found.commits
        if options.courses:
            print(f"course of seed {found.seed}: {found.steps} steps, {found.fingerprint:x}")
        if found.violations:
            failed.append(found)
            print(f"\nseed {found.seed} VIOLATED {'; '.join(found.violations)}", flush=True)
            if options.until_found:
                break
        if time.monotonic() - begin > options.seconds:
            break
        if sys.stderr.isatty() or done % 500 == 0:
            rate = done / (time.monotonic() - begin)
            line = f"{done}/{len(seeds)} seeds, {rate:.1f} a second, {len(failed)} failed"
            print(f"\r{line}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
    seconds = time.monotonic() - begin
    what = f"{steps} steps, {commits} commits; {len(failed)} failed"
    print(f"\n{done} seeds from {seeds[0]} on in {seconds:.0f} s: {what}")
    if failed:
        first = min(failed, key=lambda run: run.seed)
        bug = f" --bug {options.bug}" if options.bug else ""
        print(f"\nseed {first.seed}, what happened:", *first.schedule, sep="\n")
        print("failed:", ", ".join(str(found.seed) for found in failed))
        print(f"replay: make simulate ARGS='--seed {first.seed}{bug}'")
    return bool(failed)


def table(options: argparse.Namespace) -> int:
    """Which rule each bug breaks, and at which seed it is found."""
    missed = 0
    for bug in sorted(path.stem for path in Path(planted_bugs.__file__).parent.glob("[a-z]*.py")):
        module, begin = planted(bug), time.monotonic()
        seeds = range(options.first, options.first + options.seeds)
        found = next((run for run in runs(seeds, bug, 1) if run.violations), None)
        missed += found is None
        where = "NOT FOUND" if found is None else f"{found.seed} ({time.monotonic() - begin:.0f} s)"
        print(f"| {module.RULE} | `{bug}`: {module.__doc__} | {where} |", flush=True)
    return bool(missed)


def planted(bug: str) -> Any:
    return importlib.import_module(f"simulation.planted_bugs.{bug}")


def runs(seeds: range, bug: str, processes: int) -> Iterator[Run]:
    jobs = [(seed, bug, False) for seed in seeds]
    with get_context("fork").Pool(processes, maxtasksperchild=SEEDS_A_PROCESS) as pool:
        yield from pool.imap(simulated, jobs)


def simulated(job: tuple[int, str, bool]) -> Run:
    seed, bug, keep = job
    with planted(bug).planted() if bug else nullcontext():
        return run(seed, keep)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings is part of a schedule
        os.execve(
            sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without freeing what the crashed workers left: it would clean up behind itself
