"""Scans: bytewise order, half-open ranges, and steady while rows change."""

from __future__ import annotations

import pytest
from thalweg.contrib.conformance.properties import Profile, cases, prop
from thalweg.errors import StoreError
from thalweg.store import Checkpoint

from .trial import StoreTrial, rows_of

RANGES: dict[str, tuple[bytes, bytes | None, list[bytes]]] = {
    "from one key to another": (b"a", b"c", [b"a", b"a\0", b"b", b"b\xff\xff"]),
    "from the successor of a key": (b"a\0", b"b", [b"a\0"]),
    "empty": (b"b", b"b", []),
    "backwards": (b"c", b"a", []),
    "between keys": (b"aa", b"azz", []),
    "after a prefix that ends in 0xff": (b"b\xff", b"c", [b"b\xff\xff"]),
    "all that begins with 0xff": (b"\xff", None, [b"\xff", b"\xff\0", b"\xff\xff"]),
    "the last key": (b"\xff\xff", None, [b"\xff\xff"]),
    "after the last key": (b"\xff\xff\0", None, []),
    "up to 0xff": (b"d", b"\xff", []),
    "empty at the beginning": (b"", b"", []),
}


@prop(Profile.STORE)
def a_scan_is_in_bytewise_order(trial: StoreTrial) -> None:
    store = trial.open()
    keys = [b"b", b"a\xff", b"a", b"\xff\xff", b"a\0", b"B", b"\x80", b"\x7f", b"ab", b"\xff", b""]
    store.apply(dict.fromkeys(keys, b"v"), Checkpoint(1, 0))
    assert [key for key, _ in store.scan(b"", None)] == sorted(keys)


@prop(Profile.STORE, cases=RANGES)
def a_range_holds_its_start_but_not_its_stop(
    trial: StoreTrial, start: bytes, stop: bytes | None, found: list[bytes]
) -> None:
    store = trial.open()
    keys = [b"a", b"a\0", b"b", b"b\xff\xff", b"c", b"\xff", b"\xff\0", b"\xff\xff"]
    store.apply(dict.fromkeys(keys, b"v"), Checkpoint(1, 0))
    assert [key for key, _ in store.scan(start, stop)] == found


@prop(Profile.STORE)
def a_scan_of_many_rows_gives_each_once(trial: StoreTrial) -> None:
    store = trial.open()
    rows = {b"%05d" % n: b"%d" % n for n in range(3000)}
    store.apply(rows, Checkpoint(1, 0))
    assert list(store.scan(b"", None)) == sorted(rows.items())
    assert len(list(store.scan(b"00064", b"02000"))) == 2000 - 64


@prop(Profile.STORE)
def reading_on_after_the_last_key_sees_the_latest_rows(trial: StoreTrial) -> None:
    store = trial.open()
    store.apply({b"%03d" % n: b"old" for n in range(300)}, Checkpoint(1, 0))
    rows = store.scan(b"", None)
    chunk = [next(rows) for _ in range(10)]
    store.apply({b"%03d" % n: b"new" for n in range(300)}, Checkpoint(2, 0))
    rest = list(store.scan(chunk[-1][0] + b"\0", None))
    assert rest == [(b"%03d" % n, b"new") for n in range(10, 300)]


@prop(Profile.STORE, cases=cases({f"every {pause} rows": pause for pause in (1, 63, 64, 65)}))
def rows_that_do_not_change_during_a_scan_are_yielded_exactly_once(trial: StoreTrial, pause: int) -> None:
    """Every second row is rewritten, deleted or added while the scan goes on; the others must come through."""
    store = trial.open()
    still = {b"%05d" % n: b"still %d" % n for n in range(0, 500, 2)}
    moving = [b"%05d" % n for n in range(1, 500, 2)]
    store.apply({**still, **dict.fromkeys(moving[::2], b"before")}, Checkpoint(0, 0))
    seen: list[tuple[bytes, bytes]] = []
    for row in store.scan(b"", None):
        seen.append(row)
        if len(seen) % pause == 0:
            turn = len(seen) // pause % 3
            store.apply(dict.fromkeys(moving, (b"after", None, b"later")[turn]), Checkpoint(len(seen), 0))
    keys = [key for key, _ in seen]
    assert keys == sorted(set(keys))
    assert {key: value for key, value in seen if key in still} == still
    assert {value for key, value in seen if key not in still} <= {b"before", b"after", b"later"}


@prop(Profile.STORE)
def several_scans_and_gets_do_not_disturb_each_other(trial: StoreTrial) -> None:
    store = trial.open()
    rows = {b"%03d" % n: b"%d" % n for n in range(200)}
    store.apply(rows, Checkpoint(1, 0))
    pairs = zip(store.scan(b"", None), store.scan(b"", None), strict=True)
    assert all(one == other and store.get(one[0]) == one[1] for one, other in pairs)


@prop(Profile.STORE)
def a_scan_that_ends_before_the_next_batch_is_of_one_moment(trial: StoreTrial) -> None:
    store = trial.open()
    for turn in range(20 * trial.size):
        store.apply({b"%03d" % n: b"%d" % turn for n in range(200)}, Checkpoint(turn, turn))
        assert {value for _, value in store.scan(b"", None)} == {b"%d" % turn}
        assert store.checkpoint() == Checkpoint(turn, turn)


@prop(Profile.STORE)
def a_scan_that_nobody_finishes_hinders_nothing(trial: StoreTrial) -> None:
    store = trial.open()
    store.apply({b"%03d" % n: b"v" for n in range(200)}, Checkpoint(1, 0))
    rows = store.scan(b"", None)
    next(rows)
    store.clear()
    assert rows_of(store) == {}
    store.close()
    again = trial.open()
    with pytest.raises(StoreError):
        list(rows)  # its page is used up, then it needs the store
    again.apply({b"k": b"v"}, Checkpoint(1, 0))
