"""`App(secret=…)`: what Thalweg says in headers is believed of those who know the secret, and of nobody else."""

from __future__ import annotations

import pytest
from thalweg import App, ConfigurationError, Event, MessageTooLarge, Reject, Retry, Stream
from thalweg.dead_letters import replay
from thalweg.headers import ANSWERS, CORRELATION, ID, ONCE, REPLY
from thalweg.journal.origin import Origin, destination_of
from thalweg.message import Headers, Message

SECRET, OTHER = "not-to-be-told-to-anybody", "another-one-not-to-be-told"
BROKERS = ["memory://", "memory://?fencing=false"]


class Shop:
    """Orders are counted and confirmed; confirmations are read by an agent of the same app."""

    def __init__(self, secret: str | None = SECRET) -> None:
        self.app = app = App("shop", partitions=1, secret=secret)
        self.orders = app.topic("orders", key=str, value=int)
        self.confirmations = app.topic("confirmations", key=str, value=int)
        self.mails = app.queue("mails", value=str)
        self.counts = app.table("counts", key=str, value=int, default=int)
        self.confirmed: list[int] = []
        self.mailed: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.refusing = False

        @app.agent(self.orders, on_error=Retry(1))
        async def order(stream: Stream[int]) -> object:
            async for event in stream.events():
                if self.refusing:
                    raise Reject("closed")
                self.ids.append(event.id)
                self.counts[event.key] += 1
                await self.confirmations.send(event.value, key=event.key)
                yield event.value * 10

        @app.agent(self.confirmations)
        async def confirm(stream: Stream[int]) -> None:
            async for number in stream:
                self.confirmed.append(number)

        @app.agent(self.mails.stream().events())
        async def mail(stream: Stream[Event[str, str]]) -> None:
            async for event in stream:
                self.mailed.append((event.id, event.value))

        self.order = order

    async def write(self, topic: str, value: int, headers: Headers) -> None:
        """As a program that may write to the topic, and knows no secret."""
        log = await self.app.running.open_log(topic)
        await log.append({0: [Message(str(value).encode(), b"k", headers)]})
        await log.close()


@pytest.mark.parametrize("broker", BROKERS)
async def test_all_that_goes_by_headers_works_with_a_secret(broker: str) -> None:
    shop = Shop()
    async with shop.app.test(broker=broker, errors="policy") as t:
        assert await shop.order.ask(1, key="k") == 10
        for _ in range(2):
            await shop.orders.send(2, key="k", id="two")
        await shop.orders.send(3, key="k", delay=60, id="three")
        await shop.mails.send("welcome", id="mail")
        await shop.mails.send("again", id="mail")
        await t.crash()
        await t.advance(61)
        assert [event.value for event in t.sent(shop.confirmations)] == [1, 2, 3]
        assert set(shop.mailed) == {("mail", "welcome")}
        assert await shop.counts.ask("k") == 3
        shop.refusing = True
        await shop.orders.send(4, key="k")
        await t.settle()
        shop.refusing = False
        assert await replay(shop.app, "orders") == 1
        await t.settle()
        assert [event.value for event in t.sent(shop.confirmations)] == [1, 2, 3, 4]
        assert shop.ids[-1] == "orders/0/4", "a replayed event keeps its id"


async def test_a_forged_number_cannot_make_outputs_pass_for_copies() -> None:
    """An id far ahead, in the name of a journal that is known from any message there: all that follow would be lost."""
    for secret, lost in ((None, True), (SECRET, False)):
        shop = Shop(secret)
        async with shop.app.test(broker="memory://?fencing=false") as t:
            await shop.orders.send(1, key="k")
            await t.settle()
            (sent,) = t.sent(shop.confirmations)
            journal = next(value for name, value in sent.record.headers if name == "thalweg-out")[1:17]
            far = (1 << 62, 7)
            await shop.write(
                "confirmations",
                2,
                (Origin(journal, far, (far[0], 6), (far[0], 6)).header(destination_of("confirmations", 0)),),
            )
            await shop.orders.send(3, key="k")
            await t.settle()
            assert shop.confirmed == ([1, 2] if lost else [1, 2, 3])


async def test_forged_ids_and_addresses_count_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    async with shop.app.test() as t:
        address = (await shop.app.running.hear_answers()).encode()
        waiting, expected = shop.app.running.replies.expect(shop.order.plan.answer)
        correlation = next(value for name, value in expected if name == CORRELATION)
        for number in (1, 2):
            await shop.write("orders", number, ((ONCE, b"same"), (ID, b"same"), ("level", b"3")))
        await shop.write("orders", 3, ((REPLY, address), (ANSWERS, b"order"), (CORRELATION, correlation)))
        await shop.write(shop.app.running.replies.topic, 4, ((CORRELATION, correlation),))
        await t.settle()
        assert shop.confirmed == [1, 2, 3]
        assert not waiting.done(), "neither an answer that was not asked for, nor a forged one"
        assert shop.ids == ["orders/0/0", "orders/0/1", "orders/0/2"]
        waiting.cancel()
    assert "not signed with the secret" in caplog.text
    assert SECRET not in caplog.text


async def test_a_signature_holds_for_its_place_and_bytes_only() -> None:
    shop = Shop()
    async with shop.app.test() as t:
        await shop.orders.send(1, key="k", id="one")
        await t.settle()
        (sent,) = t.sent(shop.orders)
        copied = sent.record.headers
        await shop.write("orders", 2, copied)  # other bytes
        await shop.write("confirmations", 1, copied)  # another topic
        await shop.write("orders", 1, copied)  # the very message: the id is known
        await t.settle()
        assert shop.ids == ["one", "orders/0/1"]


async def test_one_secret_takes_the_place_of_another() -> None:
    shop = Shop(f"{SECRET} {OTHER}")
    async with shop.app.test() as t:
        for first, second in ((SECRET, OTHER), (OTHER, SECRET), (OTHER, "")):
            shop.app.secret = f"{first} {second}"
            await t.crash()  # a worker with other settings
            await shop.orders.send(1, key="k", id="one")
            await t.settle()
        assert shop.ids == ["one"]


@pytest.mark.parametrize("secret", ["", "short", f"{SECRET} short"])
def test_a_secret_that_is_too_short_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="16 characters") as refused:
        App("shop", secret=secret)
    assert not secret or secret not in str(refused.value)


def test_the_environment_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_SECRET", OTHER)
    app = App("shop", secret=SECRET)
    assert app.secret == OTHER
    assert OTHER not in repr(app)


async def test_what_is_as_large_as_can_be_can_be_signed() -> None:
    app = App("large", partitions=1, secret=SECRET)
    source = app.topic("source", key=str, value=str)
    seen: list[int] = []

    @app.agent(source)
    async def read(stream: Stream[str]) -> None:
        async for value in stream:
            seen.append(len(value))

    async with app.test(broker="memory://?message_bytes=4096") as t:
        size = 4096
        while True:
            try:
                await source.send("x" * size, key="k", id="one")
                break
            except MessageTooLarge:
                size -= 1
        await t.settle()
        assert seen == [size]
        assert size > 4000
