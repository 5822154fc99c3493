"""Ours, for any group, members, zones and past; and what becomes of a foreign one's wrong answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thalweg.assignment import Assignment, Member, checked, load_assignor, sticky
from thalweg.errors import ConfigurationError

NAMES = st.text("abcdefgh", min_size=1, max_size=3)
NOBODY = Assignment(())


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    return [Member(name, draw(st.sampled_from(["", "east", "west", "north"]))) for name in names]


@st.composite
def pasts(draw: st.DrawFn) -> tuple[int, list[Member], Assignment, int]:
    """Tasks, members, and an assignment to some of them and to others who are gone."""
    n = draw(st.integers(0, 24))
    now = draw(members())
    names = [*(member.name for member in now), "gone", "lost", None]
    owners = [draw(st.sampled_from(names)) for _ in range(n)]
    known = st.lists(st.sampled_from([name for name in names if name]), max_size=3, unique=True)
    return (
        n,
        now,
        Assignment(owners, draw(st.one_of(st.just([]), st.lists(known, min_size=n, max_size=n)))),
        draw(st.integers(0, 3)),
    )


@given(pasts())
def test_every_task_has_an_owner_and_shares_are_even(past: tuple[int, list[Member], Assignment, int]) -> None:
    n, now, previous, standbys = past
    found = sticky("g", n, now, previous, standbys)
    count = Counter(found.owners)
    assert len(found.owners) == n
    assert count.keys() <= {member.name for member in now}
    sizes = [count[member.name] for member in now]
    assert max(sizes) - min(sizes) <= 1


@given(pasts())
def test_no_more_moves_than_evenness_asks_for(past: tuple[int, list[Member], Assignment, int]) -> None:
    n, now, previous, standbys = past
    found = sticky("g", n, now, previous, standbys)
    stayed = sum(owner == was for owner, was in zip(found.owners, previous.owners, strict=True))
    had = Counter(previous.owners)
    least, more = divmod(n, len(now))
    larger = sum(had[member.name] > least for member in now)
    assert stayed == sum(min(had[member.name], least) for member in now) + min(more, larger)


@given(pasts())
def test_standbys_are_others_and_as_many_as_can_be(past: tuple[int, list[Member], Assignment, int]) -> None:
    n, now, previous, standbys = past
    found = sticky("g", n, now, previous, standbys)
    for task in range(n):
        others = found.standbys_of(task)
        assert len({*others, found.owners[task]}) == len(others) + 1
        assert len(others) == min(standbys, len(now) - 1)


@given(pasts())
def test_it_is_the_same_whoever_computes_it_and_stays_once_it_is_there(
    past: tuple[int, list[Member], Assignment, int],
) -> None:
    n, now, previous, standbys = past
    found = sticky("g", n, now, previous, standbys)
    assert sticky("g", n, now[::-1], previous, standbys) == found
    assert sticky("g", n, now, found, standbys).owners == found.owners


@given(members(), st.integers(1, 24), st.integers(1, 2), st.data())
def test_when_one_is_gone_its_standbys_come_first(
    now: list[Member], n: int, standbys: int, data: st.DataObject
) -> None:
    before = sticky("g", n, now, NOBODY, standbys)
    gone = data.draw(st.sampled_from(now))
    rest = [member for member in now if member is not gone]
    if not rest:
        return
    after = sticky("g", n, rest, before, standbys)
    for task, (was, owner) in enumerate(zip(before.owners, after.owners, strict=True)):
        if was != gone.name:
            assert owner == was or Counter(before.owners)[was] > n // len(rest)
        elif owner not in before.standbys_of(task):  # then none of them had room
            least = n // len(rest)
            warm = [name for name in before.standbys_of(task) if name != gone.name]
            assert all(Counter(after.owners)[name] >= least for name in warm)


@given(st.integers(1, 24), st.integers(2, 4), st.integers(1, 2))
def test_standbys_lie_in_other_zones_if_there_are_any(n: int, zones: int, each: int) -> None:
    now = [Member(f"{zone}{number}", f"zone{zone}") for zone in range(zones) for number in range(each)]
    where = {member.name: member.zone for member in now}
    found = sticky("g", n, now, NOBODY, zones - 1)
    for task, owner in enumerate(found.owners):
        assert owner is not None
        assert len({where[owner], *(where[name] for name in found.standbys_of(task))}) == zones


@given(st.integers(1, 24), st.integers(2, 6))
def test_standbys_are_spread_evenly(n: int, members: int) -> None:
    now = [Member(f"m{number}") for number in range(members)]
    count = Counter(name for names in sticky("g", n, now, NOBODY, 1).standbys for name in names)
    assert max(count.values()) <= -(-n // members) + 1


def test_whoever_owned_a_task_that_moved_stands_by_it() -> None:
    two = [Member("a"), Member("b")]
    before = sticky("g", 8, [Member("a")], NOBODY, 1)
    after = sticky("g", 8, [*two, Member("c")], before, 1)
    moved = [task for task in range(8) if after.owners[task] != "a"]
    assert sum(after.standbys_of(task) == ("a",) for task in moved) >= 2


@pytest.mark.parametrize(("steps", "moves"), [((1, 4, 2), 48 + 32), ((2, 3, 4, 3), 21 + 16 + 16), ((3, 30), 58)])
def test_workers_that_come_and_go_move_the_fewest(steps: Sequence[int], moves: int) -> None:
    was, moved = NOBODY, 0
    for number, count in enumerate(steps):
        found = sticky("g", 64, [Member(f"m{member}") for member in range(count)], was, 0)
        if number:
            moved += sum(owner != before for owner, before in zip(found.owners, was.owners, strict=True))
        was = found
    assert moved <= moves


def wrong(change: Callable[[Assignment], Any]) -> Callable[..., Any]:
    return lambda *arguments: change(sticky(*arguments))


@pytest.mark.parametrize(
    ("assignor", "says"),
    [
        (wrong(lambda found: None), "it gave NoneType"),
        (wrong(lambda found: Assignment(found.owners[1:])), "it gave 3 owners"),
        (wrong(lambda found: Assignment(found.owners, found.standbys[1:])), "3 lists of standbys for 4 tasks"),
        (wrong(lambda found: Assignment([None, *found.owners[1:]])), "task 0 went to None"),
        (wrong(lambda found: Assignment(["x", *found.owners[1:]])), "task 0 went to 'x', which is no member"),
        (wrong(lambda found: Assignment(found.owners, [[owner] for owner in found.owners])), "the standbys of task 0"),
        (wrong(lambda found: Assignment(found.owners, [["x"]] * 4)), "the standbys of task 0"),
        (wrong(lambda found: 1 / 0), "it raised ZeroDivisionError"),
    ],
)
def test_a_foreign_one_that_errs_is_told_of_and_not_followed(
    assignor: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = [Member("a"), Member("b"), Member("c")]
    with caplog.at_level(logging.ERROR):
        assert checked(assignor, "g", 4, now, NOBODY, 1) == sticky("g", 4, now, NOBODY, 1)
    assert says in caplog.text


def all_to_the_first(group: str, n: int, members: Sequence[Member], previous: Assignment, standbys: int) -> Assignment:
    return Assignment([members[0].name] * n)


def test_one_can_be_named() -> None:
    found = load_assignor(f"{__name__}:all_to_the_first")
    assert checked(found, "g", 3, [Member("a"), Member("b")], NOBODY, 0).owners == ["a", "a", "a"]
    assert load_assignor(None) is sticky
    assert load_assignor(all_to_the_first) is all_to_the_first
    for bad in ("nowhere", "thalweg.assignment:__all__", 5):
        with pytest.raises(ConfigurationError, match="assignor="):
            load_assignor(bad)  # type: ignore[arg-type]
