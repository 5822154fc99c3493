"""Measure Thalweg against a bare asyncio.Queue + msgspec + dict loop: `make bench` (with ARGS=… for options).

All sides of a case do the same work on the same data in the same process, in turns, and their results are checked.
What counts are the ratios: they hold from machine to machine, and while others use the machine.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import pstats
import sys
import time
from pathlib import Path

from cases import CASES
from measuring import Case, measure, sample, scaled
from report import as_json, print_table

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> None:
    options = _options()
    logging.getLogger("thalweg").setLevel(logging.ERROR)  # memory:// warns at each start that it forgets
    cases = [case for case in CASES if case.name in options.cases] if options.cases else list(CASES)
    if options.profile is not None:
        _profile(options.profile, options.messages, options.top)
        return
    began = time.monotonic()

    def note(name: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {name}", file=sys.stderr)

    results = measure(cases, options.messages, options.rounds, note)
    print_table(cases, results, options.messages, options.rounds)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(cases, results, options.messages, options.rounds), indent=1)
    options.json.write_text(text + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"only these, of: {', '.join(names)}")
    parser.add_argument(
        "--messages", type=int, default=200_000, help="a run; some cases take a share of it (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="runs of each side (default: %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=RESULTS, metavar="FILE", help="where the figures go (default: %(default)s)"
    )
    parser.add_argument("--profile", metavar="CASE", choices=names, help="instead: where the time of one case goes")
    parser.add_argument("--top", type=int, default=30, help="lines of the profile (default: %(default)s)")
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(names))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(names)}")
    if options.messages < 1 or options.rounds < 1:
        parser.error("--messages and --rounds: expected 1 or more")
    return options


def _profile(name: str, messages: int, top: int) -> None:
    """The functions that take the most time themselves, in the part of the case's second side that is timed.

    cProfile makes calls dearer than what runs between them: compare its lines with care, and measure without it.
    """
    case: Case = next(case for case in CASES if case.name == name)
    side = list(case.sides.values())[1]
    sample(side, scaled(case, messages))  # caches fill, and what is imported late is imported
    profile = cProfile.Profile()
    sample(side, scaled(case, messages), profile)
    pstats.Stats(profile).sort_stats("tottime").print_stats(top)


if __name__ == "__main__":
    main()
