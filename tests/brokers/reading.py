"""A worker that reads a row of its own table all the time, and tells when and what; in a process of its own."""

from __future__ import annotations

import sys

from thalweg import App, StaleRead, Stream, Table, Topic
from thalweg.clock import boot_clock


class Reading:
    def __init__(self, broker: str) -> None:
        self.app = app = App("sitting", broker=broker, partitions=1, lease=1.0)
        self.numbers: Topic[str, int] = app.topic("numbers", key=str, value=int)
        self.sums: Table[str, int] = app.table("sums", key=str, value=int, default=int)

        @app.agent(self.numbers)
        async def add(stream: Stream[int]) -> None:
            async for event in stream.events():
                self.sums[event.key] += event.value

    def sum(self) -> int | None:
        try:
            return self.sums["k"]
        except StaleRead:
            return None


def main(broker: str) -> None:
    program = Reading(broker)

    @program.app.background
    async def read() -> None:
        """Without a pause, so that it looks as soon as the process goes on."""
        last: tuple[int | None, int] = (None, 0)
        while True:
            at, value = boot_clock(), program.sum()
            if last != (value, round(at * 100)):
                last = value, round(at * 100)
                print(at, value, flush=True)
            await program.app.sleep(0)

    program.app.broker = broker
    sys.argv[1:] = ["worker"]
    program.app.main()


if __name__ == "__main__":
    main(sys.argv[1])
