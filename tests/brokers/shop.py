"""A program with state of every kind: tables, one behind a group_by, events to try again, messages that wait."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from thalweg import App, Retry, Stream


class Sale(msgspec.Struct):
    shop: str
    country: str
    amount: int


UNLUCKY = 13

app = App("bank", store="sqlite:///state", partitions=2, lease=2)
sales = app.topic("sales", key=str, value=Sale, key_of=lambda sale: sale.shop)
thanks = app.topic("thanks", value=str)
totals = app.table("totals", key=str, value=int, default=int)
countries = app.table("countries", key=str, value=int, default=int)


def there_is(file: str) -> bool:
    return Path(file).exists()


@app.agent(sales, on_error=Retry(attempts=None, backoff=0.5, factor=1))
async def total(stream: Stream[Sale]) -> None:
    async for sale in stream:
        if sale.amount == UNLUCKY and not there_is("mended"):
            raise ValueError("unlucky")
        totals[sale.shop] += sale.amount
        if sale.shop == "s2":
            await thanks.send(sale.shop, delay=3600)


@app.agent(sales.stream().group_by(lambda sale: sale.country, name="by-country"))
async def by_country(stream: Stream[Sale]) -> AsyncIterator[None]:
    async for sale in stream:
        if there_is("closed"):
            await asyncio.Event().wait()
        countries[sale.country] += sale.amount
        yield
