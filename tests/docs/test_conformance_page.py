"""docs/conformance.md names every property, profile, option, hook and outcome there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from thalweg.contrib.conformance.__main__ import listing
from thalweg.contrib.conformance.properties import Mode, Profile

PAGE = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_the_list_of_properties_is_that_of_the_code() -> None:
    listed = PAGE.partition("<!-- properties -->\n")[2]
    assert listed.rstrip() == "\n".join(listing()).rstrip(), "python -m thalweg.contrib.conformance prints it anew"


def test_every_option_and_hook_is_described_and_no_other(pytestconfig: pytest.Config) -> None:
    there = set(re.findall(r"--thalweg-[a-z]+", PAGE))
    known = {name.replace("_", "-") for name in vars(pytestconfig.option) if name.startswith("thalweg_")}
    assert there == {f"--{name}" for name in known}
    hooks = {name for name in dir(pytestconfig.hook) if name.startswith("pytest_thalweg")}
    assert set(re.findall(r"pytest_thalweg_\w+", PAGE)) == hooks


def test_every_mode_and_profile_is_described() -> None:
    described = PAGE.partition("## The properties")[0]
    assert all(f"`{mode.value}`" in described for mode in Mode)
    assert all(re.search(rf"^\|[^|]*\b{profile.value}\b", described, re.MULTILINE) for profile in Profile)
