"""Fenced blocks of a Markdown page, and how each is run.

All blocks of a page run in order, in one temporary folder. What runs a block is its language:

- `python`: run as it stands, in one module for the whole page, as a reader would type it; then each `test_…` function
  that it defined is called.
- `console`: lines after `$ ` are commands (a command goes on after a `\\`), the others what they print, standard error
  included. White space counts as one blank, `...` stands for anything. A command that fails is an error.
- `bash`: commands that print nothing worth showing.

An HTML comment above the fence changes this; every other block must have one:

- `<!-- file: NAME -->`: written to NAME in the folder. A Python file is imported too; its tests are run.
- `<!-- background -->`: a console command that goes on until the page ends; what it prints first is awaited.
- `<!-- fails -->`: console commands that must fail.
- `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Block", "BlockFailed", "Page", "blocks_of"]

LONGEST = 60
"""Seconds for one command."""

_FENCE = re.compile(r"^( *)(`{3,})(.*)$")
_COMMENT = re.compile(r"^ *<!-- (background|fails|file: .+|not run: .+) -->$")


class BlockFailed(AssertionError):
    pass


class Block(NamedTuple):
    """line: of its first line of code, the page's first being 1."""

    page: Path
    line: int
    language: str
    mark: str
    code: str

    def fail(self, why: str) -> BlockFailed:
        return BlockFailed(f"{self.page}:{self.line}: {why}")


def blocks_of(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    above = ""
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            above = line or above
            continue
        indent, ticks, language = len(fence[1]), fence[2], fence[3].strip()
        code = []
        for _, inner in lines:
            if inner.strip() == ticks:
                break
            code.append(inner[indent:])
        else:
            raise BlockFailed(f"{page}:{number}: the block has no end")
        mark = _COMMENT.match(above)
        yield Block(page, number + 1, language, mark[1] if mark else "", "\n".join(code) + "\n")
        above = ""


class Page:
    """Runs the blocks of one page, in the current folder. Close it at the end."""

    def __init__(self, name: str) -> None:
        self.module = types.ModuleType(name)
        self._names = [name]
        self._background: list[subprocess.Popen[str]] = []
        sys.modules[name] = self.module

    def run(self, block: Block) -> None:
        kind, _, detail = block.mark.partition(": ")
        if kind == "not run":
            return
        if kind == "file":
            self._file(block, detail)
        elif block.language == "python" and not kind:
            self._python(block)
        elif block.language == "console" and kind in ("", "background", "fails"):
            self._console(block, kind)
        elif block.language == "bash" and not kind:
            self._finish(block, block.code, must_fail=False)
        else:
            raise block.fail(
                f"nobody runs a {block.language!r} block marked {block.mark!r}; see tests/docs/snippets.py"
            )

    def close(self) -> None:
        for process in reversed(self._background):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LONGEST)
        for name in self._names:
            sys.modules.pop(name, None)

    # --- Python --------------------------------------------------------------------------------------------------

    def _python(self, block: Block) -> None:
        before = dict(vars(self.module))
        exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), vars(self.module))
        self._test({name: value for name, value in vars(self.module).items() if before.get(name) is not value})

    def _file(self, block: Block, name: str) -> None:
        Path(name).write_text(block.code, encoding="utf-8")
        if not name.endswith(".py"):
            return
        module = name.removesuffix(".py").replace("/", ".")
        self._names.append(module)
        importlib.invalidate_caches()
        self._test(vars(importlib.import_module(module)))

    @staticmethod
    def _test(names: dict[str, Any]) -> None:
        for name, value in list(names.items()):
            if name.startswith("test_") and inspect.iscoroutinefunction(value):
                asyncio.run(value())
            elif name.startswith("test_") and inspect.isfunction(value):
                value()

    # --- commands ------------------------------------------------------------------------------------------------

    def _console(self, block: Block, kind: str) -> None:
        dialogue = list(_dialogue(block))
        for command, expected in dialogue:
            if kind == "background":
                self._start(block, command, expected)
                continue
            printed = self._finish(block, command, must_fail=kind == "fails")
            if not _pattern(expected).fullmatch(_plain(printed)):
                raise block.fail(f"$ {command}\n--- the page says:\n{expected}\n--- it prints:\n{printed}")

    def _finish(self, block: Block, command: str, must_fail: bool) -> str:
        process = _started(command)
        try:
            printed, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            raise block.fail(f"$ {command}\nruns longer than {LONGEST} s; it printed:\n{printed}") from None
        if must_fail != (process.returncode != 0):
            raise block.fail(f"$ {command}\nended with {process.returncode} and printed:\n{printed}")
        return printed

    def _start(self, block: Block, command: str, expected: str) -> None:
        process = _started(f"exec {command}")
        self._background.append(process)
        assert process.stdout is not None
        printed = ""
        late = threading.Timer(LONGEST, process.kill)
        late.start()
        try:
            while not _pattern(expected).fullmatch(_plain(printed)):
                line = process.stdout.readline()
                if not line:
                    process.wait()
                    raise block.fail(f"$ {command}\n--- the page says:\n{expected}\n--- it printed:\n{printed}")
                printed += line
        finally:
            late.cancel()


def _started(command: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("THALWEG_", "PYTEST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment |= {"PATH": path, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        ["bash", "-ec", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def _dialogue(block: Block) -> Iterator[tuple[str, str]]:
    """Commands, each with what it prints."""
    command, printed, goes_on = "", [], False
    for line in block.code.splitlines():
        if goes_on or line.startswith("$ "):
            if not goes_on:
                if command:
                    yield command, "\n".join(printed)
                command, printed = "", []
            command += line if goes_on else line[2:]
            goes_on = line.endswith("\\")
            command += "\n" if goes_on else ""
        elif not command:
            raise block.fail("a console block begins with a line '$ command'")
        else:
            printed.append(line)
    yield command, "\n".join(printed)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _pattern(expected: str) -> re.Pattern[str]:
    return re.compile(re.escape(_plain(expected)).replace(re.escape("..."), ".*"), re.DOTALL)
