"""Where an output comes from: the header by which its consumer knows it again.

An output that does not commit atomically with its journal record may reach its destination late, twice or out of
order. Its header `thalweg-out` says what the consumer needs to tell (57 bytes, big-endian):

    offset  bytes  field
         0      1  version, 1
         1     16  journal: the UUID of the producing task's journal
        17      4  destination: CRC-32 of "<partition>/<topic>" in UTF-8
        21      8  epoch ┐ the output's id; ids of a journal and destination only grow
        29      8  seq   ┘
        37      8  epoch of prev, the id of the output before it to this destination; its seq is always one lower
        45      8  epoch of floor, the newest id confirmed when this copy was sent: it and all before it are in the log
        53      4  seq minus the seq of floor

The destination is in it so that a record which some tool copied to another topic, header and all, is not mistaken for
one that was sent there.
"""

from __future__ import annotations

import struct
import zlib
from typing import TypeAlias

import msgspec
from thalweg.errors import DecodeError
from thalweg.message import Headers

__all__ = ["HEADER", "HEADER_BYTES", "NONE_YET", "Origin", "OutputId", "destination_of", "origin_of"]

OutputId: TypeAlias = tuple[int, int]
"""(epoch, seq): the owner's epoch in the journal (unix milliseconds, growing) and a dense count per destination."""

NONE_YET: OutputId = (0, 0)
"""Below every id: the prev of a first output, the floor while nothing is confirmed."""

HEADER = "thalweg-out"
_LAYOUT = struct.Struct(">B16sIQQQQI")
_VERSION = 1
HEADER_BYTES = len(HEADER) + _LAYOUT.size
"""What the header adds to `Message.size`."""


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Of a copy of an output: `id` and `prev` are the output's, `floor` is this copy's."""

    journal: bytes
    id: OutputId
    prev: OutputId
    floor: OutputId

    def header(self, destination: int) -> tuple[str, bytes]:
        """The header as a pair of name and value."""
        epoch, seq = self.id
        floor_epoch, floor_seq = self.floor
        return HEADER, _LAYOUT.pack(
            _VERSION, self.journal, destination, epoch, seq, self.prev[0], floor_epoch, seq - floor_seq
        )


def destination_of(topic: str, partition: int) -> int:
    """What stands for a topic's partition in the header."""
    return zlib.crc32(f"{partition}/{topic}".encode())


def origin_of(headers: Headers, destination: int) -> Origin | None:
    """The origin that the headers tell, or None if they tell none: a message of a foreign program.

    Raises `DecodeError` if there is such a header and it cannot be right, or was written for another destination.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == HEADER:
            if found is not None:
                raise DecodeError(f"the header {HEADER!r} stands there twice")
            found = value
    if found is None:
        return None
    if len(found) != _LAYOUT.size or found[0] != _VERSION:
        raise DecodeError(f"the header {HEADER!r} is not of version {_VERSION}: {found[:1].hex() or 'empty'}…")
    _, journal, written_for, epoch, seq, prev_epoch, floor_epoch, behind = _LAYOUT.unpack(found)
    if written_for != destination:
        raise DecodeError(f"the header {HEADER!r} was written for another topic or partition: was the record copied?")
    id, prev, floor = (epoch, seq), (prev_epoch, seq - 1), (floor_epoch, seq - behind)
    if seq < 1 or behind > seq or not floor <= prev < id:
        raise DecodeError(f"the header {HEADER!r} contradicts itself: id {id}, prev {prev}, floor {floor}")
    return Origin(journal, id, prev, floor)
