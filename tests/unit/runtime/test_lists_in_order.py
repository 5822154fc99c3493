"""Lists of `.take()` keep the order of a key, whichever of their events fail, and how."""

from __future__ import annotations

from thalweg import App, Event, Retry, Stream


async def test_an_event_to_be_retried_does_not_wait_before_an_earlier_one_of_its_key_that_is_gathered() -> None:
    """The verdict on the later one outlives a rollback, after which the earlier one is gathered anew."""
    app = App("lists", partitions=1, commit_interval=1.0)
    source = app.topic("source", key=str, value=int)
    rows = app.table("rows", key=str, value=list[int], default=list)
    failed = {8, 9}

    @app.agent(source.stream().events().take(2, within=1.0), on_error=Retry(backoff=0.1))
    async def append(stream: Stream[list[Event[int, str]]]) -> None:
        async for events in stream:
            for event in events:
                rows[event.key].append(event.value)
                if event.value not in failed:
                    failed.add(event.value)
                    raise ValueError(event.value)
                if event.value == 1:
                    await app.sleep(1.5)  # a commit is made meanwhile, of what was before

    async with app.test(errors="policy") as t:
        await source.send_many([("b", 8), ("b", 9), ("a", 1), ("a", 2), ("b", 3), ("a", 4)])
        await t.advance(10)
        assert rows["a"] == [1, 2, 4]
        assert rows["b"] == [8, 9, 3]


async def test_an_event_that_fails_in_a_step_comes_after_those_that_are_gathered() -> None:
    app = App("lists", partitions=1)
    source = app.topic("source", key=str, value=int)
    rows = app.table("rows", key=str, value=list[int], default=list)
    failed: set[int] = set()

    def once(number: int) -> int:
        if number == 2 and number not in failed:
            failed.add(number)
            raise ValueError(number)
        return number

    @app.agent(source.stream().map(once).events().take(3, within=1.0), on_error=Retry(backoff=0.1))
    async def append(stream: Stream[list[Event[int, str]]]) -> None:
        async for events in stream:
            for event in events:
                rows[event.key].append(event.value)

    async with app.test(errors="policy") as t:
        for number in (1, 2, 3):
            await source.send(number, key="a")
        await t.advance(10)
        assert rows["a"] == [1, 2, 3]
