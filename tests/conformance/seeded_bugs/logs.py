"""Bugs of logs: records and positions, waiting, the ends of a log."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast
from zlib import crc32

import msgspec
from thalweg.capabilities import Bounds
from thalweg.channel import Channel, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, Gap, MessageTooLarge
from thalweg.message import Batch, Message, Position
from thalweg.transports.memory.group import LogGroup

from .base import ChannelThrough, LogThrough, Seeded, caught_by

replace = msgspec.structs.replace
Places = Mapping[int, Position | None]


# --- reading -------------------------------------------------------------------------------------------------


@caught_by("reading_after_a_position_starts_with_the_next_record")
class ReadsFromThePositionItself(Seeded):
    """Inclusive, as so many APIs are."""

    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            shifted = {n: p if p is None else (p - 1 if p else None) for n, p in after.items()}
            return await super().read(shifted, limit, max_bytes, timeout)


@caught_by("reading_after_a_position_starts_with_the_next_record")
class SkipsOne(Seeded):
    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            ends = {n: (await self.inner.bounds(n)).last for n in after}
            shifted = {n: p if p is None else min(p + 1, ends[n] or p) for n, p in after.items()}
            return await super().read(shifted, limit, max_bytes, timeout)


@caught_by("reading_moves_nothing_and_readers_are_independent")
class ReadingMovesACursor(Seeded):
    """A consumer that remembers how far it is, whatever it is asked for."""

    class logs(LogThrough):
        def __init__(self, inner: Any, transport: Seeded) -> None:
            super().__init__(inner, transport)
            self.at: dict[int, Position] = {}

        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            here = {n: self.at.get(n) if p is None else p for n, p in after.items()}
            found = await super().read(here, limit, max_bytes, timeout)
            self.at |= {n: batch.positions[-1] for n, batch in found.items()}
            return found


@caught_by("partitions_take_turns_so_that_none_starves")
class StarvesPartitions(Seeded):
    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            self.inner._turn = -1
            return await super().read(after, limit, max_bytes, timeout)


@caught_by("a_read_gives_at_most_limit_records_a_partition")
class IgnoresReadLimit(Seeded):
    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            return await super().read(after, 1 << 30, max_bytes, timeout)


@caught_by("a_read_gives_about_max_bytes_and_at_least_one_record")
class IgnoresMaxBytes(Seeded):
    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            return await super().read(after, limit, max(max_bytes, 1 << 30), timeout)


@caught_by("max_bytes_counts_all_partitions_together")
class MaxBytesIsPerPartition(Seeded):
    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            found: dict[int, Batch] = {}
            for n, position in after.items():
                found |= await super().read({n: position}, limit, max_bytes, 0)
            return found or await super().read(after, limit, max_bytes, timeout)


@caught_by("one_large_record_does_not_make_later_reads_small")
class LargeRecordsMakeReadsSmall(Seeded):
    """Sizes a fetch by the largest record it has ever seen."""

    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            largest = max(self.transport.broker.log(self.inner._topic.name).partition(n)._largest for n in after)
            return await super().read(after, min(limit, max(1, max_bytes // max(1, largest))), max_bytes, timeout)


@caught_by("a_waiting_read_wakes_when_any_of_its_partitions_is_written")
class WaitsForTheFirstPartition(Seeded):
    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            found = await super().read(after, limit, max_bytes, 0)
            if found or not timeout or not after:
                return found
            first = next(iter(after))
            return await super().read({first: after[first]}, limit, max_bytes, timeout)


@caught_by("a_read_without_records_is_empty_at_its_time_out")
class ReadIgnoresTimeout(Seeded):
    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            return await super().read(after, limit, max_bytes, 1e9 if 0 < timeout < 1 else timeout)


@caught_by("many_tasks_share_one_reader")
class OneReadAtATime(Seeded):
    class logs(LogThrough):
        busy = False

        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            if self.busy:
                raise BrokerError("read() called while another coroutine is already waiting")
            self.busy = True
            try:
                return await super().read(after, limit, max_bytes, timeout)
            finally:
                self.busy = False


@caught_by("closing_a_reader_ends_its_waiting_read_and_no_other")
class ReadersShareAFetcher(Seeded):
    """Closing one closes what the others wait on."""

    class logs(LogThrough):
        async def close(self) -> None:
            await super().close()
            for waiter in list(self.transport.session._waiters) if self.transport.session else ():
                if not waiter.done():
                    waiter.set_exception(BrokerError("the reader is closed"))


# --- appending -----------------------------------------------------------------------------------------------


@caught_by("a_record_comes_back_as_it_was_written")
class LogDropsHeaderOrder(Seeded):
    class logs(LogThrough):
        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            changed = {n: [replace(m, headers=tuple(sorted(m.headers))) for m in part] for n, part in records.items()}
            return await super().append(changed)


@caught_by("append_says_where_each_record_lies_and_read_agrees")
class SaysWhereTheBatchLies(Seeded):
    """The base offset of the batch, for each of its records."""

    class logs(LogThrough):
        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            found = await super().append(records)
            return {n: [places[0]] * len(places) for n, places in found.items()}


@caught_by("appends_of_several_writers_are_in_one_order_that_all_readers_see")
class EachReaderHasItsOrder(Seeded):
    """Order by who wrote it, own records first: no total order."""

    class logs(LogThrough):
        mine: frozenset[bytes | None] = frozenset()

        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            self.mine |= {message.value for part in records.values() for message in part}
            await asyncio.sleep(0)
            return await super().append(records)

        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            found = await super().read(after, limit, max_bytes, timeout)
            return {
                n: Batch(sorted(batch.records, key=lambda r: r.value not in self.mine), batch.positions)
                for n, batch in found.items()
            }


@caught_by("an_oversize_record_is_refused_and_nothing_of_the_call_is_written")
class AppendsPartitionByPartition(Seeded):
    """What lies before the record that is refused is written."""

    class logs(LogThrough):
        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            found: dict[int, Sequence[Position]] = {}
            for partition, part in records.items():
                found |= await super().append({partition: part})
            return found


@caught_by("a_partition_that_does_not_exist_is_an_error_and_nothing_is_written")
class PartitionsByModulo(Seeded):
    class logs(LogThrough):
        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            count = len(self.inner._topic.partitions)
            found: dict[int, Sequence[Position]] = {}
            for partition, part in records.items():
                found |= {partition: (await super().append({partition % count: part}))[partition % count]}
            return found


@caught_by("topics_and_partitions_are_separate")
class OnePartitionForAll(Seeded):
    class logs(LogThrough):
        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            count = len(self.inner._topic.partitions)
            if any(not 0 <= n < count for n in records) or count < 3:
                return await super().append(records)
            found = (await super().append({0: list(itertools.chain.from_iterable(records.values()))}))[0]
            return {n: found[: len(part)] for n, part in records.items()}


@caught_by("an_oversize_record_is_refused_and_nothing_of_the_call_is_written")
class LogTruncatesOversize(Seeded):
    class logs(LogThrough):
        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            try:
                return await super().append(records)
            except MessageTooLarge:
                return await super().append({n: [replace(m, value=b"") for m in part] for n, part in records.items()})


# --- the ends ------------------------------------------------------------------------------------------------


@caught_by("truncate_drops_nothing_at_or_after_the_position")
class TruncatesOneTooMany(Seeded):
    class logs(LogThrough):
        async def truncate(self, partition: int, before: Position) -> None:
            await super().truncate(partition, before + 1)


@caught_by("truncate_drops_nothing_at_or_after_the_position")
class TruncatesEveryPartition(Seeded):
    class logs(LogThrough):
        async def truncate(self, partition: int, before: Position) -> None:
            for number in range(len(self.inner._topic.partitions)):
                await super().truncate(number, before)


@caught_by("a_position_whose_followers_may_be_gone_is_a_gap_and_one_that_is_itself_gone_is_not")
class GapsAreSilent(Seeded):
    """auto.offset.reset=earliest."""

    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            try:
                return await super().read(after, limit, max_bytes, timeout)
            except Gap:
                return await super().read(dict.fromkeys(after), limit, max_bytes, timeout)


@caught_by("a_position_whose_followers_may_be_gone_is_a_gap_and_one_that_is_itself_gone_is_not")
class GapWhereThePositionIsGone(Seeded):
    """The stored position is missing: though it was read, and nothing after it is missing."""

    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            for partition, position in after.items():
                first = (await self.inner.bounds(partition)).first
                if position is not None and first is not None and position < first:
                    raise Gap(self.inner._topic.name, partition, position, first)
            return await super().read(after, limit, max_bytes, timeout)


@caught_by("a_log_that_was_emptied_goes_on_after_its_last_position")
class EmptiedLogsStartOver(Seeded):
    class logs(LogThrough):
        async def truncate(self, partition: int, before: Position) -> None:
            await super().truncate(partition, before)
            home = self.transport.broker.log(self.inner._topic.name).partition(partition)
            if not home.records:
                home.first = 0


@caught_by("bounds_are_the_first_and_the_last_position")
class BoundsEndWithTheNext(Seeded):
    """The high watermark: where the next record will lie."""

    class logs(LogThrough):
        async def bounds(self, partition: int) -> Bounds:
            found = await super().bounds(partition)
            return found if found.last is None else Bounds(found.first, found.last + 1)


@caught_by("bounds_are_the_first_and_the_last_position")
class EmptyBoundsAreZero(Seeded):
    class logs(LogThrough):
        async def bounds(self, partition: int) -> Bounds:
            found = await super().bounds(partition)
            return Bounds(found.first or 0, found.last or 0)


@caught_by("find_leads_to_the_earliest_record_of_a_time_even_if_times_go_back")
class FindIsOffByOne(Seeded):
    """The record itself instead of the one before it."""

    class logs(LogThrough):
        async def find(self, partition: int, timestamp: int) -> Position | None:
            found, last = await super().find(partition, timestamp), (await self.inner.bounds(partition)).last
            return found if last is None else 0 if found is None else min(found + 1, last)


@caught_by("find_leads_to_the_earliest_record_of_a_time_even_if_times_go_back")
class FindBisects(Seeded):
    """Takes times to be sorted."""

    class logs(LogThrough):
        async def find(self, partition: int, timestamp: int) -> Position | None:
            found: Position | None = None
            records = cast(Any, self.transport.broker.log(self.inner._topic.name).partition(partition)).records
            low, high = 0, len(records)
            while low < high:
                middle = (low + high) // 2
                if records[middle].timestamp < timestamp:
                    low, found = middle + 1, middle
                else:
                    high = middle
            return found


@caught_by("find_leads_to_the_earliest_record_of_a_time_even_if_times_go_back")
class FindFallsBackToTheStart(Seeded):
    """Where all are older, it answers as if there were none."""

    class logs(LogThrough):
        async def find(self, partition: int, timestamp: int) -> Position | None:
            found = await super().find(partition, timestamp)
            return None if found == (await self.inner.bounds(partition)).last else found


@caught_by("find_after_a_truncation_leads_to_what_is_kept")
class FindForgetsTruncation(Seeded):
    """Counts from the first record kept, as if its position were 0."""

    class logs(LogThrough):
        async def find(self, partition: int, timestamp: int) -> Position | None:
            found, first = await super().find(partition, timestamp), (await self.inner.bounds(partition)).first
            return found if found is None or first is None else found - first


# --- what a log shares with channels and settings ------------------------------------------------------------


@caught_by("a_channel_puts_a_key_where_murmur2_puts_it")
class ChannelsPartitionByCrc(Seeded):
    """The broker's own hashing."""

    class channels(ChannelThrough):
        def __init__(self, inner: Any, transport: Seeded) -> None:
            super().__init__(inner, transport)
            group = getattr(inner, "_group", None)
            if isinstance(group, LogGroup):
                count = len(group.partitions)
                group.partition_for = lambda key: crc32(key or b"") % count  # type: ignore[method-assign]


