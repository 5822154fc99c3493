"""Bugs of channels: messages lost, repeated, reordered, changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

import msgspec
from thalweg.channel import Channel, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, MessageTooLarge, ThalwegError
from thalweg.message import Delivery, Message
from thalweg.transports.memory.group import LogChannel, LogGroup
from thalweg.transports.memory.queues import QueueChannel

from .base import ChannelThrough, Seeded, caught_by

replace = msgspec.structs.replace


# --- get -----------------------------------------------------------------------------------------------------


@caught_by("a_cancelled_get_loses_nothing")
class CancelledGetDrops(Seeded):
    """A task of its own goes on fetching, and acknowledges on arrival; nobody takes what it brings."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            fetching = asyncio.ensure_future(self.inner.get(limit, timeout))
            try:
                return await asyncio.shield(fetching)
            except asyncio.CancelledError:
                fetching.add_done_callback(self.acknowledge)
                raise

        def acknowledge(self, fetching: asyncio.Future[Sequence[Delivery]]) -> None:
            if not fetching.cancelled() and fetching.exception() is None:
                self.kept = asyncio.ensure_future(self.inner.commit(fetching.result()))


@caught_by("after_a_cancelled_get_the_same_channel_delivers_what_there_is")
class CancelledGetKeeps(Seeded):
    """What a cancelled call fetched stays in hand, and comes only when the channel is closed."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            return await asyncio.shield(asyncio.ensure_future(self.inner.get(limit, timeout)))


@caught_by("what_is_committed_never_comes_back_and_the_rest_does_with_one_more_attempt")
class AcknowledgesOnDelivery(Seeded):
    """At most once: a message is done as soon as it is delivered."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            found = await super().get(limit, timeout)
            await self.inner.commit(found)
            return found


@caught_by("a_get_without_messages_is_empty_at_its_time_out")
class IgnoresTimeout(Seeded):
    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            return await super().get(limit, 1e9 if timeout else 0)


@caught_by("a_get_gives_at_most_its_limit")
class IgnoresLimit(Seeded):
    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            return await super().get(max(limit, 500), timeout)


@caught_by("gets_that_time_out_lose_nothing")
class TimeoutDrops(Seeded):
    """Waits by `wait_for` of a fetch that acknowledges: what comes in the moment of the time-out is lost."""

    class channels(ChannelThrough):
        turn = 0

        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            found = await super().get(limit, timeout)
            if found and timeout < 0.01:
                self.turn += 1
                if self.turn % 5 == 0:
                    await self.inner.commit(found)
                    return []
            return found


@caught_by("what_came_back_is_delivered_before_later_messages_of_its_key")
class ReordersAfterReconnect(Seeded):
    """What came back is put at the end of the line."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            found = await super().get(limit, timeout)
            return sorted(found, key=lambda delivery: delivery.attempts > 1)


@caught_by("the_count_of_attempts_grows_with_each_return")
class AttemptsNeverGrow(Seeded):
    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            return [Delivery(d.record, min(d.attempts, 2), d.handle) for d in await super().get(limit, timeout)]


@caught_by("messages_of_one_key_come_in_order_within_and_across_puts")
class NewestFirst(Seeded):
    """A stack."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            return (await super().get(limit, timeout))[::-1]


# --- put -----------------------------------------------------------------------------------------------------


class ChangesMessages(ChannelThrough):
    """What a codec does to messages on their way."""

    def changed(self, message: Message) -> Message:
        raise NotImplementedError

    async def put(self, messages: Sequence[Message]) -> None:
        await super().put([self.changed(message) for message in messages])


@caught_by("a_message_is_delivered_as_it_was_put")
class DropsDuplicateHeaders(Seeded):
    class channels(ChangesMessages):
        def changed(self, message: Message) -> Message:
            return replace(message, headers=tuple(dict(message.headers).items()))


@caught_by("a_message_is_delivered_as_it_was_put")
class EmptyValueBecomesTombstone(Seeded):
    class channels(ChangesMessages):
        def changed(self, message: Message) -> Message:
            return replace(message, value=message.value or None)


@caught_by("a_message_is_delivered_as_it_was_put")
class TombstoneBecomesEmptyValue(Seeded):
    class channels(ChangesMessages):
        def changed(self, message: Message) -> Message:
            return replace(message, value=message.value or b"")


