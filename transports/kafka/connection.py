"""The cluster as this driver sees it: who leads what, and one connection for each broker and purpose.

On aiokafka's connections, protocol and record formats, not on its clients: its consumer moves a position where a read
here is purely positional, its producer and metadata loop retry by rules of their own and cannot say whether a failed
write left something behind.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from aiokafka import errors as kafka
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest
from thalweg.errors import AccessDenied, BrokerError, MessageRefused
from thalweg.finishing import ignore_failure
from thalweg.url import Url

__all__ = ["DENIED", "GROUP", "RETRIABLE", "TRANSACTION", "Cluster", "Denied", "Endpoint", "Lost", "Unreachable"]

# At DEBUG it writes down whole requests, payloads and passwords among them.
logging.getLogger("aiokafka.conn").setLevel(logging.INFO)

RETRIABLE = frozenset({3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 41, 56, 74, 75, 76, 78})
"""Codes of answers that may be others in a moment: leaders move, coordinators load, replicas come back."""

DENIED = frozenset({31, 53})

NO_RIGHTS = frozenset({29, 30, 31})  # to a topic, a group, the cluster

REFUSED = frozenset({32, 87})  # a record for its time, or by the topic's own rules

UNKNOWN_TOPIC = 3

GROUP, TRANSACTION = 0, 1
"""Kinds of coordinators."""

Answer: TypeAlias = Any
"""One of aiokafka's response structs."""

Address: TypeAlias = tuple[str, int]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds between attempts to connect to a broker that does not answer."""

_REMEDIES: Mapping[str, str] = {
    "ClusterAuthorizationFailedError": "let the user do this by an ACL on the cluster",
    "GroupAuthorizationFailedError": "let the user read this group by an ACL",
    "IllegalSaslStateError": "this listener takes no user and password: leave them out, or name another port",
    "InvalidReplicationFactorError": "name another one by ?replication=",
    "InvalidTimestampError": "the topic takes only timestamps near its own clock (message.timestamp.*.max.ms)",
    "InvalidTopicError": "a topic whose name differs only in '.' and '_' may exist",
    "NotEnoughReplicasAfterAppendError": "too few brokers are in sync for the topic's min.insync.replicas",
    "NotEnoughReplicasError": "too few brokers are in sync for the topic's min.insync.replicas",
    "PolicyViolationError": "a policy of the cluster forbids it",
    "SaslAuthenticationFailed": "check user and password in the URL, and ?sasl=",
    "TopicAuthorizationFailedError": "let the user do this by an ACL on the topic",
    "TransactionalIdAuthorizationFailed": "let the user write by an ACL on transactional ids, or set ?fencing=false",
    "UnsupportedCodecError": 'install what it is compressed with: pip install "thalweg[kafka]"',
    "UnsupportedSaslMechanismError": "choose one that the broker has by ?sasl=",
}


_REFUSED = (kafka.SaslAuthenticationFailed, kafka.UnsupportedSaslMechanismError, kafka.IllegalSaslStateError)


class Unreachable(BrokerError):
    """Nothing was sent."""


class Lost(BrokerError):
    """It was sent, and no answer came: what was asked may or may not have been done."""


class Denied(BrokerError):
    """The user has no right to transactions."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where the cluster is and how to enter it.

    sasl: the mechanism, "" for none. timeout: seconds to connect, and for an answer.
    """

    url: Url
    addresses: Sequence[Address]
    client_id: str
    tls: ssl.SSLContext | None
    sasl: str
    timeout: float

    @property
    def place(self) -> str:
        return ",".join(f"{host}:{port}" for host, port in self.addresses)

    @property
    def arguments(self) -> dict[str, Any]:
        """What any of aiokafka's clients takes to enter, beside the addresses."""
        arguments: dict[str, Any] = {
            "client_id": self.client_id,
            "request_timeout_ms": round(self.timeout * 1000),
            "ssl_context": self.tls,
            "security_protocol": f"{'SASL_' if self.sasl else ''}{'SSL' if self.tls else 'PLAINTEXT'}",
        }
        if self.sasl:
            arguments["sasl_mechanism"] = self.sasl
            arguments["sasl_plain_username"] = self.url.username or ""
            arguments["sasl_plain_password"] = self.url.password or ""
        return arguments

    def explain(self, error: BaseException | str | int, what: str = "") -> str:
        """What the broker (or the code in its answer) or the operating system said; with a remedy, without secrets."""
        if isinstance(error, int):
            known = kafka.for_code(error)
            error = known() if known.errno == error else f"error {error}"
        kind = type(error).__name__
        said = re.sub(r"^\[Error \d+\] ", "", str(error))
        if isinstance(error, kafka.BrokerResponseError):
            told = said not in ("", type(error).message) and "<AIOKafkaConnection" not in said
            said = said if told else type(error).description or type(error).message
        remedy = _REMEDIES.get(kind)
        return f"Kafka at {self.place}: {what}{self.url.redact(said or kind)}{f' ({remedy})' if remedy else ''}"


