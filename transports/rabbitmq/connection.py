"""One AMQP connection that comes back: it connects when first used, and again when used after a loss.

On aiormq, the protocol layer of aio-pika: aio-pika's own objects around each message would cost more than the rest, and
its `connect_robust` goes on behind the back of whoever must know that what was held by a connection is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import aiormq
import msgspec
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.connection import TransportFactory
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from thalweg.attempt import SharedAttempt
from thalweg.errors import AccessDenied, AmbiguousCommit, BrokerError, MessageTooLarge
from thalweg.finishing import cancelled_from_outside, finish
from thalweg.url import Url
from yarl import URL

from .publishing import Outgoing, Publisher

__all__ = [
    "HELD_UP",
    "Connection",
    "ConnectionLost",
    "Endpoint",
    "Outgoing",
    "Refused",
    "Unroutable",
    "no_streams",
]

T = TypeVar("T")

_CLIENT_LOG = logging.getLogger("aiormq")
"""It logs a traceback for each connection that ends, which also comes to us as an exception."""

HELD_UP = "the server hangs, or blocks all who write since an alarm of its memory or disk is on (see its log)"
"""What a server may do that took a message and does not say so."""

_TOO_LARGE = re.compile(r"larger than configured max size (\d+)")

_WINDOW = 1000  # messages published and not yet confirmed
_FAREWELL = 2.0  # seconds for each step of closing
_LONGEST_PAUSE = 2.0  # seconds between two attempts to connect


class ConnectionLost(BrokerError):
    """No answer came: what was asked may or may not have been done."""


class Refused(BrokerError):
    """The server answered that it does not do it. reason: its own exception."""

    def __init__(self, message: str, reason: BaseException) -> None:
        super().__init__(message)
        self.reason = reason
        self.away = "home node" in message
        """It exists, but the node of the server that has it is down, or just starting."""


class Denied(Refused, AccessDenied):
    """The user lacks a permission."""


class Unroutable(BrokerError):
    """There is no queue to take any of the messages: nothing was written."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where the server is and how to enter. timeout: seconds to connect, and for an answer. heartbeat: seconds."""

    url: Url
    addresses: Sequence[tuple[str, int]]
    vhost: str
    tls: ssl.SSLContext | None
    timeout: float
    heartbeat: int

    @property
    def place(self) -> str:
        where = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return where if self.vhost == "/" else f"{where}/{self.vhost}"

    def explain(self, error: BaseException | str, what: str = "") -> BrokerError:
        """What the server, the client or the operating system said, with a remedy and without secrets."""
        said = self.url.redact(str(error) or type(error).__name__)
        said, remedy = _remedy(error, said, self)
        message = f"RabbitMQ at {self.place}: {what}{said}{f': {remedy}' if remedy else ''}"
        if isinstance(
            error, (ChannelAccessRefused, ChannelLockedResource, ChannelNotFoundEntity, ChannelPreconditionFailed)
        ):
            return Denied(message, error) if isinstance(error, ChannelAccessRefused) else Refused(message, error)
        return BrokerError(message)


