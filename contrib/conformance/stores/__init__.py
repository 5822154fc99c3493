"""The properties of stores."""

from __future__ import annotations

from collections.abc import Sequence

from . import opening, rows, scans, surviving

__all__ = ["MODULES"]

MODULES: Sequence[object] = (rows, scans, opening, surviving)
"""In the order in which a certificate lists them."""
