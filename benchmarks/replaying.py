"""What the benchmarks of recovery share: processes that are killed, and how much of journals was read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from thalweg.runtime.replay import Replay

__all__ = ["run_and_kill", "watched"]


def watched() -> list[Replay]:
    """All replays that this process makes from now on; they count what they read."""
    found: list[Replay] = []
    begin = Replay.__init__

    def noted(replay: Replay, *arguments: Any) -> None:
        begin(replay, *arguments)
        found.append(replay)

    Replay.__init__ = noted  # type: ignore[method-assign]
    return found


def run_and_kill(arguments: Sequence[str]) -> dict[str, float]:
    """What `python ARGUMENTS` says on its first line, as JSON; then it is killed with SIGKILL."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    assert process.stdout is not None
    try:
        found: dict[str, float] = json.loads(process.stdout.readline())
        return found
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
