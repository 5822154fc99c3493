"""Connections to a Redis server: commands are pipelined, answers come in their order. On hiredis, Redis's own parser.

Not redis-py's client: that lends a whole connection to each call, turns entries into dicts, which lose a header that
occurs twice, and by default retries writes and times out blocking reads.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

import hiredis
import msgspec
from thalweg.attempt import SharedAttempt
from thalweg.errors import AccessDenied, AmbiguousCommit, BrokerError
from thalweg.url import Url

from .scripts import SCRIPTS, Script

__all__ = ["Connection", "ConnectionLost", "Endpoint"]

Argument: TypeAlias = bytes | str | int
Reply: TypeAlias = Any
"""What hiredis makes of an answer: bytes, int, None or a list of those."""

_REMEDIES = {
    "ASK": "the cluster is moving what this program keeps to another node; wait",
    "CLUSTERDOWN": "the cluster has no node for this program's slot at present; wait for its fail-over, or repair it",
    "LOADING": "it is reading its data set from disk; wait",
    "MASTERDOWN": "this is a replica without its primary; name the primary",
    "MISCONF": "it cannot write to its disk; free space on it, and see the server's log",
    "NOAUTH": "put user and password into the URL: redis://user:password@host",
    "NOPERM": "let the user run this command on these keys (ACL SETUSER)",
    "OOM": "maxmemory is reached and nothing was written; raise it, or truncate and consume what is there",
    "MOVED": "the cluster has moved this program's slot to a node that cannot be reached",
    "READONLY": "this is a replica; name the primary",
    "TRYAGAIN": "the cluster is moving what this program keeps to another node; wait",
    "WRONGPASS": "check user and password in the URL",
    "WRONGTYPE": "another program uses this key for something else; choose another ?prefix= or topic name",
}
_NO_PASSWORDS = "this server has no passwords: leave it out of the URL, or set one there (requirepass, ACL SETUSER)"


class ConnectionLost(BrokerError):
    """No answer came: what was asked may or may not have been done."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where the server is and how to enter. timeout: seconds to connect, and for an answer.

    Of several addresses, that of the primary is taken, also after a fail-over. replicas: how many must have a write
    before it counts as done. tag: the hash tag by which all keys lie in one slot of a cluster, braces included.
    """

    url: Url
    addresses: Sequence[tuple[str, int]]
    socket: str | None
    database: int
    tls: ssl.SSLContext | None
    timeout: float
    replicas: int = 0
    tag: str = "{}"

    @property
    def place(self) -> str:
        where = self.socket or ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"{where}/{self.database}" if self.database else where

    def explain(self, error: BaseException | str, what: str = "") -> BrokerError:
        """What the server or the operating system said, with a remedy and without secrets."""
        said = self.url.redact(str(error) or type(error).__name__)
        denied = "can't run this command" in said or "ACL failure" in said  # in a script
        kind = "NOPERM" if denied else said.partition(" ")[0]
        remedy = _NO_PASSWORDS if "without any password configured" in str(error) else _REMEDIES.get(kind)
        kind_of = AccessDenied if kind == "NOPERM" else BrokerError
        return kind_of(f"Redis at {self.place}: {what}{said}{f': {remedy}' if remedy else ''}")


class _ServerSaid(Exception):
    """An error among the answers."""


class _Replica(Exception):
    """The primary is elsewhere."""


class _Moved(Exception):
    """The slot is on the node that the cluster names."""


def _not_done(reply: Reply) -> bool:
    """Whether a cluster said that the keys are not here, or not all of them: nothing was done."""
    if not isinstance(reply, _ServerSaid):
        return False
    said = str(reply)
    return said.startswith(("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")) or "non local key in a cluster node" in said


class _Wire(asyncio.Protocol):
    """One socket while it lasts."""

    def __init__(self, patience: float) -> None:
        self._reader = hiredis.Reader(replyError=_ServerSaid, protocolError=ConnectionError)
        self._pending: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._patience = patience
        self._lost: BaseException | None = None
        self._retired = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.WriteTransport
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def usable(self) -> bool:
        return self._lost is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._watch()

    def send(self, commands: Sequence[tuple[Argument, ...]]) -> list[asyncio.Future[Reply]]:
        """Raises ConnectionLost if it is: nobody would answer."""
        if self._lost is not None:
            raise ConnectionLost(str(self._lost))
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Reply]] = [loop.create_future() for _ in commands]
        now = time.monotonic()
        self._pending.extend((future, now) for future in futures)
        # hiredis types the tuple as one of a single item.
        self._transport.write(b"".join([hiredis.pack_command(command) for command in commands]))  # type: ignore[arg-type]
        return futures

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                future, _ = self._pending.popleft()
                if not future.done():
                    future.set_result(reply)
            if self._retired:
                self.retire()
        except Exception as error:  # not Redis
            self.abort(error)

    def abort(self, error: BaseException) -> None:
        if self._lost is None:
            self._lost = error
            self._transport.abort()
            self._fail()

    def retire(self) -> None:
        """Close it as soon as all that was asked is answered; nobody asks more."""
        self._retired = True
        if not self._pending:
            self.abort(ConnectionError("the slot was moved"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            self._lost = exc or ConnectionError("the server closed the connection")
        if self._timer is not None:
            self._timer.cancel()
        self._fail()
        if not self.closed.done():
            self.closed.set_result(None)

    def _fail(self) -> None:
        for future, _ in self._pending:
            if not future.done():
                future.set_exception(ConnectionLost(str(self._lost)))
                future.exception()  # who was cancelled does not ask
        self._pending.clear()

    def _watch(self) -> None:
        """A server that hangs, or a network that swallows everything, must not be waited for without end."""
        if self._pending and time.monotonic() - self._pending[0][1] > self._patience:
            self.abort(ConnectionError(f"no answer within {self._patience:g} s"))
        else:
            self._timer = asyncio.get_running_loop().call_later(self._patience / 4, self._watch)


class Connection:
    """Connects when first used and again when used after a loss. Calls may overlap; a cancelled one disturbs none.

    patience: seconds that a command may take beyond the endpoint's time-out (for blocking reads).
    """

    def __init__(self, endpoint: Endpoint, patience: float = 0.0) -> None:
        self.endpoint = endpoint
        self.number = 0
        self.cluster = False
        self.waitaof = False
        self._patience = patience
        self._wire: _Wire | None = None
        self._retired: set[_Wire] = set()
        self._connecting = SharedAttempt(self._attempt, self._connected)
        self._nodes: list[tuple[str, int]] = []  # of a cluster, as it named them last
        self._open = True

    async def call(self, *command: Argument) -> Reply:
        return (await self.calls([command]))[0]

    async def calls(self, commands: Sequence[tuple[Argument, ...]]) -> list[Reply]:
        """Their answers, in order. Raises `BrokerError` for the first that is an error, `ConnectionLost` for none."""
        replies = await self._ask(commands)
        for reply in replies:
            if isinstance(reply, _ServerSaid):
                raise self.endpoint.explain(reply)
        return replies

    async def _ask(self, commands: Sequence[tuple[Argument, ...]]) -> list[Reply]:
        """Their answers, errors among them.

        What a cluster has not done because the slot was moved is asked of the node that has it now, and what it cannot
        do while it is moving the slot, or electing a primary for it, once that is over; if that is within the time-out.
        """
        wire, replies = await self._send(commands)
        deadline = time.monotonic() + self.endpoint.timeout
        while self.cluster and time.monotonic() < deadline:
            at = next((number for number, reply in enumerate(replies) if _not_done(reply)), None)
            if at is None:
                break
            if str(replies[at]).startswith("MOVED "):
                self._leave(wire)
            await asyncio.sleep(0.02)
            wire, replies[at:] = await self._send(commands[at:])
        return replies

    async def _send(self, commands: Sequence[tuple[Argument, ...]]) -> tuple[_Wire, list[Reply]]:
        wire = self._wire
        if wire is None or not wire.usable:
            wire = await self._connect()
        try:
            return wire, [await future for future in wire.send(commands)]
        except ConnectionLost as error:
            raise ConnectionLost(str(self.endpoint.explain(error, "the connection was lost: "))) from None

    def _leave(self, wire: _Wire) -> None:
        """The slot is elsewhere. What others still wait for on this wire is answered there."""
        if self._wire is wire:
            self._wire = None
        self._retired = {old for old in self._retired if old.usable} | {wire}
        wire.retire()

    async def run(self, script: Script, keys: Sequence[bytes], *arguments: Argument) -> Reply:
        """Run a script, atomically: all of it or, if this raises anything but `ConnectionLost`, nothing."""
        return (await self._run(script, keys, arguments))[0]

    async def write(self, script: Script, keys: Sequence[bytes], *arguments: Argument) -> Reply:
        """`run`, where the loss of the answer is told as what it means: nobody knows.

        Returns once the write is as durable as the server makes it, and on as many replicas as the URL demands.
        """
        wanted, patience = self.endpoint.replicas, round(self.endpoint.timeout * 500)
        wait: tuple[Argument, ...] = (b"WAITAOF", 0, wanted, patience) if self.waitaof else (b"WAIT", wanted, patience)
        try:
            # Sent together: WAIT is about what was written before it on the very same connection.
            reply, *copied = await self._run(script, keys, arguments, *([wait] if wanted else []))
        except ConnectionLost as error:
            raise AmbiguousCommit(f"{error} (whether the write was done is unknown)") from None
        if copied:
            failed = isinstance(copied[0], _ServerSaid)
            copies = 0 if failed else copied[0][1] if self.waitaof else copied[0]
            if copies < wanted:
                raise AmbiguousCommit(
                    f"Redis at {self.endpoint.place}: a write was done, but reached only {copies} of the {wanted} "
                    "replicas that the URL demands (?replicas=) in time; a fail-over would lose it"
                )
        return reply

    async def _run(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Argument], *more: tuple[Argument, ...]
    ) -> list[Reply]:
        replies = await self._ask([(b"EVALSHA", script.sha, len(keys), *keys, *arguments), *more])
        if isinstance(replies[0], _ServerSaid) and str(replies[0]).startswith("NOSCRIPT"):  # SCRIPT FLUSH
            replies = await self._ask([(b"EVAL", script.text, len(keys), *keys, *arguments), *more])
        if isinstance(replies[0], _ServerSaid):
            raise self.endpoint.explain(replies[0])
        return replies

    def drop(self) -> None:
        """Give the present connection up: it does not answer."""
        if self._wire is not None:
            self._wire.abort(ConnectionError("no answer in time"))

    async def close(self) -> None:
        self._open = False
        await self._connecting.cancel()
        for wire in (self._wire, *self._retired):
            if wire is not None:
                wire.abort(ConnectionError("closed"))
                await wire.closed

    async def _connect(self) -> _Wire:
        """One attempt, shared by all who wait for it."""
        if not self._open:
            raise BrokerError(f"Redis at {self.endpoint.place}: the transport is not open; call open() first")
        made = await self._connecting.result()
        if made is None:
            raise BrokerError(f"Redis at {self.endpoint.place}: the transport was closed")
        return made

    def _connected(self, wire: _Wire) -> None:
        self._wire = wire

    async def _attempt(self) -> _Wire:
        endpoint = self.endpoint
        problem: BrokerError | None = None
        try:
            async with asyncio.timeout(endpoint.timeout):
                addresses: list[tuple[str, int] | None] = [None] if endpoint.socket else [*endpoint.addresses]
                addresses += [node for node in self._nodes if node not in addresses]
                while addresses:
                    address = addresses.pop(0)
                    try:
                        return await self._enter(address)
                    except (OSError, ConnectionLost) as error:
                        problem = endpoint.explain(error, "it cannot be reached: ")
                    except _Replica:
                        problem = endpoint.explain("this is a replica; name the primary, or all of them")
                    except _Moved as moved:
                        problem = endpoint.explain(str(moved))
                        await asyncio.sleep(0.02)  # nodes that have not heard of a move name one another
                        node = _node(str(moved), address)
                        addresses = [node, *(other for other in addresses if other != node)]
        except TimeoutError:
            problem = endpoint.explain(f"no answer within {endpoint.timeout:g} s", "it cannot be reached: ")
        assert problem is not None
        raise problem

    async def _enter(self, address: tuple[str, int] | None) -> _Wire:
        endpoint = self.endpoint
        loop = asyncio.get_running_loop()

        def wire() -> _Wire:
            return _Wire(endpoint.timeout + self._patience)

        if address is None:
            _, made = await loop.create_unix_connection(wire, endpoint.socket)
        else:
            _, made = await loop.create_connection(wire, *address, ssl=endpoint.tls)
        try:
            await self._introduce(made)
        except BaseException as error:
            made.abort(error)
            raise
        return made

    async def _introduce(self, wire: _Wire) -> None:
        url, commands = self.endpoint.url, list[tuple[Argument, ...]]()
        if url.password is not None:
            commands.append((b"AUTH", *([url.username] if url.username else []), url.password))
        if self.endpoint.database:
            commands.append((b"SELECT", self.endpoint.database))
        at = len(commands)
        commands += [(b"CLIENT", b"ID"), (b"INFO", b"replication"), (b"INFO", b"cluster")]
        commands += [(b"SCRIPT", b"LOAD", script.text) for script in SCRIPTS]
        while True:
            replies = [await future for future in wire.send(commands)]
            problem = next((reply for reply in replies if isinstance(reply, _ServerSaid)), None)
            if problem is None:
                break
            if not str(problem).startswith("LOADING"):  # just started; the time-out of the attempt ends this
                raise self.endpoint.explain(problem)
            await asyncio.sleep(0.1)
        self.number = int(replies[at])
        self.cluster = b"cluster_enabled:1" in replies[at + 2]
        if self.cluster:
            await self._find_slot(wire)
        elif b"role:slave" in replies[at + 1]:
            raise _Replica

    async def _find_slot(self, wire: _Wire) -> None:
        """Raises `_Moved` unless the slot of all our keys is on this node of a cluster."""
        asked = wire.send([(b"CLUSTER", b"SLOTS"), (b"EXISTS", self.endpoint.tag)])
        ranges, exists = [await future for future in asked]
        if isinstance(ranges, list):
            nodes = {(node[0].decode(), int(node[1])) for _, _, *some in ranges for node in some if node[0]}
            self._nodes = sorted(nodes)
        if isinstance(exists, _ServerSaid) and str(exists).startswith("MOVED "):
            raise _Moved(str(exists))
        if isinstance(exists, _ServerSaid) and not _not_done(exists):
            raise self.endpoint.explain(exists)


def _node(moved: str, asked: tuple[str, int] | None) -> tuple[str, int]:
    """Where `MOVED slot host:port` leads; without a host: another port of the one that was asked."""
    host, _, port = moved.split(" ")[2].rpartition(":")
    return host or (asked[0] if asked else "localhost"), int(port)
