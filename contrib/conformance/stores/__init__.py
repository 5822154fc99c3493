"""The properties of stores."""

from . import opening, rows, scans, surviving

__all__ = ["MODULES"]

MODULES = (rows, scans, opening, surviving)
"""In the order in which a certificate lists them."""
