"""A connection to a NATS server or cluster: made when first used, and made again when used after a loss."""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from thalweg.attempt import SharedAttempt
from thalweg.errors import AccessDenied, AmbiguousCommit, BrokerError, ConfigurationError
from thalweg.url import Url

from .wire import NoAnswer, Reply, ServerInfo, Wire, WireLost, pub, settled

__all__ = ["ApiError", "Connection", "ConnectionLost", "Endpoint", "Written"]

T = TypeVar("T")

_REMEDIES = {
    10023: "give the server more memory or storage for JetStream, or drop what is there",
    10047: "give the server more storage for JetStream (jetstream.max_file_store), or drop what is there",
    10077: "the stream is full (its max_bytes or max_msgs); raise the limit, or truncate and consume what is there",
    10008: "JetStream has no leader at the moment: see that the majority of the cluster runs",
    10039: "JetStream is not enabled for this account: let the administrator enable it",
    10076: "JetStream is not enabled on this server: start it with -js, or with a jetstream block",
    10005: "start as many servers as ?replicas= demands",
    10074: "only a cluster keeps replicas: leave ?replicas= out, or join more servers",
}


_TOGETHER = 256  # messages given to the socket at once


class ConnectionLost(BrokerError):
    """No answer came: what was asked may or may not have been done."""


