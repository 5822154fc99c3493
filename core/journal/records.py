"""What lies in a journal, and which of it counts.

A journal is one partition of a log. Its owner writes a `Marker` with a random token; every later record carries that
token and a dense number. A record counts iff its token is that of the last marker before it and its number follows
the previous one directly (design rule 1). `Fold` applies that rule; owner and replay use the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import msgspec
from thalweg.errors import JournalMismatch
from thalweg.message import Message, Position

from .rows import UNFINISHED

__all__ = [
    "Begin",
    "Chunk",
    "End",
    "Entry",
    "Fold",
    "Marker",
    "Part",
    "Release",
    "Rows",
    "checksum",
    "decode_entry",
    "messages",
    "rows_of",
]


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    token: bytes
    number: int


class Marker(_Entry, tag="marker", frozen=True):
    """A new owner begins; `number` is 0. `epoch` grows with each; `journal` names the journal for ever."""

    epoch: int
    journal: bytes
    owner: str
    partitions: int
    partitioner: str


class Rows(_Entry, tag="rows", frozen=True):
    """A commit: rows that changed; None deletes. `progress`: an event has been finished."""

    rows: dict[bytes, bytes | None]
    progress: bool


class Begin(_Entry, tag="begin", frozen=True):
    """A snapshot begins: from here on, parts and commits together give the whole state.

    `marker` repeats the owner's, which the truncation that follows will remove. `anew`, if not empty: whatever came
    before counts for nothing any more, the journal goes by the marker's name from here on, and the state is not whole
    before the row `UNFINISHED`, whose value `anew` is, has been deleted. It says what is done: a reset, say.
    """

    marker: Marker
    anew: str = ""


class Part(_Entry, tag="part", frozen=True):
    """Rows as they were committed when this was appended; in key order from part to part."""

    rows: dict[bytes, bytes | None]


class End(_Entry, tag="end", frozen=True):
    """The snapshot that began at `begin`, or just before (None), is complete: what lies before may be truncated."""

    begin: Position | None


class Release(_Entry, tag="release", frozen=True):
    """The owner left in good order."""


class Chunk(_Entry, tag="chunk", frozen=True):
    """A piece of an entry above the broker's message size; only the piece with `last` makes the entry count."""

    data: bytes
    last: bool


Entry = Marker | Rows | Begin | Part | End | Release | Chunk

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode
_CHUNK_OVERHEAD = 64


def decode_entry(data: bytes) -> Entry:
    entry: Entry = _decode(data)
    return entry


def rows_of(entry: Entry | None) -> Mapping[bytes, bytes | None] | None:
    """What an entry that counts writes, if it writes any rows."""
    if isinstance(entry, Rows | Part):
        return entry.rows
    if isinstance(entry, Begin) and entry.anew:
        return {UNFINISHED: entry.anew.encode()}
    return None


def checksum(data: bytes | None) -> int:
    return zlib.crc32(data or b"")


def messages(entries: list[Entry], token: bytes, number: int, limit: int | None, timestamp: int) -> Iterator[Message]:
    """Entries as messages, renumbered densely from `number`; those above `limit` bytes in chunks."""
    for entry in entries:
        entry = msgspec.structs.replace(entry, token=token, number=number)
        data = _encode(entry)
        if limit is None or len(data) <= limit:
            yield Message(data, timestamp=timestamp)
            number += 1
            continue
        step = limit - _CHUNK_OVERHEAD
        for start in range(0, len(data), step):
            piece = Chunk(token, number, data[start : start + step], start + step >= len(data))
            yield Message(_encode(piece), timestamp=timestamp)
            number += 1


class Fold:
    """Reads a journal from its beginning, or on from where a store stands (`marker`, `number`), and tells what counts.

    A journal that was truncated begins with a snapshot, whose `Begin` repeats the marker. If more was kept than had to
    be, an earlier `Begin` may come first, of an owner that had been fenced. So, until a marker is seen, the `Begin` of
    the newest epoch counts, and with it the state begins anew (`fresh`). Epochs only grow from owner to owner, for one
    whose marker turns out to come after a newer epoch (`beaten`) writes nothing under it. A `Begin` that says `anew` is
    `fresh` for whoever reads from before it, too.

    `past`: owners before the last one, whose time ended since the last progress: the token of each, and whether it left
    without a release.
    """

    def __init__(self, marker: Marker | None = None, number: int = 0) -> None:
        self.marker = marker
        self.number = number
        self.epoch = 0 if marker is None else marker.epoch  # the newest
        self.past: list[tuple[bytes, bool]] = []
        self.fresh = False
        self.beaten = False
        self._adopted = False  # the marker is known from a `Begin`
        self._released = marker is None
        self._chunks: list[bytes] = []

    def feed(self, data: bytes | None) -> Entry | None:
        """The entry if it counts (a marker always does), else None."""
        entry = decode_entry(data or b"")
        self.fresh = False
        if isinstance(entry, Marker):
            self.check(entry)
            self.beaten, self.epoch = entry.epoch <= self.epoch, max(entry.epoch, self.epoch)
            self._adopted = False
            if self.marker is not None:
                self.past.append((self.marker.token, not self._released))
            entry = self._named(entry)
            self.marker, self.number, self._released = entry, 0, False
            self._chunks.clear()
            return entry
        if isinstance(entry, Begin) and self._adopts(entry.marker):
            self.marker, self.number, self._released = entry.marker, entry.number - 1, False
            self.epoch = max(entry.marker.epoch, self.epoch)
            self.fresh = self._adopted = True
            self._chunks.clear()
        if self.marker is None or entry.token != self.marker.token or entry.number != self.number + 1:
            return None
        self.number = entry.number
        if isinstance(entry, Begin) and entry.anew:
            self.marker, self.fresh = entry.marker, True
        if isinstance(entry, Chunk):
            self._chunks.append(entry.data)
            if not entry.last:
                return None
            entry = decode_entry(b"".join(self._chunks))
            self._chunks.clear()
        if isinstance(entry, Rows) and entry.progress:
            self.past.clear()
        self._released = isinstance(entry, Release)
        return entry

    def _named(self, marker: Marker) -> Marker:
        """The journal keeps the name that it began with. Two who each found it empty name it differently, and the
        marker of one may arrive long after; under another name, outputs sent again would not be known as the same.
        """
        was = self.marker
        return marker if was is None else msgspec.structs.replace(marker, journal=was.journal)

    def _adopts(self, marker: Marker) -> bool:
        return self.marker is None or (self._adopted and marker.epoch > self.marker.epoch)

    def check(self, marker: Marker) -> None:
        """Raises JournalMismatch if this marker's owner would read the journal's keys differently."""
        was = self.marker
        if was is not None and (was.partitions, was.partitioner) != (marker.partitions, marker.partitioner):
            raise JournalMismatch(
                f"the journal was written with {was.partitions} partitions by {was.partitioner!r}, and now the app has "
                f"{marker.partitions} by {marker.partitioner!r}: state would be orphaned. Restore the old setting, or "
                "start under a new app id and replay"
            )
