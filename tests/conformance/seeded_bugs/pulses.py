"""Bugs of what keeps a process's leases: on SQLite, whose processes are real and can be blocked."""

from __future__ import annotations

from typing import ClassVar

from thalweg.pulse import Pulse
from thalweg.transports.sqlite import SqliteTransport

from .base import caught_by


class SeededProcesses(SqliteTransport):
    """Without a bug of its own: the suite must find nothing."""

    pulse: ClassVar[type[Pulse]] = Pulse

    async def open(self) -> None:
        await super().open()
        self._leases._pulse = self.pulse(self._options.stuck)


class AtOnce(Pulse):
    """What does not answer before the next renewal counts as stuck, as if the event loop itself renewed."""

    def allows(self, lease: float) -> bool:
        turning = self._answered
        super().allows(lease)
        return turning


class Never(Pulse):
    def allows(self, lease: float) -> bool:
        return True


@caught_by("a_lock_is_kept_while_its_holders_event_loop_is_blocked")
class BlockedLoopsLoseLocks(SeededProcesses):
    pulse = AtOnce


@caught_by("a_member_stays_while_its_event_loop_is_blocked")
class BlockedLoopsLoseMemberships(SeededProcesses):
    pulse = AtOnce


@caught_by("a_lock_is_lost_once_its_holders_event_loop_is_stuck")
class StuckLoopsKeepLocks(SeededProcesses):
    pulse = Never


@caught_by("a_member_whose_event_loop_is_stuck_is_gone_and_comes_back_when_it_turns")
class StuckLoopsKeepMemberships(SeededProcesses):
    pulse = Never
