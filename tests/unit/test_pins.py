"""Everybody's environment is the same: what uv resolves is what pyproject.toml pins."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_dependency_is_pinned_to_the_version_that_uv_takes() -> None:
    lock = ROOT / "uv.lock"
    if not lock.exists():
        pytest.skip("the environment was not made by uv")
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    resolved = {f"{package['name']}=={package['version']}" for package in packages if package["name"] != "thalweg"}
    uv = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    pins = {pin.partition(" ;")[0] for pin in uv["constraint-dependencies"]}
    assert pins == resolved, "run: make pins"
