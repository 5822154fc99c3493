"""Messages that a broker never takes: nothing waits behind them for ever."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from thalweg import App, DeadLetter, MessageTooLarge, Stream, Topic
from thalweg.dead_letters import DeadLetterRecord
from thalweg.errors import MessageRefused


async def one_letter(app: App, topic: Topic[str, int]) -> DeadLetterRecord:
    """It comes a moment after its commit."""
    while not (letters := [letter async for letter in app.dead_letters(topic)]):  # noqa: ASYNC110 - logs tell nobody
        await asyncio.sleep(0.05)
    (letter,) = letters
    return letter


@pytest.mark.parametrize("broker", ["nats", "rabbitmq"], indirect=True)
async def test_an_output_with_a_key_that_cannot_be_is_its_events_fault(broker: str) -> None:
    app = App(f"keys{secrets.token_hex(3)}", broker=broker, partitions=1)
    numbers = app.topic(f"{app.id}-numbers", key=str, value=int)
    out = app.topic(f"{app.id}-out", key=str, value=int)
    jobs = app.queue(f"{app.id}-jobs", value=int)
    seen: asyncio.Queue[int] = asyncio.Queue()

    @app.agent(numbers, on_error=DeadLetter())
    async def pass_on(stream: Stream[int]) -> None:
        async for event in stream.events():
            await out.send(event.value, key=event.key * (100_000 if event.value == 1 else 1))

    @app.agent(out)
    async def read(stream: Stream[int]) -> None:
        async for value in stream:
            seen.put_nowait(value)

    async with app:
        for send in (
            numbers.send(0, key="k" * 100_000),
            numbers.send(0, key="k", headers={"large": "h" * 100_000}),
            numbers.send(0, key="k" * 100_000, delay=1),
            numbers.send_many([("k" * 100_000, 0)]),
            jobs.send(0, headers={"large": "h" * 100_000}),
        ):
            with pytest.raises(MessageTooLarge, match="of key and headers"):
                await send
        async with asyncio.timeout(60):
            await numbers.send_many(("n", number) for number in range(3))
            assert [await seen.get(), await seen.get()] == [0, 2]
            assert "MessageTooLarge" in (await one_letter(app, numbers)).reason


@pytest.mark.parametrize("broker", ["kafka"], indirect=True)
async def test_a_message_refused_for_its_time_is_a_dead_letter_and_the_others_follow(broker: str) -> None:
    app = App(f"times{secrets.token_hex(3)}", broker=broker, partitions=1)
    numbers = app.topic(f"{app.id}-numbers", key=str, value=int)
    out = app.topic(f"{app.id}-out", key=str, value=int)
    seen: asyncio.Queue[int] = asyncio.Queue()

    @app.agent(numbers)
    async def pass_on(stream: Stream[int]) -> None:
        async for value in stream:
            await out.send(value, key="n", timestamp=app.now() + 86_400 if value == 1 else None)

    @app.agent(out)
    async def read(stream: Stream[int]) -> None:
        async for value in stream:
            seen.put_nowait(value)

    async with app:
        with pytest.raises(MessageRefused, match="near its own clock"):
            await out.send(0, key="n", timestamp=app.now() + 86_400)
        async with asyncio.timeout(60):
            await numbers.send_many(("n", number) for number in range(4))
            assert [await seen.get() for _ in range(3)] == [0, 2, 3]
            letter = await one_letter(app, out)
        assert (letter.value, letter.key) == (b"1", b"n")
        assert "near its own clock" in letter.reason
