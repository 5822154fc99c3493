"""How processes on one file wake each other, and know whether another one still lives.

Each open transport has a FIFO in the folder `<file>-doors` and keeps its reading end open. Whoever has committed writes
the numbers of the topics it touched into every door: sleepers wake within a fraction of a millisecond, and idle
processes use no CPU. As the kernel closes the reading end when a process dies, opening a door for writing also tells
whether its owner lives, at once and whatever killed it; names are random, so no later process is taken for it. (A child
that was forked without exec keeps the doors of its parent open: then only the lease tells.)
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from thalweg.errors import BrokerError

__all__ = ["LEASES", "Doorbell"]

LEASES = 0
"""Rung in place of a topic's number when locks or members change."""

_WATCH = 0.5  # seconds
_ABANDONED = 60.0  # seconds after which a door that was never finished is swept away
_CHUNK = 128  # numbers per write: 512 bytes, the least that POSIX guarantees to be written in one piece


class Doorbell:
    """One process's door, and its means to ring at all others. `ring` and `alive` may be called from any thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._folder = file.with_name(file.name + "-doors")
        self.name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._ends: tuple[int, ...] = ()
        self._rung: dict[int, asyncio.Event] = {}
        self._sleepers = 0
        self._watch: asyncio.Task[None] | None = None
        self._deaf = False

    def open(self) -> None:
        """Raises `BrokerError` if the folder cannot hold FIFOs."""
        hidden = self._folder / f".{self.name}"
        try:
            for _ in range(100):  # the folder may vanish with the last other process
                self._folder.mkdir(exist_ok=True, mode=0o777)
                try:
                    os.mkfifo(hidden, self._file.stat().st_mode & 0o666)
                    break
                except FileNotFoundError:
                    continue
            reading = os.open(hidden, os.O_RDONLY | os.O_NONBLOCK)
            # Our own writing end: without one, a FIFO whose last writer left reports end-of-file for ever.
            self._ends = reading, os.open(hidden, os.O_WRONLY | os.O_NONBLOCK)
            # Renamed only now: a visible door always has a reader while its owner lives.
            hidden.rename(self._folder / self.name)
        except OSError as error:
            self.close()
            raise BrokerError(
                f"cannot create a FIFO in {self._folder}: {error.strerror}. The broker's file must be in a folder that "
                "this process may write to, on a local disk"
            ) from error

    def listen(self, look: Callable[[], Awaitable[None]]) -> None:
        """Ring local sleepers whenever someone rings at the door.

        While anyone sleeps, `look` is called every half second: foreign programs ring no bell, nor do the dying.
        """
        self._look = look
        asyncio.get_running_loop().add_reader(self._ends[0], self._answer)

    async def deaf(self) -> None:
        """Undo `listen`; wake all sleepers, and let nobody fall asleep any more."""
        self._deaf = True
        if self._ends:
            asyncio.get_running_loop().remove_reader(self._ends[0])
        self.ring_all_here()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])

    def close(self, leave_door: bool = False) -> None:
        """leave_door: it tells others that its owner has gone; for when the leases could not be given back."""
        if not leave_door:
            for name in (self.name, f".{self.name}"):
                (self._folder / name).unlink(missing_ok=True)
        ends, self._ends = self._ends, ()
        for end in ends:
            os.close(end)
        try:
            self._folder.rmdir()
        except OSError:
            pass  # others live here

    def event(self, number: int) -> asyncio.Event:
        """Set at the next ring for this number. Ask for it *before* looking for data, so that no ring is missed."""
        event = self._rung.get(number)
        if event is None:
            event = self._rung[number] = asyncio.Event()
        return event

    def ring_here(self, numbers: Iterable[int]) -> None:
        """Wake sleepers of this transport (in its event loop)."""
        for number in numbers:
            event = self._rung.pop(number, None)
            if event is not None:
                event.set()

    def ring_all_here(self) -> None:
        self.ring_here(list(self._rung))

    async def wait(self, event: asyncio.Event, timeout: float | None) -> None:
        """Sleep until the event is set, at most `timeout` seconds. May return early."""
        if self._deaf:
            return
        self._sleepers += 1
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watching())
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._sleepers -= 1

    async def _watching(self) -> None:
        while self._sleepers:
            await asyncio.sleep(_WATCH)
            await self._look()

    def ring(self, numbers: Iterable[int]) -> None:
        """Wake sleepers of all other transports on this file, in this process or another."""
        numbers = array("I", numbers)
        for name in self._others():
            try:
                door = os.open(self._folder / name, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue  # left, or killed
            try:
                for start in range(0, len(numbers), _CHUNK):
                    os.write(door, numbers[start : start + _CHUNK])
            except OSError:
                pass  # full: its owner is stopped, or has more than enough to wake up for; or it left just now
            finally:
                os.close(door)

    def alive(self, name: str) -> bool:
        """Whether the owner of the door lives. True if in doubt, as when someone removed the folder: leases decide."""
        if name == self.name:
            return True
        try:
            os.close(os.open(self._folder / name, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            return error.errno != errno.ENXIO  # nobody has it open for reading
        return True

    def abandoned(self) -> list[Path]:
        """What killed processes left. To be removed once their leases are ended, as no door leaves it in doubt."""
        found: list[Path] = []
        for name in os.listdir(self._folder):
            path = self._folder / name
            try:
                unfinished = name.startswith(".") and time.time() - path.stat().st_mtime < _ABANDONED
            except FileNotFoundError:
                continue
            if not unfinished and not self.alive(name):
                found.append(path)
        return found

    def _others(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if name != self.name and not name.startswith(".")]
        except OSError:
            return []  # gone, or no descriptor is left: sleepers find out by looking

    def _answer(self) -> None:
        try:
            heard = os.read(self._ends[0], 1 << 16)
        except (BlockingIOError, IndexError):
            return
        if len(heard) % 4 or len(heard) == 1 << 16:
            self.ring_all_here()
        else:
            self.ring_here(set(array("I", heard)))
