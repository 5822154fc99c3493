"""One run of one property of a store: a name of its own, and everything closed afterwards."""

from __future__ import annotations

import random
import secrets

from thalweg.contrib.conformance.properties import Mode
from thalweg.store import Checkpoint, Store, Stores

from .rig import StoreRig

__all__ = ["Rows", "StoreTrial", "rows_of"]

Rows = dict[bytes, bytes]


class StoreTrial:
    """stores: opened for this trial. name: a name that no other store has. size, dice: as those of `Trial`."""

    def __init__(self, rig: StoreRig, mode: Mode = Mode.QUICK, seed: int | str = 0) -> None:
        self.rig, self.mode, self.dice = rig, mode, random.Random(seed)
        self.size = 1 if mode is Mode.QUICK else 5
        self.name = f"store-{secrets.token_hex(5)}"
        self._opened: list[Stores] = []
        self.stores = self.load()

    def load(self) -> Stores:
        """Another object for the same stores, as another program would have."""
        stores = self.rig.open()
        self._opened.append(stores)
        return stores

    def open(self) -> Store:
        return self.stores.open(self.name)

    def keeps(self) -> bool:
        """Whether rows are still there when a store is opened again."""
        name = f"{self.name}-probe"
        store = self.stores.open(name)
        store.apply({b"k": b"v"}, Checkpoint(1, 2))
        store.apply({}, Checkpoint(3, 4))
        store.close()
        again = self.stores.open(name)
        kept = again.checkpoint() is not None  # a store that loses a batch is not one that keeps nothing
        assert rows_of(again) == ({b"k": b"v"} if kept else {}), "rows and checkpoint are kept together, or neither"
        again.close()
        return kept

    def close(self) -> None:
        for stores in self._opened:
            stores.close()


def rows_of(store: Store) -> Rows:
    return dict(store.scan(b"", None))
