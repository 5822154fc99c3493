"""Tables whose value type changed: rows are read as they were written, and upgraded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from thalweg import App, Stream
from thalweg.errors import ConfigurationError, DecodeError, OutsideEvent


class Whole(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Parts(msgspec.Struct, forbid_unknown_fields=True):
    first: str
    last: str


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    first: str
    last: str
    visits: int


def parts_of(old: Whole) -> Parts:
    first, _, last = old.name.partition(" ")
    return Parts(first, last)


def person_of(old: Parts) -> Person:
    return Person(old.first, old.last, 0)


STEPS = [(Whole, parts_of), (Parts, person_of)]


def make_app(broker: str, value: Any, upgrades: Sequence[Any] = (), codec: str | None = None) -> tuple[App, Any, Any]:
    """An agent that stores what it is sent; a version that counts visits; both keep the same table."""
    app = App("people", broker=broker, partitions=1)
    names = app.topic("names", key=str, value=str)
    people = app.table("people", key=str, value=value, upgrades=upgrades, codec=codec)

    @app.agent(names)
    async def keep(stream: Stream[str]) -> None:
        async for event in stream.events():
            if value is Person:
                was = people[event.key]
                people[event.key] = Person(was.first, was.last, was.visits + 1)
            else:
                people[event.key] = Whole(event.value) if value is Whole else Parts(*event.value.split())

    return app, names, people


async def eventually(app: App, seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not seen():
            await app.sleep(0.005)


@pytest.mark.parametrize("codec", [None, "msgpack"])
async def test_rows_of_every_older_type_are_upgraded_and_stay_so(codec: str | None) -> None:
    broker = f"memory://upgrades-{codec}"
    app, names, people = make_app(broker, Whole, codec=codec)
    keep = [app]  # what lies on a memory:// broker lasts as long as its apps
    async with app:
        await names.send_many([("ada", "Ada Lovelace"), ("bob", "Bob Smith")])
        await eventually(app, lambda: "ada" in people and "bob" in people)
    app, names, people = make_app(broker, Parts, STEPS[:1], codec)
    keep.append(app)
    async with app:
        assert people["ada"] == Parts("Ada", "Lovelace")
        await names.send("Eve Adams", key="eve")
        await eventually(app, lambda: "eve" in people)
    app, names, people = make_app(broker, Person, STEPS, codec)
    async with app:
        assert dict(people.items()) == {
            "ada": Person("Ada", "Lovelace", 0),
            "bob": Person("Bob", "Smith", 0),
            "eve": Person("Eve", "Adams", 0),
        }
        await names.send_many([("ada", ""), ("eve", "")])
        await eventually(app, lambda: people["ada"].visits == people["eve"].visits == 1)
    keep.append(app)
    app, _, people = make_app(broker, Person, STEPS[1:], codec)
    async with app:  # what was written since needs no upgrade; what was not still does
        assert (people["ada"].visits, people["eve"].visits) == (1, 1)
        with pytest.raises(DecodeError, match=r"table 'people', key 'bob': the row was written as another type"):
            people["bob"]


async def test_an_upgrade_that_fails_names_table_and_type_and_the_row_is_kept() -> None:
    broker = "memory://upgrades-failing"

    def fails(old: Whole) -> Person:
        raise LookupError(f"no last name in {old.name}")

    first, names, rows = make_app(broker, Whole)
    async with first:
        await names.send("Ada", key="ada")
        await eventually(first, lambda: "ada" in rows)
    second, names, people = make_app(broker, Person, [(Whole, fails)])
    async with second:
        with pytest.raises(DecodeError, match=r"table 'people': a row of the type Whole .*LookupError: no last name"):
            people["ada"]
    third, _, people = make_app(broker, Whole)
    async with third:
        assert people["ada"] == Whole("Ada")
        with pytest.raises(OutsideEvent):
            people["ada"] = Whole("Eve")


@pytest.mark.parametrize("wrong", [[Whole], [(Whole,)], [(Whole, "no function")], [[Whole, parts_of]]])
def test_what_is_no_pair_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected pairs"):
        make_app("memory://", Parts, wrong)
