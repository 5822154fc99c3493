"""One request for messages to a consumer of the server, with a subscription of its own for what it brings."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import Callable

import msgspec

from .wire import Handler, Wire, WireLost, pub

__all__ = ["Pull"]


class Pull:
    """`ended` is done once everything has come that will. status: why, b"" if all that was asked for has come.

    until: monotonic clock; later than that the server has nothing more to say.

    A server that has given exactly as many bytes as were asked for says nothing more. So they are counted, as it does:
    subject, reply subject, header and payload of each message.
    """

    def __init__(
        self,
        wire: Wire,
        subject: str,
        max_bytes: int,
        take: Handler,
        changed: Callable[[], object],
        batch: int,
        seconds: float = 0.0,
    ) -> None:
        """max_bytes: 0: as many as may be. seconds: how long the server shall wait for messages; 0: give what there
        is."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = b""
        self.until = time.monotonic() + seconds
        self._wire = wire
        self._take = take
        self._changed = changed
        self._left, self._room = batch, max_bytes or sys.maxsize
        inbox = b"%b-p.%b" % (wire.inbox[:-1], secrets.token_hex(6).encode())
        self._number = wire.subscribe(inbox, self._arrived)
        rule: dict[str, object] = {"expires": round(seconds * 1e9)} if seconds > 0 else {"no_wait": True}
        if max_bytes:
            rule["max_bytes"] = max_bytes
        wire.send(pub(subject.encode(), inbox, msgspec.json.encode({"batch": batch, **rule})))

    @property
    def failed(self) -> bool:
        """The consumer is gone, or has a new leader, or answers no more."""
        if not self.ended.done():
            return time.monotonic() > self.until + 5
        return self.status[9:12] not in (b"", b"404", b"408") and not self.full

    @property
    def full(self) -> bool:
        """The next message is larger than what was left of `max_bytes`."""
        return b"MaxBytes" in self.status

    def _arrived(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if reply:
            self._left -= 1
            self._room -= len(subject) + len(reply) + len(header) + len(payload)
            if not self._left or not self._room:
                self.end()
            self._take(subject, reply, header, payload)
        elif not header.startswith(b"NATS/1.0 100"):  # a sign of life
            self.status = header
            self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            with contextlib.suppress(WireLost):
                self._wire.unsubscribe(self._number)
            self._changed()

    async def withdraw(self) -> None:
        """Ask for no more; what is on its way still comes."""
        if not self.ended.done():
            with contextlib.suppress(WireLost):
                await self._wire.retire(self._number)
            self.end()

    async def finish(self, patience: float) -> None:
        """Wait until it has ended. Cancelled: it goes on. Without an answer or a connection it counts as failed."""
        await asyncio.wait(
            [self.ended, self._wire.closed],
            timeout=max(0.0, self.until - time.monotonic()) + patience,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not self.ended.done():
            self.status = b"NATS/1.0 000 no answer"
            self.end()