class ApiError(BrokerError):
    """JetStream refused: nothing was done. `code` is its `err_code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Endpoint(msgspec.Struct, frozen=True):
    """Where the servers are and how to enter. timeout: seconds to connect, and for an answer."""

    url: Url
    addresses: Sequence[tuple[str, int]]
    tls: ssl.SSLContext | None
    tls_first: bool
    tls_hostname: str | None
    timeout: float
    inbox: str
    api: str
    credentials: str | None
    nkey: str | None

    @property
    def place(self) -> str:
        return ",".join(f"{host}:{port}" for host, port in self.addresses)

    def explain(self, error: BaseException | str, what: str = "") -> BrokerError:
        """What the server or the operating system said, with a remedy and without secrets."""
        said = self.url.redact(str(error) or type(error).__name__)
        remedy, kind = "", BrokerError
        if "authorization violation" in said.lower() or "authentication" in said.lower():
            remedy = ": check user and password (nats://user:password@host), token, credentials= or nkey= of the URL"
        elif "permissions violation" in said.lower():
            remedy = ": let the user publish and subscribe there (permissions of the server's configuration)"
            kind = AccessDenied
        return kind(f"NATS at {self.place}: {what}{said}{remedy}")


class _ErrorReply(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    error: _ErrorReply | None = None


class Written(msgspec.Struct):
    """The answer to a write. seq: of the last message; count: of those in a batch."""

    stream: str = ""
    seq: int = 0
    count: int = 1
    error: _ErrorReply | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_written = msgspec.json.Decoder(Written).decode


class Connection:
    """Calls may overlap; a cancelled one disturbs none."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.info = ServerInfo()
        self._api = endpoint.api.encode()
        self._discovered: list[tuple[str, int]] = []
        self._wire: Wire | None = None
        self._connecting = SharedAttempt(self._attempt, self._connected)
        self._open = True

    @property
    def current(self) -> Wire | None:
        """The connection, if there is one at the moment."""
        return self._wire if self._wire is not None and self._wire.usable else None

    async def wire(self) -> Wire:
        """The connection as it is now. Raises `BrokerError` if there is none and none can be made."""
        wire = self._wire
        if wire is None or not wire.usable:
            wire = await self._connect()
        return wire

    async def reached(self, wire: Wire) -> None:
        """Returns once the server has seen all that was sent by this connection. Raises `ConnectionLost`."""
        try:
            await wire.ping()
        except WireLost as error:
            raise ConnectionLost(str(self.endpoint.explain(error, "the connection was lost: "))) from None

    async def collect(self, name: str, request: Mapping[str, Any]) -> list[Reply]:
        """Ask JetStream for several messages at once (direct get). None there: an empty list."""
        wire, subject = await self.wire(), self._api + name.encode()
        reply, future = wire.collect(subject)
        wire.send(pub(subject, reply, msgspec.json.encode(request)))
        return await self.answer(future, subject)

    async def api(self, name: str, into: type[T], request: Mapping[str, Any] | None = None) -> T:
        """Ask JetStream's API, say `STREAM.INFO.name`. Raises `ApiError`, `ConnectionLost` or `BrokerError`."""
        (found,) = await self.apis([(name, request)], into)
        if isinstance(found, ApiError):
            raise found
        return found

    async def apis(self, requests: Sequence[tuple[str, Mapping[str, Any] | None]], into: type[T]) -> list[T | ApiError]:
        """Several at once; those that are refused come back as errors."""
        wire, asked = await self.wire(), list[tuple[asyncio.Future[Reply], bytes]]()
        for name, request in requests:
            subject = self._api + name.encode()
            reply, future = wire.expect(subject)
            wire.send(pub(subject, reply, b"" if request is None else msgspec.json.encode(request)))
            asked.append((future, subject))
        found: list[T | ApiError] = []
        for index, (future, subject) in enumerate(asked):
            try:
                _, payload = await self.answer(future, subject)
            except BaseException:
                settled([later for later, _ in asked[index:]])
                raise
            error = _decode_answer(payload).error
            found.append(self.refusal(error, requests[index][0]) if error else msgspec.json.decode(payload, type=into))
        return found

    async def answer(self, future: asyncio.Future[T], subject: bytes) -> T:
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                return await future
        except TimeoutError:
            problem = f"no answer within {self.endpoint.timeout:g} s from {subject.decode()}"
            raise ConnectionLost(str(self.endpoint.explain(problem))) from None
        except WireLost as error:
            raise ConnectionLost(str(self.endpoint.explain(error, "the connection was lost: "))) from None
        except NoAnswer as error:
            problem = str(error)
            if "nobody" in problem:
                problem = (
                    f"nobody answers on {subject.decode()}: is JetStream enabled (-js), and does the stream exist?"
                )
            raise self.endpoint.explain(problem) from None

    async def write(self, subject: bytes, frames: Callable[[bytes], Sequence[bytes]]) -> Written:
        """Send messages of which the last asks for an answer, and wait until the server has them durably.

        `frames` makes them, given the subject for the answer. `subject`: that of the last, for errors.
        Raises `ApiError` or `BrokerError` (nothing was written), or `AmbiguousCommit`.
        """
        wire = await self.wire()
        reply, answer = wire.expect(subject)
        try:
            parts = frames(reply)
            for start in range(0, len(parts), _TOGETHER):
                await wire.room()
                wire.send(b"".join(parts[start : start + _TOGETHER]))
            _, payload = await self.answer(answer, subject)
        except (ConnectionLost, WireLost) as error:
            raise AmbiguousCommit(
                f"{self.endpoint.url.redact(str(error))} (whether the write was done is unknown)"
            ) from None
        finally:
            answer.cancel()
        written = _decode_written(payload)
        if written.error is not None:
            raise self.refusal(written.error, subject.decode())
        return written

    def refusal(self, error: _ErrorReply, asked: str) -> ApiError:
        remedy = _REMEDIES.get(error.err_code)
        text = f"NATS at {self.endpoint.place}: {asked}: {error.description}"
        return ApiError(f"{text}{f': {remedy}' if remedy else ''} (error {error.err_code})", error.err_code)

    def drop(self) -> None:
        """Give the present connection up: it does not answer."""
        if self._wire is not None:
            self._wire.abort(ConnectionError("no answer in time"))

    async def close(self) -> None:
        self._open = False
        await self._connecting.cancel()
        if self._wire is not None:
            self._wire.abort(ConnectionError("closed"))
            await self._wire.closed

    # --- connecting ------------------------------------------------------------------------------------------

    async def _connect(self) -> Wire:
        """One attempt, shared by all who wait for it."""
        if not self._open:
            raise BrokerError(f"NATS at {self.endpoint.place}: the transport is not open; call open() first")
        made = await self._connecting.result()
        if made is None:
            raise BrokerError(f"NATS at {self.endpoint.place}: the transport was closed")
        return made

    def _connected(self, wire: Wire) -> None:
        self._wire = wire

    async def _attempt(self) -> Wire:
        endpoint = self.endpoint
        problem: BrokerError | None = None
        try:
            async with asyncio.timeout(endpoint.timeout):
                for address in dict.fromkeys([*endpoint.addresses, *self._discovered]):
                    try:
                        return await self._enter(address)
                    except (OSError, WireLost) as error:
                        # What one server says of a password is worth more than that another is down.
                        said = endpoint.explain(error, "it cannot be reached: ")
                        problem = said if problem is None or "violation" not in str(problem).lower() else problem
        except TimeoutError:
            problem = endpoint.explain(f"no answer within {endpoint.timeout:g} s", "it cannot be reached: ")
        assert problem is not None
        raise problem

    async def _enter(self, address: tuple[str, int]) -> Wire:
        endpoint, loop = self.endpoint, asyncio.get_running_loop()
        inbox = f"{endpoint.inbox}.{secrets.token_hex(8)}.".encode()
        host = endpoint.tls_hostname or address[0]
        early = endpoint.tls if endpoint.tls_first else None
        _, wire = await loop.create_connection(
            lambda: Wire(endpoint.timeout, inbox), *address, ssl=early, server_hostname=host if early else None
        )
        try:
            info = await wire.info
            if early is None and (endpoint.tls is not None or info.tls_required):
                if not (info.tls_required or info.tls_available):
                    raise BrokerError(f"NATS at {endpoint.place}: it offers no TLS; use nats:// instead of tls://")
                upgraded = await loop.start_tls(
                    wire.transport, wire, endpoint.tls or ssl.create_default_context(), server_hostname=host
                )
                assert isinstance(upgraded, asyncio.WriteTransport)
                wire.upgraded(upgraded)
            wire.send(b"CONNECT %b\r\nSUB %b* 1\r\n" % (msgspec.json.encode(self._introduction(info)), inbox))
            await wire.ping()
        except BaseException as error:
            wire.abort(error)
            raise
        self.info = info
        self._discovered = [_address(url) for url in wire.urls]
        return wire

    def _introduction(self, info: ServerInfo) -> dict[str, object]:
        url, endpoint = self.endpoint.url, self.endpoint
        words: dict[str, object] = {
            "name": "thalweg",
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
        }
        if endpoint.credentials is not None:
            jwt, seed = _read_credentials(endpoint.credentials)
            words |= {"jwt": jwt, "sig": _sign(seed, info.nonce)[1]}
        elif endpoint.nkey is not None:
            public, signature = _sign(_read(endpoint.nkey, "nkey").strip(), info.nonce)
            words |= {"nkey": public, "sig": signature}
        elif url.password is not None:
            words |= {"user": url.username or "", "pass": url.password}
        elif url.username is not None:
            words["auth_token"] = url.username
        return words


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition(":")
    return host.strip("[]"), int(port)


