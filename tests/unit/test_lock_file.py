"""The lock file must work for everybody: it may not depend on the machine that wrote it."""

from __future__ import annotations

import tomllib
from pathlib import Path

LOCK = tomllib.loads((Path(__file__).parents[2] / "uv.lock").read_text(encoding="utf-8"))


def test_every_package_comes_from_the_public_index() -> None:
    sources = {str(package["source"]) for package in LOCK["package"] if package["name"] != "thalweg"}
    assert sources == {"{'registry': 'https://pypi.org/simple'}"}


def test_every_file_comes_from_the_public_index_and_has_a_hash() -> None:
    files = [
        file
        for package in LOCK["package"]
        for file in [*package.get("wheels", []), package.get("sdist")]
        if file is not None
    ]
    assert files
    assert [
        file
        for file in files
        if not file["url"].startswith("https://files.pythonhosted.org/") or not file["hash"].startswith("sha256:")
    ] == []
