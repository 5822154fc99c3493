"""A program that works a queue off, for tests with several processes: `python post.py worker`."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

from thalweg import App

PARTITIONS = 12


def make_post(broker: str | None = None, work: float = 0.002) -> SimpleNamespace:
    app = App("post", broker=broker or "memory://", lease=1.0)
    letters = app.queue("letters", value=int, options={"partitions": str(PARTITIONS)})
    handled = app.topic("handled", value=tuple[int, int], partitions=1)

    @app.handler(letters, concurrency=4)
    async def deliver(number: int) -> None:
        await asyncio.sleep(work)
        await handled.send((number, os.getpid()))

    return SimpleNamespace(app=app, letters=letters, handled=handled)


if __name__ == "__main__":
    make_post().app.main()
