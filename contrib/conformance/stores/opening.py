"""Opening and closing: one at a time, by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from thalweg.contrib.conformance.properties import Profile, cases, prop
from thalweg.errors import ConfigurationError, StoreError
from thalweg.store import Checkpoint, Store

from .trial import StoreTrial, rows_of

NO_NAMES = ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a\\b", "a b", "ä", "a\0", "a\n", "x" * 201]
NAMES = ["a", "9", "bank-3", "app.group-1_x", "a.db", "a.lock"]
USES: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(b"k"),
    "scan": lambda store: list(store.scan(b"", None)),
    "apply": lambda store: store.apply({b"k": b"v"}, Checkpoint(1, 0)),
    "checkpoint": lambda store: store.checkpoint(),
    "clear": lambda store: store.clear(),
}


@prop(Profile.STORE)
def a_second_opener_is_refused_until_the_first_closes(trial: StoreTrial) -> None:
    first, other = trial.open(), trial.stores.open(f"{trial.name}-other")
    with pytest.raises(StoreError, match=trial.name):
        trial.open()
    other.apply({b"k": b"other"}, Checkpoint(1, 0))
    assert first.get(b"k") is None
    first.close()
    trial.open().apply({b"k": b"v"}, Checkpoint(1, 0))


@prop(Profile.STORE)
def closing_twice_is_harmless(trial: StoreTrial) -> None:
    store = trial.open()
    store.close()
    store.close()
    again = trial.open()
    store.close()
    with pytest.raises(StoreError):
        trial.open()
    again.close()
    trial.stores.close()
    trial.stores.close()


@prop(Profile.STORE)
def what_is_removed_is_gone_and_what_is_open_is_not_removed(trial: StoreTrial) -> None:
    assert not trial.stores.remove(trial.name)
    store = trial.open()
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    with pytest.raises(StoreError, match=trial.name):
        trial.stores.remove(trial.name)
    assert store.get(b"k") == b"v"
    store.close()
    trial.stores.remove(trial.name)
    again = trial.open()
    assert (rows_of(again), again.checkpoint()) == ({}, None)


@prop(Profile.STORE)
def closing_the_stores_closes_each(trial: StoreTrial) -> None:
    one, other = trial.open(), trial.stores.open(f"{trial.name}-other")
    trial.stores.close()
    for store in (one, other):
        with pytest.raises(StoreError):
            store.get(b"k")
    trial.open()


@prop(Profile.STORE, cases=cases(USES))
def a_closed_store_refuses_to_work(trial: StoreTrial, use: Callable[[Store], object]) -> None:
    store = trial.open()
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    store.close()
    with pytest.raises(StoreError):
        use(store)


@prop(Profile.STORE, cases=cases({repr(name[:12]): name for name in NO_NAMES}))
def a_name_that_is_no_file_name_is_refused(trial: StoreTrial, name: str) -> None:
    with pytest.raises(ConfigurationError, match="store name"):
        trial.stores.open(name)


@prop(Profile.STORE)
def allowed_names_open_stores_of_their_own(trial: StoreTrial) -> None:
    names = [f"{name}-{trial.name}" for name in NAMES] + [f"{trial.name}{end}" for end in ("", ".db", ".lock", ".a")]
    names.append(trial.name.ljust(200, "x"))
    stores = {name: trial.stores.open(name) for name in names}
    for name, store in stores.items():
        store.apply({b"name": name.encode()}, Checkpoint(1, 0))
    assert [rows_of(store) for store in stores.values()] == [{b"name": name.encode()} for name in names]


@prop(Profile.STORE)
def stores_describe_themselves_in_a_line(trial: StoreTrial) -> None:
    assert trial.stores.description
    assert len(trial.stores.description.splitlines()) == 1
