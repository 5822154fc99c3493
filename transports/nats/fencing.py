"""Who owns a journal: the newest message of a token subject. Each commit asserts it, and is one atomic batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thalweg.capabilities import Claim, Commit
from thalweg.errors import BrokerError, Fenced
from thalweg.message import Message, Position

from .connection import ApiError, Connection
from .floors import WRONG_SEQUENCE, StoredMessage
from .log import Topic
from .publish import BATCH, Entry, check, publish
from .topics import Topics

__all__ = ["NatsFencing"]


class NatsClaim:
    """Ownership of a journal partition: good as long as `sequence` is that of the newest message of its token."""

    def __init__(self, topic: Topic, partition: int, position: Position, subject: str, sequence: int) -> None:
        self.topic = topic.name
        self.partition = partition
        self.position = position
        self.subject = subject
        self.sequence = sequence
        self.log = topic


class NatsFencing:
    """`Fencing` of the contract, on a server that has atomic batches."""

    def __init__(self, connection: Connection, topics: Topics, prefix: str, message_bytes: int) -> None:
        self._connection = connection
        self._topics = topics
        self._prefix = prefix
        self._message_bytes = message_bytes

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        connection = self._connection
        found = await self._topics.log(topic)
        subject = f"{self._prefix}.own.{found.token}.{found.check(partition)}"
        entry = Entry(found.subject(partition), marker)
        check(connection, [entry], self._message_bytes, topic)
        owner, position = await publish(connection, [Entry(subject.encode(), Message(b"")), entry])
        return NatsClaim(found, partition, position, subject, owner)

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        connection = self._connection
        entries: list[Entry] = []
        claims: list[tuple[NatsClaim, int, int]] = []
        empty: list[NatsClaim] = []
        for claim, commit in commits.items():
            if not isinstance(claim, NatsClaim):
                raise BrokerError(f"a claim of another transport cannot commit here: {claim!r}")
            subject, start = claim.log.subject(claim.partition), len(entries)
            entries += [Entry(subject, record) for record in commit.records]
            check(connection, entries[start:], self._message_bytes, claim.topic)
            claims.append((claim, start, len(commit.records)))
            for (name, partition), messages in commit.outputs.items():
                target = await self._topics.log(name)
                if target.foreign:
                    raise BrokerError(f"{name!r} lies in the stream of others: no commit can write there")
                subject, first = target.subject(target.check(partition)), len(entries)
                entries += [Entry(subject, message) for message in messages]
                check(connection, entries[first:], self._message_bytes, name)
            if len(entries) > start:
                entries[start].lines = (
                    b"Nats-Expected-Last-Subject-Sequence: %d\r\nNats-Expected-Last-Subject-Sequence-Subject: %b\r\n"
                    % (claim.sequence, claim.subject.encode())
                )
            else:
                empty.append(claim)
        if len(entries) > BATCH:
            raise BrokerError(
                f"a commit of {len(entries)} messages: NATS takes at most {BATCH} in one atomic batch "
                "(Limits.commit_messages); nothing was written"
            )
        await self._check_owned(empty)
        try:
            written = await publish(connection, entries) if entries else range(0)
        except ApiError as error:
            if error.code in WRONG_SEQUENCE:
                await self._check_owned([claim for claim, _, _ in claims])
            raise
        return {claim: written[start : start + count] for claim, start, count in claims}

    async def _check_owned(self, claims: Sequence[NatsClaim]) -> None:
        """Raises `Fenced` if one of them is another's by now. Nothing must have been written."""
        requests = [(f"STREAM.MSG.GET.{self._prefix}", {"last_by_subj": claim.subject}) for claim in claims]
        answers = await self._connection.apis(requests, StoredMessage)
        lost = frozenset(
            (claim.topic, claim.partition)
            for claim, answer in zip(claims, answers, strict=True)
            if isinstance(answer, ApiError) or answer.message.seq != claim.sequence
        )
        if lost:
            names = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(lost))
            raise Fenced(f"a newer owner has claimed {names}; nothing was written", lost) from None
