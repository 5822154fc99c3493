"""Standbys on real brokers: where they lie, and that they take over with what they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from listing import listed
from thalweg.journal.rows import below, prefix
from thalweg.runtime.replay import Replay
from thalweg.runtime.worker import Worker
from thalweg.starting import worker_running

from brokers.program_runs import eventually, start_worker
from brokers.standing import PARTITIONS, make_standing

GROUP = str(PARTITIONS)
KEYS = 300


def total(*programs: Any) -> int:
    return sum(value for program in programs for value in listed(program.sums).values())


def rows(worker: Worker, index: int) -> dict[bytes, bytes]:
    """What the worker has of a task that it stands by for."""
    follower = worker.standbys._followers.get(GROUP)
    replay = None if follower is None else follower.replays.get(index)
    return {} if replay is None else dict(replay.store.scan(prefix("sums"), below(prefix("sums"))))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """All that this process makes: they count the rows that they read."""
    found: list[Replay] = []
    begin = Replay.__init__

    def noted(replay: Replay, *arguments: Any) -> None:
        begin(replay, *arguments)
        found.append(replay)

    monkeypatch.setattr(Replay, "__init__", noted)
    return found


async def take_over(broker: str, replays: list[Replay]) -> None:
    programs = [make_standing(broker, "south") for _ in range(2)]
    dying = start_worker(broker, "standing.py", "north")
    try:
        async with worker_running(programs[0].app) as first, worker_running(programs[1].app) as second:
            here = (first, second)

            def spread() -> bool:
                """Each task has an owner and a standby, in two zones."""
                words = list(first.roster.workers.values())
                owners = [(index, word.zone) for word in words for index in word.owns.get(GROUP, ())]
                keepers = [(index, word.zone) for word in words for index in word.standbys.get(GROUP, ())]
                other = {"north": "south", "south": "north"}
                each = sorted(index for index, _ in owners) == list(range(PARTITIONS))
                return len(words) == 3 and each and sorted((i, other[zone]) for i, zone in owners) == sorted(keepers)

            await eventually(spread, 60)
            await programs[0].numbers.send_many((f"k{n % KEYS}", 1) for n in range(5 * KEYS))
            theirs = [index for index in range(PARTITIONS) if all((GROUP, index) not in w.tasks for w in here)]
            keeper = {index: next(w for w in here if (GROUP, index) in w.standbys.keys) for index in theirs}
            await eventually(
                lambda: total(*programs) + sum(sum(map(int, rows(keeper[i], i).values())) for i in theirs) == 5 * KEYS
            )
            warm = {index: keeper[index].standbys._followers[GROUP].replays[index].store for index in theirs}
            assert len(theirs) == PARTITIONS // 3
            replays.clear()
            dying.kill()
            await eventually(lambda: all(any(w.serving(GROUP, i) is not None for w in here) for i in theirs), 60)
            inherited = [index for index in theirs if keeper[index].serving(GROUP, index) is not None]
            assert inherited, "each of the two has room for one more at least"
            for index in inherited:
                assert keeper[index].tasks[GROUP, index]._store is warm[index]
            read = [sum(one.keys for one in replays if one.store is warm[index]) for index in inherited]
            assert max(read) == 0, "a standby knows all rows, so its takeover reads none"
            await programs[0].numbers.send_many((f"k{n}", 1) for n in range(KEYS))
            await eventually(lambda: total(*programs) == 6 * KEYS)
    finally:
        dying.kill()
        dying.wait()


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats", "rabbitmq"], indirect=True)
async def test_a_standby_lies_in_another_zone_and_takes_over_with_the_rows_that_it_has(
    broker: str, replays: list[Replay]
) -> None:
    await take_over(broker, replays)


async def test_and_on_sqlite(tmp_path: Path, replays: list[Replay]) -> None:
    await take_over(f"sqlite:///{tmp_path / 'broker.db'}", replays)
