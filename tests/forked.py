"""Runs a command line in a process that was forked with everything imported: as real as a new one, without the wait."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["forked", "thalweg.cli", "thalweg.transports.sqlite", "thalweg.transports.memory"])


def run_thalweg(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """`thalweg ARGUMENTS` in `folder`. timeout: seconds."""
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("in", "out", "err")]
        files[0].write_text(stdin, encoding="utf-8")
        process = _context.Process(target=_child, args=(list(arguments), folder, dict(environment), files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"thalweg {' '.join(arguments)}: still running; {files[2].read_text()}")
        return subprocess.CompletedProcess(
            ["thalweg", *arguments], process.exitcode, files[1].read_text(), files[2].read_text()
        )


def _child(arguments: list[str], folder: Path, environment: dict[str, str], files: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = ["thalweg", *arguments]
    from thalweg.cli import main

    main()
