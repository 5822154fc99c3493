"""The second line of defence against properties that hang: for those that keep the event loop from noticing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["alarm"]


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """What still runs after so many seconds fails, even if it never waits. In the main thread and on POSIX only."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise AssertionError("the property computes without end, and the event loop waits in vain for its turn")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
