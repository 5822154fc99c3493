"""A broker of a run's own for each kind: started, restarted, and reached through links that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from brokers import kafka_server, nats_server, redis_server
from brokers.rabbit_server import RabbitServer
from thalweg.contrib.conformance.link import Proxy

from chaos.workers import Worker

__all__ = ["KINDS", "Broker", "Way", "own_broker"]


class Way:
    """How one worker reaches its broker: through proxies of its own, where there is a network."""

    def __init__(self, url: str, proxies: list[Proxy]) -> None:
        self.url, self._proxies = url, proxies

    @property
    def can_be_cut(self) -> bool:
        return bool(self._proxies)

    def cut(self) -> None:
        for proxy in self._proxies:
            proxy.cut()

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.heal()

    async def close(self) -> None:
        for proxy in self._proxies:
            await proxy.close()


class Broker:
    """In a throw-away folder. fenced: whether it refuses what a stale owner writes."""

    fenced = True
    restarts = True
    url: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ways: list[Way] = []

    @staticmethod
    def lacking() -> str:
        """What this machine lacks for it; empty if nothing."""
        raise NotImplementedError

    async def start(self) -> None:
        raise NotImplementedError

    async def restart(self) -> None:
        """It dies, and another process goes on with what it left on the disk."""
        raise NotImplementedError

    async def undisturbed(self) -> bool:
        """Whether those who run can use the broker while a process that was just stopped stands still."""
        return True

    async def stop_still(self, worker: Worker) -> None:
        """SIGSTOP in the middle of whatever it does, unless nobody else could do anything then."""
        worker.hang()
        while not await self.undisturbed():
            worker.resume()
            await asyncio.sleep(0.01)
            worker.hang()

    async def way(self) -> Way:
        found = await self._new_way()
        self._ways.append(found)
        return found

    async def _new_way(self) -> Way:
        raise NotImplementedError

    async def close(self) -> None:
        for way in self._ways:
            await way.close()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        raise NotImplementedError


class Networked(Broker):
    """server: of `tests/brokers`, with start, kill, port and url."""

    server: Any

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)

    @property
    def url(self) -> str:  # type: ignore[override]
        return str(self.server.url)

    async def _new_way(self) -> Way:
        proxy = Proxy("127.0.0.1", self.server.port)
        _, port = await proxy.start()
        return Way(self.url.replace(f":{self.server.port}", f":{port}"), [proxy])

    def _end(self) -> None:
        self.server.kill()


class Redis(Networked):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = redis_server.Server(folder)

    @staticmethod
    def lacking() -> str:
        return "" if shutil.which("redis-server") else "redis-server is not installed"


class Nats(Networked):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = nats_server.Server(folder)

    @staticmethod
    def lacking() -> str:
        return "" if nats_server.PROGRAM else "`scripts/brokers install nats` fetches it"


class Kafka(Networked):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = kafka_server.Server(folder)

    @staticmethod
    def lacking() -> str:
        return "" if kafka_server.installed() else f"it needs Java and {kafka_server.JARS} (scripts/brokers)"

    async def _new_way(self) -> Way:
        found = await super()._new_way()
        found.url = found.url.replace("kafka://", "brokers.kafka_proxied:ProxiedTransport://", 1)
        return found


class RabbitMQ(Networked):
    fenced = False
    options = "&streams=native"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = RabbitServer(folder)

    @staticmethod
    def lacking() -> str:
        return RabbitServer.lacking()

    @property
    def url(self) -> str:  # type: ignore[override]
        return f"{self.server.url}{self.options}"

    async def restart(self) -> None:
        """First the application, then the process: see RabbitServer.settle."""
        await asyncio.to_thread(self.server.control, "stop_app")
        await super().restart()

    async def _new_way(self) -> Way:
        amqp, stream = Proxy("127.0.0.1", self.server.port), Proxy("127.0.0.1", self.server.stream_port)
        _, port = await amqp.start()
        _, stream_port = await stream.start()
        url = self.url.replace(f":{self.server.port}", f":{port}")
        return Way(url.replace(f"stream_port={self.server.stream_port}", f"stream_port={stream_port}"), [amqp, stream])

    def _end(self) -> None:
        self.server.close()


class RabbitMQOverAMQP(RabbitMQ):
    options = "&streams=amqp"


class SQLite(Broker):
    """A file: it has no server to restart and no network to cut; but another program may lock it for a while."""

    restarts = False

    @staticmethod
    def lacking() -> str:
        return ""

    @property
    def url(self) -> str:  # type: ignore[override]
        return f"sqlite:///{self.folder}/broker.db"

    async def start(self) -> None:
        pass

    async def _new_way(self) -> Way:
        return Way(self.url, [])

    async def undisturbed(self) -> bool:
        """Not if it was stopped in the middle of a write: the system's lock on the file is its own until it goes on."""
        try:
            with await asyncio.to_thread(self.lock, 0.3) as connection:
                connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        return True

    def lock(self, timeout: float = 10.0) -> contextlib.closing[sqlite3.Connection]:
        """Until it is closed nobody else can write. Raises OperationalError if the lock cannot be had."""
        connection = sqlite3.connect(
            self.folder / "broker.db", isolation_level=None, timeout=timeout, check_same_thread=False
        )
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            connection.close()
            raise
        return contextlib.closing(connection)

    def _end(self) -> None:
        pass


KINDS: dict[str, type[Broker]] = {
    "kafka": Kafka,
    "nats": Nats,
    "rabbitmq": RabbitMQ,
    "rabbitmq-amqp": RabbitMQOverAMQP,
    "redis": Redis,
    "sqlite": SQLite,
}


@contextlib.asynccontextmanager
async def own_broker(kind: str) -> AsyncIterator[Broker]:
    folder = Path(tempfile.mkdtemp(prefix=f"thalweg-{kind}-{secrets.token_hex(3)}-"))
    broker = KINDS[kind](folder)
    try:
        await broker.start()
        try:
            yield broker
        finally:
            await broker.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
