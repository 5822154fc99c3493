"""`thalweg workers` and `thalweg lag --by-partition`: who has what, while workers come, go and die."""

from __future__ import annotations

import os
import signal
from typing import Any

from thalweg.cli.workers import tasks_text
from thalweg.runtime.roster import Here


def test_tasks_are_told_in_ranges() -> None:
    assert tasks_text(Here("a")) == "none"
    assert tasks_text(Here("a", owns={"8": (7, 0, 2, 1, 3), "leader": (0,), "4": ()})) == "8: 0-3, 7; leader"
    assert tasks_text(Here("a", owns={"4": (1,)}, standbys={"4": (0, 2)}, leaving=True)) == (
        "4: 1; standby of 4: 0, 2; leaving"
    )


def test_workers_are_listed_with_what_they_have(shell: Any) -> None:
    assert "no worker of app 'bank' is there" in shell.bank("workers").stderr

    def owned() -> dict[int, int]:
        """Tasks of the topics by process."""
        return {row["pid"]: len(row["owns"].get("2", ())) for row in shell.rows("workers")}

    with shell.worker() as first:
        shell.eventually(owned, {first.process.pid: 2})
        (row,) = shell.rows("workers")
        assert (row["pid"], row["leader"], row["leaving"]) == (first.process.pid, True, False)
        assert row["host"] == os.uname().nodename
        assert row["tasks"] == "2: 0-1; leader"
        assert row["silent_seconds"] < 60
        with shell.worker() as second:
            shell.eventually(owned, {first.process.pid: 1, second.process.pid: 1})
            told = {line["partition"]: line["owner"] for line in shell.rows("lag", "--by-partition")}
            names = {row["worker"] for row in shell.rows("workers")}
            assert set(told.values()) == names
            (fields,) = [
                line.split("\t")
                for line in shell.bank("workers").stdout.splitlines()
                if str(second.process.pid) in line
            ]
            assert len(fields) == 7
            assert second.stop() == 0
            shell.eventually(owned, {first.process.pid: 2})
        first.signal(signal.SIGKILL)
        first.ended()
    with shell.worker() as third:
        shell.eventually(lambda: owned().get(third.process.pid), 2)
        owners = {line["owner"] for line in shell.rows("lag", "-p")}
        assert owners == {row["worker"] for row in shell.rows("workers") if row["pid"] == third.process.pid}
        (total, *_) = shell.rows("lag")
        assert (total["agent"], len(total["by_partition"]), set(total["owners"])) == ("total", 2, owners)
