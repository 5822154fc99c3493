"""A journal taken over: replayed into the task's store, claimed by a marker of its new owner, and read up to that."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

from thalweg.errors import ConfigurationError, Fenced
from thalweg.journal.leftovers import orphaned, unfinished
from thalweg.journal.records import Begin, Fold, Marker
from thalweg.journal.rows import UNFINISHED, encode
from thalweg.journal.writer import JournalKey
from thalweg.message import Message
from thalweg.store import Store

from .replay import Replay

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["claim"]


async def claim(worker: Worker, group: str, journal: JournalKey, partitions: int, store: Store) -> Fold:
    """Where the journal stands, with the new owner's marker; the store holds all that was committed.

    Raises `Fenced` if another worker has claimed it at the same time.
    """
    topic, index = journal
    replay = Replay(await worker.log(topic), index, store)
    progress = worker.recoveries.begin()
    try:
        await replay.to_end(progress)
    finally:
        progress.end()
    moved = worker.kept_elsewhere(group, store)
    if moved:
        raise orphaned(moved, topic, partitions)
    left = store.get(UNFINISHED)
    if left is not None:
        raise unfinished(f"task {group}/{index}", left)
    fold = replay.fold
    was = fold.marker
    now = round(worker.settings.clock.now() * 1000)
    marker = Marker(
        token=secrets.token_bytes(8),
        number=0,
        epoch=max(fold.epoch + 1, now),
        journal=was.journal if was else secrets.token_bytes(16),
        owner=f"{socket.gethostname()}/{os.getpid()}",
        partitions=partitions,
        partitioner=worker.partitioner,
    )
    fold.check(marker)
    _check_room(worker, marker)
    worker.tenures[journal].claims(marker.token)
    await worker.writer.claim(journal, Message(encode(marker), timestamp=now))
    await replay.to_marker(marker.token)
    if replay.fold.beaten:
        raise Fenced(f"task {group}/{index}: another worker has claimed it at the same time")
    return replay.fold


def _check_room(worker: Worker, marker: Marker) -> None:
    """A marker cannot go in pieces, and neither can the beginning of a snapshot, which repeats it."""
    needed, limit = len(encode(Begin(marker.token, 1 << 32, marker))), worker.message_bytes
    if limit is not None and needed > limit:
        raise ConfigurationError(
            f"{worker.transport.description} takes messages of at most {limit} bytes, and a journal needs {needed}: "
            "raise the broker's limit (or `message_bytes=` in its URL)"
        )
