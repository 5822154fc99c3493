"""A pytest plug-in for runs of the suite against buggy drivers: of each, only the property that is to catch it."""

from __future__ import annotations

import pytest
from thalweg.contrib.conformance.suite import Case

from .base import BUGS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    meant = {f"{bug.__module__}:{bug.__name__}": name for bug, (name, _) in BUGS.items()}
    items[:] = [
        item
        for item in items
        if isinstance(item, Case) and item.prop.name == meant[item.target.name.partition("://")[0]]
    ]
