"""The repository must work for everybody: it depends on no registry's address and on no particular machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In pieces, for this file is searched too.
REGISTRIES = [
    *("pypi" + ".org", "pythonhosted" + ".org", "anaconda" + ".org"),
    *("npmjs" + ".org", "npmjs" + ".com", "yarnpkg" + ".com", "crates" + ".io", "proxy.golang" + ".org"),
    *("rubygems" + ".org", "repo.maven.apache" + ".org", "repo1.maven" + ".org"),
    *("deb.debian" + ".org", "archive.ubuntu" + ".com", "ports.ubuntu" + ".com"),
    *("docker" + ".io", "hub.docker" + ".com", "ghcr" + ".io", "quay" + ".io"),
]
FORBIDDEN = {
    "host of a package registry": f"(?i:{'|'.join(map(re.escape, REGISTRIES))})",
    "path of one machine": r"(?<![\w.~-])/(work|root|home|Users)/",
}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The text of every file that git tracks, or would track, by its path."""
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the files: {error}")
    contents = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    return {name: content.decode() for name, content in contents.items() if b"\0" not in content}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds_a(what: str, texts: dict[str, str]) -> None:
    assert {"Makefile", "pyproject.toml", "scripts/uv"} <= texts.keys()
    pattern = re.compile(FORBIDDEN[what])
    assert [
        f"{name}:{number}: {line.strip()}"
        for name, text in sorted(texts.items())
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ] == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("host of a package registry", "index = https://PyPI" + ".org/simple"),
        ("host of a package registry", "https://files.pythonhosted" + ".org/packages/44/3c/x.whl"),
        ("path of one machine", "see /" + "work/notes.md"),
        ("path of one machine", "sqlite:////" + "root/a.db"),
    ],
)
def test_the_patterns_find(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)
