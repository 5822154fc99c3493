"""One connection to a NATS server while it lasts: the client protocol, which is lines of text and lengths.

Not nats-py's client: it turns headers into a dict, which loses one that occurs twice; swallows a cancellation that
meets it while it flushes; keeps what is published while it reconnects and reports success; drops what comes faster
than it is taken; and lets a request wait for its time-out when the connection is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

__all__ = ["Handler", "NoAnswer", "Reply", "ServerInfo", "Wire", "WireLost", "hpub", "pub", "settled"]

Handler: TypeAlias = Callable[[bytes, bytes, bytes, bytes], object]
"""Called with subject, reply subject, header block (b"" if none) and payload of each message."""

Reply: TypeAlias = tuple[bytes, bytes]
"""Header block and payload of an answer."""


_ENDS = (b"204", b"404")  # no more, none at all


class WireLost(Exception):
    """The connection is gone: what was asked may or may not have been done."""


class NoAnswer(Exception):
    """Nobody listens on the subject that was asked, or the server refused: nothing was done."""


class ServerInfo(msgspec.Struct):
    """What the server says of itself."""

    version: str = "0"
    max_payload: int = 1 << 20
    headers: bool = False
    jetstream: bool = False
    auth_required: bool = False
    tls_required: bool = False
    tls_available: bool = False
    nonce: str = ""
    connect_urls: list[str] = []
    server_name: str = ""
    domain: str = ""


def pub(subject: bytes, reply: bytes, payload: bytes) -> bytes:
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)


def hpub(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> bytes:
    size = len(header)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, size, size + len(payload), header, payload)


class Wire(asyncio.Protocol):
    """patience: seconds without a sign of life from the server until the connection counts as lost."""

    def __init__(self, patience: float, inbox: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.inbox = inbox
        self.info: asyncio.Future[ServerInfo] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.fatal = ""
        """The server's last words."""
        self.urls: list[str] = []
        self._patience = patience
        self._rest: list[bytes] = []
        self._have = self._need = 0
        self._handlers: dict[bytes, Handler] = {b"1": self._answered}
        self._sid = 1
        self._answers: dict[bytes, tuple[asyncio.Future[Reply], bytes]] = {}
        self._several: dict[bytes, tuple[list[Reply], int]] = {}
        self._count = 0
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._heard = time.monotonic()
        self._looked = self._heard
        self._asked_life = 0.0
        self._lost: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.WriteTransport

    # --- the connection --------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return self._lost is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._watch()

    def upgraded(self, transport: asyncio.WriteTransport) -> None:
        """From here on it goes through TLS."""
        self._transport = transport

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._transport

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def abort(self, error: BaseException) -> None:
        if self._lost is None:
            self._lost = error
            self._transport.abort()
            self._fail()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            self._lost = exc or ConnectionError(self.fatal or "the server closed the connection")
        if self._timer is not None:
            self._timer.cancel()
        self._fail()
        if not self.closed.done():
            self.closed.set_result(None)

    def _fail(self) -> None:
        self._writable.set()
        waiting: list[asyncio.Future[Reply] | asyncio.Future[None] | asyncio.Future[ServerInfo]] = [self.info]
        waiting += [future for future, _ in self._answers.values()]
        waiting += self._pongs
        for future in waiting:
            if not future.done():
                future.set_exception(WireLost(self.fatal or str(self._lost) or type(self._lost).__name__))
                future.exception()  # who was cancelled does not ask
        self._answers.clear()
        self._pongs.clear()

    def _watch(self) -> None:
        """A server that hangs, or a network that swallows everything, must not be waited for without end."""
        now, due = time.monotonic(), self._looked + self._patience / 4
        self._looked = now
        if self._asked_life > self._heard:
            if now > due:  # the event loop was stuck: the answer may lie in the socket
                self._asked_life = now
            elif now - self._asked_life > self._patience / 2:
                self.abort(ConnectionError(f"no sign of life for {self._patience:g} s"))
                return
        if now - self._heard > self._patience / 4 and self._asked_life <= self._heard and self.info.done():
            self._asked_life = now
            self._transport.write(b"PING\r\n")
            self._pongs.append(asyncio.get_running_loop().create_future())
        self._timer = asyncio.get_running_loop().call_later(self._patience / 8, self._watch)

    # --- asking ----------------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait while the server takes less than it is given."""
        await self._writable.wait()

    def send(self, data: bytes) -> None:
        if self._lost is not None:
            raise WireLost(self.fatal or str(self._lost))
        self._transport.write(data)

    def expect(self, subject: bytes) -> tuple[bytes, asyncio.Future[Reply]]:
        """A reply subject of our own, and what will come there. `subject`: which the request will go to."""
        self._count += 1
        token = b"%d" % self._count
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answers[token] = future, subject
        future.add_done_callback(lambda _: self._answers.pop(token, None))
        if self._lost is not None:
            future.set_exception(WireLost(self.fatal or str(self._lost)))
            future.exception()
        return self.inbox + token, future

    def collect(self, subject: bytes, count: int = 0) -> tuple[bytes, asyncio.Future[list[Reply]]]:
        """As `expect`, for `count` answers, or (0) for those before one that says there are no more."""
        reply, last = self.expect(subject)
        found: list[Reply] = []
        token = reply[len(self.inbox) :]
        self._several[token] = found, count
        everything: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

        def ended(_: object) -> None:
            self._several.pop(token, None)
            if last.cancelled() or everything.done():
                return
            error = last.exception()
            if error is None and not payload_follows(header := last.result()[0]) and header[9:12] not in _ENDS:
                error = NoAnswer(header[9:].decode(errors="replace").strip())
            if error is None:
                everything.set_result(found)
            else:
                everything.set_exception(error)
                everything.exception()

        last.add_done_callback(ended)
        everything.add_done_callback(lambda _: last.cancel())
        return reply, everything

    def subscribe(self, subject: bytes, handler: Handler) -> bytes:
        """Returns the number of the subscription."""
        self._sid += 1
        number = b"%d" % self._sid
        self._handlers[number] = handler
        self.send(b"SUB %b %b\r\n" % (subject, number))
        return number

    def unsubscribe(self, number: bytes) -> None:
        self._handlers.pop(number, None)
        if self.usable:
            self.send(b"UNSUB %b\r\n" % number)

    async def retire(self, number: bytes) -> None:
        """Unsubscribe, and return once nothing more can come."""
        self.send(b"UNSUB %b\r\n" % number)
        try:
            await self.ping()
        finally:
            self._handlers.pop(number, None)

    def ping(self) -> asyncio.Future[None]:
        """Done once the server has seen all that was sent before."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.send(b"PING\r\n")
        self._pongs.append(pong)
        return pong

    def _answered(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        token = subject[subject.rfind(b".") + 1 :]
        found = self._answers.get(token)
        if found is None or found[0].done():
            return
        if token in self._several and payload_follows(header):
            answers, count = self._several[token]
            answers.append((header, payload))
            if not count or len(answers) < count:
                return
        if header.startswith(b"NATS/1.0 503"):
            found[0].set_exception(NoAnswer("nobody answers there"))
        else:
            found[0].set_result((header, payload))

    # --- what the server says --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        if self._rest:
            self._rest.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._rest)
            self._rest.clear()
        try:
            used = self._parse(data)
        except Exception as error:
            known = self.info.done()
            self.abort(ConnectionError(f"what came cannot be read: {error!r}" if known else "what answers is not NATS"))
            return
        if used < len(data):
            self._rest.append(data[used:])
            self._have = len(data) - used

    def _parse(self, data: bytes) -> int:
        """Handle what is complete; returns how many bytes that is. Hot: 0.9 us a message."""
        position, end, handlers = 0, len(data), self._handlers
        self._need = 0
        while (line_end := data.find(b"\r\n", position)) >= 0:
            kind = data[position]
            if kind == 72:  # HMSG subject sid [reply] header-size size
                words = data[position:line_end].split(b" ")
                start = line_end + 2
                stop = start + int(words[-1])
                if stop + 2 > end:
                    self._need = stop + 2 - position
                    break
                body = start + int(words[-2])
                if handler := handlers.get(words[2]):
                    handler(words[1], words[3] if len(words) == 6 else b"", data[start:body], data[body:stop])
                position = stop + 2
            elif kind == 77:  # MSG subject sid [reply] size
                words = data[position:line_end].split(b" ")
                start = line_end + 2
                stop = start + int(words[-1])
                if stop + 2 > end:
                    self._need = stop + 2 - position
                    break
                if handler := handlers.get(words[2]):
                    handler(words[1], words[3] if len(words) == 5 else b"", b"", data[start:stop])
                position = stop + 2
            else:
                self._control(data[position:line_end])
                position = line_end + 2
        return position

    def _control(self, line: bytes) -> None:
        if line.startswith(b"PING"):
            self._transport.write(b"PONG\r\n")
        elif line.startswith(b"PONG"):
            if self._pongs and not (pong := self._pongs.popleft()).done():
                pong.set_result(None)
        elif line.startswith(b"INFO "):
            info = msgspec.json.decode(line[5:], type=ServerInfo)
            self.urls = info.connect_urls or self.urls
            if not self.info.done():
                self.info.set_result(info)
        elif line.startswith(b"-ERR"):
            self._complaint(line[4:].strip(b" '").decode(errors="replace"))
        elif not line.startswith(b"+OK"):
            raise ValueError(line[:40])

    def _complaint(self, text: str) -> None:
        if not text.lower().startswith("permissions violation"):
            self.fatal = text  # the server closes the connection
            return
        refused = text.partition('"')[2].rpartition('"')[0].encode()
        for future, subject in list(self._answers.values()):
            if subject == refused and not future.done():
                future.set_exception(NoAnswer(text))


def payload_follows(header: bytes) -> bool:
    """Whether this is a message and no status line alone (`NATS/1.0 204 EOB`)."""
    return header[8:9] != b" "


def settled(replies: Sequence[asyncio.Future[Reply]]) -> None:
    """Their failures have been seen: who asked has given up."""
    for future in replies:
        if future.done() and not future.cancelled():
            future.exception()
