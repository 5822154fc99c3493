"""A topic that carries tombstones says so in its type, and its readers see them."""

import msgspec
from thalweg import App


class Account(msgspec.Struct):
    owner: str


async def test_none_is_a_tombstone_to_agents_and_deletes_the_row_of_a_table_of_the_topic() -> None:
    app = App("bank", partitions=1)
    accounts = app.topic("accounts", value=Account | None, compact=True)
    current = accounts.table("current")
    seen: list[Account | None] = []

    @app.handler(accounts)
    async def watch(account: Account | None) -> None:
        seen.append(account)

    async with app.test() as t:
        await accounts.send(Account("ada"), key="1")
        await accounts.send(Account("bob"), key="2")
        await t.settle()
        assert dict(current.items()) == {"1": Account("ada"), "2": Account("bob")}
        await accounts.send(None, key="1")
        await t.settle()
        assert dict(current.items()) == {"2": Account("bob")}
        assert [event.value for event in t.sent(accounts)] == [Account("ada"), Account("bob"), None]
    assert seen == [Account("ada"), Account("bob"), None]
