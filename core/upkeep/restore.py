"""A backup put into the journals of an app that has no state, on the broker it came from or on another.

Rows, retries, timers and outboxes are as they were. Positions need care, for they mean something only in the log in
which they were taken:

- of a topic whose record at the position is the one that was read there, or that holds nothing, they are plain;
- of another, the operator says (`Inputs`) whether to begin at its start, at its end, or to believe the position;
- what the app had sent to itself is sent again from the backup, and what lies there by now is passed over.

Ids that were made of positions (of parked events, and of messages that wait for their time) become such as no event of
another log has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from thalweg import headers as names
from thalweg.capabilities import Log
from thalweg.errors import BackupError, BrokerError, Gap
from thalweg.grouping import groups_of
from thalweg.journal.archive import End, Head, State, Tail, Task, read, verified
from thalweg.journal.records import checksum
from thalweg.journal.replay import records_until_now
from thalweg.journal.rewriting import Rewriting
from thalweg.journal.rows import (
    Parked,
    Reached,
    Remembered,
    Suspects,
    ahead_key,
    decode,
    encode,
    parked_key,
    reached_key,
    watermark_key,
)
from thalweg.message import Message, Position
from thalweg.plan import TopicPlan
from thalweg.starting import client_running

from .found import PARTITIONER, Journals, inputs_of, own_topics, reads, refuse_beside_workers
from .reset import remove_stores

if TYPE_CHECKING:
    from thalweg.app import App

__all__ = ["Inputs", "Restored", "inspect", "restore"]

WAIT = 10.0
"""Seconds that a log may take to give a record that it has."""
ELSEWHERE = 1 << 62
"""Above all real positions: where a parked event is put whose own position lies in another log."""


class Inputs(StrEnum):
    """Where agents begin in topics that are not certainly those of the backup."""

    START = "start"
    END = "end"
    KEEP = "keep"


class Restored(msgspec.Struct, frozen=True):
    """exact: positions that are those of the backup. chosen: those that were set as the operator said."""

    tasks: int
    rows: int
    exact: int
    chosen: int
    sent: int


def inspect(app: App, file: Path) -> tuple[Head, End]:
    """What the file is, every byte of it verified. Raises BackupError, also if it is of another app."""
    head, end = verified(file)
    if head.app != app.id:
        raise BackupError(f"{file} is a backup of app {head.app!r}, and this program is {app.id!r}")
    return head, end


async def restore(app: App, file: Path, inputs: Inputs | None, tell: Callable[[str], None]) -> Restored:
    """If it is interrupted, no worker starts before it is done again, to its end.

    Raises BackupError, and changes nothing, if the app has state, or a position cannot be trusted and `inputs` is None.
    """
    head, _ = inspect(app, file)
    async with client_running(app), Journals(app) as journals:
        transport = app.running.transport
        tails = {piece.topic for piece in read(file) if isinstance(piece, Tail)}
        if app.delays is not None and app.delays.name in tails:  # which is made at its first use only
            await transport.declare([app.delays.spec])
        existing = {info.name: info for info in await transport.topics()}
        await refuse_beside_workers(app, existing, "restored")
        groups = {name: group.partitions for name, group in groups_of(app, transport, app.delays).items()}
        names_of = {(piece.group, piece.index): piece for piece in read(file) if isinstance(piece, Task)}
        missing = {group: n for group, _ in names_of if groups.get(group) != (n := head.groups[group])}
        if missing:
            raise BackupError(
                f"{file} has state of tasks that this program does not have here: "
                f"{', '.join(f'group {group} of {n}' for group, n in missing.items())}, where it has "
                f"{', '.join(f'{group} of {n}' for group, n in groups.items())}. Give topics and tables the partitions "
                "that they had, or restore with the program of then"
            )
        positions = _Positions(app, journals, inputs, own_topics(app, existing), head.taken)
        await positions.look(file)
        tasks: dict[tuple[str, int], Rewriting] = {}
        for group, n in groups.items():
            for index in range(n):
                tasks[group, index] = task = await journals.rewriting(group, index)
                if task.worked:
                    raise BackupError(
                        f"app {app.id!r} has state on {transport.description} (journal {task.journal[0]!r}): "
                        "`thalweg reset` takes it away, then restore"
                    )
        for key, task in tasks.items():
            of = names_of.get(key)
            await task.claim(groups[key[0]], PARTITIONER, of.journal if of else None, of.epoch + 1 if of else 0)
            await task.begin(f"a restore from {file.name}")
        sent = await positions.send_again(file)
        rows, current = 0, ("", 0)
        for piece in read(file):
            if isinstance(piece, Task):
                current = piece.group, piece.index
                tell(f"task {piece.group}/{piece.index}: {rows:,} rows so far")
            elif isinstance(piece, State):
                rows += len(piece.rows)
                await tasks[current].add(positions.of_rows(current, piece.rows))
        for key, task in tasks.items():
            added = positions.news(key)
            if added:
                await task.add(added)
        for task in tasks.values():
            await task.end()
    remove_stores(app, groups)
    return Restored(len(names_of), rows, positions.exact, positions.chosen, sent)


class _Input(msgspec.Struct):
    """What becomes of an agent's position in a partition. new: None if it stays."""

    topic: TopicPlan
    partition: int
    reached: Reached = Reached(None, 0)
    new: Reached | None = None
    ahead: list[tuple[Position, Position]] = []
    new_ahead: list[tuple[Position, Position]] = []
    parked: int = 0


