"""A program whose rows another worker keeps warm: `python standing.py worker`."""

from __future__ import annotations

from types import SimpleNamespace

from thalweg import App, Stream

PARTITIONS = 6


def make_standing(broker: str | None = None, zone: str = "") -> SimpleNamespace:
    app = App("standing", broker=broker or "memory://", partitions=PARTITIONS, lease=3.0, zone=zone or None)
    numbers = app.topic("numbers", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int, standbys=1)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value

    return SimpleNamespace(**locals())


if __name__ == "__main__":
    make_standing().app.main()
