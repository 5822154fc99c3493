"""Scans by pages: how every store stays free to change while a scan of it is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["PAGE", "in_pages"]

PAGE = 64
"""Rows a page: few enough for values of a megabyte, enough to make seeking to each page cheap."""


def in_pages(
    read: Callable[[bytes, bytes | None, int], list[tuple[bytes, bytes]]], start: bytes, stop: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    """All rows with start <= key < stop, where `read(start, stop, limit)` gives the first `limit` of them."""
    while True:
        page = read(start, stop, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        start = page[-1][0] + b"\0"  # the very next key there can be
