"""Who watches the workers from outside: a Thalweg program that reads what they send, and a reader of their journals."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from thalweg import App, Event, Stream, Table
from thalweg.capabilities import Log, Logs
from thalweg.channel import Transport
from thalweg.errors import BrokerError, Gap
from thalweg.journal.records import Begin, Chunk, End, Fold, Marker, decode_entry
from thalweg.message import Position, Record
from thalweg.registry import load_transport

from chaos.history import History, Seen, Stray
from chaos.program import APP, Account, Options, Receipt, amount_of, key_of

__all__ = ["Audit", "Reader", "Watcher"]


class Followed(msgspec.Struct, frozen=True):
    """What the receipts of one account have said up to now. A row, so that it is exact whatever befalls this reader."""

    last: int = -1
    count: int = 0
    total: int = 0
    partition: int = -1
    by: tuple[int, ...] = ()  # processes that sent them, in order


class Reader:
    """What a program in this process has seen of the messages that the workers send.

    `uncertain`: numbers of which nobody knows whether they were sent. `open`: those that were, and are still to be
    done.
    """

    app: App

    def __init__(self, history: History) -> None:
        self.history = history
        self.open: set[int] = set()
        self.uncertain: set[int] = set()
        self.early: set[int] = set()  # one may be done before its send has returned
        self.seen = 0
        self.changed = asyncio.Event()
        self.highest: dict[int, int] = {}
        """The highest number seen of each partition."""

    def note(self, partition: int, number: int, pid: int, done: bool = True) -> None:
        """A message of that process about the number was read; done: the last one about it."""
        self.seen += 1
        self.highest[partition] = max(number, self.highest.get(partition, -1))
        if number in self.open:
            if done:
                self.open.discard(number)
        elif done:
            self.early.add(number)
        self.history.add(Seen(self.history.now(), partition, pid, number))
        self.changed.set()

    def has_all(self) -> bool:
        """Whether what has certainly been sent has all been done."""
        return not self.open

    def sent(self, numbers: range) -> None:
        fresh = set(numbers) - self.early
        self.early -= set(numbers)
        self.open |= fresh

    async def until(self, reached: Any, what: str, seconds: float = 120) -> None:
        """Until `reached()` is true; it is asked at each receipt. Says in the history when patience has ended."""
        try:
            async with asyncio.timeout(seconds):
                while not reached():
                    self.changed.clear()
                    try:
                        async with asyncio.timeout(0.5):
                            await self.changed.wait()
                    except TimeoutError:
                        pass
        except TimeoutError:
            if reached():
                return
            self.history.wrong(f"waited {seconds:g} s in vain for {what}")
            raise


class Watcher(Reader):
    """Reads each receipt exactly once, and checks that it comes in order and that its sum is right."""

    def __init__(self, options: Options, keys: int, history: History) -> None:
        super().__init__(history)
        self.keys = keys
        self.app = App(f"{APP}-watcher", broker=options.broker, partitions=options.partitions, lease=options.lease)
        receipts = self.app.topic("receipts", key=str, value=Receipt)
        self.accounts: Table[str, Followed] = self.app.table("followed", key=str, value=Followed, default=Followed)

        @self.app.agent(receipts)
        async def follow(stream: Stream[Receipt]) -> None:
            async for event in stream.events():
                self.accounts[event.key] = self._follow(event, self.accounts[event.key])
                self.note(event.partition, event.value.number, event.value.worker)

    def _follow(self, event: Event[Receipt, str], before: Followed) -> Followed:
        key, receipt, number = event.key, event.value, event.value.number
        if key != key_of(number, self.keys):
            self.history.wrong(f"receipt {number} has the key {key!r}")
        if number <= before.last and number not in self.uncertain:
            self.history.wrong(f"receipt {number} of {key!r} comes after {before.last}: repeated or out of order")
        by = before.by if before.by[-1:] == (receipt.worker,) else (*before.by, receipt.worker)
        now = Followed(
            max(number, before.last), before.count + 1, before.total + amount_of(number), event.partition, by
        )
        if (receipt.count, receipt.total) != (now.count, now.total):
            self.history.wrong(
                f"receipt {number} of {key!r} by {receipt.worker} says {receipt.count} payments of {receipt.total}; "
                f"the receipts before it make that {now.count} of {now.total}"
            )
        return now

    def check_owners(self, journal: str) -> None:
        """Those who sent an account's receipts must be those who claimed its task, in the same order."""
        for key, row in self.accounts.items():
            claims = iter([claim.pid for claim in self.history.owners[journal, row.partition]])
            for pid in row.by:
                if pid not in claims:  # which goes on from where the one before was found
                    self.history.wrong(f"receipts of {key!r} come from {row.by}, who have not claimed it in this order")
                    break

    def truth(self) -> Mapping[str, Account]:
        return {key: Account(row.count, row.total) for key, row in self.accounts.items()}