class Cluster:
    """Connects when first asked and again after a loss. Calls may overlap; a cancelled one disturbs none.

    lane: a broker serves the requests of one connection one after another, so what may wait has a connection of its
    own. controller, brokers: as the metadata last said.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.brokers: dict[int, Address] = {}
        self.controller = -1
        self.versions: dict[int, tuple[int, int]] = {}
        self._leaders: dict[tuple[str, int], int] = {}
        self._coordinators: dict[tuple[int, str], int] = {}
        self._connections: dict[tuple[Address, str], AIOKafkaConnection] = {}
        self._attempts: dict[tuple[Address, str], asyncio.Task[AIOKafkaConnection]] = {}
        self._pauses: dict[Address, float] = {}
        self._closed = False

    def explain(self, error: BaseException | str | int, what: str = "") -> BrokerError:
        """An error of the broker, or the code of one in its answer, as one of ours."""
        kind = AccessDenied if error in NO_RIGHTS else MessageRefused if error in REFUSED else BrokerError
        return kind(self.endpoint.explain(error, what))

    async def open(self) -> None:
        await self.metadata([])

    async def close(self) -> None:
        self._closed = True
        attempts = list(self._attempts.values())
        for attempt in attempts:
            attempt.cancel()
        if attempts:
            await asyncio.wait(attempts)
        connections, self._connections = list(self._connections.values()), {}
        for closed in [connection.close(reason=CloseReason.SHUTDOWN) for connection in connections]:
            await closed

    async def ask(self, node: int, request: object, lane: str = "", patience: float = 0.0) -> Answer:
        """The answer of a broker, by its number. Raises Unreachable, Lost, or BrokerError if it is too old.

        patience: seconds beyond the time-out that answers may take, the same for all requests of a lane.
        """
        address = self.brokers.get(node)
        if address is None:
            raise Unreachable(self.endpoint.explain(f"broker {node} is not known"))
        return await self._ask(address, request, lane, patience)

    async def ask_any(self, request: object) -> Answer:
        """The answer of whichever broker can be reached first."""
        problem: BrokerError | None = None
        for address in dict.fromkeys([*self.brokers.values(), *self.endpoint.addresses]):
            try:
                return await self._ask(address, request, "")
            except (Unreachable, Lost) as error:
                problem = error
        assert problem is not None
        raise problem

    async def metadata(self, topics: Sequence[str] | None) -> Mapping[str, Answer]:
        """What the cluster says of these topics (None: of all), by name; of missing ones nothing. Creates none.

        Values are (error code, name, is internal, partitions).
        """
        answer = await self.ask_any(MetadataRequest(None if topics is None else list(topics), False))
        self.brokers = {broker[0]: (broker[1], broker[2]) for broker in answer.brokers}
        self.controller = answer.controller_id
        found: dict[str, Answer] = {}
        for topic in answer.topics:
            code, name, _, partitions = topic
            if code == UNKNOWN_TOPIC:
                continue
            if code and code not in RETRIABLE:
                raise self.explain(code, f"topic {name!r}: ")
            found[name] = topic
            for _, partition, leader, *_ in partitions:
                self._leaders[name, partition] = leader
        return found

    async def leader(self, topic: str, partition: int) -> int:
        """The broker that leads a partition. Raises Unreachable while none does."""
        node = self.known_leader(topic, partition)
        if node is None:
            await self.metadata([topic])
            node = self.known_leader(topic, partition)
        if node is None:
            raise Unreachable(self.endpoint.explain(f"topic {topic!r} partition {partition} has no leader now"))
        return node

    def known_leader(self, topic: str, partition: int) -> int | None:
        """As the metadata last said; None: it must be asked."""
        node = self._leaders.get((topic, partition), -1)
        return node if node in self.brokers else None

    def forget_leaders(self, topics: Iterable[str]) -> None:
        """Ask again before they are used."""
        gone = set(topics)
        for place in [place for place in self._leaders if place[0] in gone]:
            del self._leaders[place]

    async def coordinator(self, kind: int, key: str) -> int:
        """The broker that coordinates a group or a transactional id. Raises Unreachable while none does."""
        node = self._coordinators.get((kind, key), -1)
        if node not in self.brokers:
            answer = await self.ask_any(FindCoordinatorRequest(key, kind))
            code = answer.error_code
            if code:
                text = self.endpoint.explain(code, f"coordinator of {key!r}: ")
                kind_of = Denied if code in DENIED else Unreachable if code in RETRIABLE else BrokerError
                raise kind_of(text)
            node = answer.coordinator_id
            if node not in self.brokers:
                await self.metadata([])
            self._coordinators[kind, key] = node
        return node

    def forget_coordinator(self, kind: int, key: str) -> None:
        self._coordinators.pop((kind, key), None)

    def hang_up(self, lane: str) -> None:
        """Close the connections whose lane begins so."""
        for place in [place for place in self._connections if place[1].startswith(lane)]:
            self._connections.pop(place).close(reason=CloseReason.SHUTDOWN)
        for place, attempt in self._attempts.items():
            if place[1].startswith(lane):
                attempt.cancel()

    async def _ask(self, address: Address, request: Any, lane: str, patience: float = 0.0) -> Answer:
        connection = await self._connection(address, lane, patience)
        try:
            answer = connection.send(request)
        except kafka.KafkaConnectionError as error:
            raise Unreachable(self.endpoint.explain(error)) from None
        except (NotImplementedError, kafka.IncompatibleBrokerVersion) as error:
            raise BrokerError(
                self.endpoint.explain(error, "the broker is too old or too new for this driver: ")
            ) from None
        try:
            return await answer
        except TimeoutError:
            connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise Lost(self.endpoint.explain(f"no answer within {self.endpoint.timeout + patience:g} s")) from None
        except kafka.KafkaError as error:
            raise Lost(self.endpoint.explain(error, "the connection was lost: ")) from None

    async def _connection(self, address: Address, lane: str, patience: float) -> AIOKafkaConnection:
        if self._closed:
            raise BrokerError(f"Kafka at {self.endpoint.place}: the transport is not open; call open() first")
        place = address, lane
        connection = self._connections.get(place)
        if connection is not None and connection.connected():
            return connection
        attempt = self._attempts.get(place)
        if attempt is None:
            self._attempts[place] = attempt = asyncio.get_running_loop().create_task(
                self._connect(address, lane, patience)
            )
            attempt.add_done_callback(ignore_failure)  # who was cancelled does not ask
        await asyncio.wait([attempt])
        if attempt.cancelled():
            raise BrokerError(f"Kafka at {self.endpoint.place}: the transport was closed")
        return attempt.result()

    async def _connect(self, address: Address, lane: str, patience: float) -> AIOKafkaConnection:
        """One attempt, shared by all who wait for it; after one that failed not at once."""
        endpoint = self.endpoint
        pause = self._pauses.get(address, 0.0)
        try:
            await asyncio.sleep(pause)
            async with asyncio.timeout(endpoint.timeout):
                arguments = {**endpoint.arguments, "request_timeout_ms": round((endpoint.timeout + patience) * 1000)}
                made = await create_conn(*address, max_idle_ms=300_000, **arguments)
        except TimeoutError:
            self._pauses[address] = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            raise Unreachable(
                endpoint.explain(f"it cannot be reached: no answer within {endpoint.timeout:g} s")
            ) from None
        except _REFUSED as error:
            self._pauses[address] = _LONGEST_PAUSE
            raise BrokerError(endpoint.explain(error)) from None
        except (OSError, kafka.KafkaError) as error:
            self._pauses[address] = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            raise Unreachable(endpoint.explain(error, "it cannot be reached: ")) from None
        else:
            self._pauses.pop(address, None)
            self._connections[address, lane] = made
            self.versions = made._versions
            return made
        finally:
            del self._attempts[address, lane]
