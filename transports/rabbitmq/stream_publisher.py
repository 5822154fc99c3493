"""Writing to one stream by the stream protocol: what is on its way, and what was confirmed of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from thalweg.errors import AmbiguousCommit, BrokerError

from .answers import error_of
from .connection import ConnectionLost, Endpoint
from .protocol import OK, publish_frames
from .streams import NoStream

__all__ = ["Publisher"]


class Line(Protocol):
    """The connection that frames go by."""

    frame_max: int

    async def write(self, data: bytes) -> None: ...

    def abort(self, why: str) -> None: ...


class Sent:
    """What one call wrote, until it is confirmed."""

    __slots__ = ("codes", "done", "first", "last", "left")

    def __init__(self, first: int, last: int, done: asyncio.Future[None]) -> None:
        self.first, self.last, self.left, self.done = first, last, last - first + 1, done
        self.codes: list[int] = []


class Publisher:
    """Writes to one stream, in order; several calls may be under way."""

    def __init__(self, link: Line, number: int, stream: str, endpoint: Endpoint) -> None:
        self.stream = stream
        self.alive = True
        self._link = link
        self._number = number
        self._endpoint = endpoint
        self._next = 0
        self._pending: deque[Sent] = deque()
        self.largest = link.frame_max - 64
        """Bytes of one body."""

    async def send(self, bodies: Sequence[bytes]) -> Sent | None:
        """Returns once they are on their way, in order; `confirm` waits for the rest. One call at a time, to its end.

        Raises `NoStream` (nothing was written) or `AmbiguousCommit`. No body may have more than `largest` bytes.
        """
        if not bodies:
            return None
        if not self.alive:
            raise NoStream(f"stream {self.stream!r} was deleted, or moved to another node")
        first, self._next = self._next, self._next + len(bodies)
        sent = Sent(first, self._next - 1, asyncio.get_running_loop().create_future())
        self._pending.append(sent)
        timeout = self._endpoint.timeout
        try:
            async with asyncio.timeout(timeout):
                for data in publish_frames(self._number, first, bodies, self._link.frame_max):
                    await self._link.write(data)
        except TimeoutError:
            self._link.abort(f"the server took nothing for {timeout:g} s (?timeout=)")
        except ConnectionLost as error:
            raise AmbiguousCommit(f"{error} (what was being written may be there or not)") from None
        return sent

    async def confirm(self, sent: Sent | None) -> None:
        """Returns once all are confirmed. Raises `NoStream` (nothing was written), `AmbiguousCommit`, `BrokerError`."""
        if sent is None:
            return
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                await sent.done
        except TimeoutError:
            raise AmbiguousCommit(
                f"RabbitMQ at {self._endpoint.place} did not confirm {sent.left} messages for {self.stream!r} "
                f"within {self._endpoint.timeout:g} s (?timeout=)"
            ) from None

    def confirmed(self, ids: Sequence[int]) -> None:
        if self._pending and self._pending[0].first <= ids[0] and ids[-1] <= self._pending[0].last:
            self._pending[0].left -= len(ids)  # they come in order, so far
        else:
            for number in ids:
                self._settle(number, OK)
        self._resolve()

    def refused(self, ids: Sequence[tuple[int, int]]) -> None:
        for number, code in ids:
            self._settle(number, code)
        self._resolve()

    def _settle(self, number: int, code: int) -> None:
        for pending in self._pending:
            if pending.first <= number <= pending.last:
                pending.left -= 1
                if code != OK:
                    pending.codes.append(code)
                return

    def _resolve(self) -> None:
        while self._pending and not self._pending[0].left:
            pending = self._pending.popleft()
            if pending.done.done():
                continue
            if not pending.codes:
                pending.done.set_result(None)
                continue
            code, count = pending.codes[0], pending.last - pending.first + 1
            said = error_of(code, self._endpoint, f"writing to {self.stream!r}: ")
            if len(pending.codes) < count:
                pending.done.set_exception(AmbiguousCommit(f"{said} ({count - len(pending.codes)} were written)"))
            else:
                pending.done.set_exception(said)

    def end(self, error: BrokerError) -> None:
        self.alive = False
        for pending in self._pending:
            if not pending.done.done():
                pending.done.set_exception(AmbiguousCommit(f"{error} (what was being written may be there or not)"))
                pending.done.exception()
        self._pending.clear()
