"""Bugs of claims and commits: two owners, halves of commits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

from thalweg.capabilities import Claim, Commit
from thalweg.errors import BrokerError, Fenced, MessageTooLarge
from thalweg.message import Message, Position
from thalweg.transports.memory.partition import MemoryClaim

from .base import Seeded, caught_by

Commits = Mapping[Claim, Commit]
Written = Mapping[Claim, Sequence[Position]]


def stale(commits: Commits) -> list[Claim]:
    return [claim for claim in commits if cast(Any, claim).home.owner is not claim]


@caught_by("a_zombie_can_neither_commit_nor_send")
class IgnoresFencing(Seeded):
    """Nobody asks whether the owner is still the owner."""

    async def commit(self, commits: Commits) -> Written:
        for claim in commits:
            cast(Any, claim).home.owner = claim
        return await super().commit(commits)


@caught_by("a_fenced_commit_names_what_is_lost_and_writes_nothing_at_all")
class FencedCommitWritesOutputs(Seeded):
    """Outputs are sent before the journal is."""

    async def commit(self, commits: Commits) -> Written:
        if not stale(commits):
            return await super().commit(commits)
        for commit in commits.values():
            for (topic, partition), messages in commit.outputs.items():
                await (await super().log(topic)).append({partition: messages})
        return await super().commit(commits)


@caught_by("a_fenced_commit_names_what_is_lost_and_writes_nothing_at_all")
class CommitsTheClaimsThatAreGood(Seeded):
    """Claim by claim: those that are not fenced are written."""

    async def commit(self, commits: Commits) -> Written:
        found: dict[Claim, Sequence[Position]] = {}
        lost: set[tuple[str, int]] = set()
        for claim, commit in commits.items():
            try:
                found |= await super().commit({claim: commit})
            except Fenced as error:
                lost |= error.partitions
        if lost:
            raise Fenced("fenced", frozenset(lost))
        return found


@caught_by("a_fenced_commit_names_what_is_lost_and_writes_nothing_at_all")
class FencedNamesNothing(Seeded):
    async def commit(self, commits: Commits) -> Written:
        try:
            return await super().commit(commits)
        except Fenced as error:
            raise Fenced(str(error)) from None


@caught_by("an_oversize_record_or_output_stops_the_whole_commit")
class OversizeOutputIsLeftOut(Seeded):
    """The record is written, the output that is too large is not."""

    async def commit(self, commits: Commits) -> Written:
        try:
            return await super().commit(commits)
        except MessageTooLarge:
            await super().commit({claim: Commit(commit.records[:1]) for claim, commit in commits.items()})
            raise


@caught_by("a_commit_appends_records_and_outputs_and_says_where_the_records_lie")
class LosesOutputs(Seeded):
    """Of several claims that write to one topic, the last one's outputs remain."""

    async def commit(self, commits: Commits) -> Written:
        merged: dict[tuple[str, int], Sequence[Message]] = {}
        for commit in commits.values():
            merged |= commit.outputs
        first = next(iter(commits))
        changed = {claim: Commit(commit.records, merged if claim is first else {}) for claim, commit in commits.items()}
        return await super().commit(changed)


@caught_by("a_commit_appends_records_and_outputs_and_says_where_the_records_lie")
class SaysWhereTheOutputsLie(Seeded):
    async def commit(self, commits: Commits) -> Written:
        found = await super().commit(commits)
        return {claim: [place - 1 for place in places] for claim, places in found.items()}


@caught_by("a_claim_appends_its_marker_after_all_that_was_committed_before")
class ClaimWritesNoMarker(Seeded):
    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        self._up()
        home = self.broker.log(topic).partition(partition)
        home.owner = MemoryClaim(home, home.end)
        return home.owner


@caught_by("of_rival_claims_only_the_last_can_commit_and_a_lost_one_never_can_again")
class FencesByName(Seeded):
    """The owner is a worker, not a claim: one that had lost the journal may commit by its old claim again."""

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        claim = await super().claim(topic, partition, marker)
        cast(Any, self).__dict__.setdefault("claimed", {})[topic, partition] = claim
        return claim

    async def commit(self, commits: Commits) -> Written:
        newest = cast(Any, self).__dict__.get("claimed", {})
        renamed = {newest.get((claim.topic, claim.partition), claim): claim for claim in commits}
        found = await super().commit({new: commits[old] for new, old in renamed.items()})
        return {renamed[new]: places for new, places in found.items()}


@caught_by("after_a_fenced_commit_the_same_worker_can_claim_and_commit_again")
class FencedForGood(Seeded):
    """One transactional id for all: fenced once, fenced everywhere."""

    fenced = False

    async def commit(self, commits: Commits) -> Written:
        if self.fenced:
            raise Fenced("fenced", frozenset((claim.topic, claim.partition) for claim in commits))
        try:
            return await super().commit(commits)
        except Fenced:
            self.fenced = True
            raise


@caught_by("a_commit_above_the_limit_of_messages_writes_nothing", "commit_messages=50")
class SplitsLargeCommits(Seeded):
    """What does not fit into one call goes into several."""

    async def commit(self, commits: Commits) -> Written:
        try:
            return await super().commit(commits)
        except BrokerError as error:
            if "commit_messages" not in str(error):
                raise
        for commit in commits.values():
            for (topic, partition), messages in commit.outputs.items():
                await (await super().log(topic)).append({partition: messages})
        return await super().commit({claim: Commit(commit.records) for claim, commit in commits.items()})


@caught_by("a_queue_takes_no_fenced_outputs_and_nothing_else_is_written")
class SkipsOutputsToQueues(Seeded):
    async def commit(self, commits: Commits) -> Written:
        queues = {info.name for info in await self.topics() if info.queue}
        kept = {
            claim: Commit(commit.records, {to: m for to, m in commit.outputs.items() if to[0] not in queues})
            for claim, commit in commits.items()
        }
        return await super().commit(kept)


@caught_by("a_commit_of_outputs_alone_and_one_of_nothing_are_commits_too")
class SkipsCommitsWithoutRecords(Seeded):
    """No record, no commit; and its outputs?"""

    async def commit(self, commits: Commits) -> Written:
        if any(commit.records for commit in commits.values()):
            return await super().commit(commits)
        return {claim: [] for claim in commits}


@caught_by("what_a_commit_sends_is_delivered_by_channels_in_its_order")
class ReordersOutputs(Seeded):
    """Outputs are sent side by side."""

    async def commit(self, commits: Commits) -> Written:
        turned = {
            claim: Commit(commit.records, {to: messages[::-1] for to, messages in commit.outputs.items()})
            for claim, commit in commits.items()
        }
        return await super().commit(turned)


@caught_by("a_cancelled_commit_is_whole_or_absent_and_the_claim_goes_on")
class CancelledCommitIsHalf(Seeded):
    """Two calls: the records, then the outputs."""

    async def commit(self, commits: Commits) -> Written:
        if stale(commits) or not any(commit.outputs for commit in commits.values()):
            return await super().commit(commits)
        if any(m.size > 10 for c in commits.values() for part in c.outputs.values() for m in part):
            return await super().commit(commits)
        found = await super().commit({claim: Commit(commit.records) for claim, commit in commits.items()})
        await asyncio.sleep(0)
        await super().commit({claim: Commit([], commit.outputs) for claim, commit in commits.items()})
        return found
