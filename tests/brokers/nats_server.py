"""A NATS server of a test's own, killed and started at will; the program is the one that `scripts/brokers` fetched."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import msgspec
from thalweg.transports.nats import NatsTransport
from thalweg.transports.nats.connection import Connection
from thalweg.url import Url

PROGRAM = shutil.which("nats-server", path=Path(__file__).resolve().parents[2] / ".brokers" / "wheels" / "nats" / "bin")


class Server:
    """`settings`: what its configuration file says beyond address, folder and an immediate sync."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.settings = settings

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def url_of(self, user: str) -> str:
        """`user`: what goes before the `@`."""
        return f"nats://{user}@127.0.0.1:{self.port}"

    def start(self) -> None:
        assert PROGRAM is not None
        file = self.folder / "nats.conf"
        file.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{self.folder}", sync_interval: always }}\n'
            + self.settings
        )
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [PROGRAM, "-c", str(file)], stdout=output, stderr=output, start_new_session=True
            )
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "output").read_text()[-2000:]
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(64).startswith(b"INFO ")
        except OSError:
            return False

    def kill(self) -> None:
        """As a power failure does."""
        self.process.kill()
        self.process.wait()


class _Names(msgspec.Struct):
    streams: list[str] | None = None


async def delete_streams(url: str, prefix: str) -> None:
    """All of a server whose names begin so."""
    connection = Connection(NatsTransport.from_url(Url(url))._endpoint)
    found = (await connection.api("STREAM.NAMES", _Names)).streams or []
    await connection.apis([(f"STREAM.DELETE.{name}", None) for name in found if name.startswith(prefix)], msgspec.Raw)
    await connection.close()