class _Socket(TransportFactory):
    """Makes the socket, and can tear it down: aiormq itself says goodbye, which a server that hangs does not answer."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await asyncio.open_connection(url.host, url.port, ssl=self._tls)
        return reader, self._writer

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


class Connection:
    """Calls may overlap; a cancelled one disturbs none. purpose: shown in the server's list of connections."""

    def __init__(self, endpoint: Endpoint, purpose: str) -> None:
        if _CLIENT_LOG.level == logging.NOTSET:  # whoever wants to read it has set a level
            _CLIENT_LOG.setLevel(logging.CRITICAL)
        self.endpoint = endpoint
        self._purpose = purpose
        self._link: AbstractConnection | None = None
        self._connecting = SharedAttempt(self._attempt, self._connected)
        self._publisher: Publisher | None = None
        self._making_publisher = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()
        self._socket: _Socket | None = None
        self._pause = 0.0
        self._failed_at = 0.0
        self._largest = 1 << 62
        """Bytes of a body, as far as the server has told: it does so by a refusal only."""
        self._open = True

    # --- connecting ------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self._link is not None and self._link.is_opened

    async def link(self) -> AbstractConnection:
        """The connection, alive as far as one knows. Raises `BrokerError`."""
        link = self._link
        if link is not None and link.is_opened:
            return link
        if not self._open:
            raise BrokerError(f"RabbitMQ at {self.endpoint.place}: the transport is not open; call open() first")
        made = await self._connecting.result()
        if made is None:
            raise BrokerError(f"RabbitMQ at {self.endpoint.place}: the transport was closed")
        return made

    async def channel(self, confirms: bool = False) -> AbstractChannel:
        """A new channel; close it when done. With confirms, `basic_publish` returns when the server has the message."""

        async def open_one() -> AbstractChannel:
            link = await self.link()
            return await self.ask(link.channel(publisher_confirms=confirms, on_return_raises=confirms))

        return await finish(open_one(), self._background, undo=_close)

    async def ask(self, call: Coroutine[Any, Any, T], what: str = "") -> T:
        """The answer. Raises `Refused`, `ConnectionLost` or `BrokerError`. Do not cancel: use `finish`."""
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                return await call
        except TimeoutError:
            self.drop()
            why = f"no answer within {self.endpoint.timeout:g} s (?timeout=): {HELD_UP}"
            raise ConnectionLost(str(self.endpoint.explain(why, what))) from None
        except (ConnectionError, ChannelInvalidStateError, asyncio.CancelledError) as error:
            # aiormq cancels what waits on a connection that is closed.
            if isinstance(error, asyncio.CancelledError) and cancelled_from_outside():
                raise
            raise ConnectionLost(str(self.endpoint.explain(error, f"{what}the connection was lost: "))) from None
        except Exception as error:
            if type(error) is Exception:  # aiormq's, for what waited on a connection that was closed
                raise ConnectionLost(str(self.endpoint.explain(f"{what}the connection was lost"))) from None
            if isinstance(error, (AMQPError, RuntimeError)):
                raise self.endpoint.explain(error, what) from None
            raise

    async def publish(self, messages: Sequence[Outgoing], what: str) -> None:
        """Write all, in order, persistent and mandatory; returns once the server has confirmed every one.

        Raises `MessageTooLarge` (nothing was written), `AmbiguousCommit` where nobody knows, `BrokerError` where the
        server refused one: the others may have been written. what: whose messages, for the error. Cancelled, it goes on
        to the end.
        """
        await finish(self._publish(messages, what), self._background)

    def drop(self) -> None:
        """Give the present connection up: it does not answer."""
        self._link = self._publisher = None
        if self._socket is not None:
            self._socket.abort()

    async def close(self) -> None:
        self._open = False
        await self._connecting.cancel()
        if self._background and self.alive:  # what is being written may well still arrive
            await asyncio.wait(self._background, timeout=_FAREWELL)
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_FAREWELL):
                    await link.close()
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)

    async def _attempt(self) -> AbstractConnection:
        """One round of the hosts; soon after a failure, not before a pause."""
        endpoint = self.endpoint
        wait = self._failed_at + self._pause - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        problem: BrokerError | None = None
        try:
            async with asyncio.timeout(endpoint.timeout):
                for host, port in endpoint.addresses:
                    link = self._make(host, port)
                    try:
                        await link.connect()
                        return link
                    except (OSError, AMQPError, RuntimeError) as error:
                        problem = endpoint.explain(
                            error, "it cannot be reached: " if isinstance(error, OSError) else ""
                        )
        except TimeoutError:
            problem = endpoint.explain(f"no answer within {endpoint.timeout:g} s", "it cannot be reached: ")
        self._failed_at, self._pause = time.monotonic(), min(_LONGEST_PAUSE, max(0.1, self._pause * 2))
        assert problem is not None
        raise problem

    def _make(self, host: str, port: int) -> aiormq.Connection:
        endpoint = self.endpoint
        url = URL.build(
            scheme="amqps" if endpoint.tls else "amqp",
            host=host,
            port=port,
            user=endpoint.url.username or "guest",
            password=endpoint.url.password or "guest",
            path="/",
            query={"heartbeat": str(endpoint.heartbeat), "name": f"thalweg {self._purpose}"},
        )
        self._socket = _Socket(endpoint.tls)
        link = aiormq.Connection(url, transport_factory=self._socket)
        link.vhost = endpoint.vhost
        return link

    def _connected(self, link: AbstractConnection) -> None:
        self._link, self._pause = link, 0.0

    # --- publishing ------------------------------------------------------------------------------------------

    async def _publish(self, messages: Sequence[Outgoing], what: str) -> None:
        if messages and (size := max(len(message.body) for message in messages)) > self._largest:
            raise MessageTooLarge(
                f"a message for {what} has {size} bytes; RabbitMQ at {self.endpoint.place} takes {self._largest}: "
                "raise max_message_size in its rabbitmq.conf, or lower ?message_bytes="
            )
        for start in range(0, len(messages), _WINDOW):
            part = messages[start : start + _WINDOW]
            publisher = await self._publishing()
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    confirms = await publisher.publish(part)
                    await asyncio.wait(confirms)
            except TimeoutError:
                self.drop()
                raise AmbiguousCommit(
                    f"RabbitMQ at {self.endpoint.place} did not confirm {len(part)} messages for {what} within "
                    f"{self.endpoint.timeout:g} s (?timeout=): {HELD_UP}"
                ) from None
            except Exception as error:
                raise self._complaint([error], what, len(messages)) from None
            problems = [problem for problem in map(_failure, confirms) if problem is not None]
            if problems:
                complaint = self._complaint(problems, what, len(messages))
                unroutable = all(isinstance(problem, PublishError) for problem in problems)
                if start == 0 and unroutable and len(problems) == len(part):
                    raise Unroutable(str(complaint))
                raise complaint

    async def _publishing(self) -> Publisher:
        async with self._making_publisher:
            publisher = self._publisher
            if publisher is None or publisher.channel.is_closed or not self.alive:
                self._publisher = None
                channel = await self.channel(confirms=True)
                assert isinstance(channel, aiormq.Channel)
                self._publisher = publisher = Publisher(channel)
            return publisher

    def _complaint(self, problems: Sequence[BaseException], what: str, count: int) -> BrokerError | MessageTooLarge:
        """count: of the messages in the call."""
        place = self.endpoint.place
        for problem in problems:
            if isinstance(problem, PublishError):
                return BrokerError(
                    f"RabbitMQ at {place}: a message for {what} could not be routed to any queue; it was not written. "
                    "Declare the queue, or bind it to the exchange"
                )
            if isinstance(problem, DeliveryError):
                return BrokerError(
                    f"RabbitMQ at {place} refused a message for {what}: the queue is full (x-max-length with "
                    "reject-publish) or has no leader at the moment"
                )
            if isinstance(problem, (ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed)):
                complaint = self.endpoint.explain(problem, f"writing to {what}: ")
                if found := _TOO_LARGE.search(str(complaint)):
                    self._largest = int(found[1])
                    return MessageTooLarge(str(complaint)) if count == 1 else complaint
                return complaint
        error = self.endpoint.explain(problems[0], f"writing to {what}: ")
        return AmbiguousCommit(f"{error} (whether it was written is unknown)")


