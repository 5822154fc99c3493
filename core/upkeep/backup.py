"""A backup: what every task had committed, each at a commit, with what the app had sent to itself and not yet handled.

Tasks are read one after another. That is one consistent whole while no worker runs, and also while workers run, if
tasks do not hand one another messages through topics of the app's own; else it is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
from thalweg.errors import BackupError, ConfigurationError, Gap
from thalweg.journal.archive import Archive, Head, State, Tail, Task
from thalweg.journal.replay import records_until_now
from thalweg.journal.rows import UNFINISHED, Reached, decode, reached_key
from thalweg.journal.snapshot import LOCAL_MARKER
from thalweg.message import Message, Position
from thalweg.plan import TopicPlan
from thalweg.registry import load_stores
from thalweg.runtime.replay import Replay
from thalweg.starting import looking
from thalweg.store import Store

from .found import PARTITIONER, Journals, journals_of, live_workers, own_topics, reads

if TYPE_CHECKING:
    from thalweg.app import App

__all__ = ["Summary", "backup"]

PIECE_BYTES, PIECE_RECORDS = 1 << 20, 1000
TRIES = 10
"""How often a journal may be truncated while it is being read."""


class Summary(msgspec.Struct, frozen=True):
    tasks: int
    rows: int
    bytes: int


async def backup(app: App, file: Path, tell: Callable[[str], None]) -> Summary:
    """Write `file`, which must not exist; it does not either if this raises BackupError, or what reading raises."""
    async with looking(app) as existing, Journals(app) as journals:
        groups = journals_of(app, existing)
        if not groups:
            raise ConfigurationError(f"app {app.id!r} has no state on {app.running.transport.description}")
        own = [plan for plan in own_topics(app, existing) if reads(app, plan.name)]
        workers = await live_workers(app, existing)
        if workers and own:
            raise ConfigurationError(
                f"app {app.id!r}: workers run ({workers[0].name} on {workers[0].host}, …), and its agents send to one "
                f"another through {', '.join(plan.name for plan in own)}: what is on its way there is in no commit of "
                "both sides. Stop the workers for the time of the backup"
            )
        head = Head(
            app.id,
            version("thalweg"),
            app.running.transport.description,
            round(app.now() * 1000),
            PARTITIONER,
            groups,
        )
        with Archive(file, head) as archive, tempfile.TemporaryDirectory(prefix="thalweg-backup-") as folder:
            stores = load_stores(f"sqlite:///{quote(folder)}?verify_mb=0")  # so that no state is too large for memory
            try:
                reached: dict[tuple[str, int], dict[bytes, Reached]] = {}
                for group, partitions in groups.items():
                    for index in range(partitions):
                        store, before = stores.open("task"), archive.rows
                        await _task(app, journals, archive, group, index, store)
                        reached[group, index] = {
                            row: decode(raw, type=Reached)
                            for plan in own
                            for name in reads(app, plan.name)
                            if (raw := store.get(row := reached_key(name))) is not None
                        }
                        store.close()
                        stores.remove("task")
                        tell(f"task {group}/{index}: {archive.rows - before:,} rows; {archive.size:,} bytes in all")
            finally:
                stores.close()
            for plan in own:
                await _tails(app, journals, archive, plan, reached)
            archive.finish()
        return Summary(archive.tasks, archive.rows, archive.size)


async def _task(app: App, journals: Journals, archive: Archive, group: str, index: int, store: Store) -> None:
    journal = await journals.log(f"{app.id}-journal-{group}")
    replay = Replay(journal, index, store)
    for tries in range(TRIES + 1):
        try:
            await replay.to((await journal.bounds(index)).last)
            break
        except Gap:  # a snapshot was completed, and what lay before it truncated: the snapshot is there to be read
            if tries == TRIES:
                raise
            replay.start_over()
    checkpoint, marker = store.checkpoint(), replay.fold.marker
    if checkpoint is None or marker is None:
        return  # nothing was ever committed
    unfinished = store.get(UNFINISHED)
    if unfinished is not None:
        raise BackupError(f"task {group}/{index}: {unfinished.decode()} has not ended there: the state is not whole")
    rows: dict[bytes, bytes] = {}
    size, begun = 0, False
    for key, value in store.scan(b"", None):
        if key == LOCAL_MARKER:
            continue
        if not begun:
            archive.add(Task(group, index, marker.journal, marker.epoch, checkpoint.position))
            begun = True
        rows[key] = value
        size += len(key) + len(value)
        if size >= PIECE_BYTES:
            archive.add(State(rows))
            rows, size = {}, 0
    if rows:
        archive.add(State(rows))


async def _tails(
    app: App,
    journals: Journals,
    archive: Archive,
    plan: TopicPlan,
    reached: dict[tuple[str, int], dict[bytes, Reached]],
) -> None:
    """What lies there behind the position of the agent that is farthest behind."""
    log = await journals.log(plan.name)
    for partition in range(plan.partitions):
        rows = reached.get((plan.group, partition), {})
        found = [rows.get(reached_key(name), Reached(None, 0)).position for name in reads(app, plan.name)]
        behind: Position | None = None if None in found else min(position for position in found if position is not None)
        tail, size = Tail(plan.name, partition, [], []), 0
        async for position, record in records_until_now(log, partition, behind):
            message = Message(record.value, record.key, tuple(record.headers), record.timestamp)
            tail.positions.append(position)
            tail.messages.append(message)
            size += message.size
            if size >= PIECE_BYTES or len(tail.positions) >= PIECE_RECORDS:
                archive.add(tail)
                tail, size = Tail(plan.name, partition, [], []), 0
        archive.add(tail)
