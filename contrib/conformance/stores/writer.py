"""Another process: `python -c … URL NAME`, which applies batch after batch until it is killed.

Batch n writes the value n to each of 500 rows, the rows `odd` or `even` and nothing else, with checkpoint n; after each
it says so on a line of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from thalweg.registry import load_stores
from thalweg.store import Checkpoint

__all__ = ["Writer", "expected", "main", "writing"]


def main() -> None:
    store = load_stores(sys.argv[1]).open(sys.argv[2])
    last = store.checkpoint()
    n = last.position if last else 0
    print(f"open {n}", flush=True)
    while True:
        n += 1
        gone = b"even" if n % 2 else b"odd"
        store.apply({**expected(n), gone: None}, Checkpoint(n, n * 7))
        print(n, flush=True)


def expected(n: int) -> dict[bytes, bytes | None]:
    """The rows after batch n."""
    return dict.fromkeys([*(b"row%03d" % row for row in range(500)), b"odd" if n % 2 else b"even"], b"%d" % n * 20)


class Writer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.open = self._line().startswith("open")

    def batches(self, count: int) -> int:
        """Waits for so many more; the number of the last."""
        return [int(self._line()) for _ in range(count)][-1]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writing process has ended, see what it says above"
        return line


@contextmanager
def writing(url: str, name: str) -> Iterator[Writer]:
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    process = subprocess.Popen([sys.executable, "-c", program, url, name], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield Writer(process)
        finally:
            process.kill()
