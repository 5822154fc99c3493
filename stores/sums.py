"""A note in the folder of a closed store: sizes of its files and checksums of the small ones.

It is there only while the store is closed, for it says nothing of one that was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec

__all__ = ["Differs", "check", "write"]

NAME = "THALWEG-SUMS"
SMALL = 4 << 20
"""Bytes: larger files, which have checksums of their own, are compared by size only."""


class Differs(Exception):
    """The files are not those that were there when the store was closed."""


def write(folder: Path) -> None:
    """Raises OSError."""
    data = msgspec.json.encode(dict(_sums(folder)))
    note = folder / NAME
    part = note.with_suffix(".part")
    part.write_bytes(msgspec.json.encode([data.decode(), crc32(data)]))
    part.replace(note)


def check(folder: Path) -> None:
    """Compare, and take the note away. Raises Differs; OSError if it cannot be read or taken away."""
    note = folder / NAME
    try:
        raw = note.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        data, sum_ = msgspec.json.decode(raw, type=tuple[str, int])
        noted = msgspec.json.decode(data, type=dict[str, tuple[int, int]])
    except msgspec.DecodeError as error:
        raise Differs(f"{NAME}: {error}") from error
    if crc32(data.encode()) != sum_:
        raise Differs(f"{NAME} does not match its own checksum")
    found = dict(_sums(folder))
    for name in sorted(noted.keys() | found.keys()):
        if noted.get(name) != found.get(name):
            raise Differs(f"{name} is not as it was when the store was closed")
    note.unlink()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # or it might come back after a power cut, beside files that were written since
    finally:
        os.close(descriptor)


def _sums(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Of what a store reads when it is opened: not its text logs."""
    for file in sorted(folder.iterdir()):
        if file.name.startswith((NAME, "LOG")) or not file.is_file():
            continue
        size = file.stat().st_size
        yield file.name, (size, crc32(file.read_bytes()) if size <= SMALL and file.suffix != ".sst" else 0)