def _read(path: str, option: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise ConfigurationError(f"nats://: the file of {option}= cannot be read: {error.strerror}") from None


def _read_credentials(path: str) -> tuple[str, str]:
    """The token and the seed of a credentials file as `nsc` writes it."""
    lines = _read(path, "credentials").splitlines()
    after = {line.strip("- "): lines[index + 1].strip() for index, line in enumerate(lines[:-1]) if "BEGIN" in line}
    try:
        return after["BEGIN NATS USER JWT"], after["BEGIN USER NKEY SEED"]
    except KeyError:
        raise ConfigurationError(
            "nats://: the file of credentials= holds no user JWT with its seed; `nsc generate creds` writes one"
        ) from None


def _sign(seed: str, nonce: str) -> tuple[str, str]:
    """Public key and signature."""
    try:
        import nkeys
    except ImportError:
        raise ConfigurationError(
            'nats://: credentials= and nkey= need the package nkeys: pip install "thalweg[nats]"'
        ) from None
    try:
        pair = nkeys.from_seed(bytearray(seed.encode()))
        return pair.public_key.decode(), base64.urlsafe_b64encode(pair.sign(nonce.encode())).rstrip(b"=").decode()
    except Exception:  # whatever it says may quote the seed
        raise ConfigurationError("nats://: the file of credentials= or nkey= holds no valid seed") from None
