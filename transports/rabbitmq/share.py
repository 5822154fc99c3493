"""One partition in the hands of one member of a consumer group: how far the group is, durably, and what is on loan."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec
from thalweg.message import Batch, Position

from .cell import Cell
from .locks import Lock

__all__ = ["Share"]


class _State(msgspec.Struct, array_like=True):
    """done: all up to here is finished. ahead: finished beyond it. attempts: of what was delivered and is not."""

    done: Position | None = None
    ahead: set[Position] = set()
    attempts: dict[Position, int] = {}


class Share:
    """Owned as long as `lock` is held. lent: positions that the program has in its hands."""

    def __init__(self, number: int, lock: Lock, cell: Cell) -> None:
        self.number = number
        self.lock = lock
        self.lent: set[Position] = set()
        self.next: Position | None = None
        """What to read after."""
        self._cell = cell
        self._state = _State()
        self._unfinished: deque[Position] = deque()  # read, in order; what is ahead among it

    @property
    def stands(self) -> bool:
        return not self.lock.lost.is_set()

    async def open(self) -> None:
        value = await self._cell.open()
        if value is not None:
            self._state = msgspec.msgpack.decode(value, type=_State)
        self.next = self._state.done

    def take(self, batch: Batch) -> list[tuple[int, int]]:
        """Go on behind this batch; of what is not finished yet, the index in it and the number of the attempt."""
        state, found = self._state, list[tuple[int, int]]()
        for index, position in enumerate(batch.positions):
            self.next = position
            self._unfinished.append(position)
            if position not in state.ahead:
                state.attempts[position] = attempt = state.attempts.get(position, 0) + 1
                found.append((index, attempt))
        return found

    def untake(self, batch: Batch, found: Iterable[tuple[int, int]], before: Position | None) -> None:
        """Nobody got what `take` found: go back to where reading was, so that nothing overtakes it."""
        state = self._state
        finished_since = state.done is not None and (before is None or state.done > before)
        self.next = state.done if finished_since else before
        for index, attempt in found:
            position = batch.positions[index]
            if attempt > 1:
                state.attempts[position] = attempt - 1
            else:
                state.attempts.pop(position, None)
        self._unfinished = deque(position for position in self._unfinished if position not in batch.positions)

    def finish(self, positions: Iterable[Position]) -> None:
        state = self._state
        for position in positions:
            self.lent.discard(position)
            if state.done is not None and position <= state.done:
                continue
            state.attempts.pop(position, None)
            state.ahead.add(position)
        while self._unfinished and self._unfinished[0] in state.ahead:
            state.done = self._unfinished.popleft()
            state.ahead.discard(state.done)

    def skip_gap(self) -> None:
        """What came next is gone from the log: go on with what is kept."""
        self.next = None

    async def save(self) -> None:
        """Durably. Raises `BrokerError`."""
        await self._cell.write(msgspec.msgpack.encode(self._state))

    async def close(self) -> None:
        await self._cell.close()
        await self.lock.release()
