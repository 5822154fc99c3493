"""`thalweg workers` and `thalweg lag --by-partition`: who has what, while workers come, go and die."""

from __future__ import annotations

import json
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


REMIND = """
import asyncio
from thalweg import App

app = App("shop", broker="sqlite:///shop.db", partitions=2, lease=2)
reminders = app.topic("reminders", key=str, value=str)


@app.handler(reminders)
async def remind(text: str) -> None:
    pass


async def send() -> None:
    async with app.client():
        await reminders.send("soon", key="a", delay=0.001)
        await reminders.send("later", key="b", delay=3600)


if __name__ == "__main__":
    asyncio.run(send())
"""


def test_delayed_messages_are_behind_until_a_worker_has_seen_them_and_then_wait(shell: Any) -> None:
    shell.write("remind.py", REMIND)

    def lag(*options: str) -> dict[str, tuple[int, int]]:
        lines = shell.run("-A", "remind:app", "--json", "lag", *options).stdout.splitlines()
        return {row["agent"]: (row["behind"], row["waiting"]) for row in map(json.loads, lines)}

    assert lag() == {}  # it never ran
    assert shell.run("remind.py").returncode == 0
    assert lag() == {"remind": (0, 0), "(delayed messages)": (2, 0)}
    with shell.worker("-A", "remind:app"):
        shell.eventually(lag, {"remind": (0, 0), "(delayed messages)": (0, 1)})
        by_partition = shell.run("-A", "remind:app", "lag", "-p").stdout.splitlines()
        assert sorted(line.split("\t")[5] for line in by_partition if "(delayed" in line) == ["0", "1"]
