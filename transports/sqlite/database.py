"""The file as the transport uses it: one thread that writes, one that reads, each with its own connection.

A job is a plain function that runs in such a thread, inside a transaction. Jobs that wait together are written in one
transaction, hence with one fsync. A job may run twice (its transaction failed through another's fault), so it changes
nothing but the database; whatever else follows from it is done by whoever awaits its result.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from thalweg.errors import AmbiguousCommit, BrokerError, ThalwegError

from .doorbell import Doorbell
from .schema import connect, create

__all__ = ["Database", "Keeper", "Transaction"]

T = TypeVar("T")

_TOGETHER = 64  # jobs in one transaction, at most
_WAL_BYTES = 32 << 20  # above this the log is emptied by force: readers that never pause could make it grow for ever


class Transaction:
    """What a writing job works on. `touched` collects the topics whose sleepers are to be woken after the commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.touched: set[int] = set()


class Keeper(Protocol):
    """Has work for the writing thread at certain times, whatever the event loop is doing."""

    def due(self) -> float | None:
        """Seconds until `keep` wants to run; None: it does not."""
        ...

    def keep(self, transaction: Transaction) -> Callable[[], None]:
        """Do the work; returns what is to be called, in the same thread, once it is committed."""
        ...


class _Job(Generic[T]):
    """A function to run in a thread, and the future that its caller awaits. Cancelled in time, it never runs."""

    def __init__(self, work: Callable[..., T]) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self.result: T
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class _Mark(_Job[None]):
    """Not work, but a moment in a thread's life: it has opened its connection, or has closed it and ends."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.result = None


class Database:
    """Opens the file, runs jobs, closes. What SQLite reports is raised as `BrokerError`, with the file and a remedy."""

    def __init__(self, file: Path, synchronous: str, busy_timeout: float, bell: Doorbell, keeper: Keeper) -> None:
        self.file = file
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._bell = bell
        self._keeper = keeper
        self._writing: queue.SimpleQueue[_Job[Any]] = queue.SimpleQueue()
        self._reading: queue.SimpleQueue[_Job[Any]] = queue.SimpleQueue()
        self._threads: list[tuple[threading.Thread, queue.SimpleQueue[_Job[Any]]]] = []
        self._usable = False
        self._wal_limit = _WAL_BYTES

    async def open(self) -> None:
        try:
            for run, jobs in ((self._write_loop, self._writing), (self._read_loop, self._reading)):
                await self._start(run, jobs)
            self._usable = True
        except BaseException:
            await self.close()
            raise

    async def _start(self, run: Callable[[_Mark], None], jobs: queue.SimpleQueue[_Job[Any]]) -> None:
        opened = _Mark()
        thread = threading.Thread(target=run, args=(opened,), name=f"sqlite {self.file.name}", daemon=True)
        thread.start()
        try:
            await asyncio.shield(opened.future)
        finally:  # cancelled, it must be known all the same whether there is a thread to end
            if not opened.future.done():  # `wait` would suspend all the same, and could be cancelled there
                await asyncio.wait([opened.future])
            if opened.future.exception() is None:
                self._threads.append((thread, jobs))
            else:
                thread.join()

    async def close(self) -> None:
        """Finish what was submitted, then close. To be shielded from cancellation."""
        self._usable = False
        while self._threads:
            thread, jobs = self._threads.pop()
            closed = _Mark()
            jobs.put(closed)
            await closed.future
            thread.join()

    def write(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Run `work` in a write transaction; the future is done once that is committed.

        Cancelling the future before `work` has started means that it never runs; later, it changes nothing.
        """
        return self._submit(self._writing, work)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Run `work` on a consistent snapshot of what is committed."""
        return self._submit(self._reading, work)

    def nudge(self) -> None:
        """Let the writing thread ask its keeper again."""
        idle: _Job[Any] = _Job(lambda _: None)
        idle.future.cancel()
        self._writing.put(idle)

    def _submit(self, jobs: queue.SimpleQueue[_Job[Any]], work: Callable[..., T]) -> asyncio.Future[T]:
        job = _Job(work)
        if self._usable:
            jobs.put(job)
        else:
            job.error = BrokerError(f"{self.file}: the transport is not open")
            job.settle()
        return job.future

    # --- in the threads --------------------------------------------------------------------------------------

    def _read_loop(self, opened: _Mark) -> None:
        connection = self._connect(opened, writing=False)
        if connection is None:
            return
        while True:
            job = self._reading.get()
            if isinstance(job, _Mark):
                break
            if job.future.cancelled():
                continue
            try:
                connection.execute("BEGIN")
                job.result = job.work(connection)
            except Exception as error:
                job.error = self._explain(error)
            _roll_back(connection)
            self._deliver([job])
        connection.close()
        self._deliver([job])

    def _write_loop(self, opened: _Mark) -> None:
        connection = self._connect(opened, writing=True)
        if connection is None:
            return
        closed: _Mark | None = None
        while closed is None:
            jobs: list[_Job[Any]] = []
            try:
                job = self._writing.get(timeout=self._keeper.due())
                while not isinstance(job, _Mark) and len(jobs) < _TOGETHER:
                    jobs.append(job)
                    job = self._writing.get_nowait()
                if isinstance(job, _Mark):
                    closed = job
                else:
                    self._run(connection, jobs)
                    jobs = [job]
            except queue.Empty:
                pass
            self._keep(connection)
            self._run(connection, jobs)
        connection.close()
        self._deliver([closed])

    def _connect(self, opened: _Mark, writing: bool) -> sqlite3.Connection | None:
        connection: sqlite3.Connection | None = None
        try:
            connection = connect(self.file, self._busy_timeout)
            if writing:
                create(connection, self.file, self._synchronous, self._busy_timeout)
                connection.execute("PRAGMA busy_timeout = 0")  # `_begin` waits instead
            else:
                connection.execute("PRAGMA query_only = 1")
        except Exception as error:
            if connection is not None:
                connection.close()
            opened.error = self._explain(error)
            connection = None
        self._deliver([opened])
        return connection

    def _keep(self, connection: sqlite3.Connection) -> None:
        if self._keeper.due() == 0:
            try:
                self._begin(connection)
                committed = self._keeper.keep(Transaction(connection))
                connection.execute("COMMIT")
                committed()
            except sqlite3.Error:
                _roll_back(connection)  # what could not be kept ends in time, and its holder knows

    def _run(self, connection: sqlite3.Connection, jobs: Sequence[_Job[Any]]) -> None:
        """Run jobs in one transaction; if one fails, each in its own."""
        jobs = [job for job in jobs if not job.future.cancelled()]
        if not jobs:
            return None
        transaction = Transaction(connection)
        try:
            self._begin(connection)
        except sqlite3.Error as error:
            return self._fail(jobs, self._explain(error))
        try:
            for job in jobs:
                job.result = job.work(transaction)
        except Exception as error:
            _roll_back(connection)
            if len(jobs) == 1:
                return self._fail(jobs, self._explain(error))
            for job in jobs:
                self._run(connection, [job])
            return None
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(connection)
            # The commit may already lie in the write-ahead log, and a crash of all processes could bring it back.
            return self._fail(jobs, AmbiguousCommit(f"{self._explain(error)} (whether it was committed is unknown)"))
        self._deliver(jobs, transaction.touched)
        self._empty_log(connection)
        return None

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Wait for the write lock with naps of 2 ms at most.

        SQLite's own naps grow to 100 ms: beside a process that writes without pause, a commit took 130 ms (p90).
        """
        deadline = time.monotonic() + self._busy_timeout
        nap = 0.0002
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(nap * random.uniform(0.5, 1))
            nap = min(nap * 1.5, 0.002)

    def _fail(self, jobs: Sequence[_Job[Any]], error: BaseException) -> None:
        for job in jobs:
            job.error = error
        self._deliver(jobs)

    def _deliver(self, jobs: Sequence[_Job[Any]], touched: Iterable[int] = ()) -> None:
        """Hand the results to the event loop, wake its sleepers, then those of other transports."""

        def settle() -> None:
            for job in jobs:
                job.settle()
            self._bell.ring_here(touched)

        try:
            jobs[0].loop.call_soon_threadsafe(settle)
        except RuntimeError:
            pass  # the loop was closed before the transport: nobody waits
        if touched:
            self._bell.ring(touched)

    def _empty_log(self, connection: sqlite3.Connection) -> None:
        try:
            size = os.path.getsize(f"{self.file}-wal")
            if size < self._wal_limit:
                return
            connection.execute("PRAGMA busy_timeout = 250")
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute("PRAGMA busy_timeout = 0")
            # A reader that stays for long prevents it: try again when it has grown as much again.
            self._wal_limit = size + _WAL_BYTES if busy else _WAL_BYTES
        except (OSError, sqlite3.Error):
            pass  # tried again at the next commit

    def _explain(self, error: BaseException) -> BaseException:
        """What SQLite says, as a `BrokerError` that names the file and the remedy."""
        if isinstance(error, ThalwegError) or not isinstance(error, sqlite3.Error):
            return error
        remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "SQLite refused a statement")
        explained = BrokerError(f"{self.file}: {error}: {remedy}".replace("%BUSY%", f"{self._busy_timeout:g}"))
        explained.__cause__ = error
        return explained


_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds the write lock for more than busy_timeout=%BUSY% seconds; look for a "
    "stopped process, or for an open transaction in a sqlite3 shell",
    sqlite3.SQLITE_FULL: "the disk is full; free space on it",
    sqlite3.SQLITE_IOERR: "reading or writing failed; check the disk, its quota and its free space",
    sqlite3.SQLITE_NOTADB: "name another file, or a new one",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup, or name another file",
    sqlite3.SQLITE_CANTOPEN: "it must be a file in an existing folder that this process may write to",
    sqlite3.SQLITE_READONLY: "this process must be allowed to write to the file and to its folder",
    sqlite3.SQLITE_PERM: "this process must be allowed to write to the file and to its folder",
}


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # SQLite had rolled back by itself
