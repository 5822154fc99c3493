"""Whole programs under `app.test()`, on the fenced journal and on the one that reads back."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgspec
import pytest
from thalweg import AgentError, App, Stream

BROKERS = ("memory://", "memory://?fencing=false")


class Withdrawal(msgspec.Struct):
    account: str
    country: str
    amount: int


def make_bank() -> SimpleNamespace:
    app = App("bank", partitions=4)
    withdrawals = app.topic("withdrawals", key=str, value=Withdrawal)
    alerts = app.topic("alerts", key=str, value=str)
    emails = app.queue("emails", value=str)
    totals = app.table("totals", key=str, value=int, default=int)
    amounts = app.table("amounts", key=str, value=list[int], default=list)
    countries = app.table("countries", key=str, value=int, default=int)
    last = withdrawals.table("last")
    mailed: list[str] = []
    ticks: list[float] = []
    mornings: list[float] = []

    @app.agent(withdrawals)
    async def total(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
        async for withdrawal in stream:
            totals[withdrawal.account] += withdrawal.amount
            amounts[withdrawal.account].append(withdrawal.amount)
            if withdrawal.amount > 100:
                await alerts.send(f"big {withdrawal.amount}", key=withdrawal.account)
                await emails.send(withdrawal.account)
            if withdrawal.amount == 13:
                raise ValueError("unlucky")
            yield totals[withdrawal.account]

    @app.agent(withdrawals.stream().group_by(lambda w: w.country, name="by-country"))
    async def by_country(stream: Stream[Withdrawal]) -> None:
        async for withdrawal in stream:
            countries[withdrawal.country] += withdrawal.amount

    @app.handler(emails)
    def mail(account: str) -> str:
        mailed.append(account)
        return account.upper()

    @app.timer(30)
    async def tick() -> None:
        ticks.append(app.now())

    @app.crontab("0 9 * * *", timezone="Europe/London", on_leader=True)
    async def morning() -> None:
        mornings.append(app.now())

    return SimpleNamespace(**locals())


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_tables_groupings_outputs_and_queues_see_each_event_once(broker: str) -> None:
    bank = make_bank()
    async with bank.app.test(broker=broker) as t:
        await bank.withdrawals.send(Withdrawal("ada", "NO", 5), key="ada")
        await bank.withdrawals.send(Withdrawal("ada", "NO", 500), key="ada")
        await t.settle()
        assert bank.totals["ada"] == 505
        assert bank.amounts["ada"] == [5, 500]
        assert dict(bank.countries.items()) == {"NO": 505}
        assert bank.last["ada"] == Withdrawal("ada", "NO", 500)
        assert [event.value for event in t.sent(bank.alerts)] == ["big 500"]
        assert bank.mailed == ["ada"]


async def test_a_crash_loses_and_repeats_nothing(broker: str) -> None:
    bank = make_bank()
    async with bank.app.test(broker=broker) as t:
        for amount in (5, 500):
            await bank.withdrawals.send(Withdrawal("ada", "NO", amount), key="ada")
            await t.crash()
        await t.settle()
        await t.crash()
        await t.settle()
        assert bank.totals["ada"] == 505
        assert bank.amounts["ada"] == [5, 500]
        assert bank.countries["NO"] == 505
        assert [event.value for event in t.sent(bank.alerts)] == ["big 500"]


async def test_agents_and_handlers_answer(broker: str) -> None:
    bank = make_bank()
    async with bank.app.test(broker=broker):
        assert await bank.total.ask(Withdrawal("bob", "SE", 1), key="bob") == 1
        assert await bank.total.ask(Withdrawal("bob", "SE", 2), key="bob") == 3
        assert await bank.mail.ask("ada") == "ADA"
        asked = [Withdrawal("bob", "SE", 10)] * 3
        assert await bank.total.ask_all(asked, key="bob") == [13, 23, 33]


async def test_timers_and_crontabs_follow_the_virtual_clock(broker: str) -> None:
    bank = make_bank()
    async with bank.app.test(broker=broker) as t:
        start = t.now()
        await t.advance(95)
        assert bank.ticks == [start + 30, start + 60, start + 90]
        await t.advance(86_400)
        assert bank.mornings == [start + 9 * 3600]


async def test_a_failing_event_is_undone_retried_and_dead_lettered_while_its_key_waits(broker: str) -> None:
    bank = make_bank()
    async with bank.app.test(errors="policy", broker=broker) as t:
        for amount in (5, 13, 6):
            await bank.withdrawals.send(Withdrawal("ada", "NO", amount), key="ada")
        await t.settle()
        assert bank.totals["ada"] == 5
        await t.advance(100)
        assert bank.totals["ada"] == 11
        assert bank.amounts["ada"] == [5, 6]
        (letter,) = [letter async for letter in bank.app.dead_letters(bank.withdrawals)]
        assert (letter.agent, letter.attempts, letter.key) == ("total", 5, b"ada")
        assert msgspec.json.decode(letter.value, type=Withdrawal).amount == 13
        assert "unlucky" in letter.reason
        assert "ValueError" in letter.traceback


async def test_undecodable_bytes_go_to_the_dead_letter_as_they_came(broker: str) -> None:
    bank = make_bank()
    async with bank.app.test(errors="policy", broker=broker) as t:
        await bank.withdrawals.raw.send(b"\xffrubbish", key=b"ada", headers={"trace": "7"})
        await bank.withdrawals.send(Withdrawal("ada", "NO", 5), key="ada")
        await t.settle()
        letters = [letter async for letter in bank.app.dead_letters(bank.withdrawals)]
        assert {letter.agent for letter in letters} == {"total", "repartition-by-country", "table-last"}
        assert all(letter.value == b"\xffrubbish" for letter in letters)
        assert all(letter.headers == (("trace", b"7"),) for letter in letters)
        assert bank.totals["ada"] == 5


async def test_whoever_asked_gets_the_error_as_the_answer(broker: str) -> None:
    bank = make_bank()
    async with bank.app.test(errors="policy", broker=broker) as t:
        asked = asyncio.ensure_future(bank.total.ask(Withdrawal("ada", "NO", 13), key="ada", timeout=1000))
        await t.advance(100)
        with pytest.raises(AgentError, match="unlucky"):
            await asked


async def test_an_agents_exception_fails_the_test() -> None:
    bank = make_bank()
    async with bank.app.test() as t:
        await bank.withdrawals.send(Withdrawal("ada", "NO", 13), key="ada")
        with pytest.raises(ValueError, match="unlucky"):
            await t.settle()
