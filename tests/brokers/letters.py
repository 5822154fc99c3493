"""A program without tables: a queue, on any broker that has queues. `python letters.py worker` notes in $LETTERS."""

from __future__ import annotations

import os
from types import SimpleNamespace

from thalweg import App, DeadLetter, Retry


def make_letters(broker: str | None = None, notes: str = "") -> SimpleNamespace:
    app = App("letters", broker=broker or "memory://", lease=1.0)
    letters = app.queue("letters", value=int)
    bad = app.queue("bad", value=str)
    tried: list[str] = []

    @app.handler(letters, concurrency=4)
    def deliver(number: int) -> None:
        with open(notes or os.environ["LETTERS"], "a") as file:
            file.write(f"{number}\n")

    @app.handler(bad, on_error=Retry(2, backoff=0.05, then=DeadLetter()))
    async def stumble(word: str) -> None:
        tried.append(word)
        raise ValueError(f"no {word}")

    return SimpleNamespace(**locals())


if __name__ == "__main__":
    make_letters().app.main()