def _failure(confirm: asyncio.Future[object]) -> BaseException | None:
    return ConnectionError("the connection was closed") if confirm.cancelled() else confirm.exception()


async def _close(channel: AbstractChannel) -> None:
    with contextlib.suppress(Exception):
        await channel.close()


def no_streams(said: str) -> bool:
    """Whether this is how a server refuses to make a stream because it has none."""
    return "corresponding feature flag is disabled" in said or "invalid arg 'x-queue-type'" in said


def _remedy(error: BaseException | str, said: str, endpoint: Endpoint) -> tuple[str, str]:
    if isinstance(error, (ProbableAuthenticationError, AuthenticationError)):
        return said, "check user and password in the URL (guest may enter from the server's own machine only)"
    if isinstance(error, InvalidFrameError) and "Connection.Close" in said:
        return (
            f"it refuses the virtual host {endpoint.vhost!r}",
            "create it (rabbitmqctl add_vhost) or let the user in (rabbitmqctl set_permissions); the path of the URL "
            "names it",
        )
    if isinstance(error, ChannelAccessRefused):
        return said, "grant the user configure, write and read permissions on it (rabbitmqctl set_permissions)"
    if isinstance(error, ChannelPreconditionFailed) and "larger than configured max size" in said:
        return said, "raise max_message_size in the server's rabbitmq.conf, or lower ?message_bytes="
    if no_streams(said):
        return said, (
            "this server has no streams, in which topics lie, and the list of topics and queues: RabbitMQ 3.9 or newer "
            "is needed, with its feature flag stream_queue (rabbitmqctl enable_feature_flag stream_queue)"
        )
    if "home node" in said:
        return said, "the node that has it is down, or just starting; wait for it"
    if isinstance(error, ssl.SSLCertVerificationError):
        return said, "name the authority's certificate by ?tls_ca="
    return said, ""
