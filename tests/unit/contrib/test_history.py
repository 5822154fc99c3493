"""The judge of histories: each kind of fault is found, and nothing else is."""

from __future__ import annotations

import pytest
from thalweg.contrib.conformance.history import Committed, Delivered, Event, GivenBack, Put, faults_of

# Two messages of a key, put, delivered in order and committed by one member.
GOOD: list[Event] = [
    Put("m1", "k", "p", 0, 1),
    Put("m2", "k", "p", 2, 3),
    Delivered("m1", "k", "a", 1, 4, 5),
    Delivered("m2", "k", "a", 1, 6, 7),
    Committed("m1", "a", 8, 9),
    Committed("m2", "a", 10, 11),
]


def without(*kinds: type, message: str) -> list[Event]:
    return [event for event in GOOD if not (isinstance(event, kinds) and getattr(event, "message", "") == message)]


def words(events: list[Event], ordered: bool = True) -> list[str]:
    return sorted(" ".join(fault.split()[:2]).rstrip(":") for fault in faults_of(events, ordered))


def test_a_good_history_has_no_faults() -> None:
    assert words(GOOD) == []


def test_a_message_that_was_never_delivered_is_lost() -> None:
    assert words(without(Delivered, Committed, message="m2")) == ["lost m2"]


def test_a_message_that_was_never_settled_is_lost() -> None:
    assert words(without(Committed, message="m2")) == ["lost m2"]


def test_a_put_that_failed_may_be_missing_or_not() -> None:
    failed: list[Event] = [Put("m3", "k", "p", 20, 21, "failed")]
    assert words(GOOD + failed) == []
    assert words([*GOOD, *failed, Delivered("m3", "k", "a", 1, 22, 23), Committed("m3", "a", 24, 25)]) == []


def test_what_nobody_put_is_a_phantom() -> None:
    assert words([*GOOD, Delivered("m9", "k", "a", 1, 12, 13)]) == ["phantom m9"]


def test_what_comes_back_after_its_commit_is_undead() -> None:
    assert words([*GOOD, GivenBack("a", "killed", 12), Delivered("m1", "k", "b", 2, 13, 14)]) == ["undead m1"]


def test_a_get_that_began_before_the_commit_ended_may_bring_it_if_it_was_let_go() -> None:
    assert words([*GOOD, GivenBack("a", "killed", 7), Delivered("m2", "k", "b", 2, 8, 14)], False) == []


def test_a_second_delivery_while_the_first_is_in_hand_is_a_duplicate() -> None:
    events: list[Event] = [*GOOD[:4], Delivered("m2", "k", "b", 2, 7, 8), *GOOD[4:]]
    assert words(events, False) == ["duplicate m2"]
    assert words(events) == ["duplicate m2", "shared m2"]


@pytest.mark.parametrize("why", ["killed", "hangs", "closed"])
def test_a_second_delivery_after_the_first_member_let_go_is_none(why: str) -> None:
    events: list[Event] = [*GOOD[:4], GivenBack("a", why, 8), Delivered("m1", "k", "b", 2, 9, 10),
                           Delivered("m2", "k", "b", 2, 11, 12), Committed("m1", "b", 13, 14),
                           Committed("m2", "b", 15, 16)]  # fmt: skip
    assert words(events) == []


def test_letting_go_before_the_delivery_is_no_excuse() -> None:
    events: list[Event] = [GivenBack("a", "closed", 3), *GOOD[:4], Delivered("m2", "k", "b", 2, 8, 9), *GOOD[4:]]
    assert "duplicate m2" in words(events)


def test_a_return_that_is_not_counted_is_found() -> None:
    events: list[Event] = [*GOOD[:4], GivenBack("a", "killed", 8), Delivered("m2", "k", "b", 1, 9, 10), *GOOD[4:]]
    assert "uncounted m2" in words(events, False)


def test_a_message_that_comes_before_an_earlier_one_of_its_key_has_overtaken_it() -> None:
    events: list[Event] = [*GOOD[:2], Delivered("m2", "k", "a", 1, 4, 5), Delivered("m1", "k", "a", 1, 6, 7), *GOOD[4:]]
    assert words(events) == ["overtaken m1"]
    assert words(events, ordered=False) == []


def test_messages_whose_puts_overlapped_have_no_order() -> None:
    events: list[Event] = [Put("m1", "k", "p", 0, 3), Put("m2", "k", "q", 1, 2), *GOOD[2:]]
    assert words(events) == []


def test_a_key_in_the_hands_of_two_members_is_found_and_two_keys_are_not() -> None:
    second = Delivered("m2", "k", "b", 1, 6, 7)
    events: list[Event] = [*GOOD[:3], second, *GOOD[4:5], Committed("m2", "b", 10, 11)]
    assert words(events) == ["shared m2"]
    other: list[Event] = [GOOD[0], Put("m2", "j", "p", 2, 3), GOOD[2], Delivered("m2", "j", "b", 1, 6, 7), GOOD[4],
                          Committed("m2", "b", 10, 11)]  # fmt: skip
    assert words(other) == []


@pytest.mark.parametrize(("why", "forgiven"), [("restart", True), ("killed", False)])
def test_a_broker_that_forgets_counts_when_it_is_killed_is_forgiven_those_and_no_others(
    why: str, forgiven: bool
) -> None:
    events: list[Event] = [
        Put("m1", "k", "p", 0, 1),
        Delivered("m1", "k", "a", 1, 2, 3),
        GivenBack("a", why, 4),
        Delivered("m1", "k", "b", 1, 5, 6),
        Committed("m1", "b", 7, 8),
    ]
    faults = list(faults_of(events, ordered=False, counts_survive=False))
    assert [fault.split()[0] for fault in faults] == ([] if forgiven else ["uncounted"])
    assert words(events, False) == ["uncounted m1"]
