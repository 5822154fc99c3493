"""SQLite, with several processes on one file."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache

from thalweg.contrib.conformance import Rig, Unavailable, transport


@cache
def url() -> str:
    folder = tempfile.mkdtemp(prefix="thalweg-conformance-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return f"sqlite:///{folder}/broker.db?lease={SqliteRig.lease}&message_bytes=10000"


class SqliteRig(Rig):
    lease = 0.6

    def __init__(self) -> None:
        super().__init__(url())

    async def own_broker(self) -> None:
        raise Unavailable("a file has no server to restart; the processes that have it open are killed all the same")

    def address(self) -> tuple[str, int]:
        raise Unavailable("there is no network before a file")


sqlite = transport("sqlite://", SqliteRig)