@caught_by("a_log_and_its_channels_see_the_same_messages")
class ChannelsHaveMessagesOfTheirOwn(Seeded):
    """A topic's channel is a queue beside its log."""

    async def channel(self, topic: str, group: str) -> Channel:
        if self.broker.topic(topic).info.queue:
            return await super().channel(topic, group)
        await super().declare([TopicSpec(f"channel of {topic}")])
        return await super().channel(f"channel of {topic}", group)

    async def topics(self) -> Sequence[TopicInfo]:
        return [info for info in await super().topics() if not info.name.startswith("channel of ")]


@caught_by("a_retention_of_minutes_drops_nothing_within_seconds")
class RetentionInMilliseconds(Seeded):
    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        changed = [replace(s, retention=s.retention and s.retention / 1000) for s in topics]
        return await super().declare(changed)


@caught_by("a_log_of_records_of_all_sizes_is_read_whole_in_small_bites")
class DropsWhatDoesNotFit(Seeded):
    """A record that is larger than what may be read at once is passed over."""

    class logs(LogThrough):
        async def read(self, after: Places, limit: int, max_bytes: int, timeout: float) -> Mapping[int, Batch]:
            found = await super().read(after, limit, max_bytes, timeout)
            if 100 < max_bytes < 10_000:
                for n, batch in found.items():
                    if cast(Any, batch.records[0]).size > max_bytes:
                        return await super().read({**after, n: batch.positions[0]}, limit, max_bytes, timeout)
            return found


@caught_by("a_cancelled_append_is_written_once_at_most_and_the_log_goes_on")
class CancelledAppendWritesTwice(Seeded):
    class logs(LogThrough):
        async def append(
            self, records: Mapping[int, Sequence[Message]], positions: bool = True
        ) -> Mapping[int, Sequence[Position]]:
            found = await super().append(records)
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                await super().append(records)
                raise
            return found
