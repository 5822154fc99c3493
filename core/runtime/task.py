"""A task: partition *i* of every topic in a co-partitioned group, with its journal, its store, its agents.

input topics -> agents -> rows, outputs, answers of finished events -> one commit to the journal -> store
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from thalweg.capabilities import Commit
from thalweg.codec import ENCODE_ERRORS
from thalweg.errors import (
    AccessDenied,
    AmbiguousCommit,
    BrokerError,
    EncodeError,
    Fenced,
    HistoryChanged,
    MessageRefused,
    StoreError,
    StoreFull,
    TableMismatch,
)
from thalweg.journal import rows as journal_rows
from thalweg.journal.records import Entry, Fold, Release, Rows, checksum, messages
from thalweg.journal.rows import CRASHES, Parked, Reached, Suspects, encode, reached_key
from thalweg.journal.snapshot import LOCAL_MARKER, Snapshotter
from thalweg.journal.writer import JournalKey, Written
from thalweg.message import Message, Position, Record
from thalweg.plan import AgentPlan, Destination
from thalweg.store import Checkpoint, Store

from .agent_task import AgentTask
from .changes import Changes
from .claim import claim
from .delayed import Delayed
from .deliveries import Deliveries
from .expiry import Expiries, Expiry
from .failures import dead_letter, refused_output
from .lane import Lane
from .mirroring import Feed, Standing
from .open_event import Rerun
from .replay import Numbered, numbered, standing_of
from .settings import Settings
from .tables import MISSING, TablePlan, TableState
from .tickets import Ticket, asked
from .topic_input import TopicInput, history_changed
from .verdicts import Verdicts, Where

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["Answer", "Cut", "Failure", "RolledBack", "Task", "TaskKey"]

log = logging.getLogger("thalweg")

Answer = tuple[AgentPlan, Record, "bytes | Failure"]
"""Who answers which question, and what."""

TaskKey = tuple[str, int]
"""Group and index."""

CALM = 10.0
"""Seconds after which an owner that took over from a dead one counts as well."""
CALM_EVENTS = 256
"""So do so many events that it has finished, for what was deadly lay near the beginning: else deaths that have nothing
to do with events would slow down those who inherit."""
MOST_CAREFUL = 64
REFUSALS = 3
"""After so many commits with outputs that failed in a row, the next one is tried without."""


class Cut(msgspec.Struct):
    """What a commit takes along: everything that finished events did up to one moment."""

    rows: dict[bytes, bytes | None]
    commit: Commit
    answers: list[Answer]
    outboxed: dict[Destination, int]  # how many outputs wait in each outbox for this commit
    ahead: dict[Destination, list[Message]]  # outputs that are sent before it: at least once
    number: int  # of the last journal record
    size: int
    token: bytes  # of the owner's marker


class Task:
    def __init__(
        self,
        worker: Worker,
        group: str,
        index: int,
        partitions: int,
        agents: Sequence[AgentPlan],
        tables: Sequence[TablePlan],
    ) -> None:
        self.worker = worker
        self.app: object = worker.app
        self.settings: Settings = worker.settings
        self.group, self.index, self.partitions = group, index, partitions
        self.key: TaskKey = (group, index)
        self.journal: JournalKey = (worker.journal_topic(group), index)
        self.verdicts = Verdicts()
        self.checking = False  # rows are encoded as each event finishes, to find the one that cannot be
        self._agent_plans, self._table_plans = agents, tables
        self._store: Store | None = None
        self._closing = False
        self._refusals = 0  # commits with outputs that failed one after another
        self._truncating: asyncio.Task[None] | None = None
        self._truncate_before: Position | None = None  # what it has not begun with yet
        self._landing: asyncio.Future[None] | None = None  # a commit is in flight: done when its end is known
        self.tenure = worker.tenures[self.journal]
        self.commits = 0
        self.failed: Callable[[BaseException], None] = lambda _: None
        self._reset()

    def _reset(self) -> None:
        self.verdicts.roll_back()
        self.agents: list[AgentTask] = []
        self.tables: dict[str, TableState] = {}
        self.changes: dict[str, Changes] = {}
        self.expiries = Expiries(self.settings.clock, self.busy)
        self.attended: AbstractSet[str] = frozenset()
        """Tables with changes that are followed, or rows that end."""
        self.rows: dict[bytes, bytes | None] = {}
        self.outputs: defaultdict[Destination, list[Message]] = defaultdict(list)
        self.answers: list[Answer] = []
        self.has_work = False
        self._calm_at: float | None = None
        self.land()
        self.held_up: asyncio.Future[None] | None = None
        """A commit waits for open events to finish, or holds as many outputs as it may: done when it has been cut."""
        self._uncut = 0
        """How many outputs finished events have sent since the last cut."""
        most = self.worker.commit_messages
        self._hold_at = None if most is None or most < 4 else most // 2  # so that what open events still send fits in
        self.deliveries: Deliveries | None = None
        self.delayed: Delayed | None = None
        """In the tasks whose agents include the one that reads the topic of delays."""
        self.feeds: list[Feed] = []
        self._stopping = False
        self._broken = False  # its store could not be read
        self._spoiled = False  # an unfinished event has changed what only a rollback could undo
        self._fold = Fold()
        self._snapshotter = Snapshotter(self.settings.snapshot_bytes, self.worker.committer.room)

    # --- opening: claim the journal, replay it, start the agents ---------------------------------------------

    async def open(self) -> None:
        self._reset()
        store = self._open_store()
        fold = await claim(self.worker, self.group, self.journal, self.partitions, store)
        marker = fold.marker  # by the name that the journal has had from the beginning
        assert marker is not None
        self._fold = fold
        careful = self._count_crash(store, fold)
        here = numbered(store)
        growth = None if here is None else here.growth
        self._snapshotter = Snapshotter(self.settings.snapshot_bytes, self.worker.committer.room, growth)
        self.tables = {plan.name: TableState(plan, self.index, store, self._store_broken) for plan in self._table_plans}
        self.changes = {
            plan.name: Changes(self.tables[plan.name], self.worker.room((plan.changes, self.index)))
            for plan in self._table_plans
            if plan.changes is not None
        }
        for plan in self._table_plans:
            if plan.ttl is not None:
                self.expiries[plan.name] = Expiry(self.tables[plan.name], store, plan.ttl)
        self.attended = self.changes.keys() | self.expiries.keys()
        self.agents = [AgentTask(self, plan) for plan in self._agent_plans]
        for agent in self.agents:
            for table in agent.plan.tables & self.tables.keys():
                self._share_turns(agent, table)
        self.deliveries = Deliveries(
            marker.journal,
            marker.epoch,
            self.settings.clock,
            self.worker.send_now,
            self._delivered,
            self._has_room,
            self.worker.complaints,
            self._give_up_output,
        )
        self.deliveries.restore(store)
        await self._restore(store)
        self.delayed = next((Delayed(self, a, store) for a in self.agents if a.plan is self.worker.delays_agent), None)
        self.deliveries.start()
        self._feed_mirrors(store, marker.epoch)
        self._await_moments()
        for agent in self.agents:
            ours = agent.plan is self.worker.delays_agent  # which runs nothing of the program's that could kill
            agent.suspicion.careful = 0 if ours else careful
            for input_ in () if ours else agent.inputs:
                self.worker.fetch(agent, input_)
            for lane in agent.lanes:
                lane.start(self.worker.context)
                assert lane.task is not None
                lane.task.add_done_callback(self._lane_done)
        if self.delayed is not None and self.worker.delays_there:
            self.delayed.begin()

    def _feed_mirrors(self, store: Store, epoch: int) -> None:
        for plan in self._table_plans:
            mirror = self.worker.mirrors.get(plan.name)
            if mirror is not None:
                feed = Feed(
                    plan.name,
                    self.index,
                    mirror,
                    epoch,
                    store,
                    partial(self.worker.new_log, self.journal[0]),
                    self.settings.clock,
                    self.worker.complaints,
                    self.worker.kept_for_mirrors,
                )
                feed.start(standing_of(store))
                self.feeds.append(feed)

    def _open_store(self) -> Store:
        if self._store is None:
            self._store = self.worker.open_store(self.group, self.index)
        return self._store

    async def _restore(self, store: Store) -> None:
        """Positions, parked retries and suspects from their rows."""
        inputs = {input_.name: (agent, input_) for agent in self.agents for input_ in agent.inputs}
        parked: dict[Where, Parked] = {}
        for name, (agent, input_) in inputs.items():
            raw = store.get(reached_key(name))
            if raw is not None:
                input_.restore(journal_rows.decode(raw, type=Reached), store)
                await self._check_history(agent, input_)
            elif agent.plan is self.worker.delays_agent:
                input_.restore(Reached(None, 0), store)
            else:
                # Decided once and committed, or a crash before the first commit would let "latest" skip events.
                input_.restore(Reached(await self.worker.start_position(input_), 0), store)
                self.rows[reached_key(name)] = encode(input_.committed)
                self.has_work = True
            start_key = b"r" + name.encode() + b"\0"
            for key, value in store.scan(start_key, journal_rows.below(start_key)):
                position = int.from_bytes(key[-8:], "big")
                parked[(name, position)] = journal_rows.decode(value, type=Parked)
                agent.parking.restore(input_, position, parked[(name, position)])
            self.verdicts.forget(name, input_.committed.position, parked)
        for agent in self.agents:
            raw = store.get(journal_rows.suspect_key(agent.plan.name))
            if raw is not None and agent.plan is not self.worker.delays_agent:
                died = self.tenure.abandoned and agent.plan.name not in self.tenure.noted
                agent.suspicion.restore(journal_rows.decode(raw, type=Suspects), died)

    def _count_crash(self, store: Store, fold: Fold) -> int:
        """How many events to begin with are to run with care: the more, the more owners died in a row."""
        raw = store.get(CRASHES)
        before = 0 if raw is None else journal_rows.decode(raw, type=int)
        self.tenure.goes_on(fold, before)
        crashes = self.tenure.crashes
        if crashes != before:
            self.rows[CRASHES] = encode(crashes)
            self.has_work = True
        self._calm_at = self.settings.clock.now() + CALM if crashes else None
        return min(4 ** (crashes - 1), MOST_CAREFUL) if crashes else 0

    def _is_calm(self, at: float) -> bool:
        finished = sum(input_.watermark.finished for agent in self.agents for input_ in agent.inputs)
        return finished >= CALM_EVENTS or self.settings.clock.now() >= at

    async def _check_history(self, agent: AgentTask, input_: TopicInput) -> None:
        topic = await self.worker.log(input_.topic.name)
        if await history_changed(topic, self.index, input_.committed):
            error = HistoryChanged(
                f"topic {input_.topic.name!r} partition {self.index}: what lies at position "
                f"{input_.committed.position} is not the record that agent {agent.plan.name!r} read there: the broker "
                "lost or replaced a part of its log. Restore it, or reset the agent's position if going on is right"
            )
            agent.halt(str(error))

    # --- what agents ask for ---------------------------------------------------------------------------------

    def table_of(self, agent: AgentTask, plan: TablePlan) -> TableState:
        state = self.tables.get(plan.name)
        if state is None:
            raise TableMismatch(
                f"table {plan.name!r} has {plan.partitions} partitions, but agent {agent.plan.name!r} reads a topic "
                f"with {self.partitions}: declare the table with `like=` that topic (or "
                f"`partitions={self.partitions}`)"
            )
        if plan.name not in agent.tables:
            self._learn(agent, plan.name)
        return state

    def _share_turns(self, agent: AgentTask, table: str) -> bool:
        """The agent uses this table, so it takes turns with all that do; whether that is new to it."""
        agent.tables.add(table)
        agent.plan.tables.add(table)
        others = [other for other in self.agents if table in other.tables and other.turns is not agent.turns]
        for other in others:
            agent.turns.join(other.turns)
        return bool(others)

    def _learn(self, agent: AgentTask, table: str) -> None:
        """At its first touch of a table that was not seen in its code. Events that are open keep the turn."""
        if not self._share_turns(agent, table):
            return
        for member in agent.turns.members:
            assert isinstance(member, AgentTask)
            for lane in member.lanes:
                lane.look_up()
                if lane.open and not lane.entered and member is not agent:
                    lane.adopt_turn()
        if agent.turns.held_by_another(agent):
            raise Rerun
        for lane in agent.lanes:
            if lane.open and not lane.entered:
                lane.adopt_turn()

    def _delivered(self) -> None:
        """Outputs were confirmed by their destination: the journal may forget them, at its leisure."""
        self.has_work = True
        self.worker.committer.arm()

    def _has_room(self) -> None:
        """Outputs that kept agents waiting have left."""
        for agent in self.agents:
            agent.lanes.wake(len(agent.lanes))
        self.busy()

    @property
    def outputs_wait(self) -> bool:
        """So much waits to be sent that no event should begin."""
        return self.deliveries is not None and self.deliveries.full

    def collect(self, lane: Lane) -> None:
        """A finished event's sends and answers join the next commit."""
        for destination, message in lane.outputs:
            self.outputs[destination].append(message)
        self._uncut += len(lane.outputs)
        if self._hold_at is not None and self._uncut >= self._hold_at and self.held_up is None:
            self.held_up = asyncio.get_running_loop().create_future()
        for record, data in lane.answers:
            self.answers.append((lane.plan, record, data))

    def check(self, lane: Lane) -> None:
        """Encode what the event changed, so that what cannot be encoded fails this event and no other."""
        for state, key in [*((state, key) for state, key, _ in lane.changes()), *lane.lent]:
            value = state.hot.get(key, MISSING)
            try:
                raw_key, raw = state.raw_row(key, value)
                if raw is not None:
                    state.plan.decode(raw)
                if state.plan.name in self.changes:
                    self.changes[state.plan.name].of({raw_key: raw}, 0)
            except EncodeError:
                raise
            except ENCODE_ERRORS as error:
                raise EncodeError(f"table {state.plan.name!r}, key {key!r}: {error}") from error

    def send_dead_letter(self, agent: str, ticket: Ticket, reason: str, trace: str, attempts: int) -> None:
        destination = self.worker.dead_letter_destination(ticket.input.topic.name, ticket.record.key)
        limits = self.worker.room(destination), self.worker.head_bytes
        letter = dead_letter(agent, ticket, reason, trace, attempts, *limits)
        self.outputs[destination].append(letter)

    def _give_up_output(self, destination: Destination, message: Message, reason: str) -> bool:
        """The broker takes no such message: it becomes a dead letter of where it was to go. False: it cannot."""
        topic, partition = destination
        if topic not in self.worker.topics:
            return False
        letters = self.worker.dead_letter_destination(topic, message.key)
        log.error("a message to %s, partition %d, is refused, and now a dead letter: %s", topic, partition, reason)
        limits = self.worker.room(letters), self.worker.head_bytes
        self.outputs[letters].append(refused_output(topic, partition, message, reason, self._now_ms(), *limits))
        return True

    def answer_error(self, plan: AgentPlan, record: Record, reason: str, trace: str) -> None:
        if record.headers and asked(plan, record):
            self.answers.append((plan, record, Failure(reason, trace)))

    def write_next(self, key: bytes, value: bytes | None) -> None:
        """A row of the task's own goes with the next commit."""
        self.rows[key] = value

    def busy(self) -> None:
        """Events are handled or finished: a commit is due in `commit_interval` at the latest."""
        self.has_work = True
        self.worker.committer.arm()

    def idle(self, agent: AgentTask) -> None:
        """A lane waits for input: if there is none to be had, what is finished is committed now."""
        if self.delayed is not None:
            self.delayed.moved()
        if self.has_work and not self.in_flight and agent.resting:
            self.worker.committer.soon()

    async def let_commit(self) -> None:
        """Between two events: return when the commit that an open event held up has been cut."""
        if self.held_up is not None:
            self.worker.committer.soon()
            await asyncio.shield(self.held_up)

    def fetch_more(self, input_: TopicInput) -> None:
        self.worker.fetch_more(input_)

    async def flush(self) -> None:
        """Return when what is in `rows` now has been committed, or the task has failed."""
        self.has_work = True
        rows = self.rows
        await self.landed()
        await self.worker.committer.flush()
        while self.rows is rows and self.held_up is not None:  # an open event holds the commit up: it was not cut
            await self.let_commit()
            await self.worker.committer.flush()
        await self.landed()

    @property
    def in_flight(self) -> bool:
        """A commit of this task is under way."""
        return self._landing is not None

    async def landed(self) -> None:
        """Return when no commit is under way."""
        while self._landing is not None:
            await asyncio.wait([self._landing])

    def land(self) -> None:
        if self._landing is not None:
            self._landing.set_result(None)
            self._landing = None

    @property
    def store(self) -> Store | None:
        """To look into; None while it is closed."""
        return self._store

    def read_row(self, key: bytes) -> bytes | None:
        """A row of the task's own, as committed."""
        return None if self._store is None else self._store.get(key)

    async def write_row(self, key: bytes, value: bytes, outputs: Sequence[tuple[Destination, Message]] = ()) -> None:
        """Write a row of the task's own, and send `outputs` with it; committed when this returns.

        Raises Fenced if the task was lost meanwhile: then the journal tells whether it happened.
        """
        commits = self.commits
        self.rows[key] = value
        for destination, message in outputs:
            self.outputs[destination].append(message)
        await self.flush()
        if self.commits == commits:
            raise Fenced(f"task {self.group}/{self.index} was lost before the row was committed")

    # --- committing ------------------------------------------------------------------------------------------

    @property
    def urgency(self) -> float:
        """Of the tasks that commit together, those with the largest have the room for parts of snapshots."""
        return self._snapshotter.urgency

    def cut(self) -> Cut | None:
        """All that finished events did and no commit took along yet; None if that is nothing."""
        if not self.has_work or self.in_flight or self._store is None or self._closing or self.deliveries is None:
            return None
        if self._spoiled:
            return None
        open_lanes = [lane for agent in self.agents for lane in agent.lanes if lane.undo or lane.lent or lane.tainted]
        if any(lane.tainted for lane in open_lanes):
            if self.held_up is None:
                self.held_up = asyncio.get_running_loop().create_future()
            return None  # its changes and older ones lie in the same object: wait until it is finished
        if self.held_up is not None:
            self.held_up.set_result(None)
            self.held_up = None
        rows = self.rows
        if self._calm_at is not None and self._is_calm(self._calm_at):
            self._calm_at = None
            self.tenure.crashes = 0
            rows[CRASHES] = encode(0)
        for table in self.tables.values():
            if table.plan.name in self.attended:
                self._collect_apart(table, rows, open_lanes)
            elif table.dirty:
                table.collect(rows, open_lanes)
        if self.delayed is not None:
            self.delayed.collect(rows, self.outputs)
        progress = False
        for agent in self.agents:
            for input_ in agent.inputs:
                progress = input_.collect(rows) or progress
        self.has_work = bool(open_lanes)
        for lane in self.all_lanes():
            lane.attention = True  # in the midst of a plain part nothing else would ask for the next commit
        outputs, answers = self.outputs, self.answers
        if not (rows or outputs or answers or self.deliveries.news):
            self._await_moments()
            return None
        self.verdicts.cut()
        self.rows, self.outputs, self.answers, self._uncut = {}, defaultdict(list), [], 0
        joining = self._joining(outputs, self.deliveries)
        others = {to: messages for to, messages in outputs.items() if to not in joining}
        ahead = {} if self._refusals >= REFUSALS else self._ahead(others, self.deliveries)
        outboxed = self.deliveries.add({to: messages for to, messages in others.items() if to not in ahead}, rows)
        joining = self.deliveries.join(joining, rows)
        if self.settings.signer is not None:
            signed = self.settings.signer.signed
            joining = {to: list(signed(*to, messages)) for to, messages in joining.items()}
        assert self._fold.marker is not None
        rested = self._truncating is None  # else another snapshot would come to lie beside what is to be truncated
        entries: list[Entry] = self._snapshotter.entries(self._store, self._fold.marker, rows, rested)
        entries.append(Rows(b"", 0, rows, progress))
        return self._build(rows, joining, answers, outboxed, ahead, entries)

    def _collect_apart(self, table: TableState, rows: dict[bytes, bytes | None], open_lanes: Sequence[Lane]) -> None:
        """Of a table that is more than its rows: what is due ends, and who follows its changes is told."""
        changes, expiry = self.changes.get(table.plan.name), self.expiries.get(table.plan.name)
        written: dict[bytes, bytes | None] = {}
        table.collect(written, open_lanes)
        now = self._now_ms()
        if expiry is not None:
            expiry.collect(written, rows, now, table.in_hand(open_lanes))
        rows.update(written)
        if changes is not None and (messages := changes.of(written, now)):
            assert table.plan.changes is not None
            self.outputs[(table.plan.changes, self.index)] += messages

    def _await_moments(self) -> None:
        """See to what is due next, rows that end and messages that leave. Only while no commit is in flight."""
        self.expiries.wait()
        if self.delayed is not None:
            self.delayed.look()

    def _joining(
        self, outputs: Mapping[Destination, list[Message]], deliveries: Deliveries
    ) -> Mapping[Destination, list[Message]]:
        """Those that are part of the commit: none where the broker cannot take so many in one, or refuses some for
        good (design rule 4). Then they wait in their outboxes, each for itself, and the task goes on.
        """
        joining = {
            to: messages
            for to, messages in outputs.items()
            if self.worker.joins_commits(to) and deliveries.may_join(to)
        }
        most = self.worker.commit_messages
        too_many = most is not None and sum(map(len, joining.values())) >= most  # the journal record itself is one
        return {} if too_many or self._refusals >= REFUSALS else joining

    def _ahead(
        self, outputs: Mapping[Destination, list[Message]], deliveries: Deliveries
    ) -> dict[Destination, list[Message]]:
        """Those that are sent before the commit: where copies do not matter, and none wait to be sent before them."""
        return {} if self.settings.exactly_once else {to: m for to, m in outputs.items() if deliveries.may_join(to)}

    def _build(
        self,
        rows: dict[bytes, bytes | None],
        outputs: Mapping[Destination, list[Message]],
        answers: list[Answer],
        outboxed: dict[Destination, int],
        ahead: dict[Destination, list[Message]],
        entries: list[Entry],
    ) -> Cut:
        marker = self._fold.marker
        assert marker is not None
        limit = self.worker.message_bytes
        for table in self.tables.values():
            table.flying = rows
        records = list(messages(entries, marker.token, self._fold.number + 1, limit, self._now_ms()))
        self._landing = asyncio.get_running_loop().create_future()
        size = sum(len(record.value or b"") for record in records)
        number = self._fold.number + len(records)
        return Cut(rows, Commit(records, outputs), answers, outboxed, ahead, number, size, marker.token)

    def refused(self, cut: Cut, error: Exception) -> None:
        """A commit with outputs failed. If that goes on, it may be a destination that is gone: `_joining`."""
        if (cut.commit.outputs or cut.ahead) and not isinstance(error, Fenced | AmbiguousCommit | StoreError):
            self._refusals = REFUSALS if isinstance(error, AccessDenied | MessageRefused) else self._refusals + 1

    def made(self, cut: Cut) -> bool:
        """Whether this is a cut of the task as it is now: it may have started over since."""
        return self._fold.marker is not None and self._fold.marker.token == cut.token

    def committed(self, cut: Cut, written: Written) -> None:
        """The journal has it: now the store may, then the world."""
        self.land()
        self.commits += 1
        self._refusals = 0
        self._fold.number = cut.number
        marker = self._fold.marker
        assert self._store is not None
        assert marker is not None
        assert self.deliveries is not None
        before = self._snapshotter.committed(written.first, cut.size)
        local = {LOCAL_MARKER: encode(Numbered(marker, cut.number, self._snapshotter.growth))}
        if not cut.commit.release:  # whoever opens the store next is to read it, and see that nobody died
            self._store.apply({**cut.rows, **local}, Checkpoint(written.position, checksum(written.data)))
        for feed in self.feeds:
            feed.committed(cut.rows, Standing(written.position, checksum(written.data), marker, cut.number))
        room = self.worker.room_for_rows()
        for table in self.tables.values():
            table.flying = {}
            table.trim(room)
        self._await_moments()
        self.verdicts.committed()
        self.deliveries.committed(cut.outboxed)
        if cut.answers:
            self.worker.answer(cut.answers)
        if before is not None:
            self._truncate_before = before
            if self._truncating is None:
                self._truncating = asyncio.get_running_loop().create_task(self._truncate(), name="thalweg truncate")
        if self.checking:
            self.checking = False
        if self.held_up is not None:
            self.worker.committer.soon()
        for agent in self.agents:
            self.idle(agent)

    async def _truncate(self) -> None:
        """Nobody waits for it: what lies there longer than it must costs room, nothing else."""
        try:
            while self._truncate_before is not None:
                before, self._truncate_before = self._truncate_before, None
                await self._cut_off(before)
        except BrokerError as error:
            log.warning(
                "task %s/%d: its journal was not truncated, and will be after the next snapshot: %s", *self.key, error
            )
        finally:
            self._truncating = None

    async def _cut_off(self, before: Position) -> None:
        journal = await self.worker.log(self.journal[0])
        await journal.truncate(self.index, before)

    # --- closing ---------------------------------------------------------------------------------------------

    def _store_broken(self, error: StoreError) -> None:
        """No event is to suffer for it: nothing is committed any more, and the task starts over."""
        self._broken = True
        self.failed(error)

    async def until_restarted(self, error: Exception) -> None:
        """Called by a lane whose event failed: returns at once if it was not for the task's store, else never."""
        if isinstance(error, StoreError) or self._broken:
            self._store_broken(error if isinstance(error, StoreError) else StoreError(str(error)))
            await asyncio.get_running_loop().create_future()

    async def roll_back(self) -> None:
        """Go back to the last commit (a failed event touched a mutable value): called by a lane, which ends here."""
        self.failed(RolledBack())
        await asyncio.get_running_loop().create_future()

    def _lane_done(self, task: asyncio.Task[None]) -> None:
        if self._closing or self._stopping:
            return
        error = (
            RuntimeError(f"{task.get_name()} was cancelled by its own code") if task.cancelled() else task.exception()
        )
        if error is not None:
            self.failed(error)

    async def drain(self) -> None:
        """Let open events finish, within `drain_timeout`; begin none."""
        for agent in self.agents:
            agent.stop()
        try:
            async with self.settings.clock.timeout(self.settings.drain_timeout):
                for agent in self.agents:
                    await agent.stopped()
        except TimeoutError:
            log.warning(
                "task %s/%d: events still open after %g s are left for the next owner",
                *self.key,
                self.settings.drain_timeout,
            )

    async def settle(self) -> None:
        """Return when all that was committed has reached its outboxes' destinations and mirrors, where they answer."""
        outboxes = [] if self.deliveries is None else [self.deliveries.settle()]
        await asyncio.gather(*outboxes, *(feed.settle() for feed in self.feeds))

    async def stop_lanes(self) -> None:
        """Cancel the agents where they are; what they had open is undone."""
        self._stopping = True
        self.expiries.stop()
        for agent in self.agents:
            agent.stop()
            agent.turns.close()
        tasks = [lane.task for agent in self.agents for lane in agent.lanes if lane.task is not None]
        if self._truncating is not None:
            tasks.append(self._truncating)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.deliveries is not None:
            await self.deliveries.stop()
        if self.delayed is not None:
            await self.delayed.stop()
        await asyncio.gather(*(feed.stop() for feed in self.feeds))
        self._spoiled = any(lane.tainted for lane in self.all_lanes())
        for agent in self.agents:
            agent.suspicion.end()
            for input_ in agent.inputs:
                self.worker.stop_fetching(input_)
            for lane in agent.lanes:
                if lane.open:
                    lane.discard()

    def release(self) -> Cut:
        """The last commit: says that this owner left in good order."""
        cut = self._build({}, {}, [], {}, {}, [Release(b"", 0)])
        cut.commit.release = True
        return cut

    def close(self) -> None:
        self._closing = True
        self.land()
        self.worker.writer.forget(self.journal)
        self.close_store()

    def close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def forget_store(self, error: StoreError) -> None:
        """The journal will fill what the store lacks: all, unless it only could not be written."""
        try:
            if self._store is not None and not isinstance(error, StoreFull):
                self._store.clear()
        except StoreError:
            pass  # what cannot be emptied, the next opening replaces
        self.close_store()

    # --- reading from outside ----------------------------------------------------------------------------------

    def all_lanes(self) -> list[Lane]:
        return [lane for agent in self.agents for lane in agent.lanes]

    def open_lanes(self) -> list[Lane]:
        return [lane for agent in self.agents for lane in agent.lanes if lane.undo or lane.lent]

    def _now_ms(self) -> int:
        return round(self.settings.clock.now() * 1000)


class RolledBack(Exception):
    """Not an error: the task starts over from its last commit."""


class Failure(msgspec.Struct, frozen=True):
    """An answer that is an error."""

    reason: str
    trace: str
