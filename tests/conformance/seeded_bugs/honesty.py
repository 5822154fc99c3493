"""Transports that are not what they say they are."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
from thalweg.capabilities import Claim, Log
from thalweg.channel import Capability, Channel
from thalweg.errors import BrokerError, ConfigurationError
from thalweg.message import Message
from thalweg.transports.memory import MemoryOptions
from thalweg.url import Url

from .base import ChannelThrough, Seeded, caught_by


@caught_by("a_transport_has_the_methods_of_what_it_declares")
class DeclaresWhatItLacks(Seeded):
    """GROUPED, without a method `holds`."""

    holds = None  # type: ignore[assignment]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.capabilities |= {Capability.GROUPED}


class Bare:
    """A channel that can do nothing but what every channel can."""

    def __init__(self, inner: Any) -> None:
        self.put, self.get, self.commit, self.close = inner.put, inner.get, inner.commit, inner.close


@caught_by("a_transport_has_the_methods_of_what_it_declares")
class QueuesAreBare(Seeded):
    """WORK_QUEUE, but its channels have no extend, retry and reject."""

    async def channel(self, topic: str, group: str) -> Channel:
        return Bare(await super().channel(topic, group))


@caught_by("what_a_transport_does_not_declare_raises", "fencing=false")
class ClaimsInSilence(Seeded):
    """Not declared, yet it seems to work; but nobody is ever fenced."""

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        offered, self.capabilities = self.capabilities, self.capabilities | {Capability.FENCING}
        try:
            return await super().claim(topic, partition, marker)
        finally:
            self.capabilities = offered


@caught_by("what_a_transport_does_not_declare_raises", "log=false&fencing=false")
class ReadsInSilence(Seeded):
    async def log(self, topic: str) -> Log:
        offered, self.capabilities = self.capabilities, self.capabilities | {Capability.LOG}
        try:
            return await super().log(topic)
        finally:
            self.capabilities = offered


@caught_by("what_a_transport_does_not_declare_raises", "delay=false")
class DropsWhatItCannotDo(Seeded):
    """A delay that it does not know is left out: sent at once, a silent downgrade."""

    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            await super().put([msgspec.structs.replace(m, delay=0.0) if hasattr(m, "delay") else m for m in messages])


@caught_by("a_topic_takes_no_priority_delay_or_expiry")
class TopicsTakeWhatIsForQueues(Seeded):
    class channels(ChannelThrough):
        async def put(self, messages: Sequence[Message]) -> None:
            await super().put([Message(m.value, m.key, m.headers, m.timestamp) for m in messages])


@caught_by("capabilities_and_limits_stay_as_they_were_on_opening")
class FindsOutLater(Seeded):
    async def channel(self, topic: str, group: str) -> Channel:
        self.capabilities -= {Capability.FENCING}
        return await super().channel(topic, group)


@caught_by("a_transport_describes_itself_in_a_line")
class TellsAStory(Seeded):
    @property
    def description(self) -> str:
        return "memory\n(in this process)"


class Knowing(Seeded):
    """Keeps its URL."""

    url: Url | None = None

    @classmethod
    def from_url(cls, url: Url) -> Knowing:
        made = cls(options=url.options(MemoryOptions))
        made.url = url
        return made

    @property
    def secret(self) -> str:
        return self.url.text if self.url else ""


@caught_by("a_password_shows_in_no_text_error_or_log")
class DescriptionShowsThePassword(Knowing):
    @property
    def description(self) -> str:
        return f"memory at {self.secret}"


@caught_by("a_password_shows_in_no_text_error_or_log")
class ErrorsShowThePassword(Knowing):
    async def channel(self, topic: str, group: str) -> Channel:
        try:
            return await super().channel(topic, group)
        except BrokerError:
            raise ConfigurationError(f"no topic {topic!r} at {self.secret}") from None

    async def open(self) -> None:
        await super().open()
        if self.url and self.url.password:
            raise BrokerError(f"cannot connect to {self.secret}")


@caught_by("a_password_shows_in_no_text_error_or_log")
class ContextShowsThePassword(Knowing):
    """The message is clean, and the exception of the client hangs on it."""

    async def open(self) -> None:
        await super().open()
        if self.url and self.url.password:
            try:
                raise OSError(f"cannot connect to {self.secret}")
            except OSError as error:
                raise BrokerError("cannot connect") from error


@caught_by("a_password_shows_in_no_text_error_or_log")
class LogsThePassword(Knowing):
    async def open(self) -> None:
        await super().open()
        logging.getLogger("driver").warning("connecting to %s", self.secret)


@caught_by("nothing_is_left_behind_by_open_and_close")
class LeavesATask(Seeded):
    class channels(ChannelThrough):
        def __init__(self, inner: Any, transport: Seeded) -> None:
            super().__init__(inner, transport)
            self.keeper = asyncio.ensure_future(asyncio.Event().wait())


@caught_by("nothing_is_left_behind_by_open_and_close")
class LeavesASocket(Seeded):
    sockets: list[socket.socket] = []  # noqa: RUF012

    async def open(self) -> None:
        await super().open()
        self.sockets.append(socket.socket())
