"""Who owns a journal: the broker itself rejects a stale owner's commit, and outputs commit with the journal's records.

All commits of a process go through one transactional producer, whose id nobody else has. Each marker, and the last
record of each commit, names that id in a header (`thalweg-owner`). Who claims a journal

1. looks up whom its last such record names, and takes that id: the broker aborts what its former holder has open, and
   accepts nothing from it any more;
2. writes the marker, and before its transaction ends looks at what lies between that record and the marker, committed
   or not: if it names anyone else, who might have been faster, then the marker is undone, that one is fenced too, and
   all begins again.

So a marker that counts stands after everything that former owners can ever have committed. Truncated journals keep the
last such record (`KafkaLog.truncate`). A record that was the last of its owner names nobody: a journal that was given
back needs no fencing, which would disturb the other journals of a living owner.

A process that was fenced takes a new id and names it in the journals that nobody else claimed, by records that no
reader sees, and by the same two steps; what was claimed by another is lost.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeVar

from thalweg.capabilities import Claim, Commit
from thalweg.errors import AmbiguousCommit, BrokerError, Fenced
from thalweg.finishing import ignore_failure
from thalweg.message import Message, Position, Record

from .connection import Cluster
from .partition import Partition
from .producing import Place, Producer
from .records import AGAIN, OWNER, Outgoing, check_size, fill
from .topics import Topic, Topics
from .transactions import FencedOut, Undone, Written, transact

__all__ = ["Fencer", "KafkaClaim"]

T = TypeVar("T")

_LANE = "fence"

_TIMES = 10
"""How often a claim or a commit begins again when others get between."""


class KafkaClaim:
    """Ownership of a journal partition, for as long as `Fencer` holds it."""

    def __init__(self, topic: str, partition: int, position: Position) -> None:
        self.topic, self.partition, self.position = topic, partition, position


class _Wanted:
    """A claim that waits to be made."""

    def __init__(self, journal: Topic, partition: int, marker: Message) -> None:
        self.journal, self.partition, self.marker = journal, partition, marker
        self.place: Place = (journal.kafka, partition)
        self.done: asyncio.Future[KafkaClaim] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(ignore_failure)


class Fencer:
    """The journals that this process owns. One transaction at a time, for all of them."""

    def __init__(self, cluster: Cluster, topics: Topics, prefix: str, codec: str, transaction_timeout: float) -> None:
        self._cluster, self._topics, self._prefix, self._codec = cluster, topics, prefix, codec
        self._transaction_timeout = transaction_timeout
        self._producer: Producer | None = None
        self._last_id: str | None = None
        self._ids: set[str] = set()  # all that were this process's
        self._held: dict[Place, tuple[KafkaClaim, Topic]] = {}
        self._wanted: list[_Wanted] = []
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def probe(self) -> None:
        """Raises Denied where the user has no right to transactions, BrokerError where there are none now.

        By an id that all share: one of its own, which the broker remembers for a week, is taken with the first claim.
        """
        await self._begin(f"{self._prefix}thalweg-probe", self._deadline())

    # --- claiming ------------------------------------------------------------------------------------------------

    async def claim(self, journal: Topic, partition: int, marker: Message) -> KafkaClaim:
        """Claims that come together are made by one transaction. Cancelled: it may be made all the same."""
        self._check_open()
        check_size([marker], journal)
        wanted = _Wanted(journal, journal.check(partition), marker)
        self._wanted.append(wanted)
        if len(self._wanted) == 1:
            self._start(self._claim_wanted())
        return await asyncio.shield(wanted.done)

    async def _claim_wanted(self) -> None:
        async with self._lock:
            while self._wanted:
                wanted = {one.place: one for one in reversed(self._wanted)}  # of rivals here the first
                self._wanted = [one for one in self._wanted if wanted[one.place] is not one]
                try:
                    await self._claim(wanted)
                except Exception as error:
                    await self._claim_singly(wanted, error)

    async def _claim_singly(self, wanted: Mapping[Place, _Wanted], problem: Exception) -> None:
        """One that cannot be claimed must not stand in the way of the others; of more, the broker is to blame.

        Where nobody knows whether the markers were written, none is written again: it must be in the journal once.
        """
        places, failures = list(wanted), 0
        random.shuffle(places)
        for place in places:
            if len(places) > 1 and failures < 2 and not isinstance(problem, AmbiguousCommit):
                try:
                    await self._claim({place: wanted[place]})
                except Exception as error:
                    problem, failures = error, failures + 1
                else:
                    failures = 0
                    continue
            kept = problem if isinstance(problem, BrokerError) else self._cluster.explain(problem, "claiming: ")
            wanted[place].done.set_exception(kept)

    async def _claim(self, wanted: Mapping[Place, _Wanted]) -> None:
        journals = {place: one.journal for place, one in wanted.items()}
        fenced: set[str] = set()
        for _ in range(_TIMES):
            deadline = self._deadline()
            producer = await self._ready(deadline)
            me = producer.transactional_id or ""
            tails = await self._tails(journals)
            fenced |= await self._fence({owner for _, owner in tails.values()} - fenced, deadline)
            strangers: dict[Place, set[str]] = {}
            alone = partial(self._alone, journals, tails, fenced, strangers)
            records = {place: [_named(one.marker, me)] for place, one in wanted.items()}
            try:
                written = await self._transact(producer, self._batches(journals, records), deadline, alone)
            except Undone:
                fenced |= await self._fence(set().union(*strangers.values()), deadline)
            except FencedOut:
                await asyncio.sleep(random.uniform(0.01, 0.05))
            else:
                for place, one in wanted.items():
                    claim = KafkaClaim(one.journal.name, one.partition, written[place][0])
                    self._held[place] = claim, one.journal
                    one.done.set_result(claim)
                return
        raise self._cluster.explain(f"claiming {len(wanted)} journals failed {_TIMES} times: others claim them, too")

    async def _tails(self, journals: Mapping[Place, Topic]) -> Mapping[Place, tuple[Position, str]]:
        """Where the last record that names an owner lies in each, and whom it names ("": nobody)."""

        async def tail(place: Place, journal: Topic) -> tuple[Position, str]:
            partition = self._partition(journal, place[1])
            found = await partition.last(lambda record: _owner(record) is not None, hide=False)
            if found is None:
                return (await partition.range())[0] - 1, ""
            return found[0], _owner(found[1]) or ""

        return dict(zip(journals, await asyncio.gather(*(tail(*one) for one in journals.items())), strict=True))

    async def _alone(
        self,
        journals: Mapping[Place, Topic],
        tails: Mapping[Place, tuple[Position, str]],
        known: Set[str],
        strangers: dict[Place, set[str]],
        written: Written,
    ) -> bool:
        """Whether nobody else is named between those records and what was just written; if not, who is."""

        async def look(place: Place, journal: Topic) -> None:
            begin, end = tails[place][0] + 1, written[place][0]
            found = await self._partition(journal, place[1]).between(begin, end, lambda r: bool(_owner(r)))
            others = {_owner(record) or "" for record in found} - known - self._ids
            if others:
                strangers[place] = others

        await asyncio.gather(*(look(*one) for one in journals.items()))
        return not strangers

    async def _fence(self, owners: Iterable[str], deadline: float) -> set[str]:
        rivals = set(owners) - self._ids - {""}
        await asyncio.gather(*(self._begin(rival, deadline) for rival in rivals))
        return rivals

    # --- committing ----------------------------------------------------------------------------------------------

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        """Cancelled: goes on to its end."""
        self._check_open()
        topics: dict[Place, Topic] = {}
        places: dict[Claim, Place] = {}
        records: dict[Place, list[Message]] = {}
        for claim, commit in commits.items():
            journal = await self._topics.log(claim.topic)
            check_size(commit.records, journal)
            places[claim] = place = journal.kafka, claim.partition
            topics[place], records[place] = journal, list(commit.records)
        for commit in commits.values():
            for (name, partition), messages in commit.outputs.items():
                topic = await self._topics.log(name)
                place = topic.kafka, topic.check(partition)
                check_size(messages, topic)
                topics[place] = topic
                records.setdefault(place, []).extend(messages)
        return await asyncio.shield(self._start(self._commit(commits, topics, places, records)))

    async def _commit(
        self,
        commits: Mapping[Claim, Commit],
        topics: Mapping[Place, Topic],
        places: Mapping[Claim, Place],
        records: Mapping[Place, list[Message]],
    ) -> Mapping[Claim, Sequence[Position]]:
        async with self._lock:
            for _ in range(_TIMES):
                deadline = self._deadline()
                self._check_held(places)
                producer = await self._ready(deadline)
                self._check_held(places)
                named = {place: list(messages) for place, messages in records.items() if messages}
                for claim, commit in commits.items():
                    if commit.records:
                        last = len(commit.records) - 1
                        me = "" if commit.release else producer.transactional_id or ""
                        named[places[claim]][last] = _named(commit.records[last], me)
                if not named:
                    return {claim: [] for claim in commits}
                batches = self._batches(topics, named)
                try:
                    written = await self._transact(producer, batches, deadline)
                except FencedOut:
                    await asyncio.sleep(random.uniform(0.01, 0.05))
                    continue
                for claim, commit in commits.items():
                    if commit.release:
                        del self._held[places[claim]]
                found: dict[Claim, Sequence[Position]] = {}
                for claim, commit in commits.items():
                    place = places[claim]
                    found[claim] = _positions(written.get(place, ()), batches.get(place, ()), len(commit.records))
                return found
        raise self._cluster.explain(f"a commit was fenced {_TIMES} times, though its journals are still owned")

    def _check_held(self, places: Mapping[Claim, Place]) -> None:
        """Raises Fenced."""
        lost = [claim for claim, place in places.items() if self._held.get(place, (None,))[0] is not claim]
        if lost:
            names = ", ".join(sorted(f"{claim.topic}[{claim.partition}]" for claim in lost))
            raise Fenced(
                f"a newer owner has claimed {names}; nothing was written",
                frozenset((claim.topic, claim.partition) for claim in lost),
            )

    # --- the producer --------------------------------------------------------------------------------------------

    async def _ready(self, deadline: float) -> Producer:
        """The producer; after it was fenced, or failed, one with a new id, named wherever nobody else has claimed."""
        while self._producer is None:
            if self._last_id is not None:
                await self._begin(self._last_id, deadline)  # what it left open is undone
            self._last_id = f"{self._prefix}thalweg-{secrets.token_hex(12)}"
            self._ids.add(self._last_id)
            producer = await self._begin(self._last_id, deadline)
            try:
                await self._mark_again(producer, deadline)
            except FencedOut:
                await asyncio.sleep(random.uniform(0.01, 0.05))
            else:
                self._producer = producer
        return self._producer

    async def _mark_again(self, producer: Producer, deadline: float) -> None:
        me = producer.transactional_id or ""
        while self._held:
            journals = {place: journal for place, (_, journal) in self._held.items()}
            tails = await self._tails(journals)
            for place, (_, owner) in tails.items():
                if owner not in self._ids:
                    del self._held[place], journals[place]
            if not journals:
                return
            strangers: dict[Place, set[str]] = {}
            alone = partial(self._alone, journals, tails, frozenset(), strangers)
            again = Message(None, headers=((OWNER, me.encode()), (AGAIN, b"")))
            batches = self._batches(journals, {place: [again] for place in journals})
            try:
                await transact(self._cluster, producer, batches, deadline, alone)
                return
            except Undone:
                for place in strangers:  # another is about to own it
                    del self._held[place]

    async def _transact(
        self,
        producer: Producer,
        batches: Mapping[Place, Sequence[Outgoing]],
        deadline: float,
        allowed: Callable[[Written], Awaitable[bool]] | None = None,
    ) -> Written:
        try:
            return await transact(self._cluster, producer, batches, deadline, allowed)
        except Undone:
            raise
        except BaseException:
            self._producer = None
            raise

    async def _begin(self, transactional_id: str, deadline: float) -> Producer:
        return await Producer.begin(self._cluster, deadline, transactional_id, self._transaction_timeout)

    def _batches(
        self, topics: Mapping[Place, Topic], records: Mapping[Place, Sequence[Message]]
    ) -> Mapping[Place, Sequence[Outgoing]]:
        return {p: fill(messages, topics[p].batch_bytes, self._codec, True) for p, messages in records.items()}

    def _partition(self, journal: Topic, number: int) -> Partition:
        return Partition(self._cluster, _LANE, journal, number)

    def _deadline(self) -> float:
        return time.monotonic() + self._cluster.endpoint.timeout

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(ignore_failure)
        return task

    def _check_open(self) -> None:
        if self._closed:
            raise self._cluster.explain("the transport is not open; call open() first")

    async def close(self) -> None:
        """What is under way may end, for as long as an answer may take."""
        self._closed = True
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=self._cluster.endpoint.timeout)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)


def _owner(record: Record) -> str | None:
    """Whom a record names; None: it names neither anyone nor nobody."""
    for name, value in record.headers:
        if name == OWNER:
            return value.decode(errors="replace")
    return None


def _named(message: Message, owner: str) -> Message:
    return Message(message.value, message.key, (*message.headers, (OWNER, owner.encode())), message.timestamp)


def _positions(firsts: Sequence[Position], batches: Sequence[Outgoing], count: int) -> Sequence[Position]:
    """Where the first `count` records of these batches lie."""
    if len(firsts) == 1:
        return range(firsts[0], firsts[0] + count)
    found: list[Position] = []
    for first, batch in zip(firsts, batches, strict=True):
        found.extend(range(first, first + batch.count))
    return found[:count]
