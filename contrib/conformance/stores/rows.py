"""Rows and batches: bytes to bytes, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.store import Checkpoint

from .trial import Rows, StoreTrial, rows_of


@prop(Profile.STORE)
def a_missing_key_is_none_and_an_empty_value_is_not_missing(trial: StoreTrial) -> None:
    store = trial.open()
    store.apply({b"empty": b""}, Checkpoint(1, 2))
    assert store.get(b"missing") is None
    assert store.get(b"empty") == b""
    assert list(store.scan(b"", None)) == [(b"empty", b"")]


@prop(Profile.STORE)
def the_last_value_wins(trial: StoreTrial) -> None:
    store = trial.open()
    store.apply({b"k": b"long" * 50}, Checkpoint(1, 0))
    store.apply({b"k": b"new"}, Checkpoint(2, 0))
    assert store.get(b"k") == b"new"
    assert rows_of(store) == {b"k": b"new"}


@prop(Profile.STORE)
def deleting_is_idempotent_and_a_deleted_key_can_come_back(trial: StoreTrial) -> None:
    store = trial.open()
    store.apply({b"a": b"1", b"b": b"2", b"empty": b""}, Checkpoint(1, 0))
    store.apply({b"a": None, b"never": None, b"empty": None}, Checkpoint(2, 0))
    store.apply({b"a": None}, Checkpoint(3, 0))
    assert store.get(b"a") is None
    assert rows_of(store) == {b"b": b"2"}
    store.apply({b"a": b"again"}, Checkpoint(4, 0))
    assert list(store.scan(b"", None)) == [(b"a", b"again"), (b"b", b"2")]


@prop(Profile.STORE)
def any_bytes_are_keys_and_values(trial: StoreTrial) -> None:
    store = trial.open()
    every = [bytes([byte]) for byte in range(256)]
    odd = [b"", b"\0", b"\0\0", b"\1", b"\xff" * 300, b"k" * 5000, "schlüssel€".encode(), b"'; DROP TABLE rows; --"]
    rows = {key: key[::-1] for key in every + odd}
    store.apply(rows, Checkpoint(1, 0))
    assert all(store.get(key) == value for key, value in rows.items())
    assert list(store.scan(b"", None)) == sorted(rows.items())


@prop(Profile.STORE)
def a_large_value_is_kept_whole(trial: StoreTrial) -> None:
    store, large = trial.open(), trial.dice.randbytes(5_000_000)
    store.apply({b"large": large, b"small": b"s"}, Checkpoint(1, 0))
    assert store.get(b"large") == large
    assert rows_of(store) == {b"large": large, b"small": b"s"}


@prop(Profile.STORE)
def an_empty_batch_moves_the_checkpoint(trial: StoreTrial) -> None:
    store = trial.open()
    assert store.checkpoint() is None
    store.apply({}, Checkpoint(0, 0))
    assert store.checkpoint() == Checkpoint(0, 0)
    store.apply({}, Checkpoint(2**63 - 1, 2**32 - 1))
    assert store.checkpoint() == Checkpoint(2**63 - 1, 2**32 - 1)


@prop(Profile.STORE)
def clear_deletes_rows_and_checkpoint_and_the_store_goes_on(trial: StoreTrial) -> None:
    store = trial.open()
    store.apply({b"%d" % n: b"x" for n in range(1000)}, Checkpoint(5, 6))
    store.clear()
    assert (rows_of(store), store.get(b"1"), store.checkpoint()) == ({}, None, None)
    store.apply({b"1": b"y"}, Checkpoint(1, 1))
    assert (rows_of(store), store.checkpoint()) == ({b"1": b"y"}, Checkpoint(1, 1))


@prop(Profile.STORE)
def a_batch_that_is_interrupted_changes_nothing(trial: StoreTrial) -> None:
    class Broken(dict[bytes, bytes | None]):
        def items(self) -> Iterator[tuple[bytes, bytes | None]]:  # type: ignore[override]
            yield b"a", b"new"
            yield b"b", None
            raise KeyboardInterrupt

    store = trial.open()
    store.apply({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
    with pytest.raises(KeyboardInterrupt):
        store.apply(Broken(), Checkpoint(2, 0))
    assert (rows_of(store), store.checkpoint()) == ({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
    store.apply({b"b": None}, Checkpoint(3, 0))
    assert rows_of(store) == {b"a": b"1"}


@prop(Profile.STORE)
def a_batch_of_many_rows_is_written_whole(trial: StoreTrial) -> None:
    store, count = trial.open(), 20_000 * trial.size
    store.apply({b"%08d" % n: b"%d" % n for n in range(count)}, Checkpoint(1, 0))
    store.apply({b"%08d" % n: None for n in range(0, count, 2)}, Checkpoint(2, 0))
    assert rows_of(store) == {b"%08d" % n: b"%d" % n for n in range(1, count, 2)}


@prop(Profile.STORE)
def a_store_is_a_sorted_dict(trial: StoreTrial) -> None:
    """A random walk beside a model."""
    dice, edges = trial.dice, [b"\xff", b"\xff\xff", b"\xff\xff\xff", b"\0", b""]

    def key() -> bytes:
        return dice.choice(edges) if dice.random() < 0.2 else dice.randbytes(dice.randint(0, 3))

    kept = trial.keeps()
    store, model, last = trial.open(), Rows(), None
    for position in range(60 * trial.size):
        step = dice.random()
        if step < 0.5:
            changes = {
                key(): dice.choice([None, dice.randbytes(dice.randint(0, 40))]) for _ in range(dice.randint(0, 90))
            }
            last = Checkpoint(position, position)
            store.apply(changes, last)
            model = {k: v for k, v in {**model, **changes}.items() if v is not None}
        elif step < 0.85:
            start, stop = key(), dice.choice([None, key()])
            expected = [(k, model[k]) for k in sorted(model) if start <= k and (stop is None or k < stop)]
            assert list(store.scan(start, stop)) == expected
        elif step < 0.9:
            store.clear()
            model, last = {}, None
        else:
            store.close()
            store = trial.open()
            if not kept:
                model, last = {}, None
        assert store.checkpoint() == last
    assert list(store.scan(b"", None)) == sorted(model.items())
    assert all(store.get(k) == value for k, value in model.items())
