"""How the leader of a Kafka group shares the tasks out, in words alone: nothing here needs a broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thalweg.assignment import Assignment, Member
from thalweg.transports.kafka.sharing import Door, Plan, Word, newcomers, share_out

N = 12


class Group:
    """Members that do as they are told: each holds its share, and gives up what is in it no more when it is told to."""

    def __init__(self) -> None:
        self.generation = 0
        self.held: dict[str, frozenset[int]] = {}
        self.shares: Mapping[str, frozenset[int]] = {}
        self.plan = Plan()
        self.moves = 0

    def words(self) -> dict[str, Word]:
        return {name: Word(N, held, name=name, plan=self.plan) for name, held in self.held.items()}

    def agree(self, *outside: str) -> bool:
        """One generation; whether another one is needed."""
        self.generation += 1
        self.shares, verdict = share_out("g", N, self.generation, self.words(), outside)
        self.plan = verdict.plan
        for name, share in self.shares.items():
            others = frozenset().union(*(held for other, held in self.held.items() if other != name))
            assert not share & others, "a task has two owners"
            self.moves += len(share - self.held[name])
            self.held[name] |= share
        return verdict.more

    def give_up(self, *names: str) -> None:
        for name in names:
            self.held[name] &= self.shares[name]

    def settle(self) -> None:
        for _ in range(3):
            more = self.agree()
            self.give_up(*self.held)
            if not more:
                break
        assert not more
        assert sorted(task for held in self.held.values() for task in held) == list(range(N))
        sizes = [len(held) for held in self.held.values()]
        assert max(sizes) - min(sizes) <= 1


events = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=20)


@given(events)
def test_tasks_have_one_owner_at_a_time_and_are_spread_evenly_with_the_fewest_moves(
    events: list[tuple[bool, int]],
) -> None:
    group = Group()
    for comes, number in events:
        name = f"m{number}"
        before = dict(group.held)
        if comes:
            group.held.setdefault(name, frozenset())
        else:
            group.held.pop(name, None)
        if not group.held or group.held.keys() == before.keys():
            continue
        group.moves = 0
        group.settle()
        free = N - len(frozenset().union(*(held for other, held in before.items() if other in group.held)))
        fewest = max(free, sum(len(group.held[one]) for one in group.held.keys() - before.keys()))
        assert group.moves == fewest


def test_what_moves_is_nobodys_until_it_is_given_up_and_then_goes_to_whom_it_was_meant_for() -> None:
    group = Group()
    group.held["a"] = frozenset()
    group.settle()
    group.held["b"] = frozenset()
    assert group.agree()
    assert not group.shares["b"]
    meant = {task for task, owner in enumerate(group.plan.assignment.owners) if owner == "b"}
    assert len(meant) == N // 2
    group.held["c"] = frozenset()
    assert group.agree()
    group.give_up("a")
    assert not group.agree()
    assert group.shares["b"] <= meant
    assert len(group.shares["c"]) == N // 3


def test_one_that_comes_back_under_its_name_gets_what_it_had() -> None:
    group = Group()
    group.held = {"a": frozenset(), "b": frozenset(), "c": frozenset()}
    group.settle()
    had = group.held["b"]
    group.held["b"] = frozenset()
    group.settle()
    assert group.held["b"] == had


def test_standbys_lie_in_other_zones_and_take_over_from_an_owner_that_is_gone() -> None:
    zones = {"a": "x", "b": "x", "c": "y", "d": "y"}
    words = {name: Word(N, frozenset(), name=name, zone=zone) for name, zone in zones.items()}
    shares, verdict = share_out("g", N, 1, words, standbys=1)
    owners, standbys = verdict.plan.assignment.owners, verdict.plan.assignment.standbys
    for owner, (standby,) in zip(owners, standbys, strict=True):
        assert owner is not None
        assert zones[owner] != zones[standby]
    parts = {name: verdict.plan.part_of(name) for name in zones}
    assert {task for part in parts.values() if part is not None for task in part.standbys} == set(range(N))
    assert {name: part and part.owned for name, part in parts.items()} == shares
    assert verdict.plan.part_of("e") is None
    words = {
        name: Word(N, shares[name], name=name, zone=zone, plan=verdict.plan)
        for name, zone in zones.items()
        if name != "a"
    }
    heirs, _ = share_out("g", N, 2, words, standbys=1)
    assert any(task in heirs[name] for task in shares["a"] for name in standbys[task])


def test_any_assignor_will_do_and_one_that_goes_wrong_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    def all_to_the_last(
        group: str, n: int, members: Sequence[Member], previous: Assignment, standbys: int
    ) -> Assignment:
        return Assignment([members[-1].name] * n)

    words = {name: Word(N, frozenset(), name=name) for name in "abc"}
    shares, _ = share_out("g", N, 1, words, assignor=all_to_the_last)
    assert shares == {"a": frozenset(), "b": frozenset(), "c": frozenset(range(N))}
    shares, _ = share_out("g", N, 1, words, assignor=lambda *_: Assignment([None] * N))
    assert {len(share) for share in shares.values()} == {N // 3}
    assert "is used instead" in caplog.text


def test_two_members_of_one_name_are_told_apart() -> None:
    words = {"id 1": Word(N, frozenset(range(6)), name="a"), "id 2": Word(N, frozenset(), name="a")}
    shares, verdict = share_out("g", N, 1, words)
    assert shares == {"id 1": frozenset(range(6)), "id 2": frozenset(range(6, N))}
    assert not verdict.more


def test_those_who_rest_get_nothing_and_keep_their_part() -> None:
    words = {"1": Word(N, frozenset(range(N)), resting=True, name="a"), "2": Word(N, frozenset(), name="b")}
    shares, verdict = share_out("g", N, 1, words)
    assert not shares["1"] | shares["2"]
    assert verdict.more
    awake = {"1": Word(N, frozenset(), name="a", plan=verdict.plan), "2": Word(N, frozenset(), name="b")}
    assert not newcomers(awake)


def test_newcomers_wait_outside_while_others_work_and_the_first_of_all_do_not() -> None:
    group = Group()
    group.held["a"] = frozenset()
    assert not newcomers(group.words())
    group.settle()
    group.held["b"] = frozenset()
    assert newcomers(group.words()) == {"b"}
    assert not group.agree("b")
    assert group.shares == {"a": frozenset(range(N)), "b": frozenset()}
    assert newcomers(group.words()) == {"b"}
    group.settle()
    assert not newcomers(group.words())
    group.held = {"c": frozenset()}
    assert not newcomers(group.words())


def test_the_door_opens_when_nobody_has_come_for_a_while_or_the_first_has_waited_long() -> None:
    door = Door(1.0)
    assert door.wait((), 0.0) == 0
    assert door.wait(("a",), 10.0) == 1.0
    assert door.wait(("a", "b"), 10.5) == 1.0
    assert door.wait(("a", "b"), 11.0) == 0.5
    assert door.wait(("a", "b"), 11.5) == 0
    assert door.wait(("c",), 20.0) == 1.0
    assert door.wait(("c", "d", "e"), 29.5) == 0.5
    assert Door(0.0).wait(("a",), 1.0) == 0
