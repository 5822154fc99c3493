"""What happens to workers in `ownership.py`, and how it is judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from chaos.checking import partitions_of
from chaos.program import Receipt
from chaos.trace import Handled
from chaos.workers import Worker
from field import Field, gaps, percentiles

__all__ = ["CASES", "late_outputs"]


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
    "burst": (burst, judge_burst, 64),
}
"""What is done, how it is judged, and the number of tasks."""
