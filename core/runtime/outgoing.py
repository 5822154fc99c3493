"""Answers on their way to one topic: in order, many at a time, and never waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec
from thalweg.errors import MessageTooLarge, ThalwegError
from thalweg.message import Message

from .sender import Sender

__all__ = ["Outgoing"]

log = logging.getLogger("thalweg")

MOST = 10_000
"""How many answers wait for a topic that is slow; those beyond are dropped."""

SETTLE = 5.0
"""Seconds that an app which stops waits for the last answers."""


class _Answer(msgspec.Struct, gc=False):
    agent: str
    partition: int
    message: Message


class Outgoing:
    """One batch is under way at a time; what comes meanwhile goes with the next."""

    def __init__(
        self, topic: str, sender: Sender, in_its_place: Callable[[Message, MessageTooLarge], Message | None]
    ) -> None:
        """`in_its_place`: what to send instead of an answer that is too large, if anything."""
        self._topic, self._sender, self._in_its_place = topic, sender, in_its_place
        self._waiting: list[_Answer] = []
        self._sending: asyncio.Task[None] | None = None

    def put(self, agent: str, partition: int, message: Message) -> None:
        answer = _Answer(agent, partition, message)
        if len(self._waiting) < MOST:
            self._waiting.append(answer)
        else:
            _dropped([answer], f"{MOST} others wait for {self._topic!r} to take them")

    def start(self, emptied: Callable[[], object]) -> None:
        """Send what waits, if that is not under way; call back when there is no more."""
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._run(emptied), name="thalweg answers")

    async def _run(self, emptied: Callable[[], object]) -> None:
        while self._waiting:
            answers, self._waiting = self._waiting, []
            await self._send(answers)
        emptied()

    async def _send(self, answers: Sequence[_Answer]) -> None:
        records: dict[int, list[Message]] = {}
        for answer in answers:
            records.setdefault(answer.partition, []).append(answer.message)
        try:
            await self._sender.send(self._topic, records)
        except MessageTooLarge as error:  # nothing was written
            if len(answers) > 1:
                for answer in answers:
                    await self._send([answer])
                return
            (answer,) = answers
            instead = self._in_its_place(answer.message, error)
            if instead is None:
                _dropped(answers, str(error))
            else:
                await self._send([_Answer(answer.agent, answer.partition, instead)])
        except Exception as error:
            _dropped(answers, str(error), None if isinstance(error, ThalwegError) else error)

    async def close(self) -> None:
        """Real seconds: whoever stops is not held up by a topic that is away."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=SETTLE)
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)


def _dropped(answers: Sequence[_Answer], why: str, error: Exception | None = None) -> None:
    agents = ", ".join(sorted({answer.agent for answer in answers}))
    count = "an answer" if len(answers) == 1 else f"{len(answers)} answers"
    log.warning("%s of agent %s dropped: %s", count, agents, why, exc_info=error)
