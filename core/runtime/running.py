"""An app that has been started: the open transport, and everything that topics, agents and tables do through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from thalweg import headers as names
from thalweg.capabilities import Log, Logs, require
from thalweg.channel import Capability, Channel, Transport
from thalweg.clock import Clock
from thalweg.errors import AskDeadlock, ConfigurationError, MessageTooLarge, StaleRead, StoreError
from thalweg.journal.rows import prefix
from thalweg.message import Headers, Message, Record
from thalweg.plan import QUEUE_GROUP, AgentPlan, TopicPlan
from thalweg.signing import QUEUED, Signer, room_of

from .agent_task import AgentTask
from .context import current_lane
from .delays import Delays
from .lane import Lane
from .mutex import Mutexes
from .replies import REPLY_TO, Replies
from .roster import Roster
from .sender import Sender
from .table_questions import Question, Row, TableQuestions
from .tables import TablePlan
from .task import Task
from .worker import Worker

__all__ = ["Asked", "Running"]

ASK_WINDOW = 1000
"""How many questions of one `ask_many` wait at a time."""


OUR_HEADERS = 2000
"""Bytes, at most, of headers that Thalweg adds on the way: ids, signature, what a dead letter tells but traceback."""

MAY_BE_OLD = "is here, but may be old: not all is read yet, the lease is over, or it is a standby's"


class Asked(Protocol):
    """An agent as `ask` needs it."""

    @property
    def name(self) -> str: ...
    @property
    def plan(self) -> AgentPlan: ...
    def question(self, value: Any, key: Any, headers: Headers) -> tuple[TopicPlan, int, Message]:
        """Where a question goes, and its bytes."""
        ...


class Leading(Protocol):
    @property
    def leads(self) -> bool: ...


class Running:
    def __init__(
        self,
        app: object,
        app_id: str,
        transport: Transport,
        clock: Clock,
        topics: Mapping[str, TopicPlan],
        lease: float,
        signer: Signer | None,
    ) -> None:
        self.app, self.app_id, self.transport, self.clock = app, app_id, transport, clock
        self.signer = signer
        self.message_bytes = room_of(transport.limits.message_bytes, signer)
        head = transport.limits.head_bytes
        self.head_bytes = None if head is None else head - OUR_HEADERS
        """What a program's key and headers may have."""
        self.has_log = Capability.LOG in transport.capabilities
        self.worker: Worker | None = None
        self.clockwork: Leading | None = None
        self.guarantee = "at_least_once"
        self.reply_partitions = 1
        self.loop = asyncio.get_running_loop()
        self._topics = topics
        self._sender = Sender(self._open_log, signer)
        self._channels: dict[str, Channel] = {}
        self._opening = asyncio.Lock()  # many first sends at once open one channel
        self.mutexes = Mutexes(transport, app_id, clock, lease)
        self.replies = Replies(app_id, self._sender, self._open_log, self._partition_in, clock, signer)
        self.roster = Roster(app_id, self._open_log, clock, self.message_bytes)
        """Nothing is read before its `start`."""
        self.delays: Delays | None = None
        self.table_questions = TableQuestions(self.replies, self.hear_answers, self.roster, clock, self._row)

    async def _open_log(self, topic: str) -> Log:
        logs = require(self.transport, Capability.LOG, Logs, f"topic {topic!r}", "memory://, sqlite:///file")  # type: ignore[type-abstract]
        return await logs.log(topic)

    def _partition_in(self, topic: str, key: bytes | None) -> int | None:
        plan = self._topics.get(topic)
        if plan is None or plan.spec.queue or not plan.partitions:
            return None
        return 0 if key is None else plan.partition_of(key, plan.partitions)

    async def close(self) -> None:
        await self.mutexes.close()
        self.roster.cancel()  # at once, whoever is cancelled while it waits for the others
        await self.replies.close()
        await self.roster.close()
        await self._sender.close()
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    # --- sending ---------------------------------------------------------------------------------------------

    async def send(self, topic: str, records: Mapping[int, Sequence[Message]]) -> None:
        if self.has_log:
            await self._sender.send(topic, records)
        else:
            await self.put(topic, [message for messages in records.values() for message in messages])

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        channel = self._channels.get(topic) or await self._open_channel(topic)
        await channel.put(messages if self.signer is None else self.signer.signed(topic, QUEUED, messages))

    async def _open_channel(self, topic: str) -> Channel:
        async with self._opening:
            if topic not in self._channels:
                plan = self._topics.get(topic)
                group = f"{self.app_id}-put" if plan is not None and not plan.spec.queue else QUEUE_GROUP
                self._channels[topic] = await self.transport.channel(topic, group)
            return self._channels[topic]

    async def send_any(self, topic: str, records: Mapping[int, Sequence[Message]]) -> None:
        """To a topic's partitions, or to a queue (partition -1)."""
        queued = records.get(-1)
        if queued:
            await self.put(topic, queued)
        logged = {partition: messages for partition, messages in records.items() if partition >= 0}
        if logged:
            await self.send(topic, logged)

    async def open_log(self, topic: str) -> Log:
        return await self._open_log(topic)

    async def peek_queue(self, topic: str) -> AsyncIterator[Record]:
        """What lies in a queue now; it stays there."""
        channel = await self.transport.channel(topic, QUEUE_GROUP)
        try:
            while deliveries := await channel.get(1000, 0):
                for delivery in deliveries:
                    yield delivery.record
        finally:
            await channel.close()

    @property
    def is_leader(self) -> bool:
        return self.clockwork is not None and self.clockwork.leads

    def check_head(self, title: str, size: int) -> None:
        """size: bytes of key and headers that a program gives. Raises MessageTooLarge."""
        if self.head_bytes is not None and size > self.head_bytes:
            raise MessageTooLarge(
                f"{title}: {size} bytes of key and headers; {self.transport.description} takes {self.head_bytes}, and "
                "nothing was sent. Put large things into the value"
            )

    def check_size(self, title: str, message: Message) -> None:
        """Raises MessageTooLarge."""
        limit = self.message_bytes
        if limit is not None and message.size > limit:
            raise MessageTooLarge(
                f"{title}: a message of {message.size} bytes is above the broker's limit of {limit}; nothing of it was "
                "sent"
            )

    def partitions_of(self, plan: TopicPlan) -> int:
        if not plan.partitions:
            raise ConfigurationError(f"topic {plan.name!r} was declared after the app had started; declare it before")
        return plan.partitions

    # --- asking ----------------------------------------------------------------------------------------------

    async def ask(self, agent: Asked, value: Any, key: Any, timeout: float) -> Any:
        await self.hear_answers()
        lane = current_lane.get()
        inside = lane is not None and lane.app is self.app and lane.open
        answer, headers = self.replies.expect(agent.plan.answer)
        try:
            if inside and lane is not None:
                headers = (*headers, (names.ID, lane.ask_id().encode()))
            topic, partition, message = agent.question(value, key, (*headers, (names.ANSWERS, agent.name.encode())))
            if inside and lane is not None:
                if isinstance(lane, Lane):
                    _refuse_deadlock(lane, agent, topic, partition, message.key)
                await lane.pause()
            try:
                await self._ask(topic, partition, message)
                async with self.clock.timeout(timeout):
                    return await answer
            except TimeoutError:
                raise TimeoutError(f"agent {agent.name!r} gave no answer within timeout={timeout:g} s") from None
        finally:
            answer.cancel()
            if inside and lane is not None:
                await lane.resume()

    async def hear_answers(self) -> str:
        """Be able to hear answers and questions; returns the address at which."""
        if not self.replies.started:
            await self.replies.start(self.reply_partitions)
        return self.replies.address

    async def _ask(self, topic: TopicPlan, partition: int, message: Message) -> None:
        if topic.spec.queue:
            await self.put(topic.name, [message])
        else:
            await self.send(topic.name, {partition: [message]})

    async def cast(self, agent: Asked, value: Any, key: Any, reply_to: Any, correlation: str | None) -> None:
        headers: Headers = ()
        if reply_to is not None:
            target = reply_to.name if not hasattr(reply_to, "plan") else reply_to.plan.sources[0].topic.name
            if target not in self._topics:
                raise ConfigurationError(f"reply_to={reply_to!r}: topic {target!r} is not one of this app")
            address = f"/{target}/{REPLY_TO}".encode()
            headers = ((names.REPLY, address), (names.ANSWERS, agent.name.encode()))
        if correlation is not None:
            headers = (*headers, (names.CORRELATION, correlation.encode()))
        topic, partition, message = agent.question(value, key, headers)
        self.check_size(f"topic {topic.name!r}", message)
        lane = current_lane.get()
        if lane is not None and lane.app is self.app and lane.open:
            lane.send((topic.name, partition), message)
        else:
            await self._ask(topic, partition, message)

    async def ask_many(self, agent: Asked, values: Iterable[Any], key: Any, timeout: float) -> AsyncIterator[Any]:
        async for _, answer in self._ask_each(agent, values, key, timeout):
            yield answer

    async def ask_all(self, agent: Asked, values: Iterable[Any], key: Any, timeout: float) -> list[Any]:
        answers = [pair async for pair in self._ask_each(agent, values, key, timeout)]
        return [answer for _, answer in sorted(answers, key=lambda pair: pair[0])]

    async def _ask_each(
        self, agent: Asked, values: Iterable[Any], key: Any, timeout: float
    ) -> AsyncIterator[tuple[int, Any]]:
        """Pairs of number and answer, as they come; at most ASK_WINDOW questions are open."""

        async def one(number: int, value: Any) -> tuple[int, Any]:
            return number, await self.ask(agent, value, key(value) if callable(key) else key, timeout)

        waiting: set[asyncio.Task[tuple[int, Any]]] = set()
        try:
            for number, value in enumerate(values):
                waiting.add(asyncio.get_running_loop().create_task(one(number, value)))
                while len(waiting) >= ASK_WINDOW:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    # --- reading tables ----------------------------------------------------------------------------------------

    def read_table(self, plan: TablePlan, key: Any) -> Any:
        """The row as finished events left it, or MISSING. Raises StaleRead if this worker does not own the key."""
        raw = plan.raw_key(key)
        partition = plan.partition_of(raw, plan.partitions)
        task = None if self.worker is None else self.worker.serving(plan.group, partition)
        if task is None:
            what = f"partition {partition} (of key {key!r})"
            if self.worker is not None and self.worker.copy_of(plan.group, partition) is not None:
                instead = "`await table.ask(key, stale_ok=True)` takes what there is"
                raise StaleRead(f"table {plan.name!r}: {what} {MAY_BE_OLD}; {instead}")
            raise StaleRead(f"table {plan.name!r}: {self._why_not_here(what)}")
        return task.tables[plan.name].look(key, task.open_lanes())

    def table_items(self, plan: TablePlan) -> Iterator[tuple[Any, Any]]:
        """Of this worker's partitions. Raises StaleRead if it cannot serve one of them: some rows would be missing."""
        if self.worker is None:
            raise StaleRead(f"table {plan.name!r}: {self._why_not_here('what it holds')}")
        serving: list[Task] = []
        for partition in range(plan.partitions):
            if (task := self.worker.serving(plan.group, partition)) is not None:
                serving.append(task)
            elif (plan.group, partition) in self.worker.tasks:
                raise StaleRead(f"table {plan.name!r}: partition {partition} {MAY_BE_OLD}; try again in a moment")
        return chain.from_iterable(task.tables[plan.name].items(task.open_lanes()) for task in serving)

    def _why_not_here(self, what: str) -> str:
        where = "here, for a client holds no tables" if self.worker is None else "on this worker now"
        return f"{what} is not {where}; `await table.ask(key)` asks the worker that has it"

    async def ask_table(self, plan: TablePlan, key: Any, timeout: float, stale_ok: bool) -> tuple[Any, bool]:
        """The value, and whether it may be stale."""
        row = await self.table_questions.ask(plan, key, timeout, stale_ok)
        if row.value is None:
            return None if plan.default is None else plan.default(), row.stale
        return plan.decoded(key, row.value), row.stale

    def _row(self, question: Question) -> Row:
        """Of a table of this worker's, as committed, or as it has come to a copy of it here."""
        task = None if self.worker is None else self.worker.serving(question.group, question.index)
        if task is None:
            copied = self._copied(question) if question.stale_ok else None
            return copied or Row(refused="which does not run it any more")
        state = task.tables.get(question.table)
        if state is None:
            return Row(refused="which knows no such table: another version of the program?")
        try:
            return Row(state.committed(state.row_of(question.key)))
        except StoreError as error:  # the task is about to start over
            return Row(refused=str(error))

    def _copied(self, question: Question) -> Row | None:
        store = None if self.worker is None else self.worker.copy_of(question.group, question.index)
        try:
            return None if store is None else Row(store.get(prefix(question.table) + question.key), stale=True)
        except StoreError:
            return None


def _members(host: AgentTask) -> list[AgentTask]:
    """The agents that take turns with this one."""
    return [member for member in host.turns.members if isinstance(member, AgentTask)]


def _refuse_deadlock(lane: Lane, agent: Asked, topic: TopicPlan, partition: int, key: bytes | None) -> None:
    """An event that asks what can only run after it would wait for itself (design rule 11)."""
    host = lane.host
    if not isinstance(host, AgentTask) or topic.group != host.task.group or partition != host.task.index:
        return
    if topic.spec.queue:
        return
    if agent.plan is host.plan:
        if host.plan.concurrency == 1 or (key is not None and key == lane.key_bytes):
            raise AskDeadlock(
                f"agent {agent.name!r} asks itself, and the question would wait behind the very event that asks; "
                "call the function directly, or cast"
            )
    elif lane.touched and any(member.plan is agent.plan for member in _members(host)):
        raise AskDeadlock(
            f"agent {host.plan.name!r} asks {agent.name!r} after its event has touched a table; both take turns in "
            f"partition {partition}, so the answer cannot come before this event has finished. Ask before you touch a "
            "table, or cast and let the answer come as an event (reply_to=)"
        )
