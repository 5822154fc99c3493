"""The finished prefix of an input, whatever the order in which events finish and wherever a crash falls."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from thalweg import App, Stream
from thalweg.message import Message
from thalweg.runtime.watermark import Segment, Watermark


@st.composite
def finishing(draw: st.DrawFn) -> tuple[list[int], list[int], set[int]]:
    """Sizes of the segments handed out, the order in which records finish, and when to look at the watermark."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    order = draw(st.permutations(range(sum(sizes))))
    count = draw(st.integers(0, len(order)))
    return sizes, list(order[:count]), draw(st.sets(st.integers(0, len(order))))


@settings(max_examples=200)
@given(finishing(), st.booleans())
def test_the_watermark_is_the_longest_finished_prefix_in_whatever_order_records_finish(
    drawn: tuple[list[int], list[int], set[int]], twice: bool
) -> None:
    sizes, order, looks = drawn
    positions = [7 * number + 3 for number in range(sum(sizes))]  # ordered, not dense
    records = [Message(str(position).encode()) for position in positions]
    watermark, where = Watermark(), []
    start = 0
    for size in sizes:
        segment = watermark.hand_out(records[start : start + size], positions[start : start + size])
        where += [(segment, index) for index in range(size)]
        start += size

    finished: set[int] = set()

    def check() -> None:
        watermark.advance()
        prefix = next((number for number in range(len(positions)) if number not in finished), len(positions))
        assert watermark.position == (positions[prefix - 1] if prefix else None)
        ahead = {p for first, last in watermark.ahead() for p in positions if first <= p <= last}
        assert ahead == {positions[number] for number in finished if number > prefix}

    for step, number in enumerate(order):
        if step in looks:
            check()
        for _ in range(1 + twice):
            segment, index = where[number]
            assert isinstance(segment, Segment)
            segment.finish(index)
        finished.add(number)
    check()


@settings(max_examples=25, deadline=None)
@given(
    concurrency=st.integers(1, 4),
    keys=st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12),
    seed=st.integers(0, 10**6),
    crashes=st.sets(st.integers(0, 12), max_size=3),
    fenced=st.booleans(),
)
def test_nothing_is_lost_or_reordered_when_handlers_finish_in_any_order_and_the_worker_crashes(
    concurrency: int, keys: list[str | None], seed: int, crashes: set[int], fenced: bool
) -> None:
    async def run() -> None:
        app = App("lanes", partitions=1)
        source, target = app.topic("source", key=str, value=int), app.topic("target", key=str, value=int)
        counts = app.table("counts", key=str, value=int, default=int)
        open_: dict[int, asyncio.Future[None]] = {}
        order = random.Random(seed)

        @app.agent(source, concurrency=concurrency)
        async def pass_on(stream: Stream[int]) -> None:
            async for event in stream.events():
                gate = open_[event.value] = asyncio.get_running_loop().create_future()
                try:
                    await gate
                finally:
                    open_.pop(event.value, None)
                await target.send(event.value, key=event.key)
                if event.key is not None:
                    counts[event.key] += 1

        async with app.test(broker="memory://" if fenced else "memory://?fencing=false") as t:
            await source.send_many(list(zip(keys, range(len(keys)), strict=True)))
            await t.settle()
            step = 0
            while open_:
                if step in crashes:
                    await t.crash()
                    await t.advance(10)  # an event in which a worker died before waits a little
                step += 1
                number = order.choice(sorted(open_))
                open_[number].set_result(None)
                await t.settle()
            sent = [(event.key, event.value) for event in t.sent(target)]
            assert sorted(number for _, number in sent) == list(range(len(keys)))
            for key in set(keys) - {None}:
                assert [number for k, number in sent if k == key] == [n for n, k in enumerate(keys) if k == key]
            await t.crash()
            assert dict(counts.items()) == {key: keys.count(key) for key in keys if key is not None}

    asyncio.run(run())
