"""Replicated tables, declared as a program declares them."""

import pytest
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


async def test_what_was_deleted_while_it_could_not_read_is_gone_after_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    app = App("prices", partitions=1)
    prices = app.topic("prices", key=str, value=int | None)
    last = prices.table("last", replicated=True)
    async with app.test() as t:
        for number in range(5):
            await prices.send(number, key=f"k{number}")
        await t.settle()
        hold = t._broker.broker.faults.hold("read", topic="prices")
        await prices.send(9, key="k9")  # the reader that waits is answered, and held at its next call
        await t.settle()
        assert hold.reached.is_set()
        await prices.send(None, key="k0")
        for number in range(1, 5):
            await prices.send(10 * number, key=f"k{number}")
        await prices.send(90, key="k9")
        end = [position for _, position, _ in t._broker.records("prices")][-1]
        log = await app.running.open_log("prices")
        await log.truncate(0, end - 4)  # as retention or compaction do
        await log.close()
        hold.release()
        await t.settle()
        assert last["k0"] == 0  # it serves what it has until it has read all again
        await t.advance(2)
        assert dict(last.items()) == {"k1": 10, "k2": 20, "k3": 30, "k4": 40, "k9": 90}
        assert caplog.text.count("read again from the beginning") == 1
        await prices.send(7, key="k7")
        await t.settle()
        assert last["k7"] == 7
