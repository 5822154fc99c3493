"""A journal's name is part of its outputs' ids: it must stay the same, whoever's marker comes when."""

from __future__ import annotations

import msgspec
from thalweg.journal.records import Begin, Fold, Marker, Rows

ENCODE = msgspec.msgpack.encode


def marker(token: bytes, journal: bytes, epoch: int) -> Marker:
    return Marker(token, 0, epoch, journal, "host/1", 1, "murmur2")


def test_a_marker_that_was_made_for_an_empty_journal_and_came_late_does_not_rename_it() -> None:
    fold = Fold()
    fold.feed(ENCODE(marker(b"second", b"name", 2)))
    late = fold.feed(ENCODE(marker(b"first", b"other", 1)))
    assert fold.marker is not None
    assert (fold.marker.token, fold.marker.journal) == (b"first", b"name")
    assert late == fold.marker
    fold.feed(ENCODE(marker(b"third", b"other", 3)))
    assert fold.marker.journal == b"name"
    fold.feed(ENCODE(Rows(b"third", 1, {}, True)))
    assert fold.number == 1


def test_a_truncated_journal_keeps_the_name_in_its_snapshot() -> None:
    fold = Fold()
    fold.feed(ENCODE(Begin(b"first", 5, marker(b"first", b"name", 1))))
    fold.feed(ENCODE(marker(b"late", b"other", 0)))
    assert fold.marker is not None
    assert fold.marker.journal == b"name"
