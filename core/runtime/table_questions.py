"""`table.ask`: a row, asked of whichever worker runs the task that it lies in.

The roster says who that is. The question goes to where that worker hears answers to its own questions, and comes back
the same way, so no topic is made for it. Only who may serve the row by its own clock answers, and with what has been
committed. Reading changes nothing: whenever there is doubt, it is asked again, until the time is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from thalweg import headers as names
from thalweg.clock import Clock, in_time
from thalweg.codec import codec_for
from thalweg.errors import BrokerError
from thalweg.message import Record

from .complaints import Complaints
from .replies import Replies
from .roster import Here, Roster

if TYPE_CHECKING:
    from .tables import TablePlan

__all__ = ["Question", "Row", "TableQuestions"]

log = logging.getLogger("thalweg")

PATIENCE = 2.0
"""Seconds until an owner that gives no answer is asked again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds until the roster is looked at again while nobody serves the row, if it does not change before."""


class Question(msgspec.Struct, frozen=True):
    """For one row. The task is named too, so that a change of partitions is no wrong answer.

    stale_ok: a copy may answer too: a standby's, or an owner's that has not yet read all of the journal.
    """

    table: str
    group: str
    index: int
    key: bytes
    stale_ok: bool = False


class Row(msgspec.Struct, frozen=True):
    """value: of the row as committed, None if there is none. refused: why it is not answered here, if it is not.

    stale: what a copy has, which may be older than what is committed.
    """

    value: bytes | None = None
    refused: str = ""
    stale: bool = False


_QUESTION, _ROW = codec_for(Question, "msgpack"), codec_for(Row, "msgpack")


class TableQuestions:
    """Asks, and answers. serve: the row, if this process may serve it."""

    def __init__(
        self,
        replies: Replies,
        hear: Callable[[], Awaitable[str]],
        roster: Roster,
        clock: Clock,
        serve: Callable[[Question], Row],
    ) -> None:
        self._replies, self._hear, self._roster, self._clock, self._serve = replies, hear, roster, clock, serve
        self._complaints = Complaints(clock)
        replies.on_question = self._answer

    async def ask(self, plan: TablePlan, key: Any, timeout: float, stale_ok: bool = False) -> Row:
        """The row as it lies in the store. Raises TimeoutError that says who was asked."""
        raw_key = plan.raw_key(key)
        question = Question(plan.name, plan.group, plan.partition_of(raw_key, plan.partitions), raw_key, stale_ok)
        here = self._serve(_fresh(question))
        if not here.refused:
            return here
        search = _Search(question)
        try:
            async with self._clock.timeout(timeout):
                return await self._search(search)
        except TimeoutError:
            raise TimeoutError(
                f"table {plan.name!r}, key {key!r}: no answer within timeout={timeout:g} s. {search}"
            ) from None

    async def _search(self, search: _Search) -> Row:
        me = await self._hear()
        await self._roster.start()
        pause = FIRST_PAUSE
        while True:
            here = self._serve(_fresh(search.question))  # it may have come here meanwhile
            if not here.refused:
                return here
            owner = self._roster.owner(search.question.group, search.question.index)
            search.owner, search.refused = owner or search.owner, "nobody runs it now" if owner is None else ""
            if owner is not None and owner.reply not in ("", me):
                try:
                    row = await self._ask(owner, search.question)
                except BrokerError as error:
                    self._complaints.warn("question", "table %s: a question: %s", search.question.table, error)
                    search.refused = str(error)
                else:
                    if row is not None and not row.refused:
                        return row
                    search.refused = "which gave no answer" if row is None else row.refused
                    if row is None and not search.question.stale_ok:
                        continue
            if search.question.stale_ok and (copied := await self._of_a_copy(search.question, me)) is not None:
                return copied
            await in_time(self._clock, pause, self._roster.change())
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _of_a_copy(self, question: Question, me: str) -> Row | None:
        here = self._serve(question)
        if not here.refused:
            return here
        for other in self._roster.standbys(question.group, question.index):
            if other.reply not in ("", me):
                try:
                    row = await self._ask(other, question)
                except BrokerError as error:
                    self._complaints.warn("question", "table %s: a question: %s", question.table, error)
                else:
                    if row is not None and not row.refused:
                        return row
        return None

    async def _ask(self, asked: Here, question: Question) -> Row | None:
        """None: it gave no answer, or does not run the task, or stand by for it, any more."""
        of = self._roster.running_or_standing_by if question.stale_ok else self._roster.running
        answer, headers = self._replies.expect(_ROW)
        try:
            await self._replies.send_question(asked.reply, _QUESTION.encode(question), headers)
            async with self._clock.timeout(PATIENCE):
                while not answer.done():
                    changed = asyncio.ensure_future(self._roster.change())
                    try:
                        await asyncio.wait([answer, changed], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()
                    if not answer.done() and asked.me not in of(question.group, question.index):
                        return None
                row: Row = answer.result()
                return row
        except TimeoutError:
            return None
        finally:
            answer.cancel()

    def _answer(self, record: Record) -> None:
        """Raises nothing: who asked in a way that is not understood gets no answer."""
        address = names.find(record.headers, names.REPLY) or b""
        if not address.startswith(f"{self._replies.topic}/".encode()):
            return
        try:
            question = _QUESTION.decode(record.value or b"")
            self._replies.give(f"table {question.table}", record, _ROW.encode(self._serve(question)))
        except Exception as error:
            self._complaints.warn("row", "a question for a row was dropped: %s", error, exc_info=error)


def _fresh(question: Question) -> Question:
    return msgspec.structs.replace(question, stale_ok=False)


class _Search:
    """What is known of a row that is being looked for; as text, for who looked in vain."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.owner: Here | None = None
        self.refused = ""

    def __str__(self) -> str:
        task = f"task {self.question.group}/{self.question.index}"
        if self.owner is None:
            return f"No worker says that it runs {task}: is one up, and of the same app id?"
        owner = f"worker {self.owner.name} ({self.owner.host}, pid {self.owner.pid})"
        return f"The last known to run {task} is {owner}{': ' if self.refused else ''}{self.refused}"
