from collections.abc import AsyncIterator

import msgspec
import pytest
from thalweg import App, Stream


class W(msgspec.Struct):
    account: str
    country: str
    amount: int


def make():
    app = App("bank", partitions=4)
    withdrawals = app.topic("withdrawals", key=str, value=W)
    alerts = app.topic("alerts", key=str, value=str)
    totals = app.table("totals", key=str, value=int, default=int)
    by_country = app.table("by_country", key=str, value=int, default=int)
    lists = app.table("lists", key=str, value=list[int], default=list)
    emails = app.queue("emails", value=str)
    last = withdrawals.table("last")
    seen = []
    ticks = []

    @app.agent(withdrawals)
    async def total(stream: Stream[W]) -> AsyncIterator[int]:
        async for w in stream:
            totals[w.account] += w.amount
            lists[w.account].append(w.amount)
            if w.amount > 100:
                await alerts.send(f"big {w.amount}", key=w.account)
                await emails.send("mail " + w.account)
            if w.amount == 13:
                raise ValueError("unlucky")
            yield totals[w.account]

    @app.agent(withdrawals.stream().group_by(lambda w: w.country, name="by-country"))
    async def countries(stream: Stream[W]) -> None:
        async for w in stream:
            by_country[w.country] += w.amount

    @app.handler(emails)
    def mail(x: str) -> str:
        seen.append(x)
        return x.upper()

    @app.timer(30)
    async def tick():
        ticks.append(app.now())

    @app.crontab("0 9 * * *", timezone="Europe/London", on_leader=True)
    async def cron():
        ticks.append("cron")

    return dict(locals())


BROKERS = ("memory://", "memory://?fencing=false")


@pytest.mark.parametrize("broker", BROKERS)
async def test_all(broker: str):
    g = make()
    app = g["app"]
    w = g["withdrawals"]
    async with app.test(broker=broker) as t:
        await w.send(W("ada", "NO", 5), key="ada")
        await t.settle()
        assert g["totals"]["ada"] == 5
        assert g["by_country"]["NO"] == 5
        assert g["last"]["ada"] == W("ada", "NO", 5)
        await w.send(W("ada", "NO", 500), key="ada")
        await t.settle()
        assert [e.value for e in t.sent(g["alerts"])] == ["big 500"]
        assert g["seen"] == ["mail ada"]
        assert g["lists"]["ada"] == [5, 500]
        await t.crash()
        assert g["totals"]["ada"] == 505
        assert g["lists"]["ada"] == [5, 500]
        assert await g["total"].ask(W("bob", "SE", 1), key="bob") == 1
        assert await g["mail"].ask("x") == "X"
        await t.advance(3600 * 24)
        assert "cron" in g["ticks"], g["ticks"][:3]
        assert len(g["ticks"]) > 2000
        assert [e.value for e in t.sent(g["alerts"])] == ["big 500"]


@pytest.mark.parametrize("broker", BROKERS)
async def test_policy(broker: str):
    g = make()
    app = g["app"]
    w = g["withdrawals"]
    async with app.test(errors="policy", broker=broker) as t:
        await w.send(W("ada", "NO", 5), key="ada")
        await w.send(W("ada", "NO", 13), key="ada")
        await w.send(W("ada", "NO", 6), key="ada")
        await w.raw.send(b"rubbish", key=b"ada")
        await t.settle()
        assert g["totals"]["ada"] == 5
        await t.advance(100)
        assert g["totals"]["ada"] == 11, g["totals"]["ada"]
        assert g["lists"]["ada"] == [5, 6]
        dl = [d async for d in app.dead_letters(w)]
        assert sorted((d.agent, d.attempts) for d in dl) == [
            ("repartition-by-country", 1),
            ("table-last", 1),
            ("total", 1),
            ("total", 5),
        ], dl

        await t.crash()
        assert g["lists"]["ada"] == [5, 6]


async def test_raises():
    g = make()
    app = g["app"]
    w = g["withdrawals"]
    async with app.test() as t:
        await w.send(W("ada", "NO", 13), key="ada")
        with pytest.raises(ValueError, match="unlucky"):
            await t.settle()
