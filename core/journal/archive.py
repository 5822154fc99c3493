"""The file of a backup: what every task of an app had committed, in pieces with checksums.

A line that names the format, then pieces: length and CRC-32 (4 bytes each, big-endian) and so many bytes of msgpack,
compressed by zlib. The first is a `Head`, the last an `End` with the SHA-256 of all before it, and nothing follows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec
from thalweg.errors import BackupError
from thalweg.message import Message, Position

from .rows import decode, encode

__all__ = ["Archive", "Head", "Piece", "State", "Tail", "Task", "read", "verified"]

MAGIC = b"thalweg backup 1\n"
_FRAME = struct.Struct(">II")
_LEVEL = 1


class Head(msgspec.Struct, tag="head", array_like=True, frozen=True):
    """app: its id. taken: milliseconds since the epoch. groups: of tasks, with their number."""

    app: str
    version: str
    broker: str
    taken: int
    partitioner: str
    groups: dict[str, int]


class Tail(msgspec.Struct, tag="tail", array_like=True, frozen=True):
    """What the app had sent to itself through this topic and not all of its agents had handled."""

    topic: str
    partition: int
    positions: list[Position]
    messages: list[Message]


class Task(msgspec.Struct, tag="task", array_like=True, frozen=True):
    """Its rows follow. journal: its name. epoch: of its last owner. position: of the commit, in the journal."""

    group: str
    index: int
    journal: bytes
    epoch: int
    position: Position


class State(msgspec.Struct, tag="rows", array_like=True, frozen=True):
    rows: dict[bytes, bytes]


class End(msgspec.Struct, tag="end", array_like=True, frozen=True):
    tasks: int
    rows: int
    sha256: bytes


Piece = Tail | Task | State


class Archive:
    """Writes one, beside its final place until it is whole. As a context: what was not `finish`ed is removed."""

    def __init__(self, file: Path, head: Head) -> None:
        self._file, self._part = file, file.with_name(f"{file.name}.part")
        self.tasks = self.rows = self.size = 0
        self._refuse_old(file)
        try:
            self._out: BinaryIO = self._part.open("wb")
        except OSError as error:
            raise BackupError(f"{self._part} cannot be written: {error}") from error
        self._hash = hashlib.sha256()
        self._put(MAGIC)
        self._frame(head)

    def add(self, piece: Piece) -> None:
        """Raises BackupError."""
        if isinstance(piece, Task):
            self.tasks += 1
        elif isinstance(piece, State):
            self.rows += len(piece.rows)
        self._frame(piece)

    def finish(self) -> None:
        """It is whole, and on the disk."""
        self._frame(End(self.tasks, self.rows, self._hash.digest()))
        try:
            self._out.flush()
            os.fsync(self._out.fileno())
            self._out.close()
            self._refuse_old(self._file)
            self._part.rename(self._file)
        except OSError as error:
            raise BackupError(f"{self._file} cannot be written: {error}") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # what could not be written is not wanted any more
            self._out.close()
        self._part.unlink(missing_ok=True)

    @staticmethod
    def _refuse_old(file: Path) -> None:
        if file.exists():
            raise BackupError(f"{file} exists already, and is not overwritten")

    def _frame(self, piece: Head | Piece | End) -> None:
        data = zlib.compress(encode(piece), _LEVEL)
        self._put(_FRAME.pack(len(data), zlib.crc32(data)) + data)

    def _put(self, data: bytes) -> None:
        try:
            self._out.write(data)
        except OSError as error:
            raise BackupError(f"{self._part} cannot be written: {error}") from error
        self._hash.update(data)
        self.size += len(data)


def verified(file: Path) -> tuple[Head, End]:
    """Read it from beginning to end. Raises BackupError unless every byte is as it was written."""
    pieces = _pieces(file)
    head = next(pieces, None)
    if not isinstance(head, Head):
        raise BackupError(f"{file} is torn: it ends before its head")
    for piece in pieces:
        if isinstance(piece, End):
            return head, piece
    raise AssertionError("_pieces ends with an End")


def read(file: Path) -> Iterator[Piece]:
    """What lies between head and end."""
    for piece in _pieces(file):
        if isinstance(piece, Tail | Task | State):
            yield piece


def _pieces(file: Path) -> Iterator[Head | Piece | End]:
    try:
        source: BinaryIO = file.open("rb")
    except OSError as error:
        raise BackupError(f"{file} cannot be read: {error}") from error
    with source:
        line = source.read(len(MAGIC))
        if line != MAGIC:
            raise BackupError(f"{file} is no backup of this format: it begins with {line[:40]!r}, not {MAGIC!r}")
        seen = hashlib.sha256(line)
        tasks = rows = 0
        while True:
            raw = source.read(_FRAME.size)
            if len(raw) < _FRAME.size:
                raise BackupError(f"{file} is torn: it ends after {source.tell():,} bytes, and its end is missing")
            size, crc = _FRAME.unpack(raw)
            data = source.read(size)
            if len(data) < size:
                raise BackupError(f"{file} is torn: it ends after {source.tell():,} bytes, in the midst of a piece")
            if zlib.crc32(data) != crc:
                raise BackupError(f"{file} is damaged: the piece before byte {source.tell():,} has another checksum")
            piece: Head | Piece | End = decode(zlib.decompress(data), type=Head | Tail | Task | State | End)
            if isinstance(piece, End):
                if (piece.tasks, piece.rows, piece.sha256) != (tasks, rows, seen.digest()) or source.read(1):
                    raise BackupError(f"{file} is damaged: it is not what its end says")
                yield piece
                return
            seen.update(raw + data)
            tasks += isinstance(piece, Task)
            rows += len(piece.rows) if isinstance(piece, State) else 0
            yield piece
