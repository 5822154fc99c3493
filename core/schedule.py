"""What runs by the clock: timers, crontabs and background functions, as declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from .errors import ConfigurationError

__all__ = ["Background", "Crontab", "Function", "Misfire", "Timer"]

Misfire = Literal["run_once", "skip"]
Function = Callable[[], Awaitable[None]]


class Timer:
    def __init__(self, name: str, function: Function, interval: float, on_leader: bool) -> None:
        self.name, self.function, self.interval, self.on_leader = name, function, interval, on_leader
        self.what = f"timer {name!r}"


class Background:
    def __init__(self, name: str, function: Function, on_leader: bool) -> None:
        self.name, self.function, self.on_leader = name, function, on_leader
        self.what = f"background function {name!r}"


class Crontab:
    """A cron expression in a time zone. Where clocks are set forward or back, Debian cron's rules hold (cronsim)."""

    def __init__(
        self, name: str, function: Function, expression: str, timezone: str, on_leader: bool, misfire: Misfire
    ) -> None:
        try:
            self.zone = ZoneInfo(timezone)
        except Exception:
            raise ConfigurationError(
                f"crontab {name!r}: timezone={timezone!r} is unknown; write e.g. 'Europe/London'"
            ) from None
        if misfire not in ("run_once", "skip"):
            raise ConfigurationError(f"crontab {name!r}: misfire={misfire!r}; expected 'run_once' or 'skip'")
        self.name, self.function, self.expression = name, function, expression
        self.what = f"crontab {name!r}"
        self.on_leader, self.misfire = on_leader, misfire
        try:
            self.after(0.0)
        except CronSimError as error:
            raise ConfigurationError(
                f"crontab {name!r}: {expression!r} is not a cron expression ({error}); write e.g. '*/5 * * * *'"
            ) from None
        except StopIteration:
            raise ConfigurationError(f"crontab {name!r}: {expression!r} never happens") from None

    def latest(self, due: float, now: float) -> float:
        """The last time from `due`, which is past, to now: found from its end, for there may be a year between."""
        span = 60.0
        while now - span > due:
            found = self.after(now - span)
            if found <= now:
                due = found
                break
            span *= 8
        while (following := self.after(due)) <= now:
            due = following
        return due

    def after(self, moment: float) -> float:
        """The first time after `moment`, both in seconds since the epoch."""
        return next(CronSim(self.expression, datetime.fromtimestamp(moment, self.zone))).timestamp()
