"""Thalweg: write a stream program once and run it on any broker by changing a URL."""

from .agent import Agent
from .app import App
from .errors import (
    AgentError,
    AskDeadlock,
    BrokerError,
    ConcurrentTableError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    LockLost,
    MessageTooLarge,
    MissingCapability,
    NotRunning,
    OutsideEvent,
    StaleRead,
    ThalwegError,
    TooManyOutputs,
    WrongPartition,
    WrongType,
)
from .event import Event
from .exclusion import HeldLock
from .policy import DeadLetter, Reject, Retry, RetryLater, Skip
from .queue import Queue
from .runtime.changes import Change
from .stream import Stream
from .table import Reading, Table
from .topic import Topic

__all__ = [
    "Agent",
    "AgentError",
    "App",
    "AskDeadlock",
    "BrokerError",
    "Change",
    "ConcurrentTableError",
    "ConfigurationError",
    "DeadLetter",
    "DecodeError",
    "EncodeError",
    "Event",
    "HeldLock",
    "LockLost",
    "MessageTooLarge",
    "MissingCapability",
    "NotRunning",
    "OutsideEvent",
    "Queue",
    "Reading",
    "Reject",
    "Retry",
    "RetryLater",
    "Skip",
    "StaleRead",
    "Stream",
    "Table",
    "ThalwegError",
    "TooManyOutputs",
    "Topic",
    "WrongPartition",
    "WrongType",
]
