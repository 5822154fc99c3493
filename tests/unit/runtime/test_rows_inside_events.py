"""Going through a table inside an event."""

from __future__ import annotations

from thalweg import App, DeadLetter, Event, Stream


async def test_a_table_sees_what_the_event_does_to_rows_that_it_goes_through() -> None:
    """`items()` and `values()` inside an event: rows of its partition, with its own changes, to be changed in place."""
    app = App("rows", partitions=2)
    source = app.topic("source", key=str, value=str)
    lists = app.table("lists", key=str, value=list[int], default=list)
    seen: list[dict[str, list[int]]] = []

    @app.agent(source.stream().events(), on_error=DeadLetter())
    async def change(stream: Stream[Event[str, str]]) -> None:
        async for event in stream:
            if event.value == "new":
                lists[event.key] = [0]
            for numbers in lists.values():
                numbers.append(1)
            for key, numbers in lists.items():
                numbers.append(len(key))
            seen.append({key: list(numbers) for key, numbers in lists.items()})
            if event.value == "bad":
                raise ValueError(event.value)

    place = source._plan.partition_of
    here, there = "k0", next(key for key in ("k1", "k2", "k3", "k4") if place(key.encode(), 2) != place(b"k0", 2))
    async with app.test(errors="policy") as t:
        for key, value in ((here, "new"), (there, "new"), (here, "bad"), (here, "again")):
            await source.send(value, key=key)
            await t.settle()
        after = {here: [0, 1, 2, 1, 2], there: [0, 1, 2]}
        assert seen == [{here: [0, 1, 2]}, {there: [0, 1, 2]}, {here: after[here]}, {here: after[here]}]
        assert dict(lists.items()) == after
        await t.crash()
        await t.settle()
        assert dict(lists.items()) == after