@caught_by("a_message_is_delivered_as_it_was_put")
class EmptyKeyBecomesNone(Seeded):
    class channels(ChangesMessages):
        def changed(self, message: Message) -> Message:
            return replace(message, key=message.key or None)


@caught_by("a_message_is_delivered_as_it_was_put")
class HeadersAreText(Seeded):
    class channels(ChangesMessages):
        def changed(self, message: Message) -> Message:
            headers = tuple((name, value.decode(errors="replace").encode()) for name, value in message.headers)
            return replace(message, headers=headers)


@caught_by("a_message_is_delivered_as_it_was_put")
class TimestampsInSeconds(Seeded):
    class channels(ChangesMessages):
        def changed(self, message: Message) -> Message:
            return replace(message, timestamp=message.timestamp // 1000 * 1000)


@caught_by("an_oversize_message_is_refused_and_nothing_of_the_put_is_written")
class TruncatesOversize(Seeded):
    class channels(ChangesMessages):
        def changed(self, message: Message) -> Message:
            over = message.size - (self.transport.limits.message_bytes or 0)
            value = message.value or b""
            return replace(message, value=value[: len(value) - over]) if 0 < over <= len(value) else message


@caught_by("an_oversize_message_is_refused_and_nothing_of_the_put_is_written")
class WritesUpToTheOversizeOne(Seeded):
    """One call a message: those before the one that is refused are written."""

    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            for message in messages:
                await super().put([message])


@caught_by("an_oversize_message_is_refused_and_nothing_of_the_put_is_written")
class SwallowsOversize(Seeded):
    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            with contextlib.suppress(MessageTooLarge):
                await super().put(messages)


@caught_by("closing_twice_and_at_once_is_harmless_and_later_calls_raise")
class SwallowsPutErrors(Seeded):
    """Logs them, perhaps."""

    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            with contextlib.suppress(BrokerError):
                await super().put(messages)


@caught_by("a_message_of_the_largest_size_is_delivered")
class StatesTooLargeALimit(Seeded):
    """What the client takes, not the server."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.limits = replace(self.limits, message_bytes=(self.limits.message_bytes or 0) + 1)


@caught_by("what_was_acknowledged_to_a_producer_survives_its_death")
class PutReturnsEarly(Seeded):
    """Buffers, and sends a little later: linger."""

    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            self.transport._up()
            for message in messages:
                if message.size > (self.transport.limits.message_bytes or 0):
                    return await super().put(messages)
            loop = asyncio.get_running_loop()
            self.transport.broker.clock.call_later(0.001, lambda: loop.create_task(self.send(messages)))
            return None

        async def send(self, messages: Sequence[Message]) -> None:
            with contextlib.suppress(ThalwegError):
                await super().put(messages)


@caught_by("a_cancelled_put_is_written_or_not_and_the_channel_still_works")
class CancelledPutCorrupts(Seeded):
    """As one connection that may not be asked twice at once, and is not told when a call was cancelled."""

    class channels(ChannelThrough):
        busy = False

        async def put(self, messages: Sequence[Message]) -> None:
            if self.busy:
                raise BrokerError("another operation is in progress")
            self.busy = True
            await asyncio.sleep(0)
            await super().put(messages)
            self.busy = False


@caught_by("a_cancelled_put_is_written_or_not_and_the_channel_still_works")
class CancelledPutWritesTwice(Seeded):
    """A retry that does not know that the first attempt was through."""

    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            await super().put(messages)
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                await super().put(messages)
                raise


@caught_by("each_producers_messages_of_a_key_keep_their_order")
class SendsInParallel(Seeded):
    """Every other put overtakes the one before it."""

    class channels(ChannelThrough):
        late: Sequence[Message] = ()

        async def put(self, messages: Sequence[Message]) -> None:
            if self.late or not messages or self.transport.limits.message_bytes is None:
                messages, self.late = [*messages, *self.late], ()
                await super().put(messages)
            elif len(messages) == 1 and messages[0].size < 10:
                self.late = messages
                loop = asyncio.get_running_loop()
                loop.call_soon(lambda: loop.create_task(self.flush()))
                await asyncio.sleep(0)
            else:
                await super().put(messages)

        async def flush(self) -> None:
            messages, self.late = self.late, ()
            await super().put(messages)


# --- commit --------------------------------------------------------------------------------------------------


@caught_by("what_a_killed_member_had_in_hand_comes_back_and_what_it_committed_does_not")
class CommitReturnsEarly(Seeded):
    """Fire and forget, as so many clients do."""

    class channels(ChannelThrough):
        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            loop = asyncio.get_running_loop()
            self.transport.broker.clock.call_later(0.001, lambda: loop.create_task(self.later(deliveries)))

        async def later(self, deliveries: Sequence[Delivery]) -> None:
            with contextlib.suppress(BrokerError):
                await super().commit(deliveries)


@caught_by("what_is_committed_never_comes_back_and_the_rest_does_with_one_more_attempt")
class CommitPassesGaps(Seeded):
    """A position instead of acknowledgements: what was lent before the last one committed counts as done."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            found = await super().get(limit, timeout)
            self.lent = [*getattr(self, "lent", ()), *found]
            return found

        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            handles = [delivery.handle for delivery in deliveries]
            last = max((n for n, d in enumerate(getattr(self, "lent", ())) if d.handle in handles), default=-1)
            await super().commit([*self.lent[: last + 1], *deliveries] if last >= 0 else deliveries)


@caught_by("what_is_committed_never_comes_back_and_the_rest_does_with_one_more_attempt")
class CommitsOnlyTheFirst(Seeded):
    class channels(ChannelThrough):
        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            await super().commit(deliveries[:1])


@caught_by("many_deliveries_are_committed_in_one_call")
class CommitsFiveHundredAtMost(Seeded):
    """What is above the size of one call is left out."""

    class channels(ChannelThrough):
        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            await super().commit(deliveries[:500])


@caught_by("a_waiting_get_holds_up_no_put_and_no_commit")
class OneCallAtATime(Seeded):
    """A lock around one connection."""

    class channels(ChannelThrough):
        def __init__(self, inner: Any, transport: Seeded) -> None:
            super().__init__(inner, transport)
            self.lock = asyncio.Lock()

        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            async with self.lock:
                return await super().get(limit, timeout)

        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            async with self.lock:
                await super().commit(deliveries)


@caught_by("a_delivery_of_another_channel_cannot_be_committed")
class CommitsForOthers(Seeded):
    """By the message's number, whoever has it."""

    class channels(ChannelThrough):
        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                handle = cast(Any, delivery.handle)
                await handle.member.commit([delivery])


@caught_by("committing_twice_is_harmless")
class CommitTwiceRaises(Seeded):
    """A closed AMQP channel: unknown delivery tag."""

    class channels(ChannelThrough):
        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            if any(cast(Any, delivery.handle).done for delivery in deliveries):
                raise BrokerError("PRECONDITION_FAILED - unknown delivery tag")
            await super().commit(deliveries)


@caught_by("a_late_commit_does_not_settle_the_delivery_of_another")
class LateCommitIsSilent(Seeded):
    class channels(ChannelThrough):
        async def commit(self, deliveries: Sequence[Delivery]) -> None:
            with contextlib.suppress(BrokerError):
                await super().commit(deliveries)


# --- groups and members --------------------------------------------------------------------------------------


@caught_by("members_of_a_group_share_the_messages_without_duplicates")
class EachMemberGetsAll(Seeded):
    """Publish and subscribe: each connection is a subscriber of its own, which replays from the group's start."""

    async def channel(self, topic: str, group: str) -> Channel:
        return await super().channel(topic, f"{group}-{id(self)}")


@caught_by("each_group_gets_every_message")
class GroupsShareOnePosition(Seeded):
    async def channel(self, topic: str, group: str) -> Channel:
        return await super().channel(topic, "everybody")


@caught_by("what_was_put_on_a_topic_before_a_group_existed_is_delivered_to_it")
class NewGroupsStartAtTheEnd(Seeded):
    async def channel(self, topic: str, group: str) -> Channel:
        found = self.broker.topic(topic)
        new = not found.info.queue and group not in cast(Any, found).groups
        channel = await super().channel(topic, group)
        if new:
            for cursor in cast(Any, found).groups[group]._cursors:
                cursor._next = cursor.partition.end
        return channel


@caught_by("a_key_is_in_the_hands_of_one_member_at_a_time_and_in_order")
class KeysAreShared(Seeded):
    """Competing consumers, without regard for keys."""

    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            if isinstance(self.inner, LogChannel):
                for cursor in self.inner._group._cursors:
                    cursor._is_anothers = lambda key, member: False  # type: ignore[method-assign]
            await super().put(messages)


@caught_by("a_closed_channel_gives_back_what_it_had_in_hand_at_once")
class CloseForgetsWhatWasLent(Seeded):
    class channels(ChannelThrough):
        async def close(self) -> None:
            self.inner.loans.clear()
            await super().close()


@caught_by("a_closed_channel_gives_back_what_it_had_in_hand_at_once")
class CloseGivesBackAtTheLeasesEnd(Seeded):
    class channels(ChannelThrough):
        async def close(self) -> None:
            loop, loans = asyncio.get_running_loop(), dict(self.inner.loans)
            self.inner.loans.clear()
            await super().close()

            def give_back() -> None:
                if isinstance(self.inner, LogChannel):
                    self.inner._group.give_back(loans)

            if not loop.is_closed():
                self.transport.broker.clock.call_later(30.0, give_back)


@caught_by("a_closed_transport_gives_back_what_its_channels_had_in_hand_at_once")
class CloseCommits(Seeded):
    """A close that "flushes": auto-commit on close."""

    async def close(self) -> None:
        if self.session is not None and self.session.down is None:
            for channel in list(self.session.channels):
                if isinstance(channel, LogChannel):
                    channel._group.commit(list(channel.loans))
        await super().close()


@caught_by("what_a_killed_member_had_in_hand_comes_back_and_what_it_committed_does_not")
class LeaseNeverEnds(Seeded):
    """What a dead consumer has is its for ever."""

    def kill(self) -> None:
        if self.session is not None:
            self.session.down, self.session.ended = "killed", True


@caught_by("slow_work_of_a_living_member_stays_its_own")
class LeaseEndsForTheLiving(Seeded):
    """A visibility time-out: slow work is done twice."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            found = await super().get(limit, timeout)
            if isinstance(self.inner, LogChannel):
                group: LogGroup = self.inner._group
                loans = [cast(Any, delivery.handle) for delivery in found]
                self.transport.broker.clock.call_later(self.inner.lease, lambda: group.give_back(loans))
            return found


@caught_by("a_waiting_get_wakes_for_a_message_of_another_transport")
class WakesForItsOwnOnly(Seeded):
    """Notifications that do not leave the process."""

    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            found = await super().get(limit, 0)
            if not found and timeout:
                if timeout > 60:
                    await asyncio.get_running_loop().create_future()
                return await super().get(limit, timeout)
            return found


@caught_by("closing_a_channel_twice_is_harmless_and_wakes_a_waiting_get")
class CloseDoesNotWake(Seeded):
    class channels(ChannelThrough):
        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            return await asyncio.shield(self._get(limit, timeout))

        def _get(self, limit: int, timeout: float) -> asyncio.Future[Sequence[Delivery]]:
            asked: asyncio.Future[Sequence[Delivery]] = asyncio.get_running_loop().create_future()

            def answer(task: asyncio.Future[Sequence[Delivery]]) -> None:
                if asked.done() or task.cancelled():
                    return
                if (error := task.exception()) is None:
                    asked.set_result(task.result())
                elif "closed" not in str(error) or timeout == 0:
                    asked.set_exception(error)

            self.task = asyncio.ensure_future(self.inner.get(limit, timeout))
            self.task.add_done_callback(answer)
            return asked


# --- topics --------------------------------------------------------------------------------------------------


@caught_by("topics_whose_names_are_alike_are_different_topics")
class NamesCollide(Seeded):
    """What a broker does not allow in names is replaced, and cannot be told apart afterwards."""

    def plain(self, name: str) -> str:
        return name.replace(".", "-").replace("_", "-")

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        found = await super().declare([replace(spec, name=self.plain(spec.name)) for spec in topics])
        return [replace(info, name=spec.name) for info, spec in zip(found, topics, strict=True)]

    async def channel(self, topic: str, group: str) -> Channel:
        return await super().channel(self.plain(topic), group)


@caught_by("a_topic_of_the_other_kind_is_a_mismatch_and_stays_as_it_is")
class TakesAnyKind(Seeded):
    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        known = {info.name: info for info in await self.topics()}
        await super().declare([spec for spec in topics if spec.name not in known])
        known = {info.name: info for info in await self.topics()}
        return [known[spec.name] for spec in topics]


@caught_by("what_belongs_to_others_must_exist_and_is_not_created")
class CreatesWhatBelongsToOthers(Seeded):
    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        return await super().declare([replace(spec, declare=True) for spec in topics])


@caught_by("a_topic_that_was_not_declared_is_an_error")
class CreatesOnUse(Seeded):
    async def channel(self, topic: str, group: str) -> Channel:
        if topic not in {info.name for info in await self.topics()}:
            await self.declare([TopicSpec(topic)])
        return await super().channel(topic, group)


@caught_by("topics_are_listed_sorted_whoever_declared_them")
class ListsItsOwnTopics(Seeded):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mine: set[str] = set()

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self.mine |= {spec.name for spec in topics}
        return await super().declare(topics)

    async def topics(self) -> Sequence[TopicInfo]:
        return [info for info in await super().topics() if info.name in self.mine]


# --- queues --------------------------------------------------------------------------------------------------


def without(**values: Any) -> type[ChannelThrough]:
    class Without(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            changed = [
                replace(m, **values) if isinstance(self.inner, QueueChannel) and hasattr(m, "priority") else m
                for m in messages
            ]
            await super().put(changed)

    return Without


@caught_by("higher_priority_goes_first_and_equal_priority_in_order")
class IgnoresPriority(Seeded):
    channels = without(priority=0)


@caught_by("a_delayed_message_is_not_delivered_before_its_time_and_wakes_a_waiting_get_then")
class IgnoresDelay(Seeded):
    channels = without(delay=0.0)


@caught_by("an_expired_message_is_not_delivered")
class IgnoresExpiry(Seeded):
    channels = without(expires=None)


@caught_by("a_retried_delivery_comes_back_after_its_delay_with_one_more_attempt")
class RetriesAtOnce(Seeded):
    class channels(ChannelThrough):
        async def retry(self, delivery: Delivery, delay: float) -> None:
            await super().retry(delivery, 0)


@caught_by("a_retried_delivery_comes_back_after_its_delay_with_one_more_attempt")
class RetriesACopy(Seeded):
    """Acknowledges, and publishes again: the count of attempts begins anew."""

    class channels(ChannelThrough):
        async def retry(self, delivery: Delivery, delay: float) -> None:
            await super().reject(delivery, "to be put again")
            await super().put([cast(Message, delivery.record)])


@caught_by("a_retry_survives_the_death_of_the_consumer")
class RetriesFromMemory(Seeded):
    """Keeps it in the process until the delay has passed, and has acknowledged it already."""

    class channels(ChannelThrough):
        async def retry(self, delivery: Delivery, delay: float) -> None:
            if delay <= 0:
                return await super().retry(delivery, delay)
            loan, group = cast(Any, delivery.handle), self.inner._group
            group._settle(loan)
            clock, session = self.transport.broker.clock, self.transport.session

            def again() -> None:
                if session is not None and session.down is None:
                    group._schedule(loan.item, None)
                    self.inner._return(())

            clock.call_later(delay, again)
            return None


@caught_by("an_extended_delivery_stays_and_comes_back_when_the_extension_ends")
class ExtendDoesNothing(Seeded):
    class channels(ChannelThrough):
        async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
            pass


@caught_by("an_extended_delivery_stays_and_comes_back_when_the_extension_ends")
class ExtendsAll(Seeded):
    """The lease is the consumer's, not the delivery's."""

    class channels(ChannelThrough):
        async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
            until = self.transport.broker.clock.now() + lease
            for loan in self.inner.loans:
                self.inner._group.extend(loan, until)
            await super().extend(deliveries, lease)


@caught_by("a_rejected_delivery_is_gone_for_good")
class RejectedComesBack(Seeded):
    """nack with requeue."""

    class channels(ChannelThrough):
        async def reject(self, delivery: Delivery, reason: str) -> None:
            await super().retry(delivery, 0)


@caught_by("a_delay_between_attempts_holds_up_no_other_message")
class RetryBlocksTheQueue(Seeded):
    """The waiting one is at the head of the line."""

    class channels(ChannelThrough):
        async def retry(self, delivery: Delivery, delay: float) -> None:
            await super().retry(delivery, delay)
            due = self.transport.broker.clock.now() + delay
            self.inner._group.blocked = due

        async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
            clock = self.transport.broker.clock
            blocked = getattr(getattr(self.inner, "_group", None), "blocked", 0.0)
            if clock.now() < blocked:
                await asyncio.sleep(0.001)
                return []
            return await super().get(limit, timeout)
