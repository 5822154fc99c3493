"""Write the version of every dependency, direct or not, into pyproject.toml as uv's constraints.

What has a pin keeps it, what nothing needs any more loses it; `--upgrade` moves all to the newest versions that fit.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"


def main(upgrade: bool) -> None:
    before = PROJECT.read_text(encoding="utf-8")
    try:
        if upgrade:
            PROJECT.write_text(with_pins(before, []), encoding="utf-8")
        uv("lock", *(["--upgrade"] if upgrade else []))
        PROJECT.write_text(with_pins(before, resolved()), encoding="utf-8")
    except BaseException:
        PROJECT.write_text(before, encoding="utf-8")
        raise


def resolved() -> list[str]:
    """`name==version` of all that any Python or platform needs; with a marker only where the versions differ."""
    lines = uv(
        *("export", "--frozen", "--all-groups", "--all-extras", "--no-emit-project"),
        *("--no-hashes", "--no-annotate", "--no-header"),
    ).splitlines()
    versions = Counter(line.partition("==")[0] for line in lines)
    return [line if versions[line.partition("==")[0]] > 1 else line.partition(" ;")[0] for line in lines]


def with_pins(project: str, pins: list[str]) -> str:
    # The package is built apart from its environment, by the same setuptools.
    project = with_list(
        project, "build-constraint-dependencies", [pin for pin in pins if pin.startswith("setuptools=")]
    )
    return with_list(project, "constraint-dependencies", pins)


def with_list(project: str, name: str, items: list[str]) -> str:
    text = "".join(f'    "{item}",\n' for item in items)
    project, found = re.subn(rf"^{name} = \[\n[^\]]*\]$", f"{name} = [\n{text}]", project, flags=re.MULTILINE)
    if found != 1:
        raise ValueError(f"{PROJECT} must hold one list `{name}`, one item a line; it holds {found}")
    return project


def uv(*arguments: str) -> str:
    command = [str(ROOT / "scripts" / "uv"), "--quiet", *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(upgrade="--upgrade" in sys.argv[1:])
