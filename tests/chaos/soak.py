"""Programs as in production, on brokers of their own, with all faults, for as long as asked, checked all the time.

    make soak DURATION=10m BROKER=kafka,redis SEED=1 RATE=500 PACE=5

Each broker has its workers, its faults and its status line. Ctrl-C ends the faults, checks the outcome and sums up;
once more stops at once. Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from statistics import median

import msgspec

from chaos.history import Failure, History
from chaos.plan import Plan, Step
from chaos.production import ProductionWatcher
from chaos.program import KEYS, Options, key_of
from chaos.run import PARTITIONS, Run, faults_for
from chaos.servers import KINDS, own_broker

__all__ = ["Soak"]

KEPT = 20_000
"""Moments of the history; older ones are forgotten."""
STATUS = 10.0
SAMPLE = 2.0
WARM = 20.0
"""Seconds of a worker's life that do not count for its growth."""
LEASE = 3.0
ASK_TIMEOUT = 10.0
SILENCE = 120.0
"""Seconds without an answer to any question after which something is wrong."""


class Life(msgspec.Struct):
    """What a process held, from when it was warm. memory: bytes, the smallest of each three samples in a row."""

    since: float
    memory: list[int] = []
    files: list[int] = []

    def growth(self) -> float:
        """Bytes a minute, from the median of its first quarter to that of its last; 0 if it lived too short to say."""
        quarter = len(self.memory) // 4
        if quarter < 5:
            return 0.0
        grown = median(self.memory[-quarter:]) - median(self.memory[:quarter])
        return grown / (len(self.memory) * 0.75 * SAMPLE / 60)


