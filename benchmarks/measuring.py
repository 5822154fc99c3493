"""What is measured, and how: one case has several sides that do the same work, run in turns, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import gc
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter, process_time
from urllib.parse import urlsplit

__all__ = ["Case", "Figure", "Measured", "Run", "Sample", "Side", "answers", "measure"]


class Run:
    """One run of one side: how much to do, and the clock around what counts."""

    def __init__(self, messages: int, profile: cProfile.Profile | None = None) -> None:
        self.messages = messages
        self.latencies: list[float] = []
        """Seconds, one for each message; left empty by cases that are about throughput."""
        self.seconds = 0.0
        self.cpu = 0.0
        self._profile = profile

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """What happens inside counts. The garbage of the preparations is collected before; the collector stays on."""
        gc.collect()
        if self._profile is not None:
            self._profile.enable()
        cpu, start = process_time(), perf_counter()
        yield
        self.seconds, self.cpu = perf_counter() - start, process_time() - cpu
        if self._profile is not None:
            self._profile.disable()


Side = Callable[[Run], Awaitable[None]]
"""Does the work of `run.messages` messages, checks the result (AssertionError), and times what counts."""


@dataclass(frozen=True)
class Case:
    """What is compared. The first side is the one that the others are measured against.

    share: of the number of messages that was asked for. target: the least ratio of CPU time wanted (base / side), or,
    where `latency`, the largest median wanted, in seconds; of the second side.
    """

    name: str
    about: str
    sides: dict[str, Side]
    share: float = 1.0
    latency: bool = False
    target: float | None = None


@dataclass(frozen=True)
class Sample:
    """One run. Times in seconds; `p50` and `p99` of the latencies."""

    messages: int
    seconds: float
    cpu: float
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Figure:
    """Median, smallest and largest over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(median(values), min(values), max(values))


@dataclass
class Measured:
    """The samples of one side, round by round."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def rate(self) -> Figure:
        """Messages a second."""
        return Figure.of([sample.messages / sample.seconds for sample in self.samples])

    @property
    def cpu(self) -> Figure:
        """CPU seconds a message."""
        return Figure.of([sample.cpu / sample.messages for sample in self.samples])

    @property
    def p50(self) -> Figure | None:
        return self._latency([sample.p50 for sample in self.samples])

    @property
    def p99(self) -> Figure | None:
        return self._latency([sample.p99 for sample in self.samples])

    @staticmethod
    def _latency(values: Sequence[float | None]) -> Figure | None:
        known = [value for value in values if value is not None]
        return Figure.of(known) if known else None

    def ratio(self, base: Measured, latency: bool) -> Figure:
        """How fast as a share of `base`, each round compared with the same round; 1 is equal, above 1 is faster."""
        pairs = list(zip(self.samples, base.samples, strict=True))
        if latency:
            return Figure.of([(theirs.p50 or 0) / (ours.p50 or 1) for ours, theirs in pairs])
        return Figure.of([theirs.seconds / ours.seconds for ours, theirs in pairs])

    def cpu_ratio(self, base: Measured) -> Figure:
        """The same of CPU time: what `ratio` would be on a machine that does nothing else and waits for no disk."""
        return Figure.of([theirs.cpu / ours.cpu for ours, theirs in zip(self.samples, base.samples, strict=True)])


def measure(
    cases: Sequence[Case], messages: int, rounds: int, note: Callable[[str], None]
) -> dict[str, dict[str, Measured]]:
    """Case name -> side name -> what was measured.

    The rounds go over all sides of a case in turn (A B A B), so that whatever slows the machine down hits all alike.
    """
    results: dict[str, dict[str, Measured]] = {}
    for case in cases:
        note(case.name)
        results[case.name] = {name: Measured() for name in case.sides}
        for _ in range(rounds):
            for name, side in case.sides.items():
                results[case.name][name].samples.append(sample(side, scaled(case, messages)))
    return results


def scaled(case: Case, messages: int) -> int:
    return max(10, round(messages * case.share))


def sample(side: Side, messages: int, profile: cProfile.Profile | None = None) -> Sample:
    """Run one side once, in an event loop of its own."""
    run = Run(messages, profile)
    asyncio.run(_coroutine(side, run))
    if not run.latencies:
        return Sample(messages, run.seconds, run.cpu)
    cuts = quantiles(run.latencies, n=100, method="inclusive")
    return Sample(messages, run.seconds, run.cpu, cuts[49], cuts[98])


async def _coroutine(side: Side, run: Run) -> None:
    await side(run)


def answers(url: str, *ports: int) -> bool:
    """Whether something listens at the URL, or at its host on every other port; the first port is the URL's default."""
    parts = urlsplit(url.partition(",")[0])
    try:
        for port in (parts.port or ports[0], *ports[1:]):
            socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True
