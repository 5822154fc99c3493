"""Worker processes: started, killed, stopped in the middle of what they do, and told to end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from thalweg import starting
from thalweg.journal import snapshot
from thalweg.serving import serve

from chaos.ending import die_with_starter
from chaos.program import Options
from chaos.programs import program_of
from chaos.trace import Handled, Trace, read_trace

__all__ = ["Worker", "Workers"]

_context = multiprocessing.get_context("forkserver")  # with everything imported: as real as a new one, without the wait
_context.set_forkserver_preload(
    ["chaos.run", "thalweg.serving", "thalweg.stores.memory"]  # chaos.run: what the starting program has imported
    + [f"thalweg.transports.{name}" for name in ("sqlite", "memory", "redis", "kafka", "nats", "rabbitmq")]
)


class Worker:
    """One process. name: unique in its run. `state`: running, hung, ended."""

    def __init__(self, name: str, folder: Path, target: Callable[..., None], *arguments: object) -> None:
        self.name, self.folder, self.state = name, folder, "running"
        self.started = time.time()
        self._process = _context.Process(target=target, args=(name, folder, *arguments), name=name)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"{self.name}({self.pid})"

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self.state = "ended"
        self._process.kill()
        self._process.join()

    def hang(self) -> None:
        """Returns once it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        while _process_state(self.pid) not in "Tt":
            time.sleep(0.001)
        self.state = "hung"

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.state = "running"

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        self._process.terminate()

    @property
    def ready(self) -> bool:
        """Whether it has run its share of the tasks."""
        return (self.folder / f"{self.name}.ready").exists()

    async def started_up(self, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not self.ready and self.exit_code is None:  # noqa: ASYNC110 - it is no child of ours
                await asyncio.sleep(0.02)

    async def ended(self, seconds: float = 60) -> None:
        """Raises TimeoutError with its last words if it does not end by itself, AssertionError if it ends in error."""
        try:
            async with asyncio.timeout(seconds):
                while self._process.exitcode is None:  # noqa: ASYNC110 - it is no child of ours, so no event tells
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise TimeoutError(f"{self} does not end after SIGTERM; its log ends with:\n{self.last_words()}") from None
        self.state = "ended"
        harmless = (0,) if self.ready else (0, -signal.SIGTERM)  # Python's own end, before the program took it over
        assert self._process.exitcode in harmless, f"{self}: exit code {self._process.exitcode};\n{self.last_words()}"

    def last_words(self, lines: int = 30) -> str:
        log = self.folder / f"{self.name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    def handled(self) -> list[Handled]:
        path = self.folder / f"{self.name}.trace"
        return list(read_trace(path)) if path.exists() else []

    def resident(self) -> int:
        """Bytes of memory that it holds; 0 if it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def busy(self) -> float:
        """Seconds of processor time that it has used; 0 if it has ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except OSError:
            return 0


class Workers:
    """All that were started; `close` ends them."""

    def __init__(self, folder: Path, traced: bool = False) -> None:
        self.folder, self.traced = folder, traced
        self.all: list[Worker] = []
        self._numbers = itertools.count(1)

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.all if worker.state != "ended"]

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.all if worker.state == "running"]

    def start(self, options: Options) -> Worker:
        worker = Worker(f"w{next(self._numbers)}", self.folder, work, options, self.traced)
        self.all.append(worker)
        return worker

    def by_pid(self, pid: int) -> Worker | None:
        return next((worker for worker in self.all if worker.pid == pid), None)

    def died(self) -> list[Worker]:
        """Those that have ended by themselves."""
        return [worker for worker in self.living if worker.exit_code is not None]

    def close(self) -> None:
        for worker in self.living:
            worker.kill()


def work(name: str, folder: Path, options: Options, traced: bool) -> None:
    """What a worker process does."""
    os.setsid()  # a Ctrl-C is not meant for it
    die_with_starter()
    speak_into(folder / f"{name}.log")
    trace = Trace(folder / f"{name}.trace") if traced else None
    if options.snapshot_bytes is not None:
        starting.SNAPSHOT_BYTES, snapshot.PART_BYTES = options.snapshot_bytes, options.snapshot_bytes // 20
    program = program_of(options, trace)
    asyncio.run(serve(program.app, lambda _: (folder / f"{name}.ready").touch()))


def speak_into(log: Path) -> None:
    """All that this process says goes into a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )


def _process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
