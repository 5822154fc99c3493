"""The three stores."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from thalweg.contrib.conformance import StoreRig, Target, store


@cache
def folder() -> str:
    made = tempfile.mkdtemp(prefix="thalweg-stores-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


class RocksdbRig(StoreRig):
    def prepare(self) -> None:
        pytest.importorskip("rocksdict")

    def is_exempt(self, file: Path) -> bool:
        """The MANIFEST (see the docstring of `stores/rocksdb.py`), and what RocksDB notes for itself."""
        return file.suffix not in {".sst", ".log"}


def target(scheme: str, kind: type[StoreRig]) -> Target:
    return store(f"{scheme}:// (store)", lambda: kind(f"{scheme}:///{folder()}/{scheme}"))


memory = store("memory:// (store)", lambda: StoreRig("memory://"))
sqlite = target("sqlite", StoreRig)
rocksdb = target("rocksdb", RocksdbRig)