class Soak(Run):
    """pace: seconds between faults, about."""

    def begin(self, kind: str, seed: int, pace: float, stop: asyncio.Event) -> None:
        self.kind, self.seed, self.pace, self.stop = kind, seed, pace, stop
        self.faults = self.asked = self.answered = 0
        self.last_answer = self.history.now()
        self.lives: dict[str, Life] = {}
        self._answers: dict[str, int] = {}

    async def soak(self) -> None:
        side = [asyncio.create_task(job()) for job in (self._ask, self._sample)]
        try:
            for round_ in itertools.count():
                for step in Plan.of(self.kind, self.seed + 1000 * round_, faults_for(self.kind)).steps:
                    paced = msgspec.structs.replace(step, wait=round(step.wait / 40 * self.pace * self.rate))
                    if await self._stopped_before(paced):
                        return
        finally:
            for job in side:
                job.cancel()
            await asyncio.gather(*side, return_exceptions=True)

    async def _stopped_before(self, step: Step) -> bool:
        goal = self.watcher.seen + step.wait
        await self.watcher.until(
            lambda: self.stop.is_set() or self.watcher.seen >= goal, f"{step.wait} receipts before {step.fault.name}"
        )
        if self.stop.is_set() or self.history.violations:
            return True
        await self.carry_out(Plan(self.kind, self.seed, [msgspec.structs.replace(step, wait=0)]))
        self.faults += 1
        return bool(self.history.violations)

    # --- beside the faults -----------------------------------------------------------------------------------

    async def _ask(self) -> None:
        """An answer may fail to come while faults last; but a later one may not know less than an earlier one did."""
        for number in itertools.count():
            name = key_of(number, KEYS)
            self.asked += 1
            try:
                answer = await self.program.tell.ask(name, key=name, timeout=ASK_TIMEOUT)
            except Exception as error:
                if self.history.now() - self.last_answer > SILENCE:
                    self.history.wrong(f"no question has been answered for {SILENCE:g} s, at last: {error!r}")
                    self.last_answer = self.history.now()
            else:
                self.answered, self.last_answer = self.answered + 1, self.history.now()
                if answer.count < self._answers.get(name, 0):
                    self.history.wrong(f"{name!r} had {self._answers[name]} payments, and later {answer.count}")
                self._answers[name] = answer.count
            await asyncio.sleep(0.5)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE)
            for worker in [*self.workers.running]:
                self._note(worker.name, worker.resident(), worker.descriptors())
            self._note("this process", _resident(), len(os.listdir("/proc/self/fd")))

    def _note(self, name: str, memory: int, files: int) -> None:
        life = self.lives.setdefault(name, Life(self.history.now()))
        if memory and self.history.now() - life.since > WARM:
            life.memory.append(memory)
            life.files.append(files)

    # --- what is told ----------------------------------------------------------------------------------------

    def status(self) -> str:
        watcher = self.watcher
        assert isinstance(watcher, ProductionWatcher)
        running = self.workers.running
        memory = max((worker.resident() for worker in running), default=0) >> 20
        files = max((worker.descriptors() for worker in running), default=0)
        wrong = f"  WRONG: {self.history.violations[0].what}" if self.history.violations else ""
        return (
            f"{self.history.now():6.0f} s {self.kind:13} {watcher.seen:9,} receipts {watcher.posted:6,} letters "
            f"{self.answered:5}/{self.asked} answers {watcher.ticks:3} minutes {self.faults:4} faults "
            f"{len(self.takeovers):4} takeovers {len(running)} workers {memory:4} MB {files:3} files{wrong}"
        )

    def summary(self) -> str:
        taken = sorted(takeover.taken for takeover in self.takeovers)
        gaps = sorted(takeover.gap for takeover in self.takeovers)
        lived = {name: life for name, life in self.lives.items() if life.growth()}
        lines = [self.status().strip()]
        if taken:
            lines.append(
                f"  takeovers (lease {self.options.lease:g} s): median {median(taken):.2f} s, longest {taken[-1]:.2f}; "
                f"pauses of the others: median {median(gaps):.2f} s, longest {gaps[-1]:.2f} s"
            )
        for name, life in sorted(lived.items(), key=lambda pair: -len(pair[1].memory))[:4]:
            lines.append(
                f"  {name}: {life.memory[0] >> 20} -> {life.memory[-1] >> 20} MB in {len(life.memory) * SAMPLE:.0f} s "
                f"({life.growth() / (1 << 20):+.2f} MB a minute), files {life.files[0]} -> {life.files[-1]}"
            )
        lines.append(f"  {self.audit.strays} records of stale owners, which count for nobody")
        return "\n".join(lines)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def soak(kind: str, options: argparse.Namespace, stop: asyncio.Event) -> bool:
    """Whether all was well."""
    async with own_broker(kind) as broker:
        folder = Path(tempfile.mkdtemp(prefix=f"thalweg-soak-{secrets.token_hex(3)}-"))
        settings = Options(broker=broker.url, partitions=PARTITIONS, lease=LEASE, program="production")
        run = Soak(broker, Plan(kind, options.seed, []), folder, History(KEPT), settings, options.rate)
        run.begin(kind, options.seed, options.pace, stop)

        async def tell() -> None:
            while True:
                await asyncio.sleep(STATUS)
                print(run.status(), flush=True)

        telling = asyncio.create_task(tell())
        try:
            await run.execute(run.soak)
        except Failure as failure:
            print(f"FAILED: {failure}\n{run.summary()}\nLogs of the workers are in {folder}", flush=True)
            return False
        finally:
            telling.cancel()
        print(f"ok: {run.summary()}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        return True


def seconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number and s, m or h, as 10m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=seconds, default=600.0, help="as 90s, 10m or 8h (default: 10m)")
    parser.add_argument("--broker", default="redis", help=f"some of {','.join(KINDS)} (default: redis)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (default: 1)")
    parser.add_argument("--rate", type=int, default=300, help="payments a second on each broker (default: 300)")
    parser.add_argument("--pace", type=float, default=5.0, help="seconds between faults, about (default: 5)")
    options = parser.parse_args()
    kinds = options.broker.split(",")
    if unknown := sorted(set(kinds) - set(KINDS)):
        parser.error(f"no such broker: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    for kind in kinds:
        if lacking := KINDS[kind].lacking():
            parser.error(f"{kind}: {lacking}")
    stop = asyncio.Event()
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None

    def told() -> None:
        if stop.is_set():
            me.cancel()
        print("ending: what is open is waited for, and checked (Ctrl-C once more stops at once)", flush=True)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    loop.call_later(options.duration, stop.set)
    outcomes = await asyncio.gather(*(soak(kind, options, stop) for kind in kinds))
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except asyncio.CancelledError:
        sys.exit(130)
