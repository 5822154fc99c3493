"""A timer on the leader that sends the number of its slot; as `python ticking.py worker`, in processes of its own."""

from __future__ import annotations

import os

from thalweg import App

INTERVAL = 0.25
SLOTS = "slots"


def make_ticking(broker: str | None = None) -> App:
    app = App("ticking", broker=broker or "memory://", partitions=1, lease=1.0)
    slots = app.topic(SLOTS, value=int)
    leaders = app.topic("leaders", value=int)

    @app.timer(INTERVAL, on_leader=True)
    async def tick() -> None:
        await slots.send(int(app.now() / INTERVAL))
        await app.sleep(INTERVAL / 4)
        await leaders.send(os.getpid())

    return app


if __name__ == "__main__":
    make_ticking().main()
