"""Every exception that Thalweg raises, in one tree. Messages name the setting, the value seen and what would work."""

from __future__ import annotations

__all__ = [
    "AccessDenied",
    "AgentError",
    "AmbiguousCommit",
    "AskDeadlock",
    "BackupError",
    "BrokerError",
    "ConcurrentTableError",
    "ConfigurationError",
    "DecodeError",
    "EncodeError",
    "Fenced",
    "Gap",
    "HistoryChanged",
    "JournalMismatch",
    "LockLost",
    "MessageRefused",
    "MessageTooLarge",
    "MirrorError",
    "MissingCapability",
    "NotRunning",
    "OutsideEvent",
    "ProcessDied",
    "StaleDelivery",
    "StaleRead",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "Superseded",
    "TableMismatch",
    "ThalwegError",
    "TooManyOutputs",
    "TopicMismatch",
    "UnknownOption",
    "UnknownScheme",
    "WrongPartition",
    "WrongType",
]


class ThalwegError(Exception):
    """Root of the tree: `except ThalwegError` catches all that Thalweg itself raises."""


# --- what the program or its settings got wrong ------------------------------------------------------------


class ConfigurationError(ThalwegError):
    """A setting or a declaration cannot work as written."""


class UnknownScheme(ConfigurationError):
    """No installed driver serves the scheme of this URL."""


class UnknownOption(ConfigurationError):
    """The URL's query names an option that the driver does not have, or gives it a value of the wrong type."""


class MissingCapability(ConfigurationError):
    """The program needs a power that its transport does not offer."""


class TopicMismatch(ConfigurationError):
    """An existing topic (or a second declaration of one) differs from what the program declares."""


class JournalMismatch(ConfigurationError):
    """The journal was written under another partition count or partitioner; going on would orphan state."""


class NotRunning(ThalwegError):
    """The app must be started (`async with app`, `app.client()`, `app.test()`) before this call."""


# --- what an event did wrong -------------------------------------------------------------------------------


class OutsideEvent(ThalwegError):
    """A table was written where there is no event, hence no commit that could carry the change."""


class WrongPartition(ThalwegError):
    """A table was used with a key that belongs to another partition than the event's."""


class TableMismatch(WrongPartition):
    """A table has another number of partitions than what the agent reads that uses it. No event could: it halts."""


class WrongType(ThalwegError, TypeError):
    """A value is not of the declared type."""


class ConcurrentTableError(ThalwegError):
    """With `concurrency > 1` an event may touch only its own key's rows."""


class ProcessDied(ThalwegError):
    """The process died, more than once, while it handled this event (reason of a dead letter; never raised)."""


class StaleRead(ThalwegError):
    """This worker's lease on the partition has ended: its table may be out of date, so it is not served."""


class TooManyOutputs(ThalwegError):
    """One event sent more messages than `max_event_outputs`."""


class AskDeadlock(ThalwegError):
    """An event asks an agent that cannot answer before this very event has finished."""


class AgentError(ThalwegError):
    """The agent that was asked raised. `remote_traceback` is its traceback as text."""

    def __init__(self, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text}\n\nremote traceback:\n{self.remote_traceback}" if self.remote_traceback else text


# --- data --------------------------------------------------------------------------------------------------


class EncodeError(ThalwegError):
    """A key or value could not be turned into bytes."""


class DecodeError(ThalwegError):
    """Bytes could not be turned into a key or value of the declared type."""


class MessageTooLarge(ThalwegError):
    """A message is above the broker's limit; nothing of it was sent."""


# --- the broker and the journal ----------------------------------------------------------------------------


class BrokerError(ThalwegError):
    """The broker refused, failed or cannot be reached."""


class AmbiguousCommit(BrokerError):
    """The broker did not say whether the write happened. Only reading the log back can tell."""


class AccessDenied(BrokerError):
    """The broker does not let this user do it. Nothing was written, nor will be before somebody gives the right to."""


class MessageRefused(BrokerError):
    """The broker takes no such message, whoever sends it; others to the same place it may. Nothing was written."""


class StaleDelivery(BrokerError):
    """Some deliveries had gone back to their group before this call, and come again.

    `commit` raises it when it has committed the others.
    """


class Fenced(BrokerError):
    """A newer owner has claimed the journal: nothing of this write happened.

    `partitions` holds the (topic, partition) pairs that were lost.
    """

    def __init__(self, message: str, partitions: frozenset[tuple[str, int]] = frozenset()) -> None:
        super().__init__(message)
        self.partitions = partitions


class Superseded(BrokerError):
    """A newer worker runs under the worker id of this one, and has what this one had."""


class Gap(BrokerError):
    """Records after the stored position may be gone (retention, a truncated or recreated topic)."""

    def __init__(self, topic: str, partition: int, after: int | None, first: int | None) -> None:
        super().__init__(
            f"topic {topic!r} partition {partition}: records after position {after} may be gone; the log now starts at "
            f"{first}. Restore the topic, or accept the loss by resetting the reader's position"
        )
        self.topic, self.partition, self.after, self.first = topic, partition, after, first


class HistoryChanged(BrokerError):
    """The record at a stored position is not the one that was read there: the broker lost a suffix of the log."""


class LockLost(ThalwegError):
    """The lock of a block (`async with app.lock(…)`) was lost before the block had ended: it was cancelled."""


class StoreError(ThalwegError):
    """A store is damaged, locked by another process or out of space."""


class StoreDamaged(StoreError):
    """What a store holds is not what was written. It warns once, when it sets that aside; the journal fills it anew."""


class StoreFull(StoreError):
    """A store cannot be written now: no space, a quota, or the disk fails. What it holds is sound."""


class MirrorError(ThalwegError):
    """A mirror refused, failed or cannot be reached. Tables and commits do not depend on it."""


class BackupError(ThalwegError):
    """A backup cannot be written, is torn or damaged, or is not of what it would be restored into."""
