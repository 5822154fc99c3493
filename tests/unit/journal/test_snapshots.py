"""Snapshots in journals: whatever happens amid one, replay finds the whole state, and they stay small."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thalweg.clock import VirtualClock
from thalweg.journal import snapshot
from thalweg.journal.records import Begin, End, Entry, Fold, Marker, Part, Rows, messages, rows_of
from thalweg.journal.snapshot import Growth, Room, Snapshotter
from thalweg.message import Message
from thalweg.store import Checkpoint
from thalweg.stores.memory import MemoryStores

Found = dict[bytes, bytes]
Changes = dict[bytes, bytes | None]


def replayed(journal: list[tuple[int, Message]]) -> tuple[Found, Fold, Growth]:
    """The state as who reads these positions and records has it."""
    fold, rows, growth = Fold(), {}, Growth()
    for _, record in journal:
        entry = fold.feed(record.value)
        if fold.fresh:
            rows, growth = {}, Growth()
        growth.add(entry, len(record.value or b""))
        for key, value in (rows_of(entry) or {}).items():
            rows[key] = value
    return {key: value for key, value in rows.items() if value is not None}, fold, growth


class Owner:
    """Of one journal, from its marker on: as a task commits, truncates, and dies."""

    def __init__(self, journal: list[tuple[int, Message]], epoch: int, room: Room, limit: int | None) -> None:
        self.journal, self.limit = journal, limit
        self.marker = Marker(b"token-%d" % epoch, 0, epoch, b"j" * 16, "somebody", 1, "murmur2")
        self.number = 0
        self.append([Message(messages_of([self.marker], self.marker.token, 0, None)[0].value)])
        rows, _, growth = replayed(journal)
        self.store = MemoryStores().open("rows")
        self.store.apply(rows, Checkpoint(0, 0))
        self.snapshotter = Snapshotter(200, room, growth)

    def append(self, records: list[Message]) -> int:
        end = self.journal[-1][0] if self.journal else -1
        self.journal += list(enumerate(records, end + 1))
        return end + 1

    def cut(self, changes: Changes) -> list[Message]:
        entries = [*self.snapshotter.entries(self.store, self.marker, changes), Rows(b"", 0, changes, True)]
        return messages_of(entries, self.marker.token, self.number + 1, self.limit)

    def landed(self, records: list[Message], changes: Changes) -> int | None:
        """Where to truncate before."""
        self.number += len(records)
        before = self.snapshotter.committed(self.append(records), sum(len(record.value or b"") for record in records))
        self.store.apply(changes, Checkpoint(0, 0))
        return before


def messages_of(entries: list[Entry], token: bytes, number: int, limit: int | None) -> list[Message]:
    return list(messages(entries, token, number, limit, 0))


CHANGES = st.dictionaries(
    st.integers(0, 25).map(lambda key: b"row-%d" % key), st.none() | st.binary(max_size=30), min_size=1, max_size=6
)
STEP = st.tuples(
    CHANGES,
    st.sampled_from(["commit"] * 12 + ["die", "zombie"]),
    st.floats(0, 1),  # of a commit's records, how many are there when its owner dies
    st.booleans(),  # whether the truncation that is due comes to pass
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(STEP, min_size=10, max_size=40),
    limit=st.none() | st.just(150),
    room=st.sampled_from([1, 60, 250, 10_000]),
)
def test_whoever_reads_a_journal_finds_what_was_committed(
    steps: list[tuple[Changes, str, float, bool]], limit: int | None, room: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "PART_BYTES", room)
        patch.setattr(snapshot, "MOST_BYTES", 2 * room)
        journal: list[tuple[int, Message]] = []
        truth: Found = {}
        rooms, epoch = Room(VirtualClock(0)), 1
        owner = Owner(journal, epoch, rooms, limit)
        for changes, what, share, truncates in steps:
            rooms.next()
            records = owner.cut(changes)
            if what == "commit":
                before = owner.landed(records, changes)
            else:
                there = records[: round(share * len(records))]
                epoch += 1
                if what == "die":
                    owner.append(there)
                    owner = Owner(journal, epoch, rooms, limit)
                else:  # what the old owner had sent arrives when another has begun, all of it
                    old, owner = owner, Owner(journal, epoch, rooms, limit)
                    old.append(records)
                before = None
            if what == "commit" or (what == "die" and there == records):  # it is, though its owner never heard of it
                truth.update({key: value for key, value in changes.items() if value is not None})
                for key in [key for key, value in changes.items() if value is None]:
                    truth.pop(key, None)
            if before is not None and truncates:
                journal[:] = [(position, record) for position, record in journal if position >= before]
            if truncates or what != "commit":
                assert replayed(journal)[0] == truth


@pytest.mark.parametrize("each", [100, 700, 1500])  # of a task's 3,000 rows, updated by a commit
@pytest.mark.parametrize("which", ["any", "in turn", "the same"])
def test_the_journals_of_a_worker_stay_within_three_times_the_rows(
    which: str, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "PART_BYTES", 64 * 1024)
    monkeypatch.setattr(snapshot, "MOST_BYTES", 6 * 64 * 1024)
    tasks, rows, chance = 8, 3000, random.Random(1)
    keys = [b"ttable\0account-%07d" % number for number in range(rows)]
    room, marker = Room(VirtualClock(0)), Marker(b"t" * 8, 0, 1, b"j" * 16, "somebody", tasks, "murmur2")
    stores = [MemoryStores().open("rows") for _ in range(tasks)]
    snapshotters = [Snapshotter(128 * 1024, room) for _ in range(tasks)]
    journals: list[deque[tuple[int, int]]] = [deque() for _ in range(tasks)]
    live = tasks * sum(len(key) + 7 for key in keys)
    largest = truncations = 0
    for commit in range(40):
        room.next()
        parts = 0
        for task in sorted(range(tasks), key=lambda task: snapshotters[task].urgency, reverse=True):
            begin = commit * each if which == "in turn" else 0
            chosen = (
                chance.choices(keys, k=each) if which == "any" else [keys[i % rows] for i in range(begin, begin + each)]
            )
            changes: Mapping[bytes, bytes | None] = dict.fromkeys(chosen if commit else keys, b"%07d" % commit)
            entries = [*snapshotters[task].entries(stores[task], marker, changes), Rows(b"", 0, changes, True)]
            sizes = [len(record.value or b"") for record in messages_of(entries, marker.token, 1, None)]
            parts += sum(len(key) + len(value) for e in entries if isinstance(e, Part) for key, value in e.rows.items())
            journals[task].append((commit, sum(sizes)))
            largest = max(largest, sum(size for journal in journals for _, size in journal))
            before = snapshotters[task].committed(commit, sum(sizes))
            stores[task].apply(changes, Checkpoint(0, 0))
            while before is not None and journals[task][0][0] < before:
                journals[task].popleft()
                truncations += 1
        assert parts <= room.most + 100
    assert truncations
    assert largest <= 3 * live


def test_a_snapshot_is_what_begin_parts_and_end_say() -> None:
    room, store = Room(VirtualClock(0)), MemoryStores().open("rows")
    store.apply({b"old-%02d" % number: b"x" * 50 for number in range(40)}, Checkpoint(0, 0))
    marker = Marker(b"t" * 8, 0, 1, b"j" * 16, "somebody", 1, "murmur2")
    snapshotter = Snapshotter(1, room, Growth(grown=1))
    entries = snapshotter.entries(store, marker, {b"old-07": b"new"})
    assert [type(entry) for entry in entries] == [Begin, Part, End]
    part = entries[1]
    assert isinstance(part, Part)
    assert len(part.rows) == 39, "what is committed with it lies behind its beginning already"
    assert b"old-07" not in part.rows
    assert snapshotter.committed(5, 3000) == 5
