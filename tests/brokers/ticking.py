"""A timer on the leader that sends when it was due; as `python ticking.py worker`, in processes of its own."""

from __future__ import annotations

import os

from thalweg import App
from thalweg.runtime.context import current_lane
from thalweg.runtime.scheduled_run import ScheduledRun

INTERVAL = 0.25
TICKS = "ticks"


def make_ticking(broker: str | None = None) -> App:
    app = App("ticking", broker=broker or "memory://", partitions=1, lease=1.0)
    ticks = app.topic(TICKS, value=int)
    leaders = app.topic("leaders", value=int)

    @app.timer(INTERVAL, on_leader=True)
    async def tick() -> None:
        run = current_lane.get()
        assert isinstance(run, ScheduledRun)
        await ticks.send(round(1000 * float(run._id.rpartition("/")[2])))
        await app.sleep(INTERVAL / 4)
        await leaders.send(os.getpid())

    return app


if __name__ == "__main__":
    make_ticking().main()
