"""The types that users see: mypy and pyright, both strict, read a right program and wrong ones.

In a wrong program each line that must not pass ends in `# error`, or `# error (mypy)` where pyright cannot know better.
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAMS = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("test_"))
MARK = re.compile(r"# error(?: \((\w+)\))?")
Complaints = dict[tuple[str, int], str]
"""What a checker said, by file and line."""


async def test_both_checkers_accept_what_is_right_and_refuse_each_wrong_line() -> None:
    by_mypy, by_pyright = await asyncio.gather(mypy(), pyright())
    problems = [*differences("mypy", by_mypy), *differences("pyright", by_pyright)]
    assert not problems, "\n".join(problems)


def differences(checker: str, said: Complaints) -> Iterable[str]:
    marked = {
        (path.name, number)
        for path in PROGRAMS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (mark := MARK.search(line)) and mark[1] in (None, checker)
    }
    assert len(marked) > 100, "the wrong programs were not found"
    yield from (f"{checker} lets {name}:{number} pass" for name, number in sorted(marked - said.keys()))
    yield from (
        f"{checker} refuses {name}:{number}: {said[name, number]}" for name, number in sorted(said.keys() - marked)
    )


async def mypy() -> Complaints:
    output = await run("mypy", "--strict", "--output=json", "--no-error-summary")
    errors = [error for line in output.splitlines() if (error := json.loads(line))["severity"] == "error"]
    return {(Path(error["file"]).name, error["line"]): error["message"] for error in errors}


async def pyright() -> Complaints:
    output = await run("basedpyright", "--outputjson", f"--pythonpath={sys.executable}")
    errors = json.loads(output)["generalDiagnostics"]
    return {
        (Path(error["file"]).name, error["range"]["start"]["line"] + 1): error["message"]
        for error in errors
        if error["severity"] == "error"
    }


async def run(module: str, *options: str) -> str:
    """What the checker says of all programs at once; it exits with 1, for there are errors to find."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, *options, *map(str, PROGRAMS)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, trouble = await process.communicate()
    assert process.returncode == 1, f"{module} failed: {output.decode()}{trouble.decode()}"
    return output.decode()
