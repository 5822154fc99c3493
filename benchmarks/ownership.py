"""Who owns what, while a stream flows: `make bench-ownership` (with ARGS=… for options).

Cases, each on a broker of its own, on loopback, with 100-byte payments handled by worker processes:

kill     three workers; one is killed. How long until its tasks go on elsewhere, and how long did the others' pause?
hang     the same with SIGSTOP for a lease and a half, then SIGCONT: what does the zombie commit?
leave    the same with SIGTERM. How long did its tasks pause, and the others'?
rolling  three workers; each is told to stop and started again, one after the other. How long did a task pause at most?
scale    64 tasks; 1 worker, then 4, then 2. How many tasks move, how many must, and what does a message wait?
cold     two workers of 200,000 accounts; one is killed. How long from its tasks' claim to their first event?
warm     the same with standbys=1.
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
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec
from chaos.checking import partitions_of
from chaos.ending import run_to_the_end
from chaos.history import History
from chaos.program import APP, Account, Options, Payment, Program, Receipt, amount_of, key_of
from chaos.servers import KINDS, Broker, own_broker
from chaos.trace import Handled
from chaos.watching import Audit
from chaos.workers import Worker, Workers
from report import circumstances

RESULTS = Path(__file__).parent / "results" / "ownership.json"
KEYS = 1000
ACCOUNTS = 200_000
TICK = 0.02
PATIENCE = 120.0


class Figures(msgspec.Struct):
    """What was measured in one case on one broker. Times in seconds.

    missed: targets that were not met, a sentence each.
    """

    broker: str
    case: str
    figures: dict[str, Any]
    missed: list[str]
    load: float


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
                found = dict(program.accounts.items())
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


# --- cases ---------------------------------------------------------------------------------------------------


async def lose_one(field: Field, hang: bool) -> tuple[dict[str, Any], list[str]]:
    started = [field.workers.start(field.options) for _ in range(3)]
    await asyncio.gather(*(worker.started_up() for worker in started))
    await field.settled(started)
    victim, lease = started[1], field.options.lease
    owners = field.owners()
    mine = [p for p, pid in owners.items() if pid == victim.pid]
    others = [p for p, pid in owners.items() if pid != victim.pid]
    await asyncio.sleep(field.steady)
    struck, clock = field.history.now(), time.time()
    if hang:
        await field.broker.stop_still(victim)
    else:
        victim.kill()
    await field.taken_over(victim, mine, struck)
    resumed = 0.0
    if hang:
        await asyncio.sleep(max(0.0, 1.5 * lease - (time.time() - clock)))
        resumed = time.time()
        victim.resume()
    await asyncio.sleep(field.steady)
    return {"victim": victim.pid, "mine": mine, "others": others, "struck": clock, "resumed": resumed}, []


async def kill(field: Field) -> tuple[dict[str, Any], list[str]]:
    return await lose_one(field, hang=False)


async def hang(field: Field) -> tuple[dict[str, Any], list[str]]:
    return await lose_one(field, hang=True)


def judge_loss(
    field: Field, noted: Mapping[str, Any], events: Sequence[tuple[int, Handled]]
) -> tuple[dict[str, Any], list[str]]:
    struck, victim, lease = noted["struck"], noted["victim"], field.options.lease
    first: dict[int, float] = {}
    for pid, handled in events:
        if pid != victim and handled.at > struck and handled.partition in noted["mine"]:
            first.setdefault(handled.partition, handled.at - struck)
    takeover = max(first.values(), default=float("nan"))
    end = struck + takeover + 1
    gap = gaps(events, noted["others"], struck, end)
    found = {
        "tasks of the victim": len(noted["mine"]),
        "takeover": takeover,
        "others' longest gap": gap,
        "their gap before": gaps(events, noted["others"], struck - field.steady, struck),
        "latency, steady": percentiles(events, struck - field.steady, struck),
    }
    missed = []
    if not takeover <= lease + 2:
        missed.append(f"takeover {takeover:.2f} s, target lease + 2 = {lease + 2:g} s")
    if gap >= 1:
        missed.append(f"the others' longest gap is {gap:.2f} s, target below 1 s")
    if noted["resumed"]:
        found |= {"zombie's outputs": noted["late"], "zombie's appends that count for nobody": field.audit.strays}
        if noted["late"]:
            missed.append(f"{noted['late']} outputs of the zombie, target none")
    return found, missed


async def leave(field: Field) -> tuple[dict[str, Any], list[str]]:
    started = [field.workers.start(field.options) for _ in range(3)]
    await asyncio.gather(*(worker.started_up() for worker in started))
    await field.settled(started)
    victim = started[1]
    owners = field.owners()
    await asyncio.sleep(field.steady)
    struck, clock = field.history.now(), time.time()
    victim.terminate()
    await victim.ended()
    ended = time.time() - clock
    mine = [p for p, pid in owners.items() if pid == victim.pid]
    await field.taken_over(victim, mine, struck)
    await asyncio.sleep(field.steady)
    others = [p for p, pid in owners.items() if pid != victim.pid]
    return {"mine": mine, "others": others, "struck": clock, "ended": ended}, []


def judge_leave(
    field: Field, noted: Mapping[str, Any], events: Sequence[tuple[int, Handled]]
) -> tuple[dict[str, Any], list[str]]:
    struck, end = noted["struck"], noted["struck"] + field.steady
    pause = gaps(events, noted["mine"], struck, end)
    found = {
        "tasks that it had": len(noted["mine"]),
        "their longest gap": pause,
        "others' longest gap": gaps(events, noted["others"], struck, end),
        "it ended after": noted["ended"],
        "latency meanwhile": percentiles(events, struck, end),
    }
    return found, [] if pause < 1 else [f"tasks paused for {pause:.2f} s at the hand-over, target below 1 s"]


async def rolling(field: Field) -> tuple[dict[str, Any], list[str]]:
    workers = [field.workers.start(field.options) for _ in range(3)]
    await asyncio.gather(*(worker.started_up() for worker in workers))
    await field.settled(workers)
    await asyncio.sleep(field.steady)
    began, clock = field.history.now(), time.time()
    for old in workers[:]:
        old.terminate()
        await old.ended()
        workers = [worker for worker in workers if worker is not old]
        workers.append(field.workers.start(field.options))
        await workers[-1].started_up()
        await field.settled(workers)
    over = time.time()
    await asyncio.sleep(field.steady)
    return {"struck": clock, "over": over, "claims": field.claims(began)}, []


def judge_rolling(
    field: Field, noted: Mapping[str, Any], events: Sequence[tuple[int, Handled]]
) -> tuple[dict[str, Any], list[str]]:
    struck, over = noted["struck"], noted["over"]
    pauses = {p: gaps(events, [p], struck, over) for p in range(field.partitions)}
    return {
        "seconds": over - struck,
        "tasks claimed": noted["claims"],
        "longest gap of a task": max(pauses.values()),
        "median of their longest": sorted(pauses.values())[len(pauses) // 2],
        "latency meanwhile": percentiles(events, struck, over),
    }, []


async def late_outputs(field: Field, victim: int, resumed: float) -> int:
    """Of events that it handled after it went on, in tasks that it had not claimed anew by then."""
    count = 0
    again = {
        partition: min((field.at(c.at) for c in claims if c.pid == victim and field.at(c.at) > resumed), default=1e12)
        for (_, partition), claims in field.history.owners.items()
    }
    for partition, found in (await partitions_of(field.options, "receipts", Receipt)).items():
        count += sum(r.worker == victim and resumed < r.at < again[partition] - 1 for _, r in found)
    return count


async def cold(field: Field, standbys: int = 0) -> tuple[dict[str, Any], list[str]]:
    field.keys, field.options = ACCOUNTS, msgspec.structs.replace(field.options, standbys=standbys)
    started = [field.workers.start(field.options) for _ in range(2)]
    await asyncio.gather(*(worker.started_up() for worker in started))
    await field.settled(started)
    while field.sent < ACCOUNTS:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await asyncio.sleep(field.steady)
    victim = started[1]
    mine = [p for p, pid in field.owners().items() if pid == victim.pid]
    struck, clock = field.history.now(), time.time()
    victim.kill()
    await field.taken_over(victim, mine, struck)
    await asyncio.sleep(field.steady)
    claimed = {p: max(field.at(c.at) for c in field.history.owners[field.journal, p] if c.at > struck) for p in mine}
    return {"victim": victim.pid, "struck": clock, "claimed": claimed}, []


async def warm(field: Field) -> tuple[dict[str, Any], list[str]]:
    return await cold(field, standbys=1)


def judge_standby(
    field: Field, noted: Mapping[str, Any], events: Sequence[tuple[int, Handled]]
) -> tuple[dict[str, Any], list[str]]:
    first: dict[int, float] = {}
    for pid, handled in events:
        if pid != noted["victim"] and handled.at > noted["struck"] and handled.partition in noted["claimed"]:
            first.setdefault(handled.partition, handled.at)
    waits = [first[p] - claimed for p, claimed in noted["claimed"].items()]
    return {
        "accounts": field.keys,
        "tasks taken over": len(waits),
        "from claim to first event, at most": max(waits),
        "from death to the last task's first event": max(first.values()) - noted["struck"],
    }, []


async def scale(field: Field) -> tuple[dict[str, Any], list[str]]:
    noted: dict[str, Any] = {"phases": []}
    began = field.history.now()
    workers = [field.workers.start(field.options)]
    await workers[0].started_up()
    await field.settled(workers)
    await asyncio.sleep(field.steady)

    async def change(name: str, act: Any) -> None:
        nonlocal workers
        before, start = field.owners(), field.history.now()
        workers = await act()
        await field.settled(workers)
        stop = field.history.now()
        after = field.owners()
        await asyncio.sleep(field.steady)
        moved = sum(after[p] != before[p] for p in after)
        noted["phases"].append(
            {
                "name": name,
                "start": field.at(start),
                "stop": field.at(stop),
                "moved": moved,
                "claims": field.claims(start),
            }
        )

    async def grow() -> list[Worker]:
        return [*workers, *(field.workers.start(field.options) for _ in range(3))]

    async def shrink() -> list[Worker]:
        for worker in workers[2:]:
            worker.terminate()
        await asyncio.gather(*(worker.ended() for worker in workers[2:]))
        return workers[:2]

    await change("1 to 4", grow)
    await change("4 to 2", shrink)
    noted["struck"] = field.at(began)
    return noted, []


def judge_scale(
    field: Field, noted: Mapping[str, Any], events: Sequence[tuple[int, Handled]]
) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {}
    missed = []
    for phase, least in zip(noted["phases"], (field.partitions * 3 // 4, field.partitions // 2), strict=True):
        found[phase["name"]] = {
            "tasks claimed anew": phase["claims"],
            "least": least,
            "settled after": phase["stop"] - phase["start"] - field.quiet,
            "latency, moving": percentiles(events, phase["start"], phase["stop"]),
            "latency, steady after": percentiles(events, phase["stop"], phase["stop"] + field.steady),
        }
        if phase["claims"] > 1.1 * least:
            missed.append(f"{phase['name']}: {phase['claims']} tasks moved, target {least} + 10 %")
    return found, missed


async def burst(field: Field) -> tuple[dict[str, Any], list[str]]:
    field.workers.start(field.options).kill()  # the process that forks them has come up
    field.workers.all.clear()
    began = field.history.now()
    started = [field.workers.start(field.options) for _ in range(30)]
    launched = field.history.now() - began
    settled = await field.settled(started)
    busy = [worker.busy() for worker in started]
    ready = sum(worker.ready for worker in started)
    claimed = field.claims_by_second(began)
    noted = {"launched": launched, "settled": settled - began, "ready": ready, "busy": sum(busy), "claimed": claimed}
    return noted, []


def judge_burst(
    field: Field, noted: Mapping[str, Any], events: Sequence[tuple[int, Handled]]
) -> tuple[dict[str, Any], list[str]]:
    found = {
        "settled after": noted["settled"],
        "all launched after": noted["launched"],
        "tasks": field.partitions,
        "tasks claimed": sum(noted["claimed"].values()),
        "claimed in each second": {str(second): count for second, count in noted["claimed"].items()},
        "ready workers": noted["ready"],
        "seconds of processor, all workers": noted["busy"],
    }
    missed = [] if noted["settled"] <= 15 else [f"settled after {noted['settled']:.1f} s, target 15 s"]
    return found, missed


CASES = {
    "kill": (kill, judge_loss, 12),
    "hang": (hang, judge_loss, 12),
    "leave": (leave, judge_leave, 12),
    "rolling": (rolling, judge_rolling, 12),
    "scale": (scale, judge_scale, 64),
    "cold": (cold, judge_standby, 4),
    "warm": (warm, judge_standby, 4),
    "burst": (burst, judge_burst, 64),
}
"""What is done, how it is judged, and the number of tasks."""


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