class _Positions:
    """Of all inputs in the backup, by task and name."""

    def __init__(
        self, app: App, journals: Journals, choice: Inputs | None, own: Sequence[TopicPlan], taken: int
    ) -> None:
        self._topics, self._journals, self._choice = inputs_of(app), journals, choice
        self._own = {plan.name for plan in own}
        self._delays = None if app.delays is None else app.delays.name
        self._inputs: dict[tuple[str, int], dict[str, _Input]] = {}
        for plan in own:
            for partition in range(plan.partitions):
                for name in reads(app, plan.name):  # one without a position is not to find what lies there by now
                    self._inputs.setdefault((plan.group, partition), {})[name] = _Input(plan, partition)
        self.exact = self.chosen = 0
        self._elsewhere = False  # some agents go on in other logs, whose positions may be those of old ones
        self._mark = b"@%d" % taken

    async def look(self, file: Path) -> None:
        """Raises BackupError, naming the topics, if some cannot be trusted and nobody has said what to do."""
        key = ("", 0)
        for piece in read(file):
            if isinstance(piece, Task):
                key = piece.group, piece.index
            elif isinstance(piece, State):
                self._gather(key, piece.rows)
        doubtful: set[str] = set()
        for task in self._inputs.values():
            for one in task.values():
                if one.topic.name not in self._own and not await self._is_plain(one):
                    doubtful.add(one.topic.name)
                self._elsewhere = self._elsewhere or one.new is not None
        if doubtful and self._choice is None:
            raise BackupError(
                f"what lies in {', '.join(sorted(doubtful))} is not certainly what the backup's positions were taken "
                "in. Say where its agents are to begin there: --inputs start (all that lies there is new to the app), "
                "--inputs end (it has been handled), or --inputs keep (it is the same log)"
            )

    def _gather(self, key: tuple[str, int], rows: Mapping[bytes, bytes]) -> None:
        inputs = self._inputs.setdefault(key, {})
        for name, topic in self._topics.items():
            raw, ahead = rows.get(reached_key(name)), rows.get(ahead_key(name))
            if raw is not None or ahead is not None:
                one = inputs.setdefault(name, _Input(topic, key[1]))
                one.reached = one.reached if raw is None else decode(raw, type=Reached)
                one.ahead = one.ahead if ahead is None else decode(ahead, type=list[tuple[Position, Position]])

    async def _is_plain(self, one: _Input) -> bool:
        """Decide, where nobody needs to be asked, or has answered."""
        reached, log = one.reached, await self._journals.log(one.topic.name)
        bounds = await log.bounds(one.partition)
        if bounds.last is None:
            if reached.position is not None:
                one.new = Reached(None, 0)
            self.exact += 1
            return True
        if reached.position is None or (
            reached.position <= bounds.last and await _is_there(log, one.partition, reached)
        ):
            self.exact += 1
            return True
        if self._choice is not Inputs.KEEP:
            one.new = Reached(None if self._choice is Inputs.START else bounds.last, 0)
        self.chosen += 1
        return False

    async def send_again(self, file: Path) -> int:
        """What the app had sent to itself; how many messages."""
        sent, begun = 0, set[tuple[str, int]]()
        for piece in read(file):
            if not isinstance(piece, Tail) or piece.topic not in self._own:
                continue
            log = await self._journals.log(piece.topic)
            before = (await log.bounds(piece.partition)).last
            if piece.messages:
                await log.append({piece.partition: self._renamed(piece)}, positions=False)
            positions = [position async for position, _ in records_until_now(log, piece.partition, before)]
            if len(positions) != len(piece.messages):
                raise BrokerError(f"topic {piece.topic!r} partition {piece.partition} was written to by somebody else")
            where = dict(zip(piece.positions, positions, strict=True))
            first = (piece.topic, piece.partition) not in begun
            begun.add((piece.topic, piece.partition))
            sent += len(positions)
            for task in self._inputs.values():
                for one in task.values():
                    if one.topic.name == piece.topic and one.partition == piece.partition:
                        self._move(one, where, before, first)
        return sent

    @staticmethod
    def _move(one: _Input, where: Mapping[Position, Position], before: Position | None, first: bool) -> None:
        old = one.reached.position
        if first:
            one.new, one.new_ahead = Reached(before, 0), []
        for was, now in where.items():
            if old is not None and was <= old:
                one.new = Reached(now, 0)
            elif any(start <= was <= stop for start, stop in one.ahead):
                one.new_ahead.append((now, now))

    def _renamed(self, tail: Tail) -> list[Message]:
        """The messages, and those that are to wait under names that events of other logs do not give."""
        if self._delays is None or tail.topic != self._delays or not self._elsewhere:
            return tail.messages
        return [
            message
            if message.key is None or message.key == (key := self._name(message.key))
            else msgspec.structs.replace(message, key=key, headers=(*message.headers, (names.PLACED, b"")))
            for message in tail.messages
        ]

    def _name(self, waiting: bytes) -> bytes:
        """Of what waits without an id of the program's own, which is made of the event that sent it."""
        return waiting + self._mark if b"\0\0" in waiting else waiting

    # --- rows ----------------------------------------------------------------------------------------------------

    def of_rows(self, key: tuple[str, int], rows: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """The rows as they are to be: without those that hold positions in other logs."""
        moved = {name: one for name, one in self._inputs.get(key, {}).items() if one.new is not None}
        if not moved and not self._elsewhere:
            return dict(rows)
        gone = {row for name in moved for row in (reached_key(name), ahead_key(name), watermark_key(name, b""))}
        parked = {b"r" + name.encode() + b"\0": (name, one) for name, one in moved.items()}
        found: dict[bytes, bytes] = {}
        for row, value in rows.items():
            if row in gone or (row[:1] == b"s" and not _suspected(value).isdisjoint(moved)):
                continue
            if self._elsewhere and row[:1] in (b"y", b"x"):
                cut = 1 if row[:1] == b"y" else 9
                found[row[:cut] + self._name(row[cut:])] = value
                continue
            if row[:1] == b"d" and row[1:].partition(b"\0")[0].decode() in moved:
                found[row] = encode(msgspec.structs.replace(decode(value, type=Remembered), position=-1))
                continue
            if row[:1] == b"r" and row[:-8] in parked:
                name, one = parked[row[:-8]]
                found[parked_key(name, ELSEWHERE + one.parked)] = _elsewhere(one, row, value)
                one.parked += 1
            else:
                found[row] = value
        return found

    def news(self, key: tuple[str, int]) -> dict[bytes, bytes]:
        """The positions that are others now."""
        found: dict[bytes, bytes] = {}
        for name, one in self._inputs.get(key, {}).items():
            if one.new is not None:
                found[reached_key(name)] = encode(one.new)
                if one.new_ahead:
                    found[ahead_key(name)] = encode(one.new_ahead)
        return found


async def _is_there(log: Log, partition: int, reached: Reached) -> bool:
    """Whether the record at the position is the one that was read there, as far as it is known which that was."""
    assert reached.position is not None
    try:
        batch = (await log.read({partition: reached.position - 1}, 1, 1, WAIT)).get(partition)
    except Gap:
        return False
    if batch is None or batch.positions[0] != reached.position:
        return False
    return not reached.checksum or checksum(batch.records[0].value) == reached.checksum


def _suspected(value: bytes) -> set[str]:
    """The inputs whose events are suspected."""
    suspects = decode(value, type=Suspects)
    return {one.input for one in (suspects.noted, *suspects.before) if one is not None}


def _elsewhere(one: _Input, row: bytes, value: bytes) -> bytes:
    """A parked event under another position; its id stays."""
    event = decode(value, type=Parked)
    if names.find(event.headers, names.ID) is None:
        id = f"{one.topic.name}/{one.partition}/{int.from_bytes(row[-8:], 'big')}"
        event.headers = (*event.headers, (names.ID, id.encode()))
    return encode(event)
