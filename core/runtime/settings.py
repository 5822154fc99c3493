"""The few numbers that a worker runs by."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from thalweg.assignment import Assignor, sticky
from thalweg.clock import Clock
from thalweg.signing import Signer

__all__ = ["Settings"]


class Settings(msgspec.Struct, frozen=True):
    """Times in seconds, sizes in bytes.

    commit_interval: a commit happens when a task is idle, and at the latest this long after the first event.
    lease: how long a dead or hung worker keeps its tasks.
    drain_timeout: how long events in progress may take to finish when the worker stops or gives up a task.
    fetch_records, fetch_bytes: how much one read of a topic asks for, per partition and in all; up to two reads of a
    partition wait to be handled.
    max_event_outputs: how many messages one event may send. max_parked: how many events of one agent and partition
    may wait for a retry before the partition waits with them.
    rows_bytes: how much of all tables a worker keeps as Python objects, in front of the store.
    remember_ids: for how long agents know the ids of `send(id=…)`.
    worker_id: of all runs of this worker; what it owned is kept for it while it restarts. zone: where it runs; standbys
    lie in other zones than their owner.
    assignor: who shares tasks out.
    signer: of the headers that this app believes; None: it believes all.
    failures: in tests, where an agent's exception goes instead of to its policy.
    """

    clock: Clock
    commit_interval: float = 0.1
    lease: float = 10.0
    drain_timeout: float = 30.0
    fetch_records: int = 1000
    fetch_bytes: int = 16 * 1024 * 1024
    max_event_outputs: int = 10_000
    max_parked: int = 1000
    snapshot_bytes: int = 512 * 1024
    exactly_once: bool = True
    rows_bytes: int = 256 << 20
    remember_ids: float = 86_400.0
    worker_id: str | None = None
    zone: str = ""
    assignor: Assignor = sticky
    signer: Signer | None = None
    failures: Callable[[str, BaseException], None] | None = None
