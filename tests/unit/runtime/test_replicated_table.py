"""Replicated tables, declared as a program declares them."""

from thalweg import App


async def test_a_replicated_table_holds_the_last_value_of_every_key() -> None:
    app = App("prices", partitions=4)
    prices = app.topic("prices", key=str, value=int)
    last = prices.table("last", replicated=True)
    async with app.test() as t:
        for number in range(20):
            await prices.send(number, key=f"k{number % 10}")
        await t.settle()
        assert dict(last.items()) == {f"k{number}": number + 10 for number in range(10)}


async def test_a_worker_starts_where_a_partition_holds_one_record() -> None:
    app = App("prices", partitions=1)
    prices = app.topic("prices", key=str, value=int)
    last = prices.table("last", replicated=True)
    async with app.test() as t:
        await prices.send(1, key="k")
        await t.settle()
        await t.crash()
        assert last["k"] == 1
