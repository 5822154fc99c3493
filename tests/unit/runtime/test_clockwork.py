"""Timers, crontabs and background functions, most of all on the leader: what a tick commits, and what an heir does."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from thalweg import App, ConfigurationError, MissingCapability, OutsideEvent, Queue, Topic
from thalweg.schedule import Crontab
from thalweg.testing import AppTest

BROKERS = ["memory://", "memory://?fencing=false", "memory://?grouped=true&locks=false&peers=false"]
DAY = 86_400
START = datetime(2020, 1, 1, tzinfo=ZoneInfo("UTC")).timestamp()


class Program:
    """One function on the leader, every minute, which sends before and after it waits."""

    def __init__(self, how: str = "crontab", **options: Any) -> None:
        self.app = App("bank", partitions=2)
        self.sent: Topic[str, str] = self.app.topic("sent", value=str)
        self.mail: Queue[str, str] = self.app.queue("mail", value=str)
        self.mailed: list[str] = []
        self.began: list[float] = []
        self.takes = 0.0
        self.error: Exception | None = None
        decorate = self.app.crontab("* * * * *", on_leader=True) if how == "crontab" else self.app.timer(60, **options)

        @decorate
        async def run() -> None:
            self.began.append(self.app.now() - START)
            await self.sent.send(f"before {len(self.began)}")
            await self.mail.send(f"mail {len(self.began)}")
            await self.app.sleep(self.takes)
            if self.error is not None:
                raise self.error
            await self.sent.send_many([(None, f"after {len(self.began)}")])

        @self.app.handler(self.mail)
        async def read(letter: str) -> None:
            self.mailed.append(letter)

    def told(self, t: AppTest) -> list[str]:
        return sorted(event.value for event in t.sent(self.sent))


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("how", ["crontab", "timer"])
async def test_what_a_run_sends_is_sent_once_when_it_has_ended_though_the_leader_dies_in_it(
    how: str, broker: str
) -> None:
    program = Program(how, on_leader=True) if how == "timer" else Program()
    program.takes = 5
    async with program.app.test(broker=broker) as t:
        await t.advance(62)
        assert program.began == [60]
        assert program.told(t) == []
        await t.crash()
        await t.advance(2)
        assert program.began == [60, 62]
        await t.advance(4)
        assert program.told(t) == ["after 2", "before 2"]
        assert program.mailed == ["mail 2"]
        await t.crash()
        await t.advance(60)
        assert program.began == [60, 62, 120]
        assert program.told(t) == ["after 2", "after 3", "before 2", "before 3"]


async def test_a_run_that_fails_sends_nothing_and_is_not_repeated() -> None:
    program = Program()
    program.error = ValueError("no")
    async with program.app.test(errors="policy") as t:
        await t.advance(60)
        await t.crash()
        await t.advance(30)
        program.error = None
        await t.advance(30)
        assert program.began == [60, 120]
        assert program.told(t) == ["after 2", "before 2"]


async def test_a_run_that_fails_fails_the_test() -> None:
    program = Program()
    program.error = ValueError("no")
    async with program.app.test() as t:
        with pytest.raises(ValueError, match="no"):
            await t.advance(60)


async def test_a_timer_on_the_leader_keeps_its_rhythm_under_an_heir_and_one_everywhere_begins_anew() -> None:
    leaders, everywhere = Program("timer", on_leader=True), Program("timer")
    async with leaders.app.test() as t:
        await t.advance(50)
        await t.crash()
        await t.advance(100)
        assert leaders.began == [60, 120]
    async with everywhere.app.test() as t:
        await t.advance(50)
        await t.crash()
        await t.advance(100)
        assert everywhere.began == [110]


async def test_a_run_may_ask_and_lock_but_not_write_tables_and_what_it_leaves_behind_sends_by_itself() -> None:
    app = App("bank", partitions=2)
    numbers = app.topic("numbers", value=int)
    table = app.table("table", value=int, default=int)
    answers: list[int] = []
    gate = asyncio.Event()

    @app.handler(numbers)
    async def double(number: int) -> int:
        return 2 * number

    async def later() -> None:
        await gate.wait()
        await numbers.send(7, key="late")

    @app.crontab("* * * * *", on_leader=True)
    async def run() -> None:
        async with app.lock("x"):
            answers.append(await double.ask(21, key="a"))
        with pytest.raises(OutsideEvent):
            table["a"] = 1
        answers.append(table.get("a", -1))
        app.left = asyncio.create_task(later())  # type: ignore[attr-defined]

    async with app.test() as t:
        await t.advance(60)
        assert answers == [42, -1]
        gate.set()
        await t.settle()
        assert [event.value for event in t.sent(numbers)] == [21, 7]


async def test_a_run_may_not_send_without_end() -> None:
    app = App("bank", partitions=2, max_event_outputs=10)
    numbers = app.topic("numbers", value=int)

    @app.timer(60, on_leader=True)
    async def run() -> None:
        await numbers.send_many((None, number) for number in range(11))

    async with app.test(errors="policy") as t:
        await t.advance(60)
        assert t.sent(numbers) == []


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_worker_that_stops_lets_a_run_end_and_one_that_takes_too_long_is_left_to_the_heir(broker: str) -> None:
    program = Program()
    program.takes = 20
    async with program.app.test(broker=broker) as t:
        await t.advance(61)
        await t._stop()
        assert t.now() == START + 80
        await t._start()
        assert program.told(t) == ["after 1", "before 1"]
        program.takes = 1000
        await t.advance(41)
        assert len(program.began) == 2
        await t._stop()
        assert t.now() == START + 121 + 30  # drain_timeout
        program.takes = 0
        await t._start()
        await t.settle()
        assert program.told(t) == ["after 1", "after 3", "before 1", "before 3"]


async def test_a_function_that_will_not_be_cancelled_does_not_keep_the_leadership(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App("bank", drain_timeout=5)
    stubborn: list[asyncio.Future[None]] = []

    @app.background(on_leader=True)
    async def never_ends() -> None:
        future = asyncio.get_running_loop().create_future()
        stubborn.append(future)
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError:
                continue

    async with app.test() as t:
        await t.settle()
        await t._stop()
        assert "never_ends does not end" in caplog.text
        await t._start()
        await t.settle()
        assert len(stubborn) == 2
        for future in stubborn:
            future.set_result(None)


@pytest.mark.parametrize(
    ("misfire", "up_again", "runs"),
    [
        ("run_once", 5400, [5400, 7200]),  # the runs of 1:00, half an hour late, and of 2:00
        ("skip", 5400, [7200]),
        ("skip", 3630, [3630, 7200]),  # half a minute is not missed yet
        ("run_once", 18000 + 60, [18060, 21600]),  # one for five
        ("skip", 18000 + 60, [18060, 21600]),  # the last of them is not late
        ("skip", 18000 + 61, [21600]),
    ],
)
async def test_runs_missed_while_nobody_was_up_are_made_up_for_once_or_left_out(
    misfire: Any, up_again: float, runs: list[float]
) -> None:
    app = App("bank")
    began: list[float] = []

    @app.crontab("0 * * * *", on_leader=True, misfire=misfire)
    async def run() -> None:
        began.append(app.now() - START)

    async with app.test() as t:
        await t.advance(1800)
        await t._stop()
        t.clock.move(START + up_again)
        await t._start()
        await t.advance(3600 - up_again % 3600)
        assert began == runs


def test_the_latest_tick_is_found_from_the_end() -> None:
    async def run() -> None: ...

    for expression in ("* * * * *", "0 9 * * mon-fri", "15 3 1 * *", "*/7 22-23 * * *", "0 0 29 2 *"):
        crontab = Crontab("run", run, expression, "Europe/London", True, "run_once")
        first = crontab.after(START)
        for elapsed in (0, 1, 59, 60, 61, 3600, 100_000, 3_000_000):
            tick = first
            while (following := crontab.after(tick)) <= first + elapsed:
                tick = following
            assert crontab.latest(first, first + elapsed) == tick, (expression, elapsed)
    year = Crontab("run", run, "* * * * *", "UTC", True, "run_once")
    assert year.latest(START, START + 366 * DAY + 30) == START + 366 * DAY


@pytest.mark.parametrize(
    ("expression", "day", "runs"),
    [
        ("30 1 * * *", "2020-03-28", ["28T01:30+0000", "29T02:00+0100", "30T01:30+0100"]),  # 1:30 is not there
        ("30 1 * * *", "2020-10-24", ["24T01:30+0100", "25T01:30+0100", "26T01:30+0000"]),  # it is there twice
        ("0 9 * * *", "2020-03-28", ["28T09:00+0000", "29T09:00+0100", "30T09:00+0100"]),
    ],
)
async def test_a_crontab_keeps_to_its_time_zone_where_clocks_are_set(
    expression: str, day: str, runs: list[str]
) -> None:
    london = ZoneInfo("Europe/London")
    app = App("bank")
    began: list[str] = []

    @app.crontab(expression, timezone="Europe/London", on_leader=True)
    async def run() -> None:
        began.append(datetime.fromtimestamp(app.now(), london).strftime("%dT%H:%M%z"))

    async with app.test(start=datetime.fromisoformat(day).replace(tzinfo=london)) as t:
        for _ in range(3):
            await t.advance(DAY / 2)
            await t.crash()
            await t.advance(DAY / 2)
        assert began == runs


def test_two_of_one_name_on_the_leader_are_refused() -> None:
    app = App("bank")

    async def run() -> None: ...

    app.timer(60)(run)
    app.timer(60, on_leader=True)(run)
    app.crontab("* * * * *", on_leader=True)(run)
    app.timer(60, on_leader=True, name="other")(run)
    with pytest.raises(ConfigurationError, match="timer 'run' with on_leader=True is declared twice"):
        app.timer(30, on_leader=True)(run)
    with pytest.raises(ConfigurationError, match="crontab 'run' with on_leader=True is declared twice"):
        app.crontab("0 * * * *", on_leader=True)(run)


@pytest.mark.parametrize("kind", ["timer", "crontab", "background function"])
async def test_a_leader_without_a_log_is_refused(kind: str) -> None:
    app = App("bank", broker="memory://?log=false")
    decorate: Any = {
        "timer": lambda: app.timer(60, on_leader=True),
        "crontab": lambda: app.crontab("* * * * *", on_leader=True),
        "background function": lambda: app.background(on_leader=True),
    }[kind]()

    @decorate  # type: ignore[untyped-decorator]
    async def run() -> None: ...

    with pytest.raises(MissingCapability, match=f"{kind} 'run' with on_leader=True needs"):
        async with app:
            raise AssertionError
