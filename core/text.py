"""Text for people: one line, of a bounded length."""

from __future__ import annotations

__all__ = ["shortened"]


def shortened(text: str, limit: int = 200) -> str:
    """`text` on one line of at most `limit` characters, cut with an ellipsis."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
