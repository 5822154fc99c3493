"""Claims on journals: one owner at a time, and outputs that commit with the record."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from thalweg.capabilities import Claim, Commit, Fencing, Log
from thalweg.channel import Capability, TopicSpec, Transport
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import LONG, Trial, fences, numbered, values
from thalweg.errors import AmbiguousCommit, BrokerError, Fenced, MessageTooLarge
from thalweg.message import Message

from .messages import QUEUE

JOURNAL, OUT = TopicSpec("j", partitions=2), TopicSpec("out", partitions=2)


class Rivals:
    """Two owners of a journal of two partitions, and an output topic."""

    def __init__(self, trial: Trial, transports: list[Transport], journal: Log, out: Log) -> None:
        self.journal, self.out, self.transports = journal, out, transports
        self.j, self.o, self.q = trial.name("j"), trial.name("out"), trial.name("q")

    @property
    def a(self) -> Fencing:
        return fences(self.transports[0])

    @property
    def b(self) -> Fencing:
        return fences(self.transports[1])


async def rivals(trial: Trial, elsewhere: bool = False) -> Rivals:
    """elsewhere: the first may be crashed and stopped."""
    transports = [await trial.open_elsewhere() if elsewhere else await trial.open(), await trial.open()]
    await trial.declare(transports[1], JOURNAL, OUT, QUEUE)
    return Rivals(trial, transports, await trial.reader(transports[1], "j"), await trial.reader(transports[1], "out"))


@prop(Profile.FENCED, Capability.FENCING)
async def a_claim_appends_its_marker_after_all_that_was_committed_before(trial: Trial) -> None:
    r = await rivals(trial)
    first = await r.a.claim(r.j, 0, Message(b"marker a"))
    written = (await r.a.commit({first: Commit(numbered(1))}))[first]
    second = await r.b.claim(r.j, 0, Message(b"marker b"))
    assert first.position < written[0] < second.position
    assert (first.topic, first.partition) == (second.topic, second.partition) == (r.j, 0)
    assert await trial.read(r.journal) == [b"marker a", b"1", b"marker b"]
    assert await trial.read(r.journal, after=written[0]) == [b"marker b"]


@prop(Profile.FENCED, Capability.FENCING)
async def a_commit_appends_records_and_outputs_and_says_where_the_records_lie(trial: Trial) -> None:
    r = await rivals(trial)
    claims = [await r.a.claim(r.j, n, Message(b"m")) for n in range(2)]
    positions = await r.a.commit(
        {
            claims[0]: Commit(numbered(1, 2), {(r.o, 0): numbered(10), (r.o, 1): numbered(11)}),
            claims[1]: Commit(numbered(3), {(r.o, 0): numbered(12)}),
        }
    )
    records, found = await trial.positioned(r.journal, 0, claims[0].position)
    assert values(records) == [b"1", b"2"]
    assert list(positions[claims[0]]) == found
    assert await trial.read(r.journal, 1, claims[1].position) == [b"3"]
    assert await trial.read(r.out, 0) == [b"10", b"12"]
    assert await trial.read(r.out, 1) == [b"11"]


@prop(Profile.FENCED, Capability.FENCING)
async def a_fenced_commit_names_what_is_lost_and_writes_nothing_at_all(trial: Trial) -> None:
    r = await rivals(trial)
    stale, good = await r.a.claim(r.j, 0, Message(b"m")), await r.a.claim(r.j, 1, Message(b"m"))
    await r.b.claim(r.j, 0, Message(b"n"))
    with pytest.raises(Fenced) as caught:
        await r.a.commit(
            {good: Commit(numbered(1), {(r.o, 0): numbered(2)}), stale: Commit([], {(r.o, 1): numbered(3)})}
        )
    assert caught.value.partitions >= {(r.j, 0)}
    assert await trial.read(r.journal, 0) == [b"m", b"n"]
    assert await trial.read(r.journal, 1) == [b"m"]
    assert await trial.read(r.out, 0) == await trial.read(r.out, 1) == []


@prop(Profile.FENCED, Capability.FENCING)
async def after_a_fenced_commit_the_same_worker_can_claim_and_commit_again(trial: Trial) -> None:
    r = await rivals(trial)
    stale = await r.a.claim(r.j, 0, Message(b"m"))
    heir = await r.b.claim(r.j, 0, Message(b"n"))
    with pytest.raises(Fenced):
        await r.a.commit({stale: Commit(numbered(1))})
    other = await r.a.claim(r.j, 1, Message(b"o"))
    await r.a.commit({other: Commit(numbered(2))})
    await r.b.commit({heir: Commit(numbered(3))})
    assert await trial.read(r.journal, 0) == [b"m", b"n", b"3"]
    assert await trial.read(r.journal, 1) == [b"o", b"2"]


@prop(Profile.FENCED, Capability.FENCING)
async def of_rival_claims_only_the_last_can_commit_and_a_lost_one_never_can_again(trial: Trial) -> None:
    r = await rivals(trial)
    owners = [r.a, r.b]
    claims = [await owners[n % 2].claim(r.j, 0, Message(b"%d" % n)) for n in range(5)]
    assert [claim.position for claim in claims] == sorted(claim.position for claim in claims)
    for _ in range(2):
        for number, claim in enumerate(claims[:-1]):
            with pytest.raises(Fenced):
                await owners[number % 2].commit({claim: Commit(numbered(number))})
    last = await owners[0].claim(r.j, 0, Message(b"last"))
    await owners[0].commit({last: Commit(numbered(99))})
    assert (await trial.read(r.journal))[5:] == [b"last", b"99"]


@prop(Profile.FENCED, Capability.FENCING)
async def of_claims_made_at_once_one_at_most_can_commit(trial: Trial) -> None:
    r = await rivals(trial)
    owners = [r.a, r.b]

    async def attempt(number: int) -> bool:
        try:
            claim = await owners[number].claim(r.j, 0, Message(b"m%d" % number))
            await asyncio.sleep(0)
            await owners[number].commit({claim: Commit([Message(b"%d" % number)])})
        except (Fenced, AmbiguousCommit):  # it may have been fenced after it was sent: what lies there decides
            return False
        return True

    for _ in range(3 * trial.size):
        won = await asyncio.gather(attempt(0), attempt(1))
        records = [value for value in await trial.read(r.journal) if value in (b"0", b"1")]
        assert len(records) >= sum(won)
        # A record counts only if its owner's marker is the last before it.
        owner = b""
        for value in await trial.read(r.journal):
            assert value is not None
            owner = value if value.startswith(b"m") else owner
            assert owner == (value if value.startswith(b"m") else b"m" + value)


@prop(Profile.FENCED, Capability.FENCING)
async def a_claim_fences_a_killed_owner(trial: Trial) -> None:
    r = await rivals(trial, elsewhere=True)
    claim = await r.a.claim(r.j, 0, Message(b"m"))
    await r.a.commit({claim: Commit(numbered(1))})
    await trial.rig.crash(r.transports[0])
    heir = await r.b.claim(r.j, 0, Message(b"n"))
    await r.b.commit({heir: Commit(numbered(2))})
    assert await trial.read(r.journal) == [b"m", b"1", b"n", b"2"]


@prop(Profile.FENCED, Capability.FENCING)
async def a_commit_is_whole_or_absent_where_its_process_was_killed(trial: Trial) -> None:
    for turn in range(2 * trial.size):
        r = await rivals(trial, elsewhere=True)
        claim = await r.a.claim(r.j, 0, Message(b"m"))
        told: list[bytes] = []

        async def work(turn: int, r: Rivals, claim: Claim, told: list[bytes]) -> None:
            with suppress(BrokerError):
                for number in range(1000):
                    value = b"%d.%d" % (turn, number)
                    await r.a.commit(
                        {claim: Commit([Message(value)], {(r.o, n): [Message(value)] * 3 for n in range(2)})}
                    )
                    told.append(value)

        working = trial.start(work(turn, r, claim, told))
        some = trial.dice.randint(3, 20)
        async with trial.patience("some commits"):
            while len(told) < some and not working.done():
                await trial.step()
        await trial.rig.crash(r.transports[0])
        await trial.soon(asyncio.wait([working]), "a commit of a killed process to fail")
        await r.b.claim(r.j, 0, Message(b"m"))  # whatever was under way has happened by now, or never will
        written = [value for value in await trial.read(r.journal) if value != b"m"]
        assert set(told) <= set(written)
        for partition in range(2):
            assert await trial.read(r.out, partition) == [value for value in written for _ in range(3)]


@prop(Profile.FENCED, Capability.FENCING)
async def a_zombie_can_neither_commit_nor_send(trial: Trial) -> None:
    r = await rivals(trial, elsewhere=True)
    claim = await r.a.claim(r.j, 0, Message(b"m"))
    await r.a.commit({claim: Commit(numbered(1))})
    await trial.rig.hang(r.transports[0])
    heir = await trial.soon(r.b.claim(r.j, 0, Message(b"n")), "a claim on the journal of a hung owner")
    await r.b.commit({heir: Commit(numbered(2))})
    await trial.rig.resume(r.transports[0])
    with pytest.raises(Fenced):
        await r.a.commit({claim: Commit(numbered(3), {(r.o, 0): numbered(4)})})
    assert await trial.read(r.journal) == [b"m", b"1", b"n", b"2"]
    assert await trial.read(r.out) == []


@prop(Profile.FENCED, Capability.FENCING)
async def an_oversize_record_or_output_stops_the_whole_commit(trial: Trial) -> None:
    r = await rivals(trial)
    claims = [await r.a.claim(r.j, n, Message(b"m")) for n in range(2)]
    big = [Message(b"x" * (trial.message_bytes(r.transports[0]) + 1))]
    for commit in (Commit(big), Commit(numbered(1), {(r.o, 0): numbered(2), (r.o, 1): big})):
        with pytest.raises(MessageTooLarge):
            await r.a.commit({claims[0]: Commit(numbered(0), {(r.o, 0): numbered(3)}), claims[1]: commit})
    assert await trial.read(r.journal, 0) == await trial.read(r.journal, 1) == [b"m"]
    assert await trial.read(r.out, 0) == await trial.read(r.out, 1) == []
    await r.a.commit({claims[0]: Commit(numbered(1)), claims[1]: Commit(numbered(2))})
    assert await trial.read(r.journal, 0) == [b"m", b"1"]


@prop(Profile.FENCED, Capability.FENCING)
async def a_queue_takes_no_fenced_outputs_and_nothing_else_is_written(trial: Trial) -> None:
    r = await rivals(trial)
    claim = await r.a.claim(r.j, 0, Message(b"m"))
    with pytest.raises(BrokerError, match=r.q):
        await r.a.commit({claim: Commit(numbered(1), {(r.o, 0): numbered(2), (r.q, 0): numbered(3)})})
    assert await trial.read(r.journal) == [b"m"]
    assert await trial.read(r.out) == []


@prop(Profile.FENCED, Capability.FENCING)
async def a_commit_above_the_limit_of_messages_writes_nothing(trial: Trial) -> None:
    r = await rivals(trial)
    limit = r.transports[0].limits.commit_messages
    claim = await r.a.claim(r.j, 0, Message(b"m"))
    if limit is None:
        many = numbered(*range(3000))
        assert len((await r.a.commit({claim: Commit(many[:1500], {(r.o, 0): many[1500:]})}))[claim]) == 1500
        assert len(await trial.read(r.journal)) == 1501
        assert len(await trial.read(r.out)) == 1500
        return
    with pytest.raises(BrokerError, match=str(limit)):
        await r.a.commit({claim: Commit(numbered(1), {(r.o, 0): numbered(*range(limit))})})
    assert await trial.read(r.journal) == [b"m"]
    assert await trial.read(r.out) == []
    await r.a.commit({claim: Commit(numbered(1), {(r.o, 0): numbered(*range(limit - 1))})})
    assert len(await trial.read(r.out)) == limit - 1


@prop(Profile.FENCED, Capability.FENCING)
async def a_waiting_reader_sees_a_commit(trial: Trial) -> None:
    r = await rivals(trial)
    read = trial.start(r.out.read({1: None}, LONG, LONG, 3600))
    await asyncio.sleep(0)
    claim = await r.a.claim(r.j, 0, Message(b"m"))
    await r.a.commit({claim: Commit(numbered(1), {(r.o, 1): numbered(2)})})
    assert values((await trial.soon(read, "a waiting read to return"))[1].records) == [b"2"]


@prop(Profile.FENCED, Capability.FENCING)
async def many_tasks_commit_side_by_side(trial: Trial) -> None:
    r = await rivals(trial)
    claims = [await r.a.claim(r.j, n, Message(b"m")) for n in range(2)]
    count = 10 * trial.size

    async def work(which: int) -> None:
        for number in range(count):
            await r.a.commit({claims[which]: Commit([Message(b"%d" % number)])})

    await asyncio.gather(work(0), work(1))
    for partition in range(2):
        assert (await trial.read(r.journal, partition))[1:] == [b"%d" % n for n in range(count)]


@prop(Profile.FENCED, Capability.FENCING)
async def a_cancelled_commit_is_whole_or_absent_and_the_claim_goes_on(trial: Trial) -> None:
    r = await rivals(trial)
    claims = [await r.a.claim(r.j, n, Message(b"m")) for n in range(2)]
    count, returned = 15 * trial.size, set[bytes]()
    for number in range(count):
        message = numbered(number)
        work = {claims[0]: Commit(message, {(r.o, 0): message}), claims[1]: Commit(message, {(r.o, 1): message})}
        commit = asyncio.create_task(r.a.commit(work))
        for _ in range(trial.dice.randrange(8)):
            await asyncio.sleep(0)
        commit.cancel()
        await asyncio.wait([commit])
        if not commit.cancelled():
            commit.result()
            returned.add(b"%d" % number)
    last = numbered(count)
    work = {claims[0]: Commit(last, {(r.o, 0): last}), claims[1]: Commit(last, {(r.o, 1): last})}
    await r.a.commit(work)
    seen = (await trial.read(r.journal))[1:]
    assert len(seen) == len(set(seen)), "a cancelled commit was written twice"
    assert {*returned, b"%d" % count} <= set(seen)
    assert (await trial.read(r.journal, 1))[1:] == seen == await trial.read(r.out, 0) == await trial.read(r.out, 1)
