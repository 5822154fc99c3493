"""Applies batch after batch to a store until it is killed: `python crash_writer.py URL`.

Batch n writes the value n to each of 500 rows, the rows `odd` or `even` and nothing else, with checkpoint n; after each
it says so on a line of its own.
"""

import sys

from thalweg.registry import load_stores
from thalweg.store import Checkpoint


def main(url: str) -> None:
    store = load_stores(url).open("task")
    last = store.checkpoint()
    n = last.position if last else 0
    print(f"open {n}", flush=True)
    while True:
        n += 1
        value = b"%d" % n * 20
        changes: dict[bytes, bytes | None] = {b"row%03d" % row: value for row in range(500)}
        changes[b"odd" if n % 2 else b"even"] = value
        changes[b"even" if n % 2 else b"odd"] = None
        store.apply(changes, Checkpoint(n, n * 7))
        print(n, flush=True)


main(sys.argv[1])
