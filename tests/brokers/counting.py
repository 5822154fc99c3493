"""Counts in a file, which knows no transactions, under a lock: `python counting.py BROKER FILE LEASE`.

A line of the file is a fencing number, the count and the process that wrote it. On standard output: "inside NUMBER"
once the process holds the lock and has read the count, "lost NUMBER" if it was told that it does not any more.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from thalweg import App, LockLost


def read(file: Path) -> list[tuple[int, int, int]]:
    """Number, count, process."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [tuple(map(int, line.split())) for line in lines]  # type: ignore[misc]


async def count(app: App, file: Path) -> None:
    async with app.lock("counter: a/b.c*>") as held:
        lines = read(file)
        counted = lines[-1][1] if lines else 0
        print("inside", held.number, flush=True)
        try:
            for _ in range(10):  # each of which could be woken by mistake
                await asyncio.sleep(random.uniform(0.005, 0.02))
        except asyncio.CancelledError:
            print("lost", held.number, flush=True)
            raise
        with file.open("a") as out:
            out.write(f"{held.number} {counted + 1} {os.getpid()}\n")


async def main(broker: str, file: Path, lease: float) -> None:
    app = App("counting", broker=broker, lease=lease)
    async with app.client():
        while True:
            try:
                await count(app, file)
            except LockLost:
                continue
            await asyncio.sleep(random.uniform(0, 0.05))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
