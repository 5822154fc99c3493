"""Rows of a table, for those who look until they are what they should be: tables tell nobody when they change."""

from __future__ import annotations

from typing import TypeVar

from thalweg import StaleRead, Table

K = TypeVar("K")
V = TypeVar("V")


def listed(table: Table[K, V]) -> dict[K, V]:
    """Of this worker's partitions; none while one of these cannot be served."""
    try:
        return dict(table.items())
    except StaleRead:
        return {}
