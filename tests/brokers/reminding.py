"""Orders that are reminded of, sooner or later or never; as `python reminding.py worker`, in processes of its own."""

from __future__ import annotations

from thalweg import App, Stream, Topic

PARTITIONS = 2
LATER = 3600.0
"""Seconds: longer than any test."""


class Reminding:
    def __init__(self, broker: str | None = None) -> None:
        self.app = app = App("reminding", broker=broker or "memory://", partitions=PARTITIONS, lease=1.0)
        self.orders: Topic[str, str] = app.topic("orders", key=str, value=str)
        self.handled: Topic[str, str] = app.topic("handled", key=str, value=str)
        self.reminders: Topic[str, str] = app.topic("reminders", key=str, value=str)

        @app.agent(self.orders)
        async def order(stream: Stream[str]) -> None:
            async for event in stream.events():
                what = event.value
                if what == "paid":
                    await self.reminders.cancel(event.key)
                else:
                    delay = LATER if what == "later" else 0.3
                    await self.reminders.send(what, key=event.key, delay=delay, id=event.key)
                await self.handled.send(what, key=event.key)


if __name__ == "__main__":
    Reminding().app.main()
