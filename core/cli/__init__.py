"""The command line, for `thalweg -A module:app …` and `python program.py …`."""

from .program import main

__all__ = ["main"]
