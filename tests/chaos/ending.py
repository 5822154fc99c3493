"""A run that is told to end leaves no process behind: SIGTERM ends it as Ctrl-C does, and its workers die with it."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import Coroutine
from typing import Any

__all__ = ["die_with_starter", "run_to_the_end"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


def run_to_the_end(main: Coroutine[Any, Any, int]) -> int:
    """As `asyncio.run`; gives the exit code 143 or 130 once all that was started has been closed."""

    async def watched() -> int:
        me = asyncio.current_task()
        assert me is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
        return await main

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def die_with_starter() -> None:
    """From now on this process is killed when the one that forked it ends, however it does. Only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