class Audit:
    """Tails all journals of the program: who claims which task, and what counts.

    counted: records that count, by process. It applies the journal's own rule (`Fold`) to what lies in the log.
    """

    def __init__(self, broker: str, journals: Mapping[str, int], history: History, fenced: bool) -> None:
        self._broker, self._journals, self._history, self.fenced = broker, journals, history, fenced
        self.counted: dict[int, int] = {}
        self.strays = 0
        """Records of owners that others had followed: they count for nobody."""
        self.snapshots = 0
        """Those that came to their end."""
        self._pids: dict[bytes, int] = {}
        self._folds: dict[tuple[str, int], Fold] = {}
        self._after: dict[str, dict[int, Position | None]] = {}
        self.reached = asyncio.Event()

    async def run(self) -> None:
        transport = load_transport(self._broker)
        while True:
            try:
                await transport.open()
                break
            except BrokerError:
                await asyncio.sleep(0.2)
        try:
            async with asyncio.TaskGroup() as tasks:
                for topic, partitions in self._journals.items():
                    self._after[topic] = dict.fromkeys(range(partitions))
                    tasks.create_task(self._tail(transport, topic))
        finally:
            await transport.close()

    async def _tail(self, transport: Transport, topic: str) -> None:
        assert isinstance(transport, Logs)
        reader: Log | None = None
        while True:
            try:
                reader = reader or await transport.log(topic)
                found = await reader.read(self._after[topic], 1000, 1 << 24, 1.0)
            except Gap:  # truncated behind us: what remains begins with a snapshot
                self._after[topic] = dict.fromkeys(self._after[topic])
                self._folds = {key: fold for key, fold in self._folds.items() if key[0] != topic}
                continue
            except BrokerError:
                await asyncio.sleep(0.1)
                continue
            for partition, batch in found.items():
                for record in batch.records:
                    self._feed(topic, partition, record)
                self._after[topic][partition] = batch.positions[-1]
            self.reached.set()

    def _claimed(self, topic: str, partition: int, marker: Marker) -> None:
        pid = self._pids[marker.token] = int(marker.owner.rpartition("/")[2])
        self._history.claimed(topic, partition, pid, marker.token)

    def _feed(self, topic: str, partition: int, record: Record) -> None:
        fold = self._folds.setdefault((topic, partition), Fold())
        entry = fold.feed(record.value)
        if isinstance(entry, Begin) and entry.marker.token not in self._pids:  # its marker was truncated behind us
            self._claimed(topic, partition, entry.marker)
        if isinstance(entry, Marker):
            self._claimed(topic, partition, entry)
            return
        raw = decode_entry(record.value or b"")
        pid = self._pids.get(raw.token, 0)
        self.snapshots += isinstance(entry, End)
        if entry is not None or (isinstance(raw, Chunk) and fold.marker is not None and raw.token == fold.marker.token):
            self.counted[pid] = self.counted.get(pid, 0) + 1
            return
        if fold.marker is None:  # what the truncation left of an older owner
            return
        self.strays += 1
        self._history.add(Stray(self._history.now(), topic, partition, pid))
        if self.fenced:
            self._history.wrong(
                f"{topic}/{partition}: a record of {pid} lies behind another owner's marker, on a broker that fences"
            )
